"""Weights in blocks: restored within half a step, padded, in the order that the product reads them in."""

from __future__ import annotations

import numpy as np
import pytest

from codemill.export.quantize.blocks import quantize_blocks, restore


@pytest.mark.parametrize("columns", [32, 64, 48, 20, 192])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [32, 64, 128])
def test_what_is_restored_is_near(bits: int, columns: int, block: int) -> None:
    weight = np.random.default_rng(0).normal(size=(5000, columns)).astype(np.float32)
    blocks = quantize_blocks(weight, bits, block)
    count = -(-columns // block)
    assert blocks.block == block
    assert blocks.values.shape == (5000, count, block * bits // 8)
    assert blocks.scales.shape == (5000, count)
    assert blocks.zero_points is not None
    assert blocks.zero_points.shape == (5000, -(-count * bits // 8))
    error = np.abs(restore(blocks) - weight)
    assert (
        np.sqrt(np.square(error).mean())
        < {4: 0.12, 8: 0.008}[bits] * {32: 1, 64: 1.2, 128: 1.4}[block]
    )
    if bits == 8:
        assert (error <= 0.51 * blocks.scales.max()).all()


def test_zeros_equal_rows_and_single_signs_are_kept() -> None:
    weight = np.zeros((3, 32), np.float32)
    weight[1] = 2.5
    weight[2] = -np.arange(32)
    for bits in (4, 8):
        found = restore(quantize_blocks(weight, bits))
        np.testing.assert_array_equal(found[0], 0)
        np.testing.assert_allclose(found[1], 2.5, rtol=1e-6)
        assert found[2, 0] == 0


@pytest.mark.parametrize("columns", [64, 20, 192])
@pytest.mark.parametrize("bits", [4, 8])
def test_symmetric_blocks_have_no_zero_points_and_are_nearly_as_near(
    bits: int, columns: int
) -> None:
    weight = np.random.default_rng(0).normal(size=(2000, columns)).astype(np.float32)
    blocks = quantize_blocks(weight, bits, symmetric=True)
    assert blocks.zero_points is None
    found, plain = restore(blocks), restore(quantize_blocks(weight, bits))
    error, own = (np.sqrt(np.square(made - weight).mean()) for made in (found, plain))
    assert error < 1.1 * own
    # what is largest in a block is kept, on whichever side it is
    wide = np.array([[-8.0, *range(8), *[0.0] * 55], [8.0, *range(0, -8, -1), *[0.0] * 55]])
    made = restore(quantize_blocks(wide.astype(np.float32), 4, symmetric=True))
    np.testing.assert_allclose(made, wide, atol=1e-5)
    np.testing.assert_array_equal(
        restore(quantize_blocks(np.zeros((2, columns), np.float32), bits, symmetric=True)), 0
    )


def test_a_narrower_range_is_better_where_one_weight_stands_out() -> None:
    generator = np.random.default_rng(1)
    weight = generator.normal(size=(1000, 32)).astype(np.float32)
    found = restore(quantize_blocks(weight, 4))
    low, high = weight.min(axis=1, keepdims=True), weight.max(axis=1, keepdims=True)
    step = (high - low) / 15
    plain = np.clip(np.rint((weight - low) / step), 0, 15) * step + low
    assert np.square(found - weight).mean() < np.square(plain - weight).mean() * 1.02


def test_the_first_of_two_is_the_lower_half_of_a_byte() -> None:
    weight = np.zeros((1, 32), np.float32)
    weight[0, :3] = [0, 15, 3]
    blocks = quantize_blocks(weight, 4)
    assert blocks.values[0, 0, 0] == 15 << 4
    assert blocks.values[0, 0, 1] == 3


def test_other_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="4 or 8"):
        quantize_blocks(np.zeros((1, 32), np.float32), 2)
    with pytest.raises(ValueError, match="16, 32, 64, 128 weights, found 48"):
        quantize_blocks(np.zeros((1, 32), np.float32), 4, 48)
