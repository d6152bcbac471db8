"""One file of weights that several graphs read: each matrix is written once, as it comes, and named by place.

A graph refers to a part of the file (ONNX's external data), so that a segment, the plain one-graph form and the
projection of skipped layers share bytes; the last one reads only the rows of keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx
from onnx import TensorProto, helper

from codemill.export.decoder.rounding import FULL, Rounding
from codemill.export.decoder.shape import Linear
from codemill.export.quantize.blocks import quantize_blocks

__all__ = ["Matrix", "WeightFile"]

_ALIGNMENT = 64
_IN_FULL = Rounding(FULL)


@dataclass(frozen=True)
class Matrix:
    """A matrix in the file: [rows, columns] at `bits`, in blocks of `block` unless in full.

    symmetric: without zero points; biased: with a bias.
    """

    key: str
    rows: int
    columns: int
    bits: int
    block: int
    symmetric: bool
    biased: bool

    @property
    def parts(self) -> tuple[str, ...]:
        """What lies under its key, of a matrix in blocks, as operators take it."""
        return ("values", "scales") if self.symmetric else ("values", "scales", "zero_points")


@dataclass(frozen=True)
class _Place:
    offset: int
    shape: tuple[int, ...]
    kind: int
    row_bytes: int


class WeightFile:
    """A context manager that writes `path`; it may be read from the beginning on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = path.open("wb")
        self._places: dict[str, _Place] = {}
        self._matrices: dict[str, Matrix] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def matrix(
        self, key: str, linear: Linear, rounding: Rounding = _IN_FULL, name: str = ""
    ) -> Matrix:
        """Write a matrix as `rounding` says of its name; what is there under this key is not written again."""
        if key in self._matrices:
            return self._matrices[key]
        rows, columns = linear.weight.shape
        bits, block = rounding.bits_of(name), rounding.block
        symmetric = rounding.is_symmetric(bits)
        if bits == FULL:
            self.array(f"{key}/weight", linear.weight)
        else:
            blocks = rounding.rounded(name)
            if blocks is None:
                blocks = quantize_blocks(linear.weight, bits, block, symmetric)
            found = (blocks.block, blocks.columns, len(blocks.values), blocks.zero_points is None)
            if found != (block, columns, rows, symmetric):
                raise ValueError(
                    f"{key} was rounded as another matrix, or in other blocks than "
                    f"{'symmetric ones ' * symmetric}of {block}"
                )
            self.array(f"{key}/values", blocks.values)
            self.array(f"{key}/scales", blocks.scales)
            if blocks.zero_points is not None:
                self.array(f"{key}/zero_points", blocks.zero_points)
        if linear.bias is not None:
            self.array(f"{key}/bias", linear.bias)
        biased = linear.bias is not None
        self._matrices[key] = Matrix(key, rows, columns, bits, block, symmetric, biased)
        return self._matrices[key]

    def has(self, key: str) -> bool:
        """Whether an array was written under this key."""
        return key in self._places

    def array(self, key: str, values: np.ndarray) -> None:
        """Write an array, once."""
        if key in self._places:
            return
        values = np.ascontiguousarray(values)
        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
        kind = helper.np_dtype_to_tensor_dtype(values.dtype)
        row = values.nbytes // len(values)
        self._places[key] = _Place(self._file.tell(), values.shape, kind, row)
        self._file.write(values.data)

    def tensor(
        self,
        key: str,
        name: str,
        rows: tuple[int, int] | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> TensorProto:
        """An initializer called `name`: these rows [start, end) of the array, or all; `shape`: of the same bytes."""
        place = self._places[key]
        start, end = rows or (0, place.shape[0])
        tensor = TensorProto(name=name, data_type=place.kind)
        tensor.dims.extend(shape or (end - start, *place.shape[1:]))
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for entry, value in (
            ("location", self.path.name),
            ("offset", place.offset + start * place.row_bytes),
            ("length", (end - start) * place.row_bytes),
        ):
            tensor.external_data.add(key=entry, value=str(value))
        return tensor
