"""Rounding weights so that what they are multiplied with counts: GPTQ (2210.17323), in the blocks of `blocks.py`.

Columns are rounded one after another, and what each loses is made up for by those that are not rounded yet, as far as
the inputs of the product, seen on real text, go together. The range of a block is chosen by the same measure.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from codemill.export.quantize.blocks import BLOCK, Blocks, check_blocks, packed, ranges

__all__ = ["gptq_blocks"]

Floats = NDArray[np.float32]
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
"""Ranges that are tried for a block, as shares of its own."""
_DAMPED = 0.01
"""Of the mean second moment, added to each: columns that no input uses keep their weights."""
_ROWS_AT_ONCE = 8192


def gptq_blocks(
    weight: Floats, moments: Floats, bits: int, block: int = BLOCK, symmetric: bool = False
) -> Blocks:
    """The blocks of `weight` [rows, columns] at 4 or 8 bits; moments: X.T @ X of inputs X, [columns, columns].

    Raises ValueError for other bits or blocks, or moments of another shape.
    """
    rows, columns = weight.shape
    check_blocks(bits, block)
    if moments.shape != (columns, columns):
        raise ValueError(f"moments should be [{columns}, {columns}], found {list(moments.shape)}")
    factor = _factor(moments.astype(np.float64))
    parts = [
        _rounded(weight[start : start + _ROWS_AT_ONCE], factor, bits, block, symmetric)
        for start in range(0, rows, _ROWS_AT_ONCE)
    ]
    values, scales, zeros = (np.concatenate(part) for part in zip(*parts, strict=True))
    points = None if symmetric else packed(zeros, bits)
    return Blocks(packed(values, bits), scales, points, bits, columns)


def _factor(moments: NDArray[np.float64]) -> Floats:
    """The upper Cholesky factor of the inverse."""
    size = len(moments)
    damped = moments + np.eye(size) * (_DAMPED * np.trace(moments) / size + 1e-12)
    inverse = np.linalg.inv(damped)
    # symmetric again, whatever rounding did
    lower = np.linalg.cholesky((inverse + inverse.T) / 2)
    found: Floats = np.ascontiguousarray(lower.T, dtype=np.float32)
    return found


def _rounded(
    weight: Floats, factor: Floats, bits: int, size: int, symmetric: bool
) -> tuple[Floats, Floats, Floats]:
    """values [rows, blocks, size], scales [rows, blocks], zero points [rows, blocks]."""
    rows, columns = weight.shape
    blocks, top = -(-columns // size), 2**bits - 1
    left = weight.astype(np.float32, copy=True)
    values = np.zeros((rows, blocks, size), np.float32)
    scales, zeros = np.ones((rows, blocks), np.float32), np.zeros((rows, blocks), np.float32)
    for block in range(blocks):
        start, end = block * size, min(columns, (block + 1) * size)
        part = left[:, start:end]
        own = factor[start:end, start:end]
        scale, zero = ranges(part, bits, _SHRINKS, 1 / np.diag(own) ** 2, symmetric)
        lost = np.empty_like(part)
        for at in range(end - start):
            value = np.clip(np.rint(part[:, at] / scale) + zero, 0, top)
            values[:, block, at] = value
            lost[:, at] = (part[:, at] - (value - zero) * scale) / own[at, at]
            part[:, at + 1 :] -= np.outer(lost[:, at], own[at, at + 1 :])
        left[:, end:] -= lost @ factor[start:end, end:]
        scales[:, block], zeros[:, block] = scale, zero
        # a short last block is filled with what stands for 0
        values[:, block, end - start :] = zero[:, None]
    return values, scales, zeros
