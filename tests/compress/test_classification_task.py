from __future__ import annotations

import numpy as np
import pytest

from codemill.compress.tasks.classification import mean_recall, plan_row_batches


def pair_rows(count: int = 600, texts: int = 120) -> np.ndarray:
    generator = np.random.default_rng(3)
    rows = np.stack([generator.permutation(texts)[:2] for _ in range(count)])
    return np.unique(np.sort(rows, axis=1), axis=0)


@pytest.mark.parametrize("sides", [1, 2])
def test_every_row_has_its_turn_in_an_epoch(sides: int) -> None:
    rows = np.arange(700)[:, None] if sides == 1 else pair_rows()
    lengths = np.random.default_rng(0).integers(5, 200, 700).tolist()
    batches = plan_row_batches(rows, lengths, 32, 1.0, seed=0)
    assert set(np.concatenate(batches).tolist()) == set(range(len(rows)))
    assert len(batches) == -(-len(rows) // 32)


def test_a_batch_of_pairs_holds_every_pair_between_its_texts() -> None:
    rows = pair_rows()
    for batch in plan_row_batches(rows, [10] * 120, 16, 1.0, seed=0):
        texts = set(rows[batch].ravel().tolist())
        inner = {pair for pair, row in enumerate(rows.tolist()) if set(row) <= texts}
        assert inner == set(batch.tolist())


def test_pairs_of_one_text_come_together_so_that_fewer_texts_are_encoded() -> None:
    rows = pair_rows()
    batches = plan_row_batches(rows, [10] * 120, 16, 1.0, seed=0)
    encoded = sum(len(np.unique(rows[batch])) for batch in batches)
    generator = np.random.default_rng(0)
    shuffled = np.array_split(generator.permutation(len(rows)), len(batches))
    assert encoded < 0.85 * sum(len(np.unique(rows[batch])) for batch in shuffled)


def test_batches_of_single_texts_hold_texts_of_like_length() -> None:
    lengths = np.random.default_rng(0).integers(5, 200, 640).tolist()
    rows = np.arange(640)[:, None]
    spread = [
        np.ptp([lengths[row] for row in batch])
        for batch in plan_row_batches(rows, lengths, 32, 1.0, seed=0)
    ]
    assert np.mean(spread) < 30


def test_the_seed_draws_the_batches() -> None:
    rows, lengths = pair_rows(), [10] * 120
    one, again, other = (plan_row_batches(rows, lengths, 16, 0.5, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_mean_recall_counts_each_label_alike_and_leaves_out_what_has_none() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6], [0.6, 0.4]])
    labels = np.array([0, 0, 0, 1, -1])
    assert mean_recall(probabilities, labels) == 1.0
    assert mean_recall(probabilities, np.array([0, 0, 0, 1, 1])) == pytest.approx(0.75)
