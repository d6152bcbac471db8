from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codemill.errors import DataError
from codemill.targets.metrics import (
    mrr,
    paired_ratio,
    percentile,
    ranks,
    ratio_of_means,
    recall_at,
)


def brute_force_ranks(queries: np.ndarray, codes: np.ndarray) -> list[int]:
    found = []
    for i, q in enumerate(queries):
        scores = [
            float(q @ c) / (float(np.linalg.norm(q)) * float(np.linalg.norm(c))) for c in codes
        ]
        found.append(1 + sum(s >= scores[i] - 1e-9 for j, s in enumerate(scores) if j != i))
    return found


def test_ranks_are_those_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(60, 8)) * rng.uniform(0.1, 9, size=(60, 1))
    queries = codes + rng.normal(size=(60, 8))
    assert ranks(queries, codes).tolist() == brute_force_ranks(queries, codes)


def test_blocks_do_not_change_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    queries, codes = rng.normal(size=(2, 50, 6)).astype(np.float32)
    whole = ranks(queries, codes)
    monkeypatch.setattr("codemill.targets.metrics.BLOCK", 7)
    assert ranks(queries, codes).tolist() == whole.tolist()


def test_metrics_of_known_ranks() -> None:
    # query 0 finds its code first, query 1 second, query 2 third
    codes = np.eye(3)
    queries = np.array([[1.0, 0.2, 0.1], [0.9, 0.5, 0.1], [0.9, 0.5, 0.1]])
    assert ranks(queries, codes).tolist() == [1, 2, 3]
    assert mrr(queries, codes) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert recall_at(queries, codes, 2) == pytest.approx(2 / 3)


def test_a_collapsed_model_gets_the_worst_rank_not_the_best() -> None:
    same = np.ones((20, 4), dtype=np.float32)
    assert mrr(same, same) == pytest.approx(1 / 20)
    assert recall_at(same, same, 10) == 0


def test_a_duplicate_of_the_right_code_is_a_tie_wherever_it_stands() -> None:
    rng = np.random.default_rng(2)
    codes = rng.normal(size=(300, 384)).astype(np.float32)
    codes[299] = codes[5]
    found = ranks(codes, codes)
    assert (found[5], found[299]) == (2, 2)
    assert (np.delete(found, [5, 299]) == 1).all()


def test_a_zero_vector_has_cosine_0() -> None:
    queries = np.array([[0.0, 0.0], [0.0, 1.0]])
    assert ranks(queries, np.eye(2)).tolist() == [2, 1]


@pytest.mark.parametrize(
    ("queries", "codes"),
    [
        (np.ones((2, 3)), np.ones((3, 3))),
        (np.ones((0, 3)), np.ones((0, 3))),
        (np.array([[math.nan, 1.0]]), np.ones((1, 2))),
    ],
)
def test_what_cannot_be_ranked_is_an_error(queries: np.ndarray, codes: np.ndarray) -> None:
    with pytest.raises(DataError):
        ranks(queries, codes)


def test_a_constant_ratio_has_an_interval_of_no_width() -> None:
    ratio = paired_ratio([8.0, 80.0, 0.8], [1.0, 10.0, 0.1])
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((8, 8, 8))
    assert ratio.above_parity
    assert not ratio.below_parity


def test_the_interval_is_students_t_on_the_logarithms() -> None:
    logs = [0.1, 0.2, 0.3]
    ratio = paired_ratio([math.exp(x) for x in logs], [1.0, 1.0, 1.0])
    half = 4.303 * 0.1 / math.sqrt(3)
    assert ratio.low == pytest.approx(math.exp(0.2 - half))
    assert ratio.high == pytest.approx(math.exp(0.2 + half))


def test_the_interval_covers_the_truth_about_19_times_in_20() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(1000):
        noise = rng.normal(0, 0.2, size=3)
        ratio = paired_ratio((5 * np.exp(noise)).tolist(), [1.0] * 3)
        assert ratio.low is not None
        assert ratio.high is not None
        hits += ratio.low <= 5 <= ratio.high
    assert 930 <= hits <= 970


def test_one_pair_gives_no_interval_and_claims_nothing() -> None:
    ratio = paired_ratio([1.0], [2.0])
    assert (ratio.value, ratio.low, ratio.high, ratio.pairs) == (0.5, None, None, 1)
    assert not ratio.below_parity


times = st.floats(0.01, 1e4)


@given(st.lists(st.tuples(times, times), min_size=2, max_size=40))
def test_the_median_is_inside_and_the_inverse_is_inverted(
    pairs: list[tuple[float, float]],
) -> None:
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    there, back = paired_ratio(a, b), paired_ratio(b, a)
    assert there.low is not None
    assert there.high is not None
    assert back.high is not None
    assert there.low <= there.value * (1 + 1e-12)
    assert there.value <= there.high * (1 + 1e-12)
    assert back.high == pytest.approx(1 / there.low)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0])])
def test_pairs_that_give_no_ratio_are_an_error(a: list[float], b: list[float]) -> None:
    with pytest.raises(DataError):
        paired_ratio(a, b)


def test_quality_kept_is_the_ratio_of_means_with_a_deterministic_interval() -> None:
    rng = np.random.default_rng(4)
    teacher = rng.uniform(0.2, 1, 500)
    student = teacher * rng.uniform(0.8, 1, 500)
    ratio = ratio_of_means(student, teacher)
    assert ratio is not None
    assert ratio == ratio_of_means(student, teacher)
    assert ratio.value == pytest.approx(student.mean() / teacher.mean())
    assert ratio.low is not None
    assert ratio.high is not None
    # paired: far narrower than the spread of either
    assert 0.88 < ratio.low < ratio.value < ratio.high < 0.92


def test_nothing_over_zero_is_no_ratio() -> None:
    assert ratio_of_means([1.0, 0.0], [0.0, 0.0]) is None


def test_percentiles_lie_between_neighbours() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    with pytest.raises(DataError):
        percentile([], 50)
