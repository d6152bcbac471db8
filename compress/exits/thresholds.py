"""How certain an exit has to be: thresholds that save the most layers for a loss that is allowed on rows to come.

Certainty is the largest calibrated probability (as of BranchyNet, 1709.01686, and with a temperature of its own for
each exit, 1706.04599). All thresholds are chosen together, because what leaves early no longer comes to an exit
above. What is bounded is not the loss on the rows that they are chosen on, which new rows exceed more often than not,
but the upper end of what it may be. Only numbers here: what the files say at each exit is
`stages/classify/leaving.py`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from statistics import NormalDist

import numpy as np

__all__ = ["NEVER", "fewest_rows", "leaving", "loss_upper", "thresholds_for"]

NEVER = math.inf
"""A threshold that no certainty reaches, also one that is 1 in floating point."""
_QUANTILES = np.linspace(0, 1, 65)
_PASSES = 10
_Cost = tuple[float, float]
"""Mean layers, and - accuracy."""
_MISSED = 0.05
"""How often the upper end of a loss may be below the true one."""


def leaving(certainty: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """int [n]: after which part each row leaves, the number of exits where it goes to the end.

    certainty: float [exits, n], the largest probability at each exit. A row leaves where it is the threshold or more.
    """
    stays = np.ones((len(certainty) + 1, certainty.shape[1]), dtype=bool)
    stays[:-1] = certainty >= np.asarray(thresholds)[:, None]
    found: np.ndarray = stays.argmax(0)
    return found


def loss_upper(before: np.ndarray, after: np.ndarray, exits: int) -> float:
    """The upper end of the accuracy that is lost, as a difference; before, after: bool [n], whether a row is right.

    The mean d of the differences row by row, z standard errors of it, and what a score interval adds where few rows
    differ (Wilson's, of a rare thing): a sample in which nothing is lost has no standard error, and does not show that
    nothing will be. z is that of 95 %, 1.64 for one exit; more of them, whose thresholds are chosen on the same rows,
    share the 5 % (Bonferroni). Never less than d + 1.64 se. Infinite without rows.
    """
    rows = len(before)
    if not rows:
        return math.inf
    lost, won = int((before & ~after).sum()), int((after & ~before).sum())
    squared = _errors(exits) ** 2
    added = squared / 2 + math.sqrt(squared * (lost + won + squared / 4))
    return (lost - won + added) / rows


def fewest_rows(max_loss: float, exits: int) -> float:
    """With fewer rows no bound is kept where exits win none, even if they lose none; infinite for a bound of 0."""
    return math.ceil(_errors(exits) ** 2 / max_loss) if max_loss > 0 else math.inf


def _errors(exits: int) -> float:
    """Standard errors to the upper end."""
    return NormalDist().inv_cdf(1 - _MISSED / exits)


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
    used, rows = np.asarray(layers), np.arange(right.shape[1])

    @cache
    def cost(thresholds: tuple[float, ...]) -> _Cost | None:
        at = leaving(certainty, thresholds)
        after = right[at, rows]
        if loss_upper(before, after, len(thresholds)) > max_loss:
            return None
        return float(used[at].mean()), -float(after.mean())

    best: tuple[_Cost, tuple[float, ...]] | None = None
    for start in range(len(_QUANTILES) + 1):
        found = _descended(cost, tuple(grid[start] for grid in grids), grids)
        if found is not None and (best is None or found[0] < best[0]):
            best = found
    if best is None or best[0][0] >= layers[-1]:
        return None
    return list(best[1])


def _grid(certainty: np.ndarray) -> list[float]:
    """Thresholds worth trying, the lowest first, and the one that nothing reaches."""
    values = np.quantile(certainty, _QUANTILES, method="inverted_cdf")
    return [*np.clip(values, 1e-6, 1.0).tolist(), NEVER]


def _descended(
    cost: Callable[[tuple[float, ...]], _Cost | None],
    start: tuple[float, ...],
    grids: Sequence[Sequence[float]],
) -> tuple[_Cost, tuple[float, ...]] | None:
    """The best of one threshold after another, with what it costs; None where the start is beyond the bound."""
    first = cost(start)
    if first is None:
        return None
    best = (first, start)
    for _ in range(_PASSES):
        begun = best[0]
        for exit_, grid in enumerate(grids):
            for value in grid:
                tried = (*best[1][:exit_], value, *best[1][exit_ + 1 :])
                found = cost(tried)
                if found is not None and found < best[0]:
                    best = (found, tried)
        if best[0] == begun:
            break
    return best
