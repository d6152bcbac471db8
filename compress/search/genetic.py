"""The genetic search: as many GFLOPs as the budget allows (Compressor, ASE 2022).

pygad selects and crosses over; four things are added, without which it misses the optimum of even
the paper's small space: hard limits are kept by repairing whoever breaks one, no architecture is
costed twice, the best are polished by changing one gene or two until nothing improves (a memetic
algorithm), and where the space is small enough to be costed as a whole, which formulas over arrays
do ten million a second, the answer is held against all of it. So the answer is exact there, whatever
the seed, and says so; in a larger space nothing guarantees it.

GFLOPs alone leave many near-equals and tend to starve the embedding. So what is returned is, among
the architectures within 1 % of the most GFLOPs that fit, one with a large embedding (vocabulary x
rank, the full width for a full table), which is where what is left of the size goes. Equals: more
GFLOPs, then fewer bytes, then the choice listed first in the space.

What is searched is `space.py`, what it costs is `cost.py`. Several objectives at once are `pareto.py`.
"""

from __future__ import annotations

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

__all__ = [
    "TOLERANCE",
    "Candidate",
    "Costed",
    "Genes",
    "SearchResult",
    "any_that_fits",
    "evolve",
    "search",
]

TOLERANCE = 0.01
"""Architectures whose GFLOPs are within this share of the best count as equal in GFLOPs."""

_POPULATION = 40
_ELITE = 2
_MUTATED_GENES = 1.5
_GENERATIONS = 100
_SATURATED = 12
_POLISHED = 6
# costed within some two seconds
_MOST_ENUMERATED = 20_000_000
_SEEN = 1000

Genes = tuple[int, ...]
Score = tuple[float, ...]


@dataclass(frozen=True)
class Candidate:
    """An architecture and its costs: dense `gflops` and, if known, `latency_ms` of one function.

    `quality` as estimated, where it is an objective.

    Within the search also many at once: then all fields are arrays that broadcast.
    """

    architecture: Architecture
    gflops: float
    size_bytes: int
    latency_ms: float | None
    quality: float | None = None


