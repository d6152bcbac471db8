"""TensorRT as a decoder's session uses it: each engine is an ONNX graph, run by ONNX Runtime from "device" memory."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from .fake_tensorrt import FakeCuda, FakeLibrary, FakeRtxLibrary

KINDS = {
    **{"tensor(float)": np.float32, "tensor(float16)": np.float16},
    **{"tensor(int32)": np.int32, "tensor(int64)": np.int64},
}
MOST = {"tokens": 128, "past": 128}


class GraphCuda(FakeCuda):
    """With copies of some bytes of each row; memory is not zeros when it is given."""

    cudaMemcpyKind = SimpleNamespace(
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
    )

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[int] = []

    def cudaMalloc(self, size: int) -> tuple[int, int | None]:
        failed, pointer = super().cudaMalloc(size)
        assert pointer is not None
        ctypes.memset(pointer, 0xFF, size)
        return failed, pointer

    def cudaMemset(self, pointer: int, value: int, size: int) -> tuple[int]:
        ctypes.memset(pointer, value, size)
        return (0,)

    def cudaMemcpy2D(
        self, to: int, to_pitch: int, source: int, pitch: int, width: int, rows: int, kind: int
    ) -> tuple[int]:
        assert width <= min(pitch, to_pitch)
        self.kinds.append(kind)
        for row in range(rows):
            ctypes.memmove(to + row * to_pitch, source + row * pitch, width)
        return (0,)


class GraphLibrary(FakeLibrary):
    """An engine's file holds the path of its graph."""

    def Runtime(self, logger: Any) -> Any:
        made = super().Runtime(logger)
        made.deserialize_cuda_engine = lambda content: GraphEngine(Path(content.decode()))
        return made


class RtxGraphLibrary(GraphLibrary, FakeRtxLibrary):
    """With what TensorRT for RTX asks of an engine's header."""


class GraphEngine:
    """What a session asks of an engine."""

    num_optimization_profiles = 1

    def __init__(self, path: Path) -> None:
        self.opened = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.inputs = {item.name: item for item in self.opened.get_inputs()}
        self.outputs = {item.name: item for item in self.opened.get_outputs()}
        self.every = {**self.inputs, **self.outputs}
        self.num_io_tensors = len(self.every)

    def get_tensor_name(self, number: int) -> str:
        return list(self.every)[number]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name in self.inputs else "out"

    def get_tensor_dtype(self, name: str) -> Any:
        return KINDS[self.every[name].type]

    def get_tensor_shape(self, name: str) -> list[int]:
        return [size if isinstance(size, int) else -1 for size in self.every[name].shape]

    def get_tensor_profile_shape(self, name: str, _: int) -> list[list[int]]:
        shape = self.every[name].shape
        return [
            [size if isinstance(size, int) else sizes.get(size, 1) for size in shape]
            for sizes in ({}, {}, MOST)
        ]

    def create_runtime_config(self) -> Any:
        cache = SimpleNamespace(serialize=lambda: b"compiled", deserialize=lambda _: None)
        return SimpleNamespace(create_runtime_cache=lambda: cache, set_runtime_cache=lambda _: None)

    def create_execution_context(self, _: Any = None) -> GraphContext:
        return GraphContext(self)


class GraphContext:
    """Runs the graph on what lies at the addresses it was given."""

    active_optimization_profile = 0

    def __init__(self, engine: GraphEngine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.at: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes = {
            label: size
            for item in self.engine.inputs.values()
            for label, size in zip(item.shape, self.shapes[item.name], strict=True)
        }
        return tuple(
            size if isinstance(size, int) else sizes[size] for size in self.engine.every[name].shape
        )

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self.at[name] = pointer
        return True

    def execute_async_v3(self, _: int) -> bool:
        inputs = {name: self._array(name).copy() for name in self.engine.inputs}
        names = list(self.engine.outputs)
        for name, found in zip(names, self.engine.opened.run(names, inputs), strict=True):
            self._array(name)[:] = found
        return True

    def _array(self, name: str) -> np.ndarray:
        kind = np.dtype(self.engine.get_tensor_dtype(name))
        shape = self.get_tensor_shape(name)
        size = int(np.prod(shape)) * kind.itemsize
        there = (ctypes.c_char * size).from_address(self.at[name])
        return np.frombuffer(there, kind).reshape(shape)
