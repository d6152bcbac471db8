"""NSGA-II against the front of a small space by enumeration."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from codemill.compress.architecture import Architecture
from codemill.compress.budget import Budget
from codemill.compress.search.cost import CostModel, by_tokenizer, interpolate
from codemill.compress.search.genetic import Candidate
from codemill.compress.search.pareto import ParetoResult, knee, most_quality, pareto
from codemill.compress.search.space import Space
from codemill.errors import RecipeError, RefusedError

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


def worth(architecture: Architecture) -> float:
    """Made up: which layers are copied matters more than how many, as it does."""
    layers = {(0,): 0.10, (5,): 0.02, (0, 5): 0.13, (0, 2, 5): 0.12}[architecture.copied_layers]
    sizes = (architecture.vocab_size, architecture.embedding_rank or 384, architecture.heads)
    return layers + sum(0.02 * math.log(size) for size in sizes)


def quality(architectures: Sequence[Architecture]) -> np.ndarray:
    return np.array([worth(item) for item in architectures])


THREE = ("quality", "latency_ms", "size_bytes")
CASES = [
    (THREE, Budget(size_bytes=3_000_000)),
    (THREE, Budget()),
    (THREE, Budget(size_bytes=2_500_000, gflops=0.8, latency_ms=1.5)),
    (("gflops", "size_bytes"), Budget(latency_ms=2.0)),
    (("size_bytes",), Budget(gflops=0.3)),
]
BOXES = {"quality": 0.002, "gflops": 0.0101, "latency_ms": 0.0101, "size_bytes": 0.0101}


def run(
    objectives: Sequence[str] = THREE, budget: Budget = CASES[0][1], seed: int = 0
) -> ParetoResult:
    return pareto(SPACE, budget, COSTS, quality, objectives, seed)


def signed(item: Candidate, objectives: Sequence[str]) -> tuple[float, ...]:
    """The objectives, more is better."""
    signs = {"quality": 1, "gflops": 1}
    return tuple(signs.get(name, -1) * getattr(item, name) for name in objectives)


def all_that_fit(budget: Budget) -> list[Candidate]:
    found = []
    for genes in product(*(range(len(choices)) for choices in SPACE.choices)):
        one = SPACE.architecture(genes)
        item = Candidate(one, COSTS.gflops(one), COSTS.size_bytes(one), latency_ms(one), worth(one))
        limits = (
            (budget.gflops, item.gflops),
            (budget.size_bytes, item.size_bytes),
            (budget.latency_ms, item.latency_ms or 0.0),
        )
        if all(limit is None or cost <= limit for limit, cost in limits):
            found.append(item)
    return found


def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("objectives", "budget"), CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_front_is_the_enumerated_one_to_within_a_box(
    objectives: tuple[str, ...], budget: Budget, seed: int
) -> None:
    result = run(objectives, budget, seed)
    found = [signed(item, objectives) for item in result.front]
    rows = [signed(item, objectives) for item in all_that_fit(budget)]
    exact = {row for row in rows if not any(beats(other, row) for other in rows)}
    assert set(found) <= exact, "nothing that fits beats a member of the front"
    assert len(set(found)) == len(found)
    for wanted in exact:
        near = [
            row
            for row in found
            if all(
                value >= best - BOXES[name] * (1 if name == "quality" else abs(best))
                for name, value, best in zip(objectives, row, wanted, strict=True)
            )
        ]
        assert near, wanted
    assert found == sorted(found, key=lambda row: -row[0])
    assert result.objectives == objectives
    assert result.evaluations <= SPACE.size


@pytest.mark.parametrize(("objectives", "budget"), CASES)
def test_limits_are_kept_and_the_candidates_say_what_they_cost(
    objectives: tuple[str, ...], budget: Budget
) -> None:
    possible = {item.architecture: item for item in all_that_fit(budget)}
    for item in run(objectives, budget).front:
        assert item == possible[item.architecture]


def test_the_same_seed_gives_the_same_front_whatever_ran_before() -> None:
    random.seed(1)
    np.random.seed(1)
    first = run(seed=7)
    random.seed(2)
    np.random.seed(2)
    assert replace(run(seed=7), seconds=0) == replace(first, seconds=0)


def test_the_caller_s_random_numbers_are_left_alone() -> None:
    random.seed(3)
    np.random.seed(3)
    expected = (random.random(), np.random.random())
    random.seed(3)
    np.random.seed(3)
    run()
    assert (random.random(), np.random.random()) == expected


def test_nothing_is_costed_or_estimated_twice() -> None:
    costed: Counter[Architecture] = Counter()
    estimated: Counter[Architecture] = Counter()

    def counting(architecture: Architecture) -> float:
        costed[architecture] += 1
        return latency_ms(architecture)

    def estimating(architectures: Sequence[Architecture]) -> np.ndarray:
        estimated.update(architectures)
        return quality(architectures)

    costs = replace(COSTS, latency_ms=counting)
    result = pareto(SPACE, CASES[0][1], costs, estimating, THREE, seed=0)
    assert set(costed.values()) == set(estimated.values()) == {1}
    assert len(costed) == result.evaluations >= len(estimated)


def test_progress_tells_generations_the_best_and_the_length_of_the_front() -> None:
    told: list[tuple[int, Candidate, int]] = []
    result = pareto(SPACE, Budget(), COSTS, quality, THREE, 0, lambda *row: told.append(row))
    assert [generation for generation, _, _ in told] == list(range(1, result.generations + 1))
    assert all(length > 0 for _, _, length in told)
    best = [candidate.quality or 0.0 for _, candidate, _ in told]
    assert best == sorted(best)
    assert best[-1] <= (result.front[0].quality or 0.0)
    assert result.generations < 200, "it ends by itself"


@pytest.mark.parametrize(
    ("objectives", "said"),
    [
        ((), "not \\[\\]"),
        (("quality", "beauty"), "beauty"),
        (("size_bytes", "size_bytes"), "each once"),
    ],
)
def test_objectives_that_are_none_are_refused(objectives: tuple[str, ...], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        run(objectives)


def test_an_objective_that_nothing_tells_is_refused_with_what_would() -> None:
    with pytest.raises(RecipeError, match="compress estimate"):
        pareto(SPACE, Budget(), COSTS, None, THREE, 0)
    unprofiled = replace(COSTS, latency_ms=None)
    with pytest.raises(RecipeError, match="compress profile"):
        pareto(SPACE, Budget(), unprofiled, quality, THREE, 0)
    result = pareto(SPACE, Budget(), unprofiled, None, ("gflops", "size_bytes"), 0)
    assert {(item.quality, item.latency_ms) for item in result.front} == {(None, None)}


def test_a_latency_limit_that_nothing_can_hold_is_refused_and_not_ignored() -> None:
    unprofiled = replace(COSTS, latency_ms=None)
    with pytest.raises(RefusedError, match="without a model of latency"):
        pareto(SPACE, Budget(latency_ms=1.0), unprofiled, None, ("gflops", "size_bytes"), 0)


def test_an_impossible_budget_is_refused_with_what_is_possible() -> None:
    least = min(item.size_bytes for item in all_that_fit(Budget()))
    with pytest.raises(RefusedError, match=f"the least possible.*{least:,} bytes"):
        run(budget=Budget(size_bytes=100_000))
    tight = run(budget=Budget(size_bytes=least))
    assert [item.size_bytes for item in tight.front] == [least] * len(tight.front)


def candidate(quality: float, ms: float, size: int) -> Candidate:
    return Candidate(SPACE.architecture([0] * len(SPACE.choices)), 1.0, size, ms, quality)


def test_the_knee_is_where_gains_begin_to_cost_and_most_quality_is_the_best_there_is() -> None:
    steep = candidate(0.50, 1.2, 1_100_000)
    front = (candidate(0.55, 9.0, 9_000_000), steep, candidate(0.20, 1.0, 1_000_000))
    result = ParetoResult(front, THREE, 3, 1, 0.0)
    assert knee(result) == steep
    assert most_quality(result) == front[0]
    by_size = replace(result, objectives=("size_bytes", "quality"))
    assert most_quality(by_size) == front[2]


def test_a_front_of_one_is_its_own_knee() -> None:
    alone = candidate(0.5, 1.0, 1_000_000)
    result = ParetoResult((alone,), THREE, 1, 1, 0.0)
    assert knee(result) == most_quality(result) == alone


def test_picks_of_a_real_front_belong_to_it() -> None:
    result = run()
    assert knee(result) in result.front
    assert most_quality(result) == result.front[0]
    assert most_quality(result).quality == max(item.quality or 0 for item in result.front)
    assert knee(result) != most_quality(result)
