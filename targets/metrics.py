"""Retrieval quality and the statistics of paired measurements. numpy only; no I/O.

Query i's one right answer is code i, as in code search benchmarks (CodeSearchNet): the figures are
MRR@n and Recall@k over all n codes. Why not a library: scikit-learn has no MRR, and what a tie
means has to be said once, here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codemill.errors import DataError

__all__ = [
    "Ratio",
    "cosines",
    "mrr",
    "paired_ratio",
    "percentile",
    "ranks",
    "ratio_of_means",
    "recall_at",
]

Array = npt.NDArray[np.floating]

# Cosines closer than this are a tie: equal vectors differ by a few 1e-8 with where BLAS puts them.
TIE = 1e-7
BLOCK = 1024

# 97.5 % points of Student's t for 1..30 degrees of freedom; beyond 30 the last one, a little wide.
T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Ratio:
    """A ratio and its 95 % confidence interval, None where one pair gives no interval.

    `value` is the median of the pairs' ratios (`paired_ratio`) or the ratio of two means over the
    same items (`ratio_of_means`); `pairs` is how many pairs it rests on.
    """

    value: float
    low: float | None
    high: float | None
    pairs: int

    @property
    def below_parity(self) -> bool:
        """True when the whole interval is below 1: worse than what it is compared with."""
        return self.high is not None and self.high < 1.0

    @property
    def above_parity(self) -> bool:
        """True when the whole interval is above 1."""
        return self.low is not None and self.low > 1.0


def ranks(query_emb: Array, code_emb: Array) -> npt.NDArray[np.int64]:
    """Rank, from 1, of code i among all codes for query i, by cosine; both are [n, dim].

    rank = 1 + codes that score higher + other codes that tie. Ties go against the model, because a
    collapsed one gives every code the same score: it gets MRR 1/n here, where counting ties in its
    favour would make it perfect. A zero vector has cosine 0 with everything.

    Raises DataError when the shapes differ, there is nothing to rank or a value is not finite.
    """
    if query_emb.ndim != 2 or query_emb.shape != code_emb.shape or not len(query_emb):
        raise DataError(
            "retrieval needs two arrays of one shape [n, dim], n > 0; "
            f"found {query_emb.shape} and {code_emb.shape}"
        )
    queries, codes = _unit(query_emb, "query"), _unit(code_emb, "code")
    found = np.empty(len(queries), dtype=np.int64)
    for start in range(0, len(queries), BLOCK):
        scores = queries[start : start + BLOCK] @ codes.T
        rows = np.arange(len(scores))
        right = scores[rows, start + rows]
        found[start : start + BLOCK] = (scores >= right[:, None] - TIE).sum(axis=1)
    return found


def cosines(query_emb: Array, code_emb: Array) -> npt.NDArray[np.float64]:
    """Of each query [n, dim] with each code [m, dim]: [n, m]. A zero vector has cosine 0 with everything."""
    return _unit(query_emb, "query") @ _unit(code_emb, "code").T


def mrr(query_emb: Array, code_emb: Array) -> float:
    """Mean reciprocal rank over all n codes (MRR@n); see `ranks`."""
    return float(np.mean(1.0 / ranks(query_emb, code_emb)))


def recall_at(query_emb: Array, code_emb: Array, k: int = 10) -> float:
    """Share of queries whose right code is among the first `k`; see `ranks`."""
    return float(np.mean(ranks(query_emb, code_emb) <= k))


def percentile(values: Sequence[float], q: float) -> float:
    """The `q`-th percentile, 0..100, linear between neighbours; DataError when there are none."""
    if not len(values):
        raise DataError("a percentile of no measurements")
    return float(np.percentile(np.asarray(values, dtype=np.float64), q))


def paired_ratio(baseline: Sequence[float], engine: Sequence[float]) -> Ratio:
    """baseline / engine, pair by pair: how many times less the engine takes.

    Pair i was measured back to back, so what slows the machine slows both and cancels. `value` is
    the median of the ratios; the interval is Student's t on their logarithms (a ratio and its
    inverse then have the same interval, inverted), widened to hold the median where one outlier
    pulls the mean away from it. The t interval, not a bootstrap: three rounds are all there may
    be, and a bootstrap of three is far too narrow.
    """
    if len(baseline) != len(engine) or not len(baseline):
        raise DataError(f"pairs need equal counts, found {len(baseline)} and {len(engine)}")
    if min(*baseline, *engine) <= 0:
        raise DataError("a ratio of measurements needs all of them above 0")
    logs = np.log(np.asarray(baseline, dtype=np.float64) / np.asarray(engine, dtype=np.float64))
    middle, pairs = float(np.median(logs)), len(logs)
    if pairs == 1:
        return Ratio(math.exp(middle), None, None, 1)
    t = T_975[min(pairs - 1, len(T_975)) - 1]
    half = t * float(np.std(logs, ddof=1)) / math.sqrt(pairs)
    mean = float(np.mean(logs))
    low, high = min(mean - half, middle), max(mean + half, middle)
    return Ratio(math.exp(middle), math.exp(low), math.exp(high), pairs)


def ratio_of_means(
    engine: Sequence[float] | Array,
    baseline: Sequence[float] | Array,
    resamples: int = 2000,
    seed: int = 0,
) -> Ratio | None:
    """mean(engine) / mean(baseline) over the same items, for quality kept; None when it is x/0.

    The interval is a percentile bootstrap over items, both resampled together: the same queries
    are hard for both. Deterministic for a seed.
    """
    top, bottom = np.asarray(engine, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if top.shape != bottom.shape or top.ndim != 1 or not len(top):
        raise DataError(f"items need equal counts, found {top.shape} and {bottom.shape}")
    if bottom.mean() == 0:
        return None
    value = float(top.mean() / bottom.mean())
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        rows = rng.integers(0, len(top), len(top))
        below = bottom[rows].mean()
        if below > 0:
            drawn.append(top[rows].mean() / below)
    if len(top) == 1:
        return Ratio(value, None, None, 1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Ratio(value, float(min(low, value)), float(max(high, value)), len(top))


def _unit(rows: Array, name: str) -> npt.NDArray[np.float64]:
    """`rows` [n, dim] scaled to length 1 in float64; a zero row stays zero."""
    wide: npt.NDArray[np.float64] = np.asarray(rows, dtype=np.float64)
    if not np.isfinite(wide).all():
        raise DataError(f"{name} embeddings hold values that are not finite numbers")
    lengths: npt.NDArray[np.float64] = np.linalg.norm(wide, axis=1, keepdims=True)
    lengths[lengths == 0] = 1.0
    return wide / lengths
