"""Several objectives at once: NSGA-II (Deb et al., 2002) over quality, latency and size.

pygad ranks and selects; around it the same care as in `genetic.py`: limits are kept by repair, nothing is
costed twice, and what was found is polished by single changes until none adds to it. The front is kept
outside of the population, in boxes: of two architectures that differ by less than a box in every objective
one is kept (epsilon-dominance, Laumanns et al., 2002), which bounds the front and lets the search end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from codemill.compress.architecture import Architecture
from codemill.compress.budget import Budget
from codemill.compress.search.cost import Costs
from codemill.compress.search.genetic import Candidate, Costed, Genes, any_that_fits, evolve
from codemill.compress.search.space import AnySpace
from codemill.errors import RecipeError

__all__ = ["OBJECTIVES", "ParetoResult", "knee", "most_quality", "pareto"]

OBJECTIVES = ("quality", "gflops", "latency_ms", "size_bytes")
"""What may be asked for; the first two as high, the others as low as possible."""

_HIGH = frozenset({"quality", "gflops"})
_QUALITY_BOX = 0.002
_SHARE_BOX = 0.01
"""Relative, of everything but quality."""
_POPULATION = 60
_MOST_GENERATIONS = 200
_UNCHANGED = 15

Values = tuple[float, ...]


@dataclass(frozen=True)
class ParetoResult:
    """`front`: what no other architecture within the budget beats in all objectives, best quality first.

    `evaluations`: architectures costed; `generations` of NSGA-II; `seconds` it all took.
    """

    front: tuple[Candidate, ...]
    objectives: tuple[str, ...]
    evaluations: int
    generations: int
    seconds: float


def pareto(
    space: AnySpace,
    budget: Budget,
    costs: Costs,
    quality: Callable[[Sequence[Architecture]], np.ndarray] | None,
    objectives: Sequence[str],
    seed: int,
    on_generation: Callable[[int, Candidate, int], None] | None = None,
) -> ParetoResult:
    """The Pareto front within `budget`.

    `quality` estimates many architectures at once, higher is better. `on_generation` is told the
    generations done, the best at the first objective, and the length of the front. Raises RefusedError,
    naming what is possible, where nothing in the space fits, and RecipeError for objectives that nothing
    here can tell.
    """
    _check(objectives, costs, quality)
    started = time.perf_counter()
    valued = _Valued(Costed(space, budget, costs), quality, tuple(objectives))
    archive = _Archive(tuple(objectives))
    rng = np.random.default_rng(seed)
    anchor = any_that_fits(valued.costed)
    unchanged = 0

    def fitness(population: Sequence[Genes]) -> Sequence[Values]:
        return valued.of(population)

    def report(generation: int, population: Sequence[Genes]) -> str | None:
        nonlocal unchanged
        changed = archive.take(population, valued.of(population))
        unchanged = 0 if changed else unchanged + 1
        if on_generation is not None:
            best = valued.candidate(archive.genes()[0])
            on_generation(generation, best, len(archive.kept))
        return "stop" if unchanged >= _UNCHANGED else None

    _, generations = evolve(
        valued.costed.lengths,
        anchor,
        fitness,
        lambda genes: _repair(valued.costed, genes, anchor, rng),
        rng,
        report,
        selection="nsga2",
        population=_POPULATION,
        elite=_POPULATION // 2,
        most_generations=_MOST_GENERATIONS,
    )
    archive.take([anchor], valued.of([anchor]))
    _polish(archive, valued)
    front = [valued.candidate(genes) for genes in archive.genes()]
    return ParetoResult(
        tuple(front),
        tuple(objectives),
        len(valued.costed.memo),
        generations,
        time.perf_counter() - started,
    )


def most_quality(result: ParetoResult) -> Candidate:
    """The one of the front that is best at the first objective."""
    first = result.objectives[0]
    return max(result.front, key=lambda candidate: _signed(candidate, first))


def knee(result: ParetoResult) -> Candidate:
    """Where giving up more of one objective begins to cost much of the others.

    The farthest from the plane through the extremes: the largest sum of the objectives, each scaled to
    0 at the front's worst and 1 at its best.
    """
    rows = np.array(
        [[_signed(item, name) for name in result.objectives] for item in result.front], dtype=float
    )
    low, high = rows.min(0), rows.max(0)
    scaled = (rows - low) / np.where(high > low, high - low, 1.0)
    return result.front[int(np.argmax(scaled.sum(1)))]


def _check(
    objectives: Sequence[str],
    costs: Costs,
    quality: Callable[[Sequence[Architecture]], np.ndarray] | None,
) -> None:
    unknown = [name for name in objectives if name not in OBJECTIVES]
    if unknown or not objectives or len(set(objectives)) < len(objectives):
        raise RecipeError(
            f"search objectives are some of {', '.join(OBJECTIVES)}, each once, not {list(objectives)}"
        )
    if "quality" in objectives and quality is None:
        raise RecipeError(
            "quality is an objective, and nothing estimates it: name a file of `compress estimate`"
        )
    if "latency_ms" in objectives and costs.latency_ms is None:
        raise RecipeError(
            "latency_ms is an objective, and no machine was profiled: name a file of `compress profile`"
        )


def _signed(candidate: Candidate, name: str) -> float:
    value: float = getattr(candidate, name)
    return value if name in _HIGH else -value


class _Valued:
    """The objectives of gene vectors, signed so that more is better; each estimated once."""

    def __init__(
        self,
        costed: Costed,
        quality: Callable[[Sequence[Architecture]], np.ndarray] | None,
        objectives: tuple[str, ...],
    ) -> None:
        self.costed, self._quality, self._objectives = costed, quality, objectives
        self._qualities: dict[Genes, float] = {}

    def of(self, population: Sequence[Genes]) -> list[Values]:
        """A row for each gene vector, in the order of the objectives."""
        new = [genes for genes in dict.fromkeys(population) if genes not in self._qualities]
        if self._quality is not None and new:
            found = self._quality([self.costed[genes].architecture for genes in new])
            self._qualities |= zip(new, map(float, found), strict=True)
        rows = [self.candidate(genes) for genes in population]
        return [tuple(_signed(item, name) for name in self._objectives) for item in rows]

    def candidate(self, genes: Genes) -> Candidate:
        """With its estimated quality."""
        candidate = self.costed[genes]
        if self._quality is None:
            return candidate
        return replace(candidate, quality=self._qualities[genes])

    def fits(self, genes: Genes) -> bool:
        """Whether all limits are kept."""
        return self.costed.excess(self.costed[genes]) == 0


class _Archive:
    """The front so far, one gene vector a box."""

    def __init__(self, objectives: tuple[str, ...]) -> None:
        self._objectives = objectives
        self.kept: dict[tuple[int, ...], tuple[Values, Genes]] = {}

    def take(self, population: Sequence[Genes], rows: Sequence[Values]) -> bool:
        """Offer gene vectors that fit; whether any was taken into a box of its own."""
        taken = [self._offer(genes, row) for genes, row in zip(population, rows, strict=True)]
        return any(taken)

    def genes(self) -> list[Genes]:
        """Those kept, the best at the first objective first."""
        kept = sorted(
            self.kept.values(), key=lambda item: (*(-value for value in item[0]), item[1])
        )
        return [genes for _, genes in kept]

    def _offer(self, genes: Genes, row: Values) -> bool:
        box = tuple(_box(name, value) for name, value in zip(self._objectives, row, strict=True))
        held = self.kept.get(box)
        if held is not None:
            if _dominates(row, held[0]):
                self.kept[box] = (row, genes)
            return False
        if self.kept:
            boxes = np.array(list(self.kept))
            if (boxes >= box).all(1).any():
                return False
            for at in np.flatnonzero((boxes <= box).all(1)):
                del self.kept[tuple(int(number) for number in boxes[at])]
        self.kept[box] = (row, genes)
        return True


def _box(name: str, signed: float) -> int:
    if name == "quality":
        return math.floor(signed / _QUALITY_BOX)
    size = math.floor(math.log(abs(signed)) / math.log1p(_SHARE_BOX))
    return size if signed > 0 else -size


def _dominates(one: Values, other: Values) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def _polish(archive: _Archive, valued: _Valued) -> None:
    """Offer every single change of every gene vector on the front, until that adds nothing."""
    lengths = valued.costed.lengths
    tried: set[Genes] = set()
    while True:
        starts = [genes for genes in archive.genes() if genes not in tried]
        if not starts:
            return
        tried.update(starts)
        near = dict.fromkeys(
            (*genes[:place], gene, *genes[place + 1 :])
            for genes in starts
            for place, length in enumerate(lengths)
            for gene in range(length)
        )
        fitting = [genes for genes in near if valued.fits(genes)]
        archive.take(fitting, valued.of(fitting))


def _repair(costed: Costed, genes: Genes, anchor: Genes, rng: np.random.Generator) -> Genes:
    """Change genes in random order until the limits are kept, each to any choice that does, or the nearest."""
    for place in rng.permutation(len(genes)):
        if costed.excess(costed[genes]) == 0:
            return genes
        options = [
            (*genes[:place], gene, *genes[place + 1 :]) for gene in range(costed.lengths[place])
        ]
        excess = [costed.excess(costed[option]) for option in options]
        fitting = [option for option, over in zip(options, excess, strict=True) if over == 0]
        genes = (
            fitting[int(rng.integers(len(fitting)))] if fitting else options[int(np.argmin(excess))]
        )
    return genes if costed.excess(costed[genes]) == 0 else anchor
