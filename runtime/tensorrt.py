"""One engine of TensorRT for RTX, or of TensorRT, on an NVIDIA GPU; the only module that touches them and CUDA.

An engine holds code for the GPU, so it is loaded only where its variant is named: see docs/targets.md. What TensorRT
for RTX compiles for the GPU at hand is kept in the cache.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from codemill.errors import BundleError, MachineError, ProviderError
from codemill.runtime.bundle import plain
from codemill.runtime.cache import compiled_folder
from codemill.runtime.engine_check import Here, check_built_for, refused_header
from codemill.runtime.engines import TENSORRT, TENSORRT_RTX
from codemill.runtime.gpus import first_gpu
from codemill.runtime.gpus import gpus as driven_gpus
from codemill.runtime.session import in_portions

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SUFFIX", "DeviceArray", "TensorRtSession", "available", "gpus", "logger", "tensorrt"]

SUFFIX = ".engine"
_PACKAGES = {TENSORRT_RTX: "tensorrt_rtx", TENSORRT: "tensorrt"}
_INSTALL = {TENSORRT_RTX: "pip install 'codemill[tensorrt]'", TENSORRT: "pip install tensorrt"}
_HEADER_BYTES = 64
"""Of an engine's file, that say what it was built for."""
_OUT_OF_MEMORY = 2
"""cudaErrorMemoryAllocation"""
_TYPES = {
    np.dtype(np.int64): "tensor(int64)",
    np.dtype(np.int32): "tensor(int32)",
    np.dtype(np.float32): "tensor(float)",
    np.dtype(np.float16): "tensor(float16)",
}


def tensorrt(provider: str) -> Any:
    """The Python package of a provider; ProviderError where it is not installed."""
    try:
        return importlib.import_module(_PACKAGES[provider])
    except ImportError as error:
        raise ProviderError(
            f"{provider} is not installed: {_INSTALL[provider]}, or choose another variant"
        ) from error


@cache
def logger(provider: str) -> Any:
    """The one logger of a library, quiet but for errors: it keeps the first that it is given as long as it runs."""
    library = tensorrt(provider)
    return library.Logger(library.Logger.ERROR)


def _cuda() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise ProviderError(
            "engines need cuda-python, which is not installed: pip install cuda-python"
        ) from error
    return runtime


def gpus() -> list[str]:
    """The compute capability of each NVIDIA GPU here, such as 8.6; none where there is no driver."""
    return [gpu.compute_capability for gpu in driven_gpus()]


def _done(cuda: Any, answer: tuple[Any, ...], what: str = "keys and values on the GPU") -> Any:
    """What a call of CUDA gave; MachineError where the GPU's memory is short, BundleError where it failed otherwise."""
    failed, *given = answer
    if failed:
        if int(failed) == _OUT_OF_MEMORY:
            raise MachineError(
                f"{what}: the GPU's memory is short; close what else uses it, or choose another variant"
            )
        _, said = cuda.cudaGetErrorString(failed)
        text = said.decode() if isinstance(said, bytes) else said
        raise BundleError(f"{what}: CUDA failed: {plain(text)}")
    return given[0] if given else None


class DeviceArray:
    """Zeros [1, heads, places, size] in memory of the GPU, freed with the object: keys or values of a text.

    Copies wait for what runs on any stream, and are waited for by it. Raises MachineError where the GPU's memory is
    short, and BundleError where CUDA fails otherwise.
    """

    def __init__(self, shape: tuple[int, int, int, int], dtype: type[np.floating[Any]]) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.nbytes = int(np.prod(shape)) * self.dtype.itemsize
        cuda = self._cuda = _cuda()
        self.pointer = int(_done(cuda, cuda.cudaMalloc(self.nbytes)))
        self._freed = weakref.finalize(self, cuda.cudaFree, self.pointer)
        # whatever lay there: a number that is none spoils sums, whatever it is multiplied with
        _done(cuda, cuda.cudaMemset(self.pointer, 0, self.nbytes))

    def put(self, at: int, rows: NDArray[Any] | DeviceArray, count: int) -> None:
        """Write the places from `at` on: rows lie close together, [1, heads, count, size] of this type."""
        kinds = self._cuda.cudaMemcpyKind
        if isinstance(rows, DeviceArray):
            source, kind = rows.pointer, kinds.cudaMemcpyDeviceToDevice
        else:
            source, kind = rows.ctypes.data, kinds.cudaMemcpyHostToDevice
        width = count * self._place_bytes
        pitch, to = self._head_bytes, self.pointer + at * self._place_bytes
        _done(
            self._cuda,
            self._cuda.cudaMemcpy2D(to, pitch, source, width, width, self.shape[1], kind),
        )

    def take(self, start: int, end: int) -> NDArray[Any]:
        """A copy of the places [start, end): [1, heads, end - start, size]."""
        _, heads, _, size = self.shape
        found = np.empty((1, heads, end - start, size), self.dtype)
        width = (end - start) * self._place_bytes
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        source = self.pointer + start * self._place_bytes
        to, pitch = found.ctypes.data, self._head_bytes
        _done(self._cuda, self._cuda.cudaMemcpy2D(to, width, source, pitch, width, heads, kind))
        return found

    @property
    def _place_bytes(self) -> int:
        return self.shape[3] * self.dtype.itemsize

    @property
    def _head_bytes(self) -> int:
        return self.shape[2] * self._place_bytes


