"""The search of Compressor's paper: its published figures, and its optimum by enumeration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from codemill.compress.architecture import Architecture
from codemill.compress.budget import Budget
from codemill.compress.search import genetic
from codemill.compress.search.compressor import (
    TOKENS,
    CompressorCosts,
    CompressorSpace,
    paper_fitness,
    shipped_bytes,
)
from codemill.compress.search.genetic import Candidate, search

SPACE, COSTS = CompressorSpace(), CompressorCosts()

Shape = tuple[int, int, int, int, int]


def shape_of(wanted: Architecture) -> Shape:
    return (
        wanted.vocab_size,
        wanted.hidden_size,
        wanted.layers,
        wanted.heads,
        wanted.intermediate_size,
    )


def architecture(shape: Shape) -> Architecture:
    vocab_size, hidden, layers, heads, inner = shape
    return Architecture(vocab_size, hidden, layers, heads, hidden // heads, inner, TOKENS)


@pytest.fixture(scope="module")
def costs() -> tuple[np.ndarray, np.ndarray]:
    """GFLOPs and MB of all 10,944,000 architectures, written out anew: V, H, L, heads, I."""
    v, h, layers, heads, i = np.ix_(*(np.array(choices, dtype=float) for choices in SPACE.choices))
    attention = 8 * h * h + 3 * h + 4 * h * TOKENS + 10 * TOKENS * heads + 6 * h + 5
    feed_forward = 4 * h * i + 9 * i + 11 * h
    rest = 2 * v * h + 2 * h * (TOKENS + 2) + 11 * h + 2 * h * h + 15 * h
    gflops = TOKENS * (layers * (attention + feed_forward) + rest) / 1e9
    layer = 4 * (h * h + h) + (2 * h * i + i + h) + 4 * h
    head = 2 * (h * h + h) + 2 * h + 2
    mb = 4e-6 * (v * h + (TOKENS + 1 + 2) * h + layers * layer + head)
    return gflops, np.broadcast_to(mb, gflops.shape)


def enumerated(score: np.ndarray) -> Shape:
    at = np.unravel_index(int(np.argmax(score)), score.shape)
    return shape_of(SPACE.architecture([int(index) for index in at]))


def test_the_space_is_the_published_one() -> None:
    assert SPACE.size == 10_944_000


@pytest.mark.parametrize(
    ("shape", "published_mb"),
    [
        ((1000, 96, 12, 8, 64), 3.06),
        ((1000, 432, 6, 16, 128), 24.79),
        ((6000, 480, 6, 16, 576), 49.87),
        ((50265, 768, 12, 12, 3072), 501),
    ],
)
def test_sizes_are_the_published_ones(shape: Shape, published_mb: float) -> None:
    assert COSTS.size_bytes(architecture(shape)) / 1e6 == pytest.approx(published_mb, rel=2e-3)


def test_the_costs_of_any_architecture_are_those_enumerated(
    costs: tuple[np.ndarray, np.ndarray],
) -> None:
    rng = np.random.default_rng(0)
    for genes in rng.integers(0, [len(choices) for choices in SPACE.choices], (50, 5)):
        wanted = SPACE.architecture(genes)
        assert COSTS.gflops(wanted) == pytest.approx(costs[0][tuple(genes)], rel=1e-12)
        assert COSTS.size_bytes(wanted) / 1e6 == pytest.approx(costs[1][tuple(genes)], rel=1e-12)


def most(candidate: Candidate) -> float:
    return candidate.gflops


@dataclass(frozen=True)
class Case:
    """What to search, and the published or enumerated optimum."""

    target_mb: int | None
    """of the paper's fitness; None: the most GFLOPs"""
    budget: Budget
    expected: Shape
    fitness: float

    def goal(self) -> Callable[[Candidate], float]:
        return most if self.target_mb is None else paper_fitness(self.target_mb * 1_000_000)


CASES = {
    "3 MB": Case(3, Budget(), (1000, 96, 12, 8, 64), 2.1915),
    "25 MB": Case(25, Budget(), (2000, 320, 12, 8, 32), 10.4253),
    "50 MB": Case(50, Budget(), (1000, 448, 12, 8, 160), 18.5305),
    "a hard limit": Case(None, Budget(size_bytes=3_000_000), (1000, 96, 12, 8, 32), 2.1756),
    "at most 1.5 GFLOPs": Case(3, Budget(gflops=1.5), (3000, 96, 7, 1, 96), 1.4934),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_search_finds_the_optimum_by_enumeration_whatever_the_seed(
    costs: tuple[np.ndarray, np.ndarray], name: str
) -> None:
    case, (gflops, mb) = CASES[name], costs
    score = gflops if case.target_mb is None else gflops - np.abs(case.target_mb - mb)
    kept = np.ones(score.shape, dtype=bool)
    if case.budget.gflops is not None:
        kept &= gflops <= case.budget.gflops
    if case.budget.size_bytes is not None:
        kept &= mb <= case.budget.size_bytes / 1e6
    assert enumerated(np.where(kept, score, -np.inf)) == case.expected
    goal = case.goal()
    for seed in range(20):
        result = search(SPACE, case.budget, COSTS, seed, fitness=goal)
        assert shape_of(result.best.architecture) == case.expected
        assert goal(result.best) == pytest.approx(case.fitness, abs=5e-5)
        assert result.exact
        assert result.evaluations < SPACE.size / 100


@pytest.mark.slow
@pytest.mark.parametrize("name", ["3 MB", "a hard limit"])
def test_the_genetic_search_alone_comes_within_a_percent(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(genetic, "_MOST_ENUMERATED", 0)
    case = CASES[name]
    for seed in range(2):
        result = search(SPACE, case.budget, COSTS, seed, fitness=case.goal())
        assert not result.exact
        assert case.goal()(result.best) > 0.99 * case.fitness
        assert COSTS.size_bytes(result.best.architecture) == result.best.size_bytes


def test_the_optimum_under_a_hard_limit_has_this_size() -> None:
    assert COSTS.size_bytes(architecture(CASES["a hard limit"].expected)) == 2_765_192


def test_what_ships_is_a_quarter_of_the_parameters_and_the_tokenizer() -> None:
    wanted = architecture((1000, 96, 12, 8, 64))
    assert 0.25 < shipped_bytes(wanted) / COSTS.size_bytes(wanted) < 0.35