@dataclass(frozen=True)
class SearchResult:
    """`seen`: at most 1,000 of the costed candidates, in order, those over budget included.

    `exact`: whether `best` was held against the whole space. `evaluations` are those of the search itself.
    """

    best: Candidate
    exact: bool
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
    started = time.perf_counter()
    costed = Costed(space, budget, costs)
    goal = _most_gflops(costed) if fitness is None else _fittest(costed, fitness)
    rng = np.random.default_rng(seed)
    exact = space.size <= _MOST_ENUMERATED
    best, generations = _evolve(costed, goal, any_that_fits(costed), rng, exact, on_generation)
    if exact:
        best = _best_of_all(goal, best)
    if fitness is None:
        goal = _largest_embedding(costed, costed[best].gflops)
        best = (
            _best_of_all(goal, best) if exact else _evolve(costed, goal, best, rng, exact, None)[0]
        )
    seen = list(costed.memo.values())
    return SearchResult(
        best=costed[best],
        exact=exact,
        evaluations=len(seen),
        generations=generations,
        seconds=time.perf_counter() - started,
        seen=tuple(seen[:: -(-len(seen) // _SEEN)]),
    )


class Costed:
    """The space with its costs, each architecture costed once.

    Raises RefusedError for a limit on what `costs` does not know.
    """

    def __init__(self, space: AnySpace, budget: Budget, costs: Costs) -> None:
        if budget.latency_ms is not None and costs.latency_ms is None:
            raise RefusedError(
                f"a latency limit of {budget.latency_ms:g} ms was given without a model of latency; "
                "leave the limit out of the search and measure the result"
            )
        self.space, self.budget, self._costs = space, budget, costs
        self.lengths = [len(choices) for choices in space.choices]
        self.memo: dict[Genes, Candidate] = {}

    def __getitem__(self, genes: Genes) -> Candidate:
        known = self.memo.get(genes)
        if known is None:
            found = self.cost(self.space.architecture(genes))
            ms = None if found.latency_ms is None else float(found.latency_ms)
            known = self.memo[genes] = Candidate(
                found.architecture, float(found.gflops), int(found.size_bytes), ms
            )
        return known

    def cost(self, architecture: Architecture) -> Candidate:
        """The costs of one architecture, or of many at once."""
        latency_ms = self._costs.latency_ms
        return Candidate(
            architecture,
            self._costs.gflops(architecture),
            self._costs.size_bytes(architecture),
            None if latency_ms is None else latency_ms(architecture),
        )

    def excess(self, candidate: Candidate) -> float:
        """By how much the limits are broken, in shares of each limit; 0 where all are kept."""
        budget = self.budget
        total = 0.0
        if budget.size_bytes is not None:
            total = total + _above_zero(candidate.size_bytes / budget.size_bytes - 1)
        if budget.gflops is not None:
            total = total + _above_zero(candidate.gflops / budget.gflops - 1)
        if budget.latency_ms is not None and candidate.latency_ms is not None:
            total = total + _above_zero(candidate.latency_ms / budget.latency_ms - 1)
        return total


def _above_zero(value: float) -> float:
    if isinstance(value, np.ndarray):
        return np.maximum(value, 0.0)
    return value if value > 0 else 0.0


class _Goal:
    """What is maximised among the candidates whose `excess` is 0: the first of `keys`, then the next."""

    def __init__(
        self,
        costed: Costed,
        keys: Callable[[Candidate], Score],
        excess: Callable[[Candidate], float],
    ) -> None:
        self.costed, self.keys, self.excess = costed, keys, excess
        self._ranks: dict[Genes, Score] = {}

    def rank(self, genes: Genes) -> Score:
        """Highest is best, over all gene vectors: first what fits, then the keys, then who comes first."""
        known = self._ranks.get(genes)
        if known is None:
            candidate = self.costed[genes]
            excess = self.excess(candidate)
            ordered = (0.0, *self.keys(candidate), *(-gene for gene in genes))
            known = self._ranks[genes] = (-excess,) if excess > 0 else ordered
        return known

    def fits(self, genes: Genes) -> bool:
        """Whether all limits are kept."""
        return self.rank(genes)[0] == 0


def _embedding(architecture: Architecture) -> int:
    """Elements of the word table: vocabulary x rank, the full width for a full table, and never more."""
    width = architecture.hidden_size
    columns: int = np.minimum(architecture.embedding_rank or width, width)
    return architecture.vocab_size * columns


def _most_gflops(costed: Costed) -> _Goal:
    def keys(candidate: Candidate) -> Score:
        return (candidate.gflops, _embedding(candidate.architecture), -candidate.size_bytes)

    return _Goal(costed, keys, costed.excess)


def _fittest(costed: Costed, fitness: Callable[[Candidate], float]) -> _Goal:
    def keys(candidate: Candidate) -> Score:
        return (fitness(candidate), -candidate.size_bytes)

    return _Goal(costed, keys, costed.excess)


def _largest_embedding(costed: Costed, gflops: float) -> _Goal:
    floor = (1 - TOLERANCE) * gflops

    def keys(candidate: Candidate) -> Score:
        return (_embedding(candidate.architecture), candidate.gflops, -candidate.size_bytes)

    def excess(candidate: Candidate) -> float:
        return costed.excess(candidate) + _above_zero(1 - candidate.gflops / floor)

    return _Goal(costed, keys, excess)


def _best_of_all(goal: _Goal, best: Genes) -> Genes:
    """The best of the whole space, and at least `best`: by costing all of it."""
    space = goal.costed.space
    for first, architectures in space.grids():
        candidate = goal.costed.cost(architectures)
        kept = np.asarray(goal.excess(candidate)) == 0
        shape = tuple(goal.costed.lengths[place] for place in space.spread)
        kept = np.array(np.broadcast_to(kept, shape))
        for key in goal.keys(candidate) if kept.any() else ():
            values = np.broadcast_to(np.asarray(key), shape)
            kept &= values == values[kept].max()
        if kept.any():
            genes = list(first)
            for place, gene in zip(
                space.spread, np.unravel_index(int(np.argmax(kept)), shape), strict=True
            ):
                genes[place] = int(gene)
            best = max(best, tuple(genes), key=goal.rank)
    return best


def _evolve(
    costed: Costed,
    goal: _Goal,
    anchor: Genes,
    rng: np.random.Generator,
    exact: bool,
    on_generation: Callable[[int, Candidate], None] | None,
) -> tuple[Genes, int]:
    """The best gene vector, and the generations used.

    `anchor` is one that fits. Pairs of genes are left out of the polish where an `exact` one follows.
    """
    lengths = costed.lengths

    def report(generation: int, population: Sequence[Genes]) -> None:
        if on_generation is not None:
            on_generation(generation, costed[max(population, key=goal.rank)])

    last, generations = evolve(
        lengths,
        anchor,
        lambda population: [goal.keys(costed[genes])[0] for genes in population],
        lambda genes: _repair(goal, lengths, genes, anchor, rng),
        rng,
        report,
    )
    starts = sorted(set(last), key=goal.rank, reverse=True)[:_POLISHED]
    at_once = 1 if exact else 2
    best = max((_climb(start, lengths, goal.rank, at_once) for start in starts), key=goal.rank)
    return best, generations


def evolve(
    lengths: Sequence[int],
    anchor: Genes,
    fitness: Callable[[Sequence[Genes]], Sequence[Any]],
    repair: Callable[[Genes], Genes],
    rng: np.random.Generator,
    on_generation: Callable[[int, Sequence[Genes]], str | None],
    *,
    selection: str = "tournament",
    population: int = _POPULATION,
    elite: int = _ELITE,
    most_generations: int = _GENERATIONS,
) -> tuple[list[Genes], int]:
    """pygad's evolution: the last population, and the generations it took.

    `lengths`: choices of each gene; `fitness`: of a whole population, numbers or, for a `selection` of
    several objectives, rows, higher is better; `repair` makes any gene vector one that fits, as `anchor`
    does. Ends early when `on_generation` says "stop" or, for one objective, when nothing improves.
    """
    import pygad

    several = selection != "tournament"

    def batch(_instance: Any, rows: Any, _index: Any) -> Sequence[Any]:
        return fitness([_genes_of(row) for row in rows])

    def mutate(offspring: Any, _instance: Any) -> Any:
        chosen = rng.random(offspring.shape) < _MUTATED_GENES / len(lengths)
        drawn = rng.integers(0, lengths, offspring.shape)
        for row, changed in enumerate(np.where(chosen, drawn, offspring)):
            offspring[row] = repair(_genes_of(changed))
        return offspring

    def report(instance: Any) -> str | None:
        rows = [_genes_of(row) for row in instance.population]
        return on_generation(instance.generations_completed, rows)

    drawn = (repair(_genes_of(rng.integers(0, lengths))) for _ in range(population - 1))
    with _global_random_state_kept():
        evolution = pygad.GA(
            num_generations=most_generations,
            num_parents_mating=population // 2,
            initial_population=np.array([anchor, *drawn]),
            gene_type=int,
            gene_space=[list(range(length)) for length in lengths],
            fitness_func=batch,
            fitness_batch_size=population,
            parent_selection_type=selection,
            crossover_type="uniform",
            mutation_type=mutate,
            keep_elitism=elite,
            stop_criteria=None if several else f"saturate_{_SATURATED}",
            on_generation=report,
            random_seed=int(rng.integers(2**32)),
            suppress_warnings=True,
        )
        evolution.run()
    last = [_genes_of(row) for row in evolution.population]
    return last, int(evolution.generations_completed)


def _genes_of(row: Any) -> Genes:
    return tuple(int(gene) for gene in row)


def _repair(
    goal: _Goal, lengths: Sequence[int], genes: Genes, anchor: Genes, rng: np.random.Generator
) -> Genes:
    """Change genes in random order until the limits are kept, each to its best choice."""
    if goal.fits(genes):
        return genes
    for place in rng.permutation(len(lengths)):
        options = [(*genes[:place], gene, *genes[place + 1 :]) for gene in range(lengths[place])]
        genes = max(options, key=goal.rank)
        if goal.fits(genes):
            return genes
    return anchor


def _climb(
    genes: Genes, lengths: Sequence[int], rank: Callable[[Genes], Score], at_once: int = 2
) -> Genes:
    """Change one gene, or `at_once` where fewer do not help, to the best effect, until none helps."""
    while True:
        for count in range(1, at_once + 1):
            best = max(_changes(genes, lengths, count), key=rank, default=genes)
            if rank(best) > rank(genes):
                genes = best
                break
        else:
            return genes


def _changes(genes: Genes, lengths: Sequence[int], count: int) -> Iterator[Genes]:
    """All gene vectors that differ in at most `count` genes."""
    for chosen in combinations(range(len(lengths)), count):
        options = [
            range(length) if place in chosen else (genes[place],)
            for place, length in enumerate(lengths)
        ]
        yield from product(*options)


def any_that_fits(costed: Costed) -> Genes:
    """One gene vector within all limits; RefusedError with what is possible where there is none."""
    lengths = costed.lengths
    start: Genes = (0,) * len(lengths)
    for at_once in (1, 2):
        nearest = _climb(
            start, lengths, lambda genes: (-costed.excess(costed[genes]),), at_once=at_once
        )
        if costed.excess(costed[nearest]) == 0:
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
        f"the nearest to all limits ({_shape(near.architecture)}) has "
        f"{near.size_bytes:,} bytes, {near.gflops:.4g} GFLOPs{_and_ms(near)}: "
        "raise the limit, or give the search smaller choices or a smaller teacher"
    )


def _shape(architecture: Architecture) -> str:
    return (
        f"{architecture.vocab_size} tokens, {architecture.layers} x {architecture.hidden_size}, "
        f"{architecture.heads} heads, {architecture.intermediate_size} inner"
    )


def _and_ms(candidate: Candidate) -> str:
    return "" if candidate.latency_ms is None else f" and {candidate.latency_ms:.4g} ms"


@contextmanager
def _global_random_state_kept() -> Iterator[None]:
    """Put the global random states back: pygad before 3.9 seeds and draws from them."""
    state, numpy_state = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
