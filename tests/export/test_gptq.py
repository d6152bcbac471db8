"""Rounding by what weights are multiplied with: less error in products than rounding each weight to its nearest."""

from __future__ import annotations

import numpy as np
import pytest

from codemill.export.quantize.blocks import quantize_blocks, restore
from codemill.export.quantize.gptq import gptq_blocks


def correlated(columns: int, count: int = 2000) -> np.ndarray:
    generator = np.random.default_rng(0)
    mixed = generator.normal(size=(columns // 4, columns))
    found = generator.normal(size=(count, columns // 4)) @ mixed
    return (found + 0.1 * generator.normal(size=found.shape)).astype(np.float32)


@pytest.mark.parametrize("columns", [64, 96, 80])
@pytest.mark.parametrize("block", [32, 64])
def test_products_with_seen_inputs_lose_less(columns: int, block: int) -> None:
    generator = np.random.default_rng(1)
    weight = generator.normal(size=(40, columns)).astype(np.float32)
    inputs = correlated(columns)
    exact = inputs @ weight.T
    plain = inputs @ restore(quantize_blocks(weight, 4, block)).T
    made = gptq_blocks(weight, inputs.T @ inputs, 4, block)
    found = inputs @ restore(made).T
    assert np.square(found - exact).sum() < 0.6 * np.square(plain - exact).sum()
    assert made.columns == columns
    # stored as any other blocks are
    like = quantize_blocks(weight, 4, block)
    assert made.block == block
    assert made.values.shape == like.values.shape
    assert made.zero_points is not None
    assert like.zero_points is not None
    assert made.zero_points.shape == like.zero_points.shape
    assert made.scales.dtype == np.float32


def test_at_8_bits_next_to_nothing_is_lost() -> None:
    weight = np.random.default_rng(1).normal(size=(40, 64)).astype(np.float32)
    inputs = correlated(64)
    found = restore(gptq_blocks(weight, inputs.T @ inputs, 8))
    assert np.corrcoef((inputs @ found.T).ravel(), (inputs @ weight.T).ravel())[0, 1] > 0.9999


def test_columns_that_no_input_uses_are_rounded_as_they_are() -> None:
    weight = np.random.default_rng(1).normal(size=(8, 64)).astype(np.float32)
    moments = np.zeros((64, 64), np.float32)
    np.testing.assert_allclose(
        restore(gptq_blocks(weight, moments, 8)), restore(quantize_blocks(weight, 8)), atol=1e-6
    )


@pytest.mark.parametrize(("bits", "size"), [(3, 64), (4, 63)])
def test_what_does_not_fit_is_refused(bits: int, size: int) -> None:
    with pytest.raises(ValueError, match=r"(bits|moments) should be"):
        gptq_blocks(np.zeros((2, 64), np.float32), np.zeros((size, size), np.float32), bits)
