"""TensorRT and CUDA as a session uses them: an engine that doubles its input, "device" memory that is the host's."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np


class FakeCuda:
    """The calls that succeed; memory that was not freed is in `memory`."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}

    def cudaStreamCreate(self) -> tuple[int, int]:
        return 0, 7

    def cudaStreamDestroy(self, _: int) -> tuple[int]:
        return (0,)

    def cudaStreamSynchronize(self, _: int) -> tuple[int]:
        return (0,)

    def cudaMalloc(self, size: int) -> tuple[int, int]:
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
    """One engine: first [rows, 3] -> doubled [rows, 3]; profiles of up to 2, and of up to 8 rows."""

    __version__ = "0.0"
    TensorIOMode = SimpleNamespace(INPUT="in")
    EngineValidity = SimpleNamespace(INVALID="invalid")

    class Logger:
        ERROR = 1

        def __init__(self, _: int) -> None: ...

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.valid = True
        self.profiles: list[int] = []
        self.runtime: Any = None

    def Runtime(self, _: Any) -> Any:
        self.runtime = SimpleNamespace(
            engine_host_code_allowed=True,
            engine_header_size=64,
            get_engine_validity=lambda _: ("valid" if self.valid else "invalid", 4),
            deserialize_cuda_engine=lambda _: Engine(self),
        )
        return self.runtime

    def nptype(self, kind: Any) -> Any:
        return kind


class Engine:
    num_io_tensors, num_optimization_profiles = 2, 2

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

    def create_execution_context(self) -> Context:
        return Context(self.library)


class Context:
    def __init__(self, library: FakeLibrary) -> None:
        self.library = library
        self.active_optimization_profile = -1
        self.shape: tuple[int, ...] = ()
        self.at: dict[str, int] = {}

    def set_optimization_profile_async(self, profile: int, _: int) -> None:
        self.active_optimization_profile = profile
        self.library.profiles.append(profile)

    def set_input_shape(self, _: str, shape: tuple[int, ...]) -> bool:
        self.shape = tuple(shape)
        return True

    def get_tensor_shape(self, _: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, pointer: int) -> None:
        self.at[name] = pointer

    def execute_async_v3(self, _: int) -> bool:
        count = int(np.prod(self.shape))
        kind = ctypes.c_float * count
        given = np.ctypeslib.as_array(kind.from_address(self.at["first"]))
        given = given.copy()
        np.ctypeslib.as_array(kind.from_address(self.at["doubled"]))[:] = 2 * given
        return True
