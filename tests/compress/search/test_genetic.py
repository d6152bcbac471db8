"""The genetic search against exhaustive enumeration of a small space."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from codemill.compress.architecture import Architecture
from codemill.compress.budget import Budget
from codemill.compress.search.cost import CostModel, interpolate
from codemill.compress.search.genetic import TOLERANCE, Candidate, search
from codemill.compress.search.space import Space
from codemill.errors import RefusedError

SPACE = Space(
    vocab_sizes=(1000, 1500, 2000, 3000, 4000, 6000),
    embedding_ranks=(32, 64, 96, None),
    layers=((0,), (5,), (0, 5), (0, 2, 5)),
    heads=(4, 6, 12),
    intermediate_sizes=(128, 256, 512, 1024),
    hidden_size=384,
    head_size=32,
    max_tokens=256,
)


def latency_ms(architecture: Architecture) -> float:
    return (
        0.5 * architecture.layers
        + architecture.heads * 0.05
        + architecture.intermediate_size * 1e-3
    )


COSTS = CostModel(
    interpolate({1000: 180, 2000: 150, 6000: 125}),
    interpolate({1000: 20_000, 6000: 95_000}),
    latency_ms,
)
BUDGETS = [
    Budget(size_bytes=3_000_000),
    Budget(size_bytes=1_200_000),
    Budget(size_bytes=3_000_000, gflops=0.3),
    Budget(gflops=0.5),
    Budget(size_bytes=2_500_000, gflops=0.8, latency_ms=1.5),
    Budget(),
]


def exhaustive(budget: Budget) -> Architecture:
    """By definition: the largest embedding within the tolerance of the most GFLOPs that fit."""
    rows = []
    for genes in product(*(range(len(choices)) for choices in SPACE.choices)):
        wanted = SPACE.architecture(genes)
        row = (COSTS.gflops(wanted), COSTS.size_bytes(wanted), latency_ms(wanted))
        limits = (budget.gflops, budget.size_bytes, budget.latency_ms)
        if all(limit is None or cost <= limit for cost, limit in zip(row, limits, strict=True)):
            embedding = wanted.vocab_size * (wanted.embedding_rank or wanted.hidden_size)
            rows.append((embedding, row[0], -row[1], tuple(-gene for gene in genes), wanted))
    most = max(row[1] for row in rows)
    return max(row for row in rows if row[1] >= (1 - TOLERANCE) * most)[-1]


@pytest.mark.parametrize("budget", BUDGETS)
def test_twenty_seeds_find_what_enumeration_finds(budget: Budget) -> None:
    expected = exhaustive(budget)
    assert [search(SPACE, budget, COSTS, seed).best.architecture for seed in range(20)] == [
        expected
    ] * 20


def test_the_same_seed_gives_the_same_search_whatever_ran_before() -> None:
    random.seed(1)
    np.random.seed(1)
    first = search(SPACE, BUDGETS[2], COSTS, seed=7)
    random.seed(2)
    np.random.seed(2)
    np.random.random(100)
    again = search(SPACE, BUDGETS[2], COSTS, seed=7)
    assert replace(again, seconds=0) == replace(first, seconds=0)


def test_the_caller_s_random_numbers_are_left_alone() -> None:
    random.seed(3)
    np.random.seed(3)
    expected = (random.random(), np.random.random())
    random.seed(3)
    np.random.seed(3)
    search(SPACE, BUDGETS[0], COSTS, seed=0)
    assert (random.random(), np.random.random()) == expected


def test_no_architecture_is_costed_twice() -> None:
    asked: list[Architecture] = []

    def counting(architecture: Architecture) -> float:
        asked.append(architecture)
        return latency_ms(architecture)

    result = search(SPACE, BUDGETS[4], replace(COSTS, latency_ms=counting), seed=0)
    assert len(asked) == len(set(asked)) == result.evaluations <= SPACE.size


def test_progress_names_candidates_within_budget_that_never_get_worse() -> None:
    told: list[tuple[int, Candidate]] = []
    budget = BUDGETS[2]
    result = search(SPACE, budget, COSTS, seed=0, on_generation=lambda *row: told.append(row))
    assert [generation for generation, _ in told] == list(range(1, result.generations + 1))
    assert all(best.gflops <= 0.3 and best.size_bytes <= 3_000_000 for _, best in told)
    assert [best.gflops for _, best in told] == sorted(best.gflops for _, best in told)
    assert result.generations < 100  # it stopped by itself


def test_what_was_seen_is_kept_in_part_for_a_plot() -> None:
    result = search(SPACE, BUDGETS[0], COSTS, seed=0)
    assert 0 < len(result.seen) <= 1000
    assert len(set(result.seen)) == len(result.seen) <= result.evaluations
    assert result.best.latency_ms == latency_ms(result.best.architecture)


@pytest.mark.parametrize(
    ("budget", "named"),
    [
        (Budget(size_bytes=100_000), "size_bytes <= 100,000"),
        (Budget(gflops=0.001), "gflops <= 0.001"),
        (Budget(latency_ms=0.1), "latency_ms <= 0.1"),
    ],
)
def test_an_impossible_budget_is_refused_with_what_is_possible(budget: Budget, named: str) -> None:
    with pytest.raises(RefusedError) as caught:
        search(SPACE, budget, COSTS, seed=0)
    architectures = [
        SPACE.architecture(genes)
        for genes in product(*(range(len(choices)) for choices in SPACE.choices))
    ]
    assert named in str(caught.value)
    assert f"{min(map(COSTS.size_bytes, architectures)):,} bytes" in str(caught.value)
    assert f"{min(map(COSTS.gflops, architectures)):.4g} GFLOPs" in str(caught.value)


def test_limits_that_are_possible_one_by_one_but_not_together_are_refused() -> None:
    # few tokens a function need a large vocabulary, a small file a small one
    with pytest.raises(RefusedError, match="each on its own"):
        search(SPACE, Budget(size_bytes=560_000, gflops=0.095), COSTS, seed=0)


def test_a_latency_limit_without_a_latency_model_is_refused() -> None:
    with pytest.raises(RefusedError, match="latency"):
        search(SPACE, Budget(latency_ms=1.0), replace(COSTS, latency_ms=None), seed=0)
