"""Drafts that cost nothing: what followed the last tokens where they stood before, in the prompt or another open file.

Several tokens checked at once take less time than one by one. How many pay depends on the machine and on how often
drafts turn out right, so both are watched: times of runs of so many tokens, and the share of drafted tokens that were
taken. What is taken is what the model would have said: a draft changes no text, but for ties of rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["LONGEST", "Costs", "Drafts", "Mean", "find"]

LONGEST = 8
"""Tokens of a draft, at most."""
_LOOKED_FOR = (4, 3)
"""So many last tokens have to stand there; the longer match first."""
_COSTS = (1.0, 1.3, 1.8, 2.3, 2.7, 3.0, 3.4, 3.8, 4.2)
"""Of runs of 1, 2, ... tokens, before any was timed (SmolLM2-135M in int4 on a laptop processor)."""
_WEIGHT = 0.1
"""Of a new observation in the running mean."""
_COLD = 3
_TRUSTED = 0.6
"""Share of drafted tokens that is expected to be right before any was seen."""


class Mean:
    """A running mean of seconds; 0 before any was seen. Of the first few the least: a cold run says little."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._seen = 0

    def saw(self, seconds: float) -> None:
        """One more."""
        self._seen += 1
        if self._seen == 1 or (self._seen <= _COLD and seconds < self.seconds):
            self.seconds = seconds
        else:
            # a run that waited for another program says little
            self.seconds += _WEIGHT * (min(seconds, 2 * self.seconds) - self.seconds)


class Costs:
    """How long a run of so many tokens takes, relative to one of a single token. Watched, never waited for."""

    def __init__(self) -> None:
        self._seen = [Mean() for _ in _COSTS]

    def saw(self, tokens: int, seconds: float) -> None:
        """A run of `tokens` tokens took this long."""
        if 1 <= tokens <= len(_COSTS):
            self._seen[tokens - 1].saw(seconds)

    def relative(self, tokens: int) -> float:
        """Time of a run of `tokens` tokens over that of one token."""
        one, several = self._seen[0].seconds, self._seen[tokens - 1].seconds
        return max(1.0, several / one) if one and several else _COSTS[tokens - 1]


class Drafts:
    """How long drafts are to be, by how often they were right."""

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self._right = _TRUSTED

    def length(self, most: int) -> int:
        """The length of a draft, 0 to `most`, for which a token takes the least time."""
        best, best_gain = 0, 1.0
        for length in range(1, min(most, LONGEST) + 1):
            expected = sum(self._right**place for place in range(length + 1))
            gain = expected / self._costs.relative(length + 1)
            if gain > best_gain:
                best, best_gain = length, gain
        return best

    def saw(self, drafted: int, right: int) -> None:
        """Of a draft of `drafted` tokens, the first `right` were taken."""
        # tokens behind the first wrong one were never judged
        for place in range(min(right + 1, drafted)):
            self._right += _WEIGHT * ((place < right) - self._right)
        # a text that repeats itself again has to be noticed: one more draft now and then
        self._right = max(self._right, 0.2)


def find(tokens: Sequence[int], others: Sequence[NDArray[np.int64]], most: int) -> list[int]:
    """What followed the last of `tokens` where they stood last, in them or in `others`: `most` tokens at most."""
    if most < 1 or len(tokens) < min(_LOOKED_FOR):
        return []
    own = np.asarray(tokens, dtype=np.int64)
    for count in _LOOKED_FOR:
        if len(own) < count:
            continue
        wanted = own[-count:]
        for text in (own, *others):
            # the end of the text itself is no place where something follows
            places = _places(text[:-1], wanted)
            if len(places):
                start = int(places[-1]) + count
                return [int(token) for token in text[start : start + most]]
    return []


def _places(text: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where `wanted` begins in `text`."""
    count = len(text) - len(wanted) + 1
    if count < 1:
        return np.empty(0, np.int64)
    same = text[len(wanted) - 1 :] == wanted[-1]
    candidates = np.flatnonzero(same)
    for back in range(2, len(wanted) + 1):
        if not len(candidates):
            break
        candidates = candidates[text[candidates + len(wanted) - back] == wanted[-back]]
    return candidates
