from __future__ import annotations

import numpy as np
import pytest

from codemill.runtime.table import pack_rows, scores


def unit_vectors(dim: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    vectors = np.random.default_rng(0).normal(size=(5000, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


@pytest.mark.parametrize("dim", [64, 384, 768])
def test_a_score_is_off_by_what_rounding_to_8_bits_can_do(dim: int) -> None:
    vectors = unit_vectors(dim)
    found = scores(pack_rows(vectors), vectors[7])
    halves = np.abs(vectors).max(axis=1) / 127 / 2
    assert (np.abs(found - vectors @ vectors[7]) <= halves * np.abs(vectors[7]).sum() + 1e-6).all()
    assert found.argmax() == 7


@pytest.mark.parametrize("dim", [384, 768])
def test_a_score_of_a_models_width_is_off_by_less_than_two_thousandths(dim: int) -> None:
    vectors = unit_vectors(dim)
    assert np.abs(scores(pack_rows(vectors), vectors[7]) - vectors @ vectors[7]).max() < 2e-3


def test_rows_are_the_numbers_and_their_scale() -> None:
    rows = pack_rows(np.array([[1, -0.5, 0], [0, 0, 0]], dtype=np.float32))
    assert rows.dtype == np.int8
    assert rows[:, :3].tolist() == [[127, -64, 0], [0, 0, 0]]
    assert scores(rows, np.array([1, 0, 0], dtype=np.float32)).tolist() == [1.0, 0.0]
    assert scores(rows[:0], np.array([1, 0, 0], dtype=np.float32)).tolist() == []
