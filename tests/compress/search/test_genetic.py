"""The genetic search against exhaustive enumeration of a small space."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from codemill.compress.architecture import Architecture
from codemill.compress.budget import Budget
from codemill.compress.search import genetic
from codemill.compress.search.cost import CostModel, by_tokenizer, interpolate
from codemill.compress.search.genetic import TOLERANCE, Candidate, search
from codemill.compress.search.space import FreshSpace, Space
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
    by_tokenizer({"pruned": interpolate({1000: 180, 2000: 150, 6000: 125})}),
    by_tokenizer({"pruned": interpolate({1000: 20_000, 6000: 95_000})}),
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
def test_twenty_seeds_find_what_enumeration_finds_and_say_that_it_is_exact(budget: Budget) -> None:
    found = [search(SPACE, budget, COSTS, seed) for seed in range(20)]
    assert [item.best.architecture for item in found] == [exhaustive(budget)] * 20
    assert all(item.exact for item in found)


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_space_too_large_to_be_costed_as_a_whole_is_searched_too(
    budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(genetic, "_MOST_ENUMERATED", 0)
    monkeypatch.setattr(Space, "grids", None)
    found = [search(SPACE, budget, COSTS, seed) for seed in range(5)]
    expected = exhaustive(budget)
    if budget != Budget(gflops=0.5):
        assert [item.best.architecture for item in found] == [expected] * 5
    # where depth and width trade against each other nothing guarantees more than this
    floor = (1 - TOLERANCE) * COSTS.gflops(expected)
    assert all(item.best.gflops >= floor for item in found)
    assert not any(item.exact for item in found)
    assert all(item.evaluations < SPACE.size for item in found)


def costs_of(architecture: Architecture) -> tuple[float, int, float]:
    return COSTS.gflops(architecture), COSTS.size_bytes(architecture), latency_ms(architecture)


def test_whatever_fits_is_found_at_budgets_drawn_at_random() -> None:
    """Limits just above what one architecture costs: few others keep them all."""
    rng = np.random.default_rng(0)
    for genes in rng.integers(
        0, [len(choices) for choices in SPACE.choices], (20, len(SPACE.choices))
    ):
        operations, size, ms = costs_of(SPACE.architecture(genes))
        budget = Budget(size_bytes=size, gflops=operations, latency_ms=ms)
        found = search(SPACE, budget, COSTS, seed=0)
        assert found.best.architecture == exhaustive(budget)


@pytest.mark.parametrize("enumerated", [True, False])
def test_a_fitness_of_one_s_own_is_maximised_within_the_budget(
    enumerated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(genetic, "_MOST_ENUMERATED", SPACE.size if enumerated else 0)
    limit = 1_500_000

    def fitness(candidate: Candidate) -> float:
        return -abs(candidate.gflops - 0.25) - abs(candidate.size_bytes / 1e6 - 1.2)

    rows = []
    for genes in product(*(range(len(choices)) for choices in SPACE.choices)):
        wanted = SPACE.architecture(genes)
        operations, size, ms = costs_of(wanted)
        if size <= limit:
            rows.append((fitness(Candidate(wanted, operations, size, ms)), -size, wanted))
    expected = max(rows, key=lambda row: row[:2])[-1]
    for seed in range(10):
        found = search(SPACE, Budget(size_bytes=limit), COSTS, seed, fitness=fitness)
        assert found.best.architecture == expected
        assert found.exact is enumerated


def test_equals_are_decided_by_the_order_of_choices() -> None:
    """Layers (0,) and (5,) cost the same: the space says which is preferred."""
    for first, second in (((0,), (5,)), ((5,), (0,))):
        space = replace(SPACE, layers=(first, second))
        for seed in range(5):
            found = search(space, BUDGETS[1], COSTS, seed).best
            assert found.architecture.copied_layers == first


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
        # the whole space at once, by arrays, is no evaluation of the search
        if isinstance(architecture, Architecture):
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


def test_a_rank_beyond_the_width_makes_no_larger_embedding() -> None:
    """Rank 256 at width 64 holds no more than rank 64: what is left is better spent on tokens."""
    space = FreshSpace(
        vocab_sizes=(1000, 1500),
        embedding_ranks=(256, 64),
        hidden_sizes=(64,),
        layers=(12,),
        head_sizes=(16,),
        intermediate_sizes=(4096,),
        max_tokens=64,
    )
    costs = CostModel(lambda _: 64.0, lambda _: 20_000.0)
    wide = space.architecture((0,) * len(space.choices))
    limit = Budget(size_bytes=costs.size_bytes(wide))
    found = search(space, limit, costs, seed=0).best.architecture
    assert (found.vocab_size, found.embedding_rank) == (1500, 64)
