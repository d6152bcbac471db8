"""The genetic search: as many GFLOPs as the budget allows (Compressor, ASE 2022).

pygad selects and crosses over; three things are added, without which it misses the optimum of even
the paper's small space: hard limits are kept by repairing whoever breaks one, no architecture is
costed twice, and the best is polished by changing one gene, or two, or three where the space is
small enough to try them all, until nothing improves (a memetic algorithm). Tests hold the answer to
that of enumerating a small space; nothing guarantees it for a large one.

GFLOPs alone leave many near-equals and tend to starve the embedding. So what is returned is, among
the architectures within 1 % of the most GFLOPs that fit, one with a large embedding (vocabulary x
rank, the full width for a full table), which is where what is left of the size goes. It is reached
from the one with the most GFLOPs by steps that no chance enters: with one seed or another, the
answer is the same as long as the genetic search found the optimum. Equals: more GFLOPs, then fewer
bytes, then the choice listed first in the space.

What is searched is `space.py`, what it costs is `cost.py`. Several objectives at once, and an
estimate of quality, are not here.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np

from codemill.compress.architecture import Architecture
from codemill.compress.budget import Budget
from codemill.compress.search.cost import Costs
from codemill.compress.search.space import AnySpace
from codemill.errors import RefusedError

__all__ = ["TOLERANCE", "Candidate", "SearchResult", "search"]

TOLERANCE = 0.01
"""Architectures whose GFLOPs are within this share of the best count as equal in GFLOPs."""

_POPULATION = 40
_ELITE = 2
_MUTATED_GENES = 1.5
_GENERATIONS = 100
_SATURATED = 12
_POLISHED = 6
# changes of three genes at once are all tried up to this many: about half a second
_MOST_TRIPLES = 50_000
# beyond it one climb by single and pairwise changes has to do: 15,000 of them in the paper's space
_MOST_PAIRS = 6_000
_SEEN = 1000

Genes = tuple[int, ...]
Score = tuple[float, ...]


@dataclass(frozen=True)
class Candidate:
    """An architecture and its costs: dense `gflops` and, if known, `latency_ms` of one function."""

    architecture: Architecture
    gflops: float
    size_bytes: int
    latency_ms: float | None


@dataclass(frozen=True)
class SearchResult:
    """`seen`: at most 1,000 of the costed candidates, in order, those over budget included."""

    best: Candidate
    evaluations: int
    generations: int
    seconds: float
    seen: tuple[Candidate, ...]


def search(
    space: AnySpace,
    budget: Budget,
    costs: Costs,
    seed: int,
    on_generation: Callable[[int, Candidate], None] | None = None,
    fitness: Callable[[Candidate], float] | None = None,
) -> SearchResult:
    """The architecture with the most GFLOPs within `budget`; see the module for near-equals.

    With `fitness`, the one of the highest fitness within `budget` instead, and no near-equals.
    Depends on its arguments only, and leaves the global random state as it was. `on_generation`
    is told the generations done so far and the best candidate. Raises RefusedError, naming what is
    possible, where nothing in the space fits.
    """
    if budget.latency_ms is not None and costs.latency_ms is None:
        raise RefusedError(
            f"a latency limit of {budget.latency_ms:g} ms was given without a model of latency; "
            "leave the limit out of the search and measure the result"
        )
    started = time.perf_counter()
    costed = _Costed(space, budget, costs)
    goal = _most_gflops(costed) if fitness is None else _fittest(costed, fitness)
    rng = np.random.default_rng(seed)
    best, generations = _evolve(costed, goal, _any_that_fits(costed), rng, on_generation)
    if fitness is None:
        best = _polish(_largest_embedding(costed, costed[best].gflops), costed.lengths, best)
    seen = list(costed.memo.values())
    return SearchResult(
        best=costed[best],
        evaluations=len(seen),
        generations=generations,
        seconds=time.perf_counter() - started,
        seen=tuple(seen[:: -(-len(seen) // _SEEN)]),
    )


class _Costed:
    """The space with its costs, each architecture costed once."""

    def __init__(self, space: AnySpace, budget: Budget, costs: Costs) -> None:
        self.space, self.budget, self._costs = space, budget, costs
        self.lengths = [len(choices) for choices in space.choices]
        self.memo: dict[Genes, Candidate] = {}

    def __getitem__(self, genes: Genes) -> Candidate:
        known = self.memo.get(genes)
        if known is None:
            architecture = self.space.architecture(genes)
            latency_ms = self._costs.latency_ms
            known = self.memo[genes] = Candidate(
                architecture,
                self._costs.gflops(architecture),
                self._costs.size_bytes(architecture),
                None if latency_ms is None else latency_ms(architecture),
            )
        return known

    def excess(self, genes: Genes) -> float:
        """By how much the limits are broken, in shares of each limit; 0 where all are kept."""
        candidate, budget = self[genes], self.budget
        total = 0.0
        if budget.size_bytes is not None:
            total += max(0.0, candidate.size_bytes / budget.size_bytes - 1)
        if budget.gflops is not None:
            total += max(0.0, candidate.gflops / budget.gflops - 1)
        if budget.latency_ms is not None and candidate.latency_ms is not None:
            total += max(0.0, candidate.latency_ms / budget.latency_ms - 1)
        return total

    def embedding(self, genes: Genes) -> int:
        """Elements of the word table: vocabulary x rank, the full width for a full table."""
        architecture = self[genes].architecture
        return architecture.vocab_size * (architecture.embedding_rank or architecture.hidden_size)


class _Goal:
    """What is maximised (`score`) among the gene vectors whose `excess` is 0."""

    def __init__(self, score: Callable[[Genes], Score], excess: Callable[[Genes], float]) -> None:
        self.score, self.excess = score, excess
        self._ranks: dict[Genes, Score] = {}

    def rank(self, genes: Genes) -> Score:
        """Highest is best, over all gene vectors: first what fits, then the score."""
        known = self._ranks.get(genes)
        if known is None:
            excess = self.excess(genes)
            known = self._ranks[genes] = (-excess,) if excess > 0 else (0.0, *self.score(genes))
        return known


def _most_gflops(costed: _Costed) -> _Goal:
    def score(genes: Genes) -> Score:
        candidate = costed[genes]
        return (
            candidate.gflops,
            costed.embedding(genes),
            -candidate.size_bytes,
            *(-gene for gene in genes),
        )

    return _Goal(score, costed.excess)


def _fittest(costed: _Costed, fitness: Callable[[Candidate], float]) -> _Goal:
    def score(genes: Genes) -> Score:
        candidate = costed[genes]
        return (fitness(candidate), -candidate.size_bytes, *(-gene for gene in genes))

    return _Goal(score, costed.excess)


def _largest_embedding(costed: _Costed, gflops: float) -> _Goal:
    floor = (1 - TOLERANCE) * gflops

    def score(genes: Genes) -> Score:
        candidate = costed[genes]
        return (
            costed.embedding(genes),
            candidate.gflops,
            -candidate.size_bytes,
            *(-gene for gene in genes),
        )

    def excess(genes: Genes) -> float:
        return costed.excess(genes) + max(0.0, 1 - costed[genes].gflops / floor)

    return _Goal(score, excess)


def _evolve(
    costed: _Costed,
    goal: _Goal,
    anchor: Genes,
    rng: np.random.Generator,
    on_generation: Callable[[int, Candidate], None] | None,
) -> tuple[Genes, int]:
    """The best gene vector, and the generations used. `anchor` is one that fits."""
    import pygad

    lengths = costed.lengths

    def repaired(row: Any) -> Genes:
        return _repair(goal, lengths, tuple(int(gene) for gene in row), anchor, rng)

    def fitness(_instance: Any, row: Sequence[int], _index: Any) -> float:
        return goal.score(tuple(int(gene) for gene in row))[0]

    def mutate(offspring: Any, _instance: Any) -> Any:
        chosen = rng.random(offspring.shape) < _MUTATED_GENES / len(lengths)
        drawn = rng.integers(0, lengths, offspring.shape)
        for row, changed in enumerate(np.where(chosen, drawn, offspring)):
            offspring[row] = repaired(changed)
        return offspring

    def report(instance: Any) -> None:
        if on_generation is not None:
            fittest = instance.population[int(np.argmax(instance.last_generation_fitness))]
            on_generation(
                instance.generations_completed, costed[tuple(int(gene) for gene in fittest)]
            )

    first = [anchor, *(repaired(rng.integers(0, lengths)) for _ in range(_POPULATION - 1))]
    with _global_random_state_kept():
        evolution = pygad.GA(
            num_generations=_GENERATIONS,
            num_parents_mating=_POPULATION // 2,
            initial_population=np.array(first),
            gene_type=int,
            gene_space=[list(range(length)) for length in lengths],
            fitness_func=fitness,
            parent_selection_type="tournament",
            crossover_type="uniform",
            mutation_type=mutate,
            keep_elitism=_ELITE,
            stop_criteria=f"saturate_{_SATURATED}",
            on_generation=report,
            random_seed=int(rng.integers(2**32)),
            suppress_warnings=True,
        )
        evolution.run()
    last = {tuple(int(gene) for gene in row) for row in evolution.population}
    starts = sorted(last, key=goal.rank, reverse=True)[:_POLISHED]
    best = max((_climb(start, lengths, goal.rank) for start in starts), key=goal.rank)
    return _polish(goal, lengths, best), int(evolution.generations_completed)


def _polish(goal: _Goal, lengths: Sequence[int], genes: Genes) -> Genes:
    """The best that can be reached from `genes`, by steps without chance.

    A climb alone ends at the next hilltop. So, where the space is small, every choice of every gene
    is put in in turn and held while the other genes adapt, and the climb goes on from the best of
    these; again until that helps no more.
    """
    if _combinations(lengths, 2) > _MOST_PAIRS:
        return _climb(genes, lengths, goal.rank)
    while True:
        starts = {genes}
        for place, length in enumerate(lengths):
            for gene in range(length):
                changed = (*genes[:place], gene, *genes[place + 1 :])
                starts.add(_climb(changed, lengths, goal.rank, held=place))
        fittest = sorted(starts, key=goal.rank, reverse=True)[:_POLISHED]
        best = max((_climb(start, lengths, goal.rank) for start in fittest), key=goal.rank)
        best = _climb(best, lengths, goal.rank, _reach(lengths))
        if goal.rank(best) <= goal.rank(genes):
            return genes
        genes = best


def _reach(lengths: Sequence[int]) -> int:
    """How many genes a last climb may change at once: three where all can be tried, else two."""
    return 3 if _combinations(lengths, 3) <= _MOST_TRIPLES else 2


def _combinations(lengths: Sequence[int], count: int) -> int:
    """How many ways there are to choose `count` genes and a value for each."""
    return sum(math.prod(chosen) for chosen in combinations(lengths, count))


def _repair(
    goal: _Goal, lengths: Sequence[int], genes: Genes, anchor: Genes, rng: np.random.Generator
) -> Genes:
    """Change genes in random order until the limits are kept, each to its best choice."""
    if goal.excess(genes) == 0:
        return genes
    for place in rng.permutation(len(lengths)):
        options = [(*genes[:place], gene, *genes[place + 1 :]) for gene in range(lengths[place])]
        genes = max(options, key=goal.rank)
        if goal.excess(genes) == 0:
            return genes
    return anchor


def _climb(
    genes: Genes,
    lengths: Sequence[int],
    rank: Callable[[Genes], Score],
    at_once: int = 2,
    held: int | None = None,
) -> Genes:
    """Change one gene, or more where fewer do not help, to the best effect, until none helps.

    `at_once`: how many at most; `held`: a place that is not changed.
    """
    places = [place for place in range(len(lengths)) if place != held]
    while True:
        for count in range(1, at_once + 1):
            best = max(_changes(genes, lengths, places, count), key=rank, default=genes)
            if rank(best) > rank(genes):
                genes = best
                break
        else:
            return genes


def _changes(
    genes: Genes, lengths: Sequence[int], places: Sequence[int], count: int
) -> Iterator[Genes]:
    """All gene vectors that differ in at most `count` genes, at `places`."""
    for chosen in combinations(places, count):
        options = [
            range(length) if place in chosen else (genes[place],)
            for place, length in enumerate(lengths)
        ]
        yield from product(*options)


def _any_that_fits(costed: _Costed) -> Genes:
    """One gene vector within all limits; RefusedError with what is possible where there is none."""
    lengths = costed.lengths
    start: Genes = (0,) * len(lengths)
    nearest = _climb(start, lengths, lambda genes: (-costed.excess(genes),))
    if costed.excess(nearest) == 0:
        return nearest
    smallest = costed[_climb(start, lengths, lambda genes: (-costed[genes].size_bytes,))].size_bytes
    least = costed[_climb(start, lengths, lambda genes: (-costed[genes].gflops,))].gflops
    limits, possible = [], [f"{smallest:,} bytes", f"{least:.4g} GFLOPs a function"]
    budget = costed.budget
    if budget.size_bytes is not None:
        limits.append(f"size_bytes <= {budget.size_bytes:,}")
    if budget.gflops is not None:
        limits.append(f"gflops <= {budget.gflops:g}")
    if budget.latency_ms is not None:
        limits.append(f"latency_ms <= {budget.latency_ms:g}")
        fastest = _climb(start, lengths, lambda genes: (-(costed[genes].latency_ms or 0.0),))
        possible.append(f"{costed[fastest].latency_ms:.4g} ms")
    near = costed[nearest]
    raise RefusedError(
        f"none of the {costed.space.size:,} architectures in the search space fits "
        f"{' and '.join(limits)}; the least possible, each on its own, is {', '.join(possible)}; "
        "the nearest to all limits has "
        f"{near.size_bytes:,} bytes and {near.gflops:.4g} GFLOPs: "
        "raise the limit, or give the search smaller choices or a smaller teacher"
    )


@contextmanager
def _global_random_state_kept() -> Iterator[None]:
    """Put the global random states back: pygad before 3.9 seeds and draws from them."""
    state, numpy_state = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
