"""Bootstrap 95 % intervals, clustered where rows are not independent. numpy only.

- rows: each row is drawn by itself;
- groups: whole groups (projects) are drawn, because rows of one project resemble each other;
- functions: rows are pairs that share functions. Functions are drawn with replacement and a pair
  weighs the product of its two functions' counts: the two-way cluster ("pigeonhole") bootstrap of
  Owen 2007, https://doi.org/10.1214/07-AOAS122, for pairs of one population that of Davezies et
  al. 2021, https://doi.org/10.1214/20-AOS1981. A bootstrap over pairs is far too narrow there.

Whatever is measured under the same `Weights` is measured on the same resamples, so differences and
ratios of two engines are paired. What is measured is classification.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codemill.errors import DataError

__all__ = ["Interval", "Measure", "Weights", "interval_of", "replicates", "resampled"]

Values = npt.NDArray[np.float64]
Measure = Callable[[Values], Values]
"""Weights [resamples, n] -> a value for each resample, NaN where it is undefined."""

_RESAMPLES = 2000
# weights held at once: 16 MB
_BLOCK_CELLS = 2_000_000


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval, None where nothing varies it: one cluster alone."""

    value: float
    low: float | None
    high: float | None

    @property
    def above_zero(self) -> bool:
        """True when the whole interval is above 0."""
        return self.low is not None and self.low > 0

    @property
    def below_zero(self) -> bool:
        """True when the whole interval is below 0."""
        return self.high is not None and self.high < 0


@dataclass(frozen=True, eq=False)
class Weights:
    """How rows are resampled: row i belongs to the clusters `members[i]` (one, or two of a pair).

    `clusters` says what is drawn: rows, functions or groups. Made by `resampled`.
    """

    clusters: str
    members: npt.NDArray[np.int64]
    count: int
    resamples: int
    seed: int

    def blocks(self) -> Iterator[Values]:
        """The weights of the rows, [some resamples, n] at a time; the same ones every time."""
        generator = np.random.default_rng(self.seed)
        block = max(1, _BLOCK_CELLS // max(len(self.members), self.count))
        for start in range(0, self.resamples, block):
            counts = _counts(generator, self.count, min(block, self.resamples - start))
            weights = counts[:, self.members[:, 0]]
            for other in self.members.T[1:]:
                # a function paired with itself was drawn once, not twice
                weights *= np.where(other == self.members[:, 0], 1.0, counts[:, other])
            yield weights


def resampled(
    rows: Sequence[Sequence[int]],
    groups: Sequence[str] | None = None,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> Weights:
    """How to draw `rows` of text indices: by group if there are any, else by text if rows share them."""
    if not rows or (groups is not None and len(groups) != len(rows)):
        found = "no" if groups is None else str(len(groups))
        raise DataError(
            "resampling needs a row or more, and a group for each if there are any; "
            f"found {len(rows)} rows and {found} groups"
        )
    if groups is not None:
        names, numbers = np.unique(np.array(groups, dtype=np.str_), return_inverse=True)
        return Weights("groups", numbers.reshape(-1, 1), len(names), resamples, seed)
    used = np.array(rows, dtype=np.int64)
    distinct, numbers = np.unique(used, return_inverse=True)
    if len(distinct) == used.size:
        alone = np.arange(len(rows), dtype=np.int64)[:, None]
        return Weights("rows", alone, len(rows), resamples, seed)
    return Weights("functions", numbers.reshape(used.shape), len(distinct), resamples, seed)


def replicates(measures: Sequence[Measure], weights: Weights) -> Values:
    """Every measure, [measures, 1 + resamples]: first of the rows as they are, then of resamples."""
    found = np.full((len(measures), 1 + weights.resamples), np.nan)
    whole = np.ones((1, len(weights.members)))
    for i, measure in enumerate(measures):
        found[i, 0] = measure(whole)[0]
    if weights.count < 2:
        return found
    start = 1
    for block in weights.blocks():
        for i, measure in enumerate(measures):
            found[i, start : start + len(block)] = measure(block)
        start += len(block)
    return found


def interval_of(line: Values) -> Interval | None:
    """The figure of one line of `replicates` and its percentile interval, which holds the figure.

    None where the figure is undefined. Resamples that leave it undefined are passed over; where
    they are more than half, there is no interval.
    """
    value, drawn = float(line[0]), line[1:][~np.isnan(line[1:])]
    if np.isnan(value):
        return None
    if not len(drawn) or 2 * len(drawn) < len(line) - 1:
        return Interval(value, None, None)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value, float(min(low, value)), float(max(high, value)))


def _counts(generator: np.random.Generator, count: int, resamples: int) -> Values:
    """How often each of `count` clusters is drawn when as many are, [resamples, count]."""
    drawn = generator.integers(0, count, (resamples, count))
    drawn += np.arange(resamples)[:, None] * count
    counts = np.bincount(drawn.ravel(), minlength=resamples * count)
    return counts.reshape(resamples, count).astype(np.float64)
