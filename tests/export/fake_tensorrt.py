"""TensorRT and CUDA as a session uses them: an engine that doubles its input, "device" memory that is the host's.

`FakeLibrary` has what NVIDIA's `tensorrt` has, `FakeRtxLibrary` also what TensorRT for RTX has beside it.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np


class FakeCuda:
    """The calls that succeed; memory that was not freed is in `memory`. room: bytes that may be held at once."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.room = 2**30

    def cudaMemGetInfo(self) -> tuple[int, int, int]:
        return 0, self.room, 2**30

    def cudaStreamCreate(self) -> tuple[int, int]:
        return 0, 7

    def cudaStreamDestroy(self, _: int) -> tuple[int]:
        return (0,)

    def cudaStreamSynchronize(self, _: int) -> tuple[int]:
        return (0,)

    def cudaMalloc(self, size: int) -> tuple[int, int | None]:
        if size > self.room:
            # cudaErrorMemoryAllocation
            return 2, None
        buffer = ctypes.create_string_buffer(size)
        pointer = ctypes.addressof(buffer)
        self.memory[pointer] = buffer
        return 0, pointer

    def cudaFree(self, pointer: int) -> tuple[int]:
        del self.memory[pointer]
        return (0,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, *_: Any) -> tuple[int]:
        ctypes.memmove(to, source, size)
        return (0,)


class FakeLibrary:
    """One engine: first [rows, 3] -> doubled [rows, 3]; profiles of up to 2, and of up to 8 rows.

    fails: calls that say that they did not work; loaded: how many engines were deserialized.
    """

    __version__ = "0.0"
    TensorIOMode = SimpleNamespace(INPUT="in")

    class Logger:
        ERROR = 1

        def __init__(self, _: int) -> None: ...

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.fails: set[str] = set()
        self.loaded = 0
        self.profiles: list[int] = []
        self.runtime: Any = None

    def Runtime(self, _: Any) -> Any:
        self.runtime = SimpleNamespace(
            engine_host_code_allowed=True, deserialize_cuda_engine=self.load
        )
        return self.runtime

    def load(self, _: bytes) -> Any:
        self.loaded += 1
        return Engine(self)

    def works(self, call: str) -> bool:
        return call not in self.fails

    def nptype(self, kind: Any) -> Any:
        return kind


class FakeRtxLibrary(FakeLibrary):
    """reasons: why the engine's header is invalid, as bits of EngineInvalidityDiagnostics; None: it is not."""

    EngineValidity = SimpleNamespace(INVALID="invalid")
    reasons: int | None = None

    def Runtime(self, logger: Any) -> Any:
        made = super().Runtime(logger)
        made.engine_header_size = 64
        made.get_engine_validity = self.validity
        return made

    def validity(self, header: bytes) -> tuple[str, int]:
        assert len(header) <= 64
        return ("valid", 0) if self.reasons is None else ("invalid", self.reasons)


class Engine:
    num_io_tensors, num_optimization_profiles = 2, 2
    device_memory_size_v2 = 5_000_000

    def __init__(self, library: FakeLibrary) -> None:
        self.library = library

    def get_tensor_name(self, number: int) -> str:
        return ("first", "doubled")[number]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "first" else "out"

    def get_tensor_dtype(self, _: str) -> Any:
        return np.float32

    def get_tensor_shape(self, _: str) -> tuple[int, int]:
        return (-1, 3)

    def get_tensor_profile_shape(self, _: str, profile: int) -> list[tuple[int, int]]:
        most = (2, 8)[profile]
        return [(1, 3), (1, 3), (most, 3)]

    def create_execution_context(self) -> Context | None:
        return Context(self.library) if self.library.works("create_execution_context") else None


class Context:
    def __init__(self, library: FakeLibrary) -> None:
        self.library = library
        self.active_optimization_profile = -1
        self.shape: tuple[int, ...] = ()
        self.at: dict[str, int] = {}

    def set_optimization_profile_async(self, profile: int, _: int) -> bool:
        self.active_optimization_profile = profile
        self.library.profiles.append(profile)
        return self.library.works("set_optimization_profile_async")

    def set_input_shape(self, _: str, shape: tuple[int, ...]) -> bool:
        self.shape = tuple(shape)
        return self.library.works("set_input_shape")

    def get_tensor_shape(self, _: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self.at[name] = pointer
        return self.library.works("set_tensor_address")

    def execute_async_v3(self, _: int) -> bool:
        if not self.library.works("execute_async_v3"):
            return False
        count = int(np.prod(self.shape))
        kind = ctypes.c_float * count
        given = np.ctypeslib.as_array(kind.from_address(self.at["first"]))
        given = given.copy()
        np.ctypeslib.as_array(kind.from_address(self.at["doubled"]))[:] = 2 * given
        return True
