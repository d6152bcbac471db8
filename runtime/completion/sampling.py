"""Which token is taken of what a model gives: the likeliest, or one drawn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Sampler"]


class Sampler:
    """temperature 0: the likeliest token, the first of equals. Otherwise one drawn, from a generator of its own.

    top_p: only of the likeliest tokens that together have this probability. Raises ValueError for values out of range.
    """

    def __init__(
        self, temperature: float = 0.0, top_p: float = 1.0, seed: int | None = None
    ) -> None:
        if isinstance(temperature, bool) or not 0 <= temperature <= 100:
            raise ValueError(f"temperature should be a number from 0 to 100, found {temperature!r}")
        if isinstance(top_p, bool) or not 0 < top_p <= 1:
            raise ValueError(f"top_p should be a number above 0, 1 at most, found {top_p!r}")
        self._temperature = temperature
        self._top_p = top_p
        self._random = np.random.default_rng(seed)

    def __call__(self, logits: NDArray[np.float32]) -> int:
        """The id that is taken, of logits [vocab]."""
        if not self._temperature:
            return int(logits.argmax())
        below = logits.astype(np.float64) - logits.max()
        # a temperature next to nothing leaves the likeliest alone
        with np.errstate(over="ignore"):
            powers = np.exp(below / self._temperature)
        if self._top_p < 1:
            order = np.argsort(-powers, kind="stable")
            sums = np.cumsum(powers[order])
            # the one that passes the bound is still in
            kept = order[: int(np.searchsorted(sums, self._top_p * sums[-1])) + 1]
            outside = np.ones(len(powers), bool)
            outside[kept] = False
            powers[outside] = 0
        sums = np.cumsum(powers)
        return int(np.searchsorted(sums, self._random.random() * sums[-1], side="right"))
