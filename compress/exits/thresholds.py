"""How certain an exit has to be: thresholds that save the most layers for a loss that is allowed on rows to come.

Certainty is the largest calibrated probability (as of BranchyNet, 1709.01686, and with a temperature of its own for
each exit, 1706.04599). All thresholds are chosen together, because what leaves early no longer comes to an exit
above. What is bounded is not the loss on the rows that they are chosen on, which new rows exceed more often than not,
but the upper end of what it may be. Only numbers here: what the files say at each exit is
`stages/classify/leaving.py`'s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["NEVER", "fewest_rows", "leaving", "loss_upper", "thresholds_for"]

NEVER = math.inf
"""A threshold that no certainty reaches, also one that is 1 in floating point."""
_QUANTILES = np.linspace(0, 1, 65)
_PASSES = 10
_Z = 1.64
"""Standard errors to the upper end of a loss: 95 % on one side."""


def leaving(certainty: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """int [n]: after which part each row leaves, the number of exits where it goes to the end.

    certainty: float [exits, n], the largest probability at each exit. A row leaves where it is the threshold or more.
    """
    stays = np.ones((len(certainty) + 1, certainty.shape[1]), dtype=bool)
    stays[:-1] = certainty >= np.asarray(thresholds)[:, None]
    found: np.ndarray = stays.argmax(0)
    return found


def loss_upper(before: np.ndarray, after: np.ndarray) -> float:
    """The upper end of the accuracy that is lost, as a difference; before, after: bool [n], whether a row is right.

    The mean of the differences row by row, 1.64 of its standard errors, and what a score interval adds where few rows
    differ (Wilson's, of a rate that is small): a sample in which nothing is lost has no standard error, and does not
    show that nothing will be. Never less than d + 1.64 se. Infinite without rows.
    """
    rows = len(before)
    if not rows:
        return math.inf
    lost, won = int((before & ~after).sum()), int((after & ~before).sum())
    return (lost - won + _Z**2 / 2 + _Z * math.sqrt(lost + won + _Z**2 / 4)) / rows


def fewest_rows(max_loss: float) -> float:
    """So many rows are needed for a bound: where none of them differs, the upper end is just that. Infinite for 0."""
    return math.ceil(_Z**2 / max_loss) if max_loss > 0 else math.inf


def thresholds_for(
    certainty: np.ndarray,
    right: np.ndarray,
    layers: Sequence[int],
    before: np.ndarray,
    max_loss: float,
) -> list[float] | None:
    """A threshold for each exit: the fewest layers on average at which `loss_upper` is at most `max_loss`.

    certainty: float [exits, n]; right: bool [exits + 1, n], whether each exit's decision, and the last one, is right;
    layers: how many a row went through where it leaves, [exits + 1]; before: bool [n], whether a row is right without
    exits. NEVER for an exit at which no row is to leave; None where there are no thresholds at which any row does.
    Coordinate descent over quantiles of the certainty, from every common quantile: deterministic.
    """
    grids = [_grid(row) for row in certainty]
    best: tuple[tuple[float, float], list[float]] | None = None
    for start in range(len(_QUANTILES) + 1):
        chosen = [grid[start] for grid in grids]
        found = _descended(certainty, right, layers, before, max_loss, chosen, grids)
        if found is not None and (best is None or found[0] < best[0]):
            best = found
    if best is None or best[0][0] >= layers[-1]:
        return None
    return best[1]


def _grid(certainty: np.ndarray) -> list[float]:
    """Thresholds worth trying, the lowest first, and the one that nothing reaches."""
    values = np.quantile(certainty, _QUANTILES, method="inverted_cdf")
    return [*np.clip(values, 1e-6, 1.0).tolist(), NEVER]


def _descended(
    certainty: np.ndarray,
    right: np.ndarray,
    layers: Sequence[int],
    before: np.ndarray,
    max_loss: float,
    chosen: list[float],
    grids: Sequence[Sequence[float]],
) -> tuple[tuple[float, float], list[float]] | None:
    """The best of one threshold after another, and (mean layers, - accuracy) with them; None for a bad beginning."""
    used, rows = np.asarray(layers), np.arange(right.shape[1])

    def cost(thresholds: Sequence[float]) -> tuple[float, float] | None:
        at = leaving(certainty, thresholds)
        after = right[at, rows]
        if loss_upper(before, after) > max_loss:
            return None
        return float(used[at].mean()), -float(after.mean())

    first = cost(chosen)
    if first is None:
        return None
    best = (first, list(chosen))
    for _ in range(_PASSES):
        begun = best[0]
        for exit_, grid in enumerate(grids):
            for value in grid:
                tried = [*best[1][:exit_], value, *best[1][exit_ + 1 :]]
                found = cost(tried)
                if found is not None and found < best[0]:
                    best = (found, tried)
        if best[0] == begun:
            break
    return best
