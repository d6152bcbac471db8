"""Weights in blocks, each with a scale and maybe a zero point: what ONNX Runtime's MatMulNBits multiplies by.

Of each row, `block` neighbours share a scale. Only weights are quantized; ONNX Runtime rounds the other side of the
product to 8 bits by itself (accuracy_level 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BLOCK",
    "BLOCKS",
    "Blocks",
    "check_blocks",
    "packed",
    "quantize_blocks",
    "ranges",
    "restore",
    "unpacked",
]

BLOCK: Final = 64
BLOCKS = (16, 32, 64, 128)
"""Sizes that there are: a larger one is faster and smaller, and rounds more coarsely."""
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Ranges that are tried for a block: a narrower one cuts its largest weights off and rounds the others less."""
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Blocks:
    """values uint8 [rows, blocks, block * bits / 8], the lower half of a byte first; scales float32 [rows, blocks].

    zero_points uint8 [rows, ceil(blocks * bits / 8)]: weight = scale * (value - zero point); None: of symmetric ones it
    is the middle of all values, 8 of 16, and scales may be below 0. columns: of the matrix, before the last block was
    filled up with zeros.
    """

    values: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8] | None
    bits: int
    columns: int

    @property
    def block(self) -> int:
        """Weights that share a scale."""
        return int(self.values.shape[2]) * 8 // self.bits


def quantize_blocks(
    weight: NDArray[np.float32], bits: int, block: int = BLOCK, symmetric: bool = False
) -> Blocks:
    """The blocks of `weight` [rows, columns] at 4 or 8 bits, each with the range of least squared error."""
    check_blocks(bits, block)
    rows = [
        _quantize_rows(weight[start : start + _ROWS_AT_ONCE], bits, block, symmetric)
        for start in range(0, len(weight), _ROWS_AT_ONCE)
    ]
    values, scales, zeros = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return Blocks(values, scales, None if symmetric else zeros, bits, weight.shape[1])


def check_blocks(bits: int, block: int) -> None:
    """Raise ValueError for what MatMulNBits does not have."""
    if bits not in (4, 8):
        raise ValueError(f"bits should be 4 or 8, found {bits}")
    if block not in BLOCKS:
        raise ValueError(
            f"a block should have {', '.join(map(str, BLOCKS))} weights, found {block}"
        )


def restore(blocks: Blocks) -> NDArray[np.float32]:
    """The float32 matrix that the blocks stand for."""
    values = unpacked(blocks.values, blocks.bits).astype(np.float32)
    zeros: Any = 2 ** (blocks.bits - 1)
    if blocks.zero_points is not None:
        zeros = unpacked(blocks.zero_points, blocks.bits)[:, : blocks.scales.shape[1], None]
    full = (values - zeros) * blocks.scales[..., None]
    restored: NDArray[np.float32] = full.reshape(len(full), -1)[:, : blocks.columns]
    return restored


def _quantize_rows(
    weight: NDArray[np.float32], bits: int, block: int, symmetric: bool
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    rows, columns = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -columns % block))).reshape(rows, -1, block)
    scale, zero = ranges(padded, bits, _SHRINKS, symmetric=symmetric)
    value = np.clip(np.rint(padded / scale[..., None]) + zero[..., None], 0, 2**bits - 1)
    return packed(value, bits), scale, packed(zero, bits)


def ranges(
    blocks: NDArray[np.float32],
    bits: int,
    shrinks: Sequence[float],
    weights: NDArray[Any] | None = None,
    symmetric: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scales and zero points [..] of `blocks` [.., n]: of the ranges tried, that of least squared error.

    shrinks: ranges as shares of a block's own, which comes first; at 8 bits only that is tried. weights [n]: of errors.
    symmetric: every zero point is the middle.
    """
    top = 2**bits - 1
    tried = shrinks if bits == 4 else shrinks[:1]
    best: tuple[NDArray[np.float32], ...] | None = None
    for scale, zero in (_around if symmetric else _between)(blocks, tried, top):
        scale[scale == 0] = 1
        value = np.clip(np.rint(blocks / scale[..., None]) + zero[..., None], 0, top)
        errors = np.square((value - zero[..., None]) * scale[..., None] - blocks)
        error = (errors if weights is None else errors * weights).sum(axis=-1)
        found = (error, scale, zero)
        if best is None:
            best = found
            continue
        better = error < best[0]
        best = tuple(np.where(better, a, b) for a, b in zip(found, best, strict=True))
    assert best is not None
    return best[1], best[2]


def _between(
    blocks: NDArray[np.float32], shrinks: Sequence[float], top: int
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """From the smallest weight to the largest, and narrower."""
    # zero is always a value: padding stays zero, and a block of one sign has its zero point at an end
    low = np.minimum(blocks.min(axis=-1), 0)
    high = np.maximum(blocks.max(axis=-1), 0)
    for shrink in shrinks:
        scale = ((high - low) * shrink / top).astype(np.float32)
        step = np.where(scale == 0, 1, scale)
        yield scale, np.clip(np.rint(-low * shrink / step), 0, top).astype(np.float32)


def _around(
    blocks: NDArray[np.float32], shrinks: Sequence[float], top: int
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """As far on both sides of zero. There is one value more below the middle than above it: the largest weight has it
    by a scale of the other sign, or both ends are within the smaller half."""
    low, high = blocks.min(axis=-1), blocks.max(axis=-1)
    half = (top + 1) // 2
    ends = np.where(-low > high, -low, -high)
    zero = np.full(ends.shape, half, np.float32)
    for shrink in (half / (half - 1), *shrinks):
        yield (ends * shrink / half).astype(np.float32), zero


def packed(values: NDArray[np.float32], bits: int) -> NDArray[np.uint8]:
    """Along the last axis: two to a byte at 4 bits, the first in its lower half."""
    whole = values.astype(np.uint8)
    if bits == 8:
        return whole
    if whole.shape[-1] % 2:
        whole = np.concatenate([whole, np.zeros_like(whole[..., :1])], axis=-1)
    packed: NDArray[np.uint8] = whole[..., ::2] | (whole[..., 1::2] << np.uint8(4))
    return packed


def unpacked(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """What `packed` has made of numbers, the last byte's empty half included."""
    if bits == 8:
        return values
    pairs = np.stack([values & 15, values >> 4], axis=-1)
    return pairs.reshape(*values.shape[:-1], -1)
