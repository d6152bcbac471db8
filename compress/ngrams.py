"""How much what followed the same tokens nearby weighs beside a model: its escapes, fitted on held-out code.

See `runtime/completion/ngrams.py` for what they mix. What is fitted is the likelihood of what the files say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from codemill.runtime.completion.ngrams import Nearby, weighed
from codemill.targets.resampling import Interval, interval_of, replicates, resampled

if TYPE_CHECKING:
    from codemill.runtime import Completer

__all__ = ["FEWEST", "ORDERS", "NgramFit", "Place", "fit_ngrams", "places_of", "says_right"]

ORDERS = 8
"""The longest match that counts: what is longer says the same."""
FEWEST = 8
"""Texts that tell anything."""
_TRIED = np.geomspace(0.01, 1000, 31)
_SWEEPS = 4
_LEAST = 1e-12
"""Of a chance, so that one token that was thought impossible does not decide."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class NgramFit:
    """escapes: of matches of 1, 2, ... tokens.

    Over `tokens` tokens of texts that they were not fitted on: the shares that are right, of the model alone and with
    n-grams, by how much the second is above the first, and bits a token.
    """

    escapes: tuple[float, ...]
    right_alone: float
    right: float
    gain: Interval
    bits_alone: float
    bits: float
    tokens: int

    @property
    def helps(self) -> bool:
        """Whether more tokens are right with n-grams, beyond chance, and the texts are likelier."""
        return self.gain.above_zero and self.bits < self.bits_alone


@dataclass(frozen=True)
class Place:
    """Before a token of a text: what followed nearby, counts [orders, n] and the model's chances of these [n].

    said: which of them the text goes on with, if any; chance: the model's of that token. top: the chance of the model's
    likeliest token, whether that is the text's (top_right), and which of them it is, if any.
    """

    counts: Numbers
    chances: Numbers
    said: int | None
    chance: float
    top: float
    top_right: bool
    top_is: int | None


def fit_ngrams(
    model: Completer, texts: Sequence[str], report: Callable[[float], None] = lambda _: None
) -> NgramFit | None:
    """Escapes for a model, fitted on the second half of each of some held-out texts, with all that is before it.

    What they are worth is measured with those of every other text, on the rest; what is given is fitted on all. None:
    `texts` are too few, or too short, to tell.
    """
    seen: list[list[Place]] = []
    for number, text in enumerate(texts):
        seen.append(places_of(model, text))
        report((number + 1) / len(texts))
    seen = [part for part in seen if part]
    if len(seen) < FEWEST:
        return None
    judged = seen[1::2]
    escapes = _fitted(_Table.of(seen[::2]))
    sizes, alone, mixed = np.array(
        [
            (
                len(part),
                sum(place.top_right for place in part),
                sum(says_right(place, escapes) for place in part),
            )
            for part in judged
        ],
        np.float64,
    ).T
    drawn = resampled([[number] for number in range(len(judged))])
    gain = interval_of(replicates([lambda w: (w @ (mixed - alone)) / (w @ sizes)], drawn)[0])
    assert gain is not None
    table = _Table.of(judged)
    return NgramFit(
        escapes=_fitted(_Table.of(seen)),
        right_alone=float(alone.sum() / sizes.sum()),
        right=float(mixed.sum() / sizes.sum()),
        gain=gain,
        bits_alone=table.bits(()),
        bits=table.bits(escapes),
        tokens=int(sizes.sum()),
    )


def places_of(model: Completer, text: str) -> list[Place]:
    """The places of a text's second half."""
    ids, parts = model.logits(text)
    end = list(model.manifest.output.get("end", ()))
    begun = len(model.manifest.input.get("begin", ()))
    nearby = Nearby((), ORDERS)
    found: list[Place] = []
    for at, row in enumerate(row for part in parts for row in part):
        if at < begun:
            continue
        nearby.read(int(ids[at]))
        if not len(ids) // 2 <= at < len(ids) - 1:
            continue
        own = np.exp(row.astype(np.float64) - row.max())
        # a text has no ends, and what is mixed is the rest
        own[end] = 0
        own /= own.sum()
        follow, wanted, top = nearby.followers(), int(ids[at + 1]), int(own.argmax())
        near = np.empty(0, np.int64) if follow is None else follow.ids
        found.append(
            Place(
                counts=np.empty((0, 0)) if follow is None else follow.counts,
                chances=own[near],
                said=_where(near, wanted),
                chance=float(own[wanted]),
                top=float(own[top]),
                top_right=top == wanted,
                top_is=_where(near, top),
            )
        )
    return found


def says_right(place: Place, escapes: Sequence[float]) -> bool:
    """Whether the likeliest token of model and n-grams together is the text's."""
    if not len(place.chances):
        return place.top_right
    chances, left = weighed(place.counts, place.chances, escapes)
    best = int(chances.argmax())
    if place.top_is is None and left * place.top > chances[best]:
        return place.top_right
    return best == place.said


def _where(ids: NDArray[np.int64], wanted: int) -> int | None:
    at = np.flatnonzero(ids == wanted)
    return int(at[0]) if len(at) else None


@dataclass(frozen=True)
class _Table:
    """Of n tokens the model's chances [n]; and how often the token itself, how often all, and how many different ones
    followed matches of each length [orders, n]."""

    chances: Numbers
    same: Numbers
    every: Numbers
    different: Numbers

    @classmethod
    def of(cls, texts: Sequence[Sequence[Place]]) -> _Table:
        """All of them, for what is fitted at once."""
        places = [place for text in texts for place in text]
        same, every, different = (np.zeros((ORDERS, len(places))) for _ in range(3))
        for number, place in enumerate(places):
            orders = len(place.counts)
            every[:orders, number] = place.counts.sum(1)
            different[:orders, number] = np.count_nonzero(place.counts, axis=1)
            if place.said is not None:
                same[:orders, number] = place.counts[:, place.said]
        return cls(np.array([place.chance for place in places]), same, every, different)

    def bits(self, escapes: Sequence[float]) -> float:
        """Of a token, on average; no escapes: by the model alone."""
        chances = self.chances
        for order, escape in enumerate(escapes):
            below = escape * self.different[order]
            # 0 where nothing matched, and 1 then, so that what is below stays
            whole = self.every[order] + below
            met = whole > 0
            with_it = (self.same[order] + below * chances) / np.where(met, whole, 1)
            chances = np.where(met, with_it, chances)
        return float(-np.log2(np.maximum(chances, _LEAST)).mean())


def _fitted(table: _Table) -> tuple[float, ...]:
    """One escape after another, the best of a grid, some times over: the likelihood has one bump in each."""
    escapes = np.full(ORDERS, 10.0)
    for _ in range(_SWEEPS):
        for order in range(ORDERS):
            tried = np.repeat(escapes[None], len(_TRIED), 0)
            tried[:, order] = _TRIED
            escapes = tried[int(np.argmin([table.bits(row.tolist()) for row in tried]))]
    return tuple(escapes.tolist())