class TensorRtSession:
    """An engine: a `Session`. Runs one call at a time, each with the first profile that fits its shapes.

    built_for: what the manifest says of it. Raises ProviderError where the package, a driver or a GPU is missing or
    too old, or where the engine is for another GPU or version; MachineError where the GPU's memory is short;
    BundleError where the file is no engine.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        provider: str,
        built_for: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        library = tensorrt(provider)
        self.path, self.provider = os.fspath(path), provider
        if not gpus():
            raise ProviderError(
                f"{provider} needs an NVIDIA GPU and its driver, and none is found here; choose another variant"
            )
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise BundleError(f"cannot read {self.path}: {error.strerror or error}") from error
        self._library, self._cuda = library, _cuda()
        self._runtime = library.Runtime(logger(provider))
        # never: code for the host, which a file may bring along, would run with this process's rights
        self._runtime.engine_host_code_allowed = False
        self._check(content, built_for)
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise BundleError(
                f"{self.path} is no engine that {provider} {library.__version__} loads; what it printed says why"
            )
        self._engine = engine
        self._cached = self._cache_of(content) if provider == TENSORRT_RTX else None
        self._context = self._made_context()
        self._lock = threading.Lock()
        self._stream = self._did(self._cuda.cudaStreamCreate())
        self._buffers: dict[str, tuple[int, int]] = {}
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        mode = library.TensorIOMode.INPUT
        self._inputs = [name for name in names if engine.get_tensor_mode(name) == mode]
        self._kinds = {
            name: np.dtype(library.nptype(engine.get_tensor_dtype(name))) for name in names
        }
        self.inputs = {name: self._type_of(name) for name in self._inputs}
        self.outputs = {
            name: (self._type_of(name), self._shape_of(name))
            for name in names
            if name not in self._inputs
        }

    def outputs_for(
        self, inputs: Mapping[str, NDArray[Any]], names: Sequence[str]
    ) -> list[NDArray[Any]]:
        """The outputs called `names` for `inputs`; BundleError where the engine fails, MachineError where memory is
        short.
        """
        with self._lock:
            if self._engine is None:
                raise RuntimeError(f"the session of {self.path} is closed")
            return in_portions(lambda some: self._run(some, names), inputs, self._most_rows())

    def outputs_into(
        self,
        inputs: Mapping[str, NDArray[Any] | DeviceArray],
        names: Sequence[str],
        into: Mapping[str, DeviceArray],
    ) -> list[NDArray[Any]]:
        """As `outputs_for`, in one run; inputs may lie on the GPU, and outputs go where `into` says, close together."""
        with self._lock:
            if self._engine is None:
                raise RuntimeError(f"the session of {self.path} is closed")
            return self._run(inputs, names, into)

    def close(self) -> None:
        """Free the engine and what it has on the GPU; a run under way in another thread ends first."""
        with self._lock:
            if self._engine is None:
                return
            self._keep_compiled()
            for pointer, _ in self._buffers.values():
                self._cuda.cudaFree(pointer)
            self._buffers.clear()
            self._cuda.cudaStreamDestroy(self._stream)
            self._context = self._engine = self._runtime = None

    def _run(
        self,
        inputs: Mapping[str, NDArray[Any] | DeviceArray],
        names: Sequence[str],
        into: Mapping[str, DeviceArray] | None = None,
    ) -> list[NDArray[Any]]:
        context, cuda = self._context, self._cuda
        arrays = {name: self._as_taken(name, inputs[name]) for name in self._inputs}
        profile = self._profile_for(arrays)
        if context.active_optimization_profile != profile:
            self._need(context.set_optimization_profile_async(profile, self._stream))
        for name, array in arrays.items():
            if not context.set_input_shape(name, array.shape):
                raise BundleError(f"{self.path} does not take {name} of shape {list(array.shape)}")
            if isinstance(array, DeviceArray):
                self._need(context.set_tensor_address(name, array.pointer))
                continue
            pointer = self._room(name, array.nbytes)
            self._did(
                cuda.cudaMemcpyAsync(
                    pointer,
                    array.ctypes.data,
                    array.nbytes,
                    cuda.cudaMemcpyKind.cudaMemcpyHostToDevice,
                    self._stream,
                )
            )
            self._need(context.set_tensor_address(name, pointer))
        found = {}
        for name in self.outputs:
            shape, kind = tuple(context.get_tensor_shape(name)), self._kinds[name]
            there = (into or {}).get(name)
            if there is not None:
                if there.dtype != kind or int(np.prod(shape)) * kind.itemsize > there.nbytes:
                    raise BundleError(f"{self.path} gives {name} as {kind} of shape {list(shape)}")
                self._need(context.set_tensor_address(name, there.pointer))
                continue
            found[name] = np.empty(shape, kind)
            self._need(context.set_tensor_address(name, self._room(name, found[name].nbytes)))
        self._need(context.execute_async_v3(self._stream))
        for name in names:
            array = found[name]
            self._did(
                cuda.cudaMemcpyAsync(
                    array.ctypes.data,
                    self._buffers[name][0],
                    array.nbytes,
                    cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost,
                    self._stream,
                )
            )
        self._did(cuda.cudaStreamSynchronize(self._stream))
        return [found[name] for name in names]

    def _as_taken(self, name: str, array: NDArray[Any] | DeviceArray) -> NDArray[Any] | DeviceArray:
        if isinstance(array, DeviceArray):
            if array.dtype != self._kinds[name]:
                raise BundleError(f"{self.path} takes {name} as {self._kinds[name]}")
            return array
        return np.ascontiguousarray(array, dtype=self._kinds[name])

    def _profile_for(self, arrays: Mapping[str, NDArray[Any] | DeviceArray]) -> int:
        for number in range(self._engine.num_optimization_profiles):
            if all(self._fits(name, array.shape, number) for name, array in arrays.items()):
                return number
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        raise BundleError(f"{self.path} was built for smaller inputs than {shapes}")

    def _most_rows(self) -> int:
        """Of one run: what the widest profile takes."""
        name = self._inputs[0]
        return max(
            int(next(iter(self._engine.get_tensor_profile_shape(name, number)[2])))
            for number in range(self._engine.num_optimization_profiles)
        )

    def _fits(self, name: str, shape: Sequence[int], profile: int) -> bool:
        least, _, most = self._engine.get_tensor_profile_shape(name, profile)
        return len(shape) == len(tuple(least)) and all(
            a <= size <= b for a, size, b in zip(least, shape, most, strict=True)
        )

    def _room(self, name: str, size: int) -> int:
        """Memory on the GPU for a tensor; it grows and never shrinks."""
        pointer, there = self._buffers.get(name, (0, 0))
        if there < size:
            if pointer:
                self._cuda.cudaFree(pointer)
                del self._buffers[name]
            pointer = self._did(self._cuda.cudaMalloc(size))
            self._buffers[name] = (pointer, size)
        return pointer

    def _did(self, answer: tuple[Any, ...]) -> Any:
        """What a call of CUDA gave; raises as `_done` does."""
        return _done(self._cuda, answer, self.path)

    def _need(self, worked: bool) -> None:
        """Raise BundleError where a call of the engine says that it did not work."""
        if not worked:
            raise BundleError(
                f"{self.path} failed while running; what {self.provider} printed says why"
            )

    def _check(self, content: bytes, built_for: Mapping[str, Any]) -> None:
        """Raise, as `engine_check` says, where the engine would not run here."""
        here = Here(self.provider, self._library.__version__, first_gpu())
        ask = getattr(self._runtime, "get_engine_validity", None)
        if ask is None:
            # NVIDIA's `tensorrt` reads no header, and of an engine that it does not load says nothing but that
            check_built_for(self.path, built_for, here)
            return
        size = getattr(self._runtime, "engine_header_size", _HEADER_BYTES)
        validity, reasons = ask(content[:size])
        if validity == self._library.EngineValidity.INVALID:
            raise refused_header(self.path, int(reasons), built_for, here)

    def _cache_of(self, content: bytes) -> Path:
        import hashlib

        name = hashlib.sha256(content).hexdigest()
        return compiled_folder("tensorrt") / f"{name}-{self._library.__version__}.cache"

    def _made_context(self) -> Any:
        """What runs the engine; MachineError where there is none, as where the GPU's memory is short."""
        engine = self._engine
        if self._cached is None:
            context = engine.create_execution_context()
        else:
            config = engine.create_runtime_config()
            self._compiled = config.create_runtime_cache()
            with contextlib.suppress(OSError):
                self._compiled.deserialize(self._cached.read_bytes())
            config.set_runtime_cache(self._compiled)
            context = engine.create_execution_context(config)
        if context is None:
            free = self._did(self._cuda.cudaMemGetInfo())
            raise MachineError(
                f"{self.path}: {self.provider} made no context to run it in, as where the GPU's memory is short: the "
                f"engine takes {engine.device_memory_size_v2:,} bytes beside its weights, and {free:,} are free. Close "
                "what else uses the GPU, or choose another variant; what it printed says more"
            )
        return context

    def _keep_compiled(self) -> None:
        if self._cached is None:
            return
        from codemill.runtime.atomic import write_atomically

        with contextlib.suppress(OSError):
            content = bytes(self._compiled.serialize())
            write_atomically(self._cached, lambda file: file.write(content))

    def _type_of(self, name: str) -> str:
        kind = self._kinds[name]
        return _TYPES.get(kind, str(kind))

    def _shape_of(self, name: str) -> tuple[int | str | None, ...]:
        return tuple(
            None if size < 0 else int(size) for size in self._engine.get_tensor_shape(name)
        )


def available() -> tuple[str, ...]:
    """Those of both that are installed, where there is a GPU and its memory can be reached; asks its driver."""
    here = tuple(name for name, package in _PACKAGES.items() if find_spec(package) is not None)
    return here if here and find_spec("cuda") is not None and gpus() else ()
