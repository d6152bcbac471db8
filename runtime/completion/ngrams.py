"""What followed the same tokens nearby, weighed with what a model says: an n-gram cache.

Code says again what it said a little before (Tu, Su, Devanbu 2014, "On the localness of software"), and a small model
repeats it less surely than counting does (Grave, Joulin, Usunier 2016 mix both by one weight). Here the model is the
lowest order of a prediction by partial matching (Cleary, Witten 1984; the escapes of method C, each scaled by what
held-out files ask for): for one last token, two, ... what followed them in the text counts, the rest is left to the
order below. No training, no file, and nothing to keep: the text itself is the table.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Followers", "Nearby", "mixed", "weighed"]

Row = NDArray[np.float32]
_APART = -1
"""Between two texts; no token's id."""
_LEAST = 1e-300
"""A chance whose logarithm is still finite."""


class Followers:
    """Of a place in a text: which tokens followed its last one before, and how often behind each longer match.

    ids: int64 [n]; counts: float64 [orders, n], of matches of 1, 2, ... tokens; fewer orders where nothing matched.
    """

    __slots__ = ("counts", "ids")

    def __init__(self, ids: NDArray[np.int64], counts: NDArray[np.float64]) -> None:
        self.ids = ids
        self.counts = counts


class Nearby:
    """A text that grows, and other texts to look in. tokens: its first ones; orders: the longest match that counts."""

    def __init__(
        self,
        tokens: Sequence[int] | NDArray[np.int64],
        orders: int,
        others: Sequence[NDArray[np.int64]] = (),
    ) -> None:
        self._orders = orders
        parts = [part for text in others for part in (text, [_APART])]
        before = sum(map(len, parts))
        # room to grow, so that a token costs no copy
        self._ids = np.full(before + 2 * len(tokens) + 64, _APART, np.int64)
        self._ids[: before + len(tokens)] = np.concatenate([*parts, np.asarray(tokens, np.int64)])
        self._begin = before
        self._end = before + len(tokens)

    def add(self, token: int) -> None:
        """The text's next token."""
        if self._end == len(self._ids):
            self._ids = np.concatenate([self._ids, np.full(len(self._ids), _APART, np.int64)])
        self._ids[self._end] = token
        self._end += 1

    def followers(self) -> Followers | None:
        """What followed the text's last tokens before; None: its last one is new."""
        ids, end = self._ids, self._end
        if end == self._begin:
            return None
        at = np.flatnonzero(ids[: end - 1] == ids[end - 1])
        # what ends another text has nothing behind it
        at = at[ids[at + 1] != _APART]
        if not len(at):
            return None
        found, which = np.unique(ids[at + 1], return_inverse=True)
        counts = [np.bincount(which, minlength=len(found))]
        for order in range(1, min(self._orders, end - self._begin)):
            alike = (at >= order) & (ids[at - order] == ids[end - 1 - order])
            at, which = at[alike], which[alike]
            if not len(at):
                break
            counts.append(np.bincount(which, minlength=len(found)))
        return Followers(found, np.array(counts, np.float64))


def weighed(
    counts: NDArray[np.float64], chances: NDArray[np.float64], escapes: Sequence[float]
) -> tuple[NDArray[np.float64], float]:
    """Chances [n] of the tokens that followed, given the model's own; and by what those of all other tokens shrink.

    counts: [orders, n]. escapes: of each order, what the order below weighs, in the number of different tokens that
    followed.
    """
    left = 1.0
    for row, escape in zip(counts, escapes, strict=False):
        below = escape * np.count_nonzero(row)
        whole = row.sum() + below
        chances = (row + below * chances) / whole
        left *= below / whole
    return chances, left


def mixed(logits: Row, followers: Followers | None, escapes: Sequence[float]) -> Row:
    """Logits [vocab] of the model and of what followed nearby together; those of tokens that did not follow stay."""
    if followers is None:
        return logits
    highest = float(logits.max())
    total = highest + float(np.log(np.exp(logits - highest).sum(dtype=np.float64)))
    ids = followers.ids
    own = np.exp(logits[ids].astype(np.float64) - total)
    chances, left = weighed(followers.counts, own, escapes)
    found = logits.copy()
    # relative to the tokens that did not follow
    found[ids] = np.log(np.maximum(chances, _LEAST)) - np.log(max(left, _LEAST)) + total
    return found
