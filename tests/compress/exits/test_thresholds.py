"""Thresholds on made-up rows whose certainty and rightness are known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from codemill.compress.exits.thresholds import leaving, thresholds_for


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
@pytest.mark.parametrize("max_loss", [0.0, 0.01, 0.05])
def test_thresholds_keep_the_accuracy_that_is_asked_for(exits: int, max_loss: float) -> None:
    certainty, right, layers = rows_of(exits)
    least = float(right[-1].mean()) - max_loss
    found = thresholds_for(certainty, right, layers, least)
    assert found is not None
    assert all(0 < value <= 1 for value in found)
    assert accuracy(certainty, right, found) >= least


def test_a_larger_loss_saves_more_layers() -> None:
    certainty, right, layers = rows_of(2)
    least = float(right[-1].mean())
    used = []
    for loss in (0.0, 0.01, 0.03, 0.1):
        found = thresholds_for(certainty, right, layers, least - loss)
        assert found is not None
        used.append(mean_layers(certainty, layers, found))
    assert used == sorted(used, reverse=True)
    assert used[-1] < used[0] - 0.3


def test_two_thresholds_are_chosen_together() -> None:
    certainty, right, layers = rows_of(2, count=300, seed=3)
    least = float(right[-1].mean()) - 0.02
    found = thresholds_for(certainty, right, layers, least)
    assert found is not None
    grid = [np.quantile(row, np.linspace(0, 1, 33), method="inverted_cdf") for row in certainty]
    best = min(
        mean_layers(certainty, layers, [float(first), float(second)])
        for first, second in itertools.product(*grid)
        if accuracy(certainty, right, [float(first), float(second)]) >= least
    )
    # a descent may stop short of the best pair, not far from it
    assert mean_layers(certainty, layers, found) <= best + 0.05


def test_an_exit_that_knows_nothing_lets_nothing_out() -> None:
    chance = np.random.default_rng(1)
    certainty = 0.5 + 0.3 * chance.random((1, 500))
    right = np.stack([chance.random(500) < 0.5, np.ones(500, dtype=bool)])
    found = thresholds_for(certainty, right, [1, 2], 0.999)
    assert found is not None
    assert (leaving(certainty, found) == 0).mean() < 0.02


def test_an_accuracy_that_no_thresholds_reach_has_none() -> None:
    certainty, right, layers = rows_of(1)
    assert thresholds_for(certainty, right, layers, 1.01) is None
