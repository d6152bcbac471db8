"""The controller of a decoder's exits: how it learns, and from which probabilities on it is followed.

Thresholds hold for all exits together, because what leaves at one never comes to the next. Only numbers here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from codemill.compress.exits.decoder import EXIT, STOP

__all__ = ["coverage", "fit_controller", "leaving_at", "rate_thresholds", "stop_thresholds"]

_STEPS, _BATCH, _RATE = 600, 4096, 3e-3


def fit_controller(
    controller: nn.Linear, states: Tensor, wanted: Tensor, seed: int, steps: int = _STEPS
) -> None:
    """Train in place by cross-entropy, deeper exits weighing more (SEC).

    states [exits, n, width], wanted int64 [exits, n].
    """
    exits, count, width = states.shape
    weights = torch.arange(1, exits + 1, dtype=torch.float32).repeat_interleave(count)
    weights /= weights.mean()
    rows, aims = states.reshape(-1, width), wanted.reshape(-1)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(controller.parameters(), lr=_RATE, weight_decay=1e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * (1 - step / steps)
        batch = torch.randint(len(rows), (_BATCH,), generator=generator)
        losses = functional.cross_entropy(
            controller(rows[batch].float()), aims[batch], reduction="none"
        )
        optimizer.zero_grad()
        (losses * weights[batch]).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def leaving_at(chances: np.ndarray, thresholds: Sequence[float | None]) -> np.ndarray:
    """int [n]: the exit where each token leaves, the number of exits where at none. chances [exits, n, 3]."""
    exits = len(chances)
    leaves = np.zeros((exits + 1, chances.shape[1]), dtype=bool)
    leaves[-1] = True
    for number, threshold in enumerate(thresholds):
        if threshold is not None:
            sure = chances[number, :, EXIT] >= threshold
            leaves[number] = sure & (chances[number].argmax(-1) == EXIT)
    found: np.ndarray = leaves.argmax(0)
    return found


def rate_thresholds(chances: np.ndarray, right: np.ndarray, rate: float) -> list[float | None]:
    """Thresholds at which at most a share `rate` of all tokens leaves with another token than the last layer's.

    chances [exits, n, 3]; right bool [exits, n]. From the lowest exit on, each gets an equal part of what is allowed
    and what those below left over: of the tokens that come to it, as many leave as that lets.
    """
    exits, count = right.shape
    stays = np.ones(count, dtype=bool)
    allowed = 0.0
    found: list[float | None] = []
    for number in range(exits):
        allowed += rate * count / exits
        chosen = stays & (chances[number].argmax(-1) == EXIT)
        certainty = np.where(chosen, chances[number, :, EXIT], -1.0)
        order = np.argsort(-certainty, kind="stable")[: int(chosen.sum())]
        wrong = np.cumsum(~right[number, order])
        # the last place up to which few enough are wrong, at the end of equal certainties
        fits = np.flatnonzero(wrong <= allowed)
        ends = np.append(np.diff(certainty[order]) != 0, True) if len(order) else np.zeros(0, bool)
        places = fits[ends[fits]]
        if not len(places):
            found.append(None)
            continue
        last = int(places[-1])
        found.append(float(certainty[order[last]]))
        allowed -= float(wrong[last])
        stays[order[: last + 1]] = False
    return found


def coverage(chances: np.ndarray, right: np.ndarray, rate: float) -> float:
    """The share of tokens that leave early at `rate_thresholds`."""
    at = leaving_at(chances, rate_thresholds(chances, right, rate))
    return float((at < len(chances)).mean())


def stop_thresholds(chances: np.ndarray, right: np.ndarray, wanted: float) -> list[float | None]:
    """Of each exit the lowest probability to stop from which on a share `wanted` of the tokens given up are wrong.

    right: bool [n], whether the last layer says what the file says.
    """
    found: list[float | None] = []
    for said in chances:
        chosen = np.flatnonzero(said.argmax(-1) == STOP)
        order = chosen[np.argsort(-said[chosen, STOP], kind="stable")]
        share = np.cumsum(~right[order]) / np.arange(1, len(order) + 1)
        fits = np.flatnonzero(share >= wanted)
        found.append(float(said[order[fits[-1]], STOP]) if len(fits) else None)
    return found
