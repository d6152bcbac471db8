"""Thresholds on made-up rows whose certainty and rightness are known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from codemill.compress.exits.thresholds import (
    NEVER,
    fewest_rows,
    leaving,
    loss_upper,
    thresholds_for,
)


def rows_of(
    exits: int, count: int = 600, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Exits that are surer of easy rows, and right as often as they say; each deeper one knows more."""
    chance = np.random.default_rng(seed)
    ease = chance.random(count)
    certainty = np.stack(
        [
            np.clip(0.5 + 0.5 * ease * (0.5 + 0.5 * (depth + 1) / exits), 0, 1)
            for depth in range(exits)
        ]
    )
    right = chance.random((exits, count)) < certainty
    last = chance.random(count) < 0.96
    return certainty, np.concatenate([right, last[None]]), [*range(1, exits + 1), exits + 1]


def accuracy(certainty: np.ndarray, right: np.ndarray, thresholds: list[float]) -> float:
    at = leaving(certainty, thresholds)
    return float(right[at, np.arange(right.shape[1])].mean())


def mean_layers(certainty: np.ndarray, layers: list[int], thresholds: list[float]) -> float:
    return float(np.asarray(layers)[leaving(certainty, thresholds)].mean())


def test_a_row_leaves_at_the_first_exit_that_is_certain_enough() -> None:
    certainty = np.array([[0.9, 0.6, 0.6, 0.6], [0.1, 0.8, 0.79, 1.0]])
    assert leaving(certainty, [0.9, 0.8]).tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize("exits", [1, 2, 3])
@pytest.mark.parametrize("max_loss", [0.01, 0.05])
def test_thresholds_keep_the_upper_end_of_the_loss_within_the_bound(
    exits: int, max_loss: float
) -> None:
    certainty, right, layers = rows_of(exits)
    before = right[-1]
    found = thresholds_for(certainty, right, layers, before, max_loss)
    if found is None:
        assert (exits, max_loss) != (1, 0.05)
        return
    assert all(0 < value <= 1 or value == NEVER for value in found)
    after = right[leaving(certainty, found), np.arange(right.shape[1])]
    difference = before.astype(float) - after
    error = difference.std() / len(difference) ** 0.5
    assert difference.mean() + 1.64 * error <= max_loss
    assert loss_upper(before, after, exits) <= max_loss


def test_a_larger_loss_saves_more_layers() -> None:
    certainty, right, layers = rows_of(2)
    used = []
    for loss in (0.02, 0.04, 0.1, 0.2):
        found = thresholds_for(certainty, right, layers, right[-1], loss)
        used.append(3.0 if found is None else mean_layers(certainty, layers, found))
    assert used == sorted(used, reverse=True)
    assert used[-1] < used[0] - 0.3


def test_two_thresholds_are_chosen_together() -> None:
    certainty, right, layers = rows_of(2, count=300, seed=3)
    before, bound = right[-1], 0.08
    found = thresholds_for(certainty, right, layers, before, bound)
    assert found is not None

    def kept(pair: list[float]) -> bool:
        after = right[leaving(certainty, pair), np.arange(right.shape[1])]
        return loss_upper(before, after, 2) <= bound

    grid = [np.quantile(row, np.linspace(0, 1, 33), method="inverted_cdf") for row in certainty]
    pairs = [[float(first), float(second)] for first, second in itertools.product(*grid)]
    best = min(mean_layers(certainty, layers, pair) for pair in pairs if kept(pair))
    # a descent may stop short of the best pair, not far from it
    assert mean_layers(certainty, layers, found) <= best + 0.05


def test_an_exit_that_knows_nothing_is_never_left_at_however_certain_it_is() -> None:
    chance = np.random.default_rng(1)
    # in floating point a softmax is 1 before it is certain
    certainty = np.stack([np.ones(1000), 0.5 + 0.5 * chance.random(1000)])
    right = np.stack([chance.random(1000) < 0.5, np.ones(1000, bool), np.ones(1000, bool)])
    found = thresholds_for(certainty, right, [1, 2, 3], right[-1], 0.01)
    assert found is not None
    assert found[0] == NEVER
    assert set(leaving(certainty, found).tolist()) == {1}
    assert thresholds_for(certainty[:1], right[[0, 2]], [1, 2], right[-1], 0.01) is None


def test_rows_too_few_to_show_the_bound_have_no_thresholds_even_where_nothing_is_lost() -> None:
    assert (fewest_rows(0.01, 1), fewest_rows(0.01, 2)) == (271, 385)
    for rows, kept in ((270, False), (271, True)):
        right = np.ones((2, rows), dtype=bool)
        certainty = np.full((1, rows), 0.9)
        found = thresholds_for(certainty, right, [1, 2], right[-1], 0.01)
        assert (found is not None) is kept


def test_the_upper_end_of_a_loss_counts_rows_that_differ_in_either_way() -> None:
    before, after = np.ones(1000, dtype=bool), np.ones(1000, dtype=bool)
    after[:10] = False
    lost = loss_upper(before, after, 1)
    assert 0.01 + 1.64 * (0.0099 / 1000) ** 0.5 < lost < 0.018
    before[10:20] = False
    # as many are won: nothing is lost on the mean, and less is known
    assert 0 < loss_upper(before, after, 1) < lost
    assert loss_upper(before, after, 3) > loss_upper(before, after, 1)
    assert loss_upper(before[:0], after[:0], 1) == np.inf


@pytest.mark.parametrize("exits", [1, 2])
def test_on_new_rows_the_loss_exceeds_the_bound_for_few_seeds(exits: int) -> None:
    bound, above, left = 0.01, 0, 0
    new_certainty, new_right = calibrated_rows(100_000, exits, 1000)
    for seed in range(40):
        certainty, right = calibrated_rows(1000, exits, seed)
        found = thresholds_for(certainty, right, [*range(1, exits + 2)], right[-1], bound)
        if found is None:
            continue
        left += 1
        after = new_right[leaving(new_certainty, found), np.arange(new_right.shape[1])]
        above += float(new_right[-1].mean() - after.mean()) > bound
    assert left >= 30
    assert above <= 5


def calibrated_rows(count: int, exits: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Each exit is right as often as it says; what a deeper one knows comes on top of it."""
    chance = np.random.default_rng(seed)
    hard = 1 - chance.random(count)
    powers = [0.8 / (1 - skill) for skill in np.linspace(0.55, 0.85, exits)]
    certainty = np.stack([np.clip(1 - 0.5 * hard**power, 0.5, 1) for power in [*powers, 8.0]])
    return certainty[:-1], chance.random(count) < certainty
