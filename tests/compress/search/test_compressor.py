"""The search of Compressor's paper: its published figures, and its optimum by enumeration."""

from __future__ import annotations

import numpy as np
import pytest

from codemill.compress.architecture import Architecture
from codemill.compress.budget import Budget
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target_mb", "expected", "fitness"),
    [
        (3, (1000, 96, 12, 8, 64), 2.1915),
        (25, (2000, 320, 12, 8, 32), 10.4253),
        (50, (1000, 448, 12, 8, 160), 18.5305),
    ],
)
def test_the_paper_s_fitness_has_this_optimum_and_the_search_finds_it(
    costs: tuple[np.ndarray, np.ndarray], target_mb: int, expected: Shape, fitness: float
) -> None:
    gflops, mb = costs
    assert enumerated(gflops - np.abs(target_mb - mb)) == expected
    goal = paper_fitness(target_mb * 1_000_000)
    for seed in range(5):
        found = search(SPACE, Budget(), COSTS, seed, fitness=goal).best
        assert shape_of(found.architecture) == expected
        assert goal(found) == pytest.approx(fitness, abs=5e-5)


@pytest.mark.slow
def test_under_a_hard_limit_the_optimum_is_another(costs: tuple[np.ndarray, np.ndarray]) -> None:
    gflops, mb = costs
    expected = (1000, 96, 12, 8, 32)
    assert enumerated(np.where(mb <= 3, gflops, -1)) == expected

    def most(candidate: Candidate) -> float:
        return candidate.gflops

    for seed in range(5):
        found = search(SPACE, Budget(size_bytes=3_000_000), COSTS, seed, fitness=most).best
        assert shape_of(found.architecture) == expected
        assert (round(found.gflops, 4), found.size_bytes) == (2.1756, 2_765_192)


def test_what_ships_is_a_quarter_of_the_parameters_and_the_tokenizer() -> None:
    wanted = architecture((1000, 96, 12, 8, 64))
    assert 0.25 < shipped_bytes(wanted) / COSTS.size_bytes(wanted) < 0.35
