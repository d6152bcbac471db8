"""The clustered bootstrap: against known spreads, paired, and where nothing can be said."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest

from codemill.errors import DataError
from codemill.targets.classification import (
    Weights,
    accuracy,
    auc,
    difference,
    estimate,
    f1,
    ratio,
    resampled,
)
from codemill.targets.resampling import interval_of

Right = npt.NDArray[np.bool_]


def said(right: Right) -> npt.NDArray[np.float64]:
    """Probabilities of rows of class 1 whose decisions are right where `right` is."""
    p = np.where(right, 0.9, 0.1)
    return np.stack([1 - p, p], axis=1)


def alone(n: int) -> Weights:
    return resampled([(i,) for i in range(n)])


def ends(right: Right, weights: Weights) -> tuple[float, float]:
    found = estimate(accuracy, said(right), np.ones(len(right), dtype=int), weights)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


def width(right: Right, weights: Weights) -> float:
    low, high = ends(right, weights)
    return high - low


def test_what_is_drawn_follows_from_what_rows_share() -> None:
    assert resampled([(0,), (1,), (2,)]).clusters == "rows"
    assert resampled([(0, 1), (2, 3)]).clusters == "rows"
    assert resampled([(0, 1), (1, 2)]).clusters == "functions"
    assert resampled([(0,), (1,)], ["a", "a"]).clusters == "groups"
    found = resampled([(0, 5), (5, 9)])
    assert (found.count, found.members.tolist()) == (3, [[0, 1], [1, 2]])


def test_the_plain_interval_has_the_width_of_a_proportions() -> None:
    right = np.random.default_rng(0).random(1000) < 0.7
    expected = 2 * 1.96 * np.sqrt(0.7 * 0.3 / 1000)
    assert width(right, alone(1000)) == pytest.approx(expected, rel=0.1)


def test_rows_of_a_group_that_are_all_alike_count_once() -> None:
    right = np.repeat(np.random.default_rng(0).random(100) < 0.7, 10)
    grouped = resampled([(i,) for i in range(1000)], [str(i // 10) for i in range(1000)])
    assert width(right, grouped) / width(right, alone(1000)) == pytest.approx(10**0.5, rel=0.15)


def test_function_clusters_hold_the_truth_where_plain_intervals_do_not() -> None:
    """Pairs are right when both functions are easy: the truth is 0.8 squared."""
    rng, held, rounds = np.random.default_rng(5), {"functions": 0, "rows": 0}, 60
    for _ in range(rounds):
        easy = rng.random(120) < 0.8
        rows = rng.integers(0, 120, (1500, 2))
        rows = rows[rows[:, 0] != rows[:, 1]]
        right = easy[rows].all(axis=1)
        for weights in (
            resampled(rows.tolist(), resamples=200),
            resampled([(i,) for i in range(len(rows))], resamples=200),
        ):
            low, high = ends(right, weights)
            held[weights.clusters] += low <= 0.64 <= high
    assert held["functions"] >= 0.85 * rounds
    assert held["rows"] <= 0.6 * rounds


def test_a_pair_weighs_the_product_of_its_functions_counts() -> None:
    pairs = Weights("functions", np.array([[0, 1], [1, 2], [2, 2]]), 3, 4000, 0)
    single = Weights("rows", np.array([[0], [1], [2]]), 3, 4000, 0)
    weights, counts = (np.concatenate(list(x.blocks())) for x in (pairs, single))
    assert (counts.sum(axis=1) == 3).all()
    expected = [counts[:, 0] * counts[:, 1], counts[:, 1] * counts[:, 2], counts[:, 2]]
    assert (weights == np.stack(expected, axis=1)).all()


def test_a_seed_gives_the_same_interval_and_another_a_like_one() -> None:
    right = np.random.default_rng(0).random(200) < 0.7
    rows = [(i % 50, 50 + i % 31) for i in range(200)]
    first = ends(right, resampled(rows))
    assert ends(right, resampled(rows)) == first
    other = ends(right, resampled(rows, seed=1))
    assert other != first
    assert other == pytest.approx(first, abs=0.03)


def test_blocks_change_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    right = np.random.default_rng(0).random(200) < 0.7
    rows = [(i % 50, 50 + i % 31) for i in range(200)]
    whole = ends(right, resampled(rows))
    monkeypatch.setattr("codemill.targets.resampling._BLOCK_CELLS", 30_000)
    assert ends(right, resampled(rows)) == whole


def test_differences_and_ratios_are_paired() -> None:
    """Two engines that are wrong at the same rows but twelve: their own intervals overlap."""
    right = np.random.default_rng(0).random(500) < 0.7
    better, labels, weights = right.copy(), np.ones(500, dtype=int), alone(500)
    better[np.flatnonzero(~right)[:12]] = True
    found = difference(accuracy, said(better), said(right), labels, weights)
    assert found is not None
    assert found.value == pytest.approx(12 / 500)
    assert found.above_zero
    worse = difference(accuracy, said(right), said(better), labels, weights)
    assert worse is not None
    assert worse.below_zero
    same = difference(f1, said(right), said(right), labels, weights)
    assert same is not None
    assert (same.value, same.low, same.high, same.above_zero) == (0, 0, 0, False)
    kept = ratio(accuracy, said(better), said(right), labels, weights)
    assert kept is not None
    assert kept.value == pytest.approx(better.mean() / right.mean())
    assert kept.low is not None
    assert kept.low > 1
    assert ends(better, weights)[0] < ends(right, weights)[1]


def test_what_is_undefined_is_none_and_never_nan() -> None:
    p, labels = said(np.ones(3, dtype=bool)), np.ones(3, dtype=int)
    assert estimate(auc, p, labels, alone(3)) is None
    assert ratio(f1, p, 1 - p, labels, alone(3)) is None
    one_group = resampled([(0,), (1,), (2,)], ["g"] * 3)
    found = estimate(accuracy, p, labels, one_group)
    assert found is not None
    assert (found.value, found.low, found.high) == (1, None, None)
    rarely = interval_of(np.array([0.5, *[np.nan] * 6, 0.4, 0.6]))
    assert rarely is not None
    assert rarely.low is None


def test_2000_resamples_of_4000_pairs_of_900_functions_need_no_loop_over_resamples() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(4000)
    weights = resampled(rng.integers(0, 900, (4000, 2)).tolist())
    started = time.process_time()
    estimate(auc, np.stack([1 - p, p], axis=1), rng.integers(0, 2, 4000), weights)
    # about a second alone
    assert time.process_time() - started < 20


def test_groups_that_do_not_match_the_rows_are_an_error() -> None:
    with pytest.raises(DataError, match="2 rows and 1 groups"):
        resampled([(0,), (1,)], ["a"])
