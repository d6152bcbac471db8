"""How certain an exit has to be: thresholds that save the most layers for a loss that is allowed.

Certainty is the largest calibrated probability (as of BranchyNet, 1709.01686, and with a temperature of its own for
each exit, 1706.04599). All thresholds are chosen together, because what leaves early no longer comes to an exit
above. Only numbers here: what the files say at each exit is `stages/classify/leaving.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["leaving", "thresholds_for"]

_QUANTILES = np.linspace(0, 1, 65)
_NEVER = 1.0
"""The highest threshold that a bundle may have."""
_PASSES = 10


def leaving(certainty: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """int [n]: after which part each row leaves, the number of exits where it goes to the end.

    certainty: float [exits, n], the largest probability at each exit. A row leaves where it is the threshold or more.
    """
    stays = np.ones((len(certainty) + 1, certainty.shape[1]), dtype=bool)
    stays[:-1] = certainty >= np.asarray(thresholds)[:, None]
    found: np.ndarray = stays.argmax(0)
    return found


def thresholds_for(
    certainty: np.ndarray, right: np.ndarray, layers: Sequence[int], least_accuracy: float
) -> list[float] | None:
    """A threshold for each exit: the fewest layers on average with `least_accuracy` or more; None: there are none.

    certainty: float [exits, n]; right: bool [exits + 1, n], whether each exit's decision, and the last one, is right;
    layers: how many a row went through where it leaves, [exits + 1]. Coordinate descent over quantiles of the
    certainty, from every common quantile: deterministic, and never better than what the rows allow.
    """
    grids = [_grid(row) for row in certainty]
    best: tuple[tuple[float, float], list[float]] | None = None
    for start in range(len(_QUANTILES) + 1):
        chosen = [grid[min(start, len(grid) - 1)] for grid in grids]
        if _accuracy(certainty, right, chosen) < least_accuracy:
            continue
        found = _descended(certainty, right, layers, least_accuracy, chosen, grids)
        if best is None or found[0] < best[0]:
            best = found
    return None if best is None else best[1]


def _grid(certainty: np.ndarray) -> list[float]:
    """Thresholds worth trying, the lowest first, and one that next to nothing reaches."""
    values = np.quantile(certainty, _QUANTILES, method="inverted_cdf")
    return [*np.clip(values, 1e-6, 1.0).tolist(), _NEVER]


def _accuracy(certainty: np.ndarray, right: np.ndarray, thresholds: Sequence[float]) -> float:
    at = leaving(certainty, thresholds)
    return float(right[at, np.arange(right.shape[1])].mean())


def _descended(
    certainty: np.ndarray,
    right: np.ndarray,
    layers: Sequence[int],
    least_accuracy: float,
    chosen: list[float],
    grids: Sequence[Sequence[float]],
) -> tuple[tuple[float, float], list[float]]:
    """The best of one threshold after another, and (mean layers, - accuracy) with them."""
    used, rows = np.asarray(layers), np.arange(right.shape[1])

    def cost(thresholds: Sequence[float]) -> tuple[float, float] | None:
        at = leaving(certainty, thresholds)
        accuracy = float(right[at, rows].mean())
        return (float(used[at].mean()), -accuracy) if accuracy >= least_accuracy else None

    first = cost(chosen)
    assert first is not None
    best = (first, list(chosen))
    for _ in range(_PASSES):
        before = best[0]
        for exit_, grid in enumerate(grids):
            for value in grid:
                tried = [*best[1][:exit_], value, *best[1][exit_ + 1 :]]
                found = cost(tried)
                if found is not None and found < best[0]:
                    best = (found, tried)
        if best[0] == before:
            break
    return best
