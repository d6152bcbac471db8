"""What followed the same tokens nearby, weighed with what a model says: an n-gram cache.

Code says again what it said a little before (Tu, Su, Devanbu 2014, "On the localness of software"), and a small model
repeats it less surely than counting does (Grave, Joulin, Usunier 2016 mix both by one weight). Here the model is the
lowest order of a prediction by partial matching (Cleary, Witten 1984; the escapes of method C, each scaled by what
held-out files ask for): for one last token, two, ... what followed them in the text counts, the rest is left to the
order below. The text itself is the table.

Marks are no text: what ends a completion is as likely as the model says, and what stands between the parts of a prompt
that is filled follows nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codemill.runtime.completion.decoding import Decoding

__all__ = ["Followers", "Nearby", "mixed", "parts_of", "weighed"]

Row = NDArray[np.float32]
Tokens = Sequence[int] | NDArray[np.int64]
_APART = -1
"""Between two texts; no token's id."""
_NEAREST = 64
"""Matches of a length that count, at most: what is far away says less, and its number must not outweigh the model."""
_LEAST = 1e-300
"""A chance whose logarithm is still finite."""


@dataclass(frozen=True, slots=True)
class Followers:
    """Of a place in a text: which tokens followed its last one before, and how often behind each longer match.

    ids: int64 [n]; counts: float64 [orders, n], of matches of 1, 2, ... tokens; fewer orders where nothing matched.
    """

    ids: NDArray[np.int64]
    counts: NDArray[np.float64]


class Nearby:
    """A text that is continued, and others to look in, the nearest first. orders: the longest match that counts."""

    def __init__(self, tokens: Tokens, orders: int, others: Sequence[Tokens] = ()) -> None:
        self._orders = orders
        parts = [np.asarray(text, np.int64) for text in (*reversed(others), tokens)]
        apart = np.array([_APART], np.int64)
        known = np.concatenate([part for text in parts for part in (apart, text)])
        self._begin = len(known) - len(tokens)
        self._end = self._known = len(known)
        # room to grow, so that a token costs no copy
        self._ids = np.concatenate([known, np.empty(len(tokens) + 64, np.int64)])

    def read(self, token: int) -> None:
        """The text's next token; it counts from now on."""
        self.say(token)
        self._known = self._end

    def say(self, token: int) -> None:
        """A token that continues the text. It is no evidence of what follows what, or a model would convince itself."""
        if self._end == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
        self._ids[self._end] = token
        self._end += 1

    def followers(self) -> Followers | None:
        """What followed the last tokens before; None: the last one is new."""
        ids, end = self._ids, self._end
        if end == self._begin:
            return None
        at = np.flatnonzero(ids[: self._known - 1] == ids[end - 1])
        # what ends another text has nothing behind it
        at = at[ids[at + 1] != _APART]
        behind: list[NDArray[np.int64]] = []
        for order in range(min(self._orders, end - self._begin)):
            if order:
                at = at[ids[at - order] == ids[end - 1 - order]]
            if not len(at):
                break
            behind.append(ids[at[-_NEAREST:] + 1])
        if not behind:
            return None
        found, which = np.unique(np.concatenate(behind), return_inverse=True)
        rows = np.repeat(np.arange(len(behind)), [len(part) for part in behind])
        cells = len(behind), len(found)
        counts = np.bincount(rows * len(found) + which, minlength=cells[0] * cells[1])
        return Followers(found, counts.reshape(cells).astype(np.float64))


def parts_of(prompt: Sequence[int], decoding: Decoding) -> tuple[Sequence[int], Sequence[int]]:
    """Of what a model is asked with, the text that is continued and, where a gap is filled, the one behind it."""
    text, fill = prompt[len(decoding.begin) :], decoding.fill
    if fill is None or not text or text[-1] != fill.middle or fill.suffix not in text:
        return text, ()
    # marks in a text are read as text, so that these are the only ones
    at = list(text).index(fill.suffix)
    return text[1:at], text[at + 1 : -1]


def weighed(
    counts: NDArray[np.float64], chances: NDArray[np.float64], escapes: Sequence[float]
) -> tuple[NDArray[np.float64], float]:
    """Chances [n] of the tokens that followed, given the model's own; and by what those of all other tokens shrink.

    counts: [orders, n]. escapes: of each order, and maybe of more, what the order below weighs, in the number of
    different tokens that followed.
    """
    # (counts + below * (...)) / whole, order by order, gathered into one sum: numpy's calls are what takes time
    left, shares = 1.0, np.empty(len(counts))
    totals, different = counts.sum(1).tolist(), np.count_nonzero(counts, axis=1).tolist()
    for order in reversed(range(len(counts))):
        below = escapes[order] * different[order]
        whole = totals[order] + below
        shares[order] = left / whole
        left *= below / whole
    return shares @ counts + left * chances, left


def mixed(
    logits: Row, followers: Followers | None, escapes: Sequence[float], end: Sequence[int] = ()
) -> Row:
    """Logits [vocab] of the model and of what followed nearby together; those of tokens that did not follow stay.

    end: ids whose chances stay the model's.
    """
    if followers is None:
        return logits
    ids, ends = followers.ids, list(end)
    highest = float(logits.max())
    powers = np.exp(logits - highest)
    # of all but the ends
    # numpy adds pairwise: float32 is exact enough, and quicker
    whole = max(_LEAST, float(powers.sum()) - float(powers[ends].sum()))
    chances, left = weighed(followers.counts, powers[ids] / whole, escapes)
    left = max(left, _LEAST)
    found = logits.copy()
    # all relative to the tokens that did not follow, which stay
    found[ids] = np.log(np.maximum(chances, _LEAST)) + (np.log(whole) - np.log(left) + highest)
    found[ends] = logits[ends] - np.log(left)
    return found
