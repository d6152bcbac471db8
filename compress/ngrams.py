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

if TYPE_CHECKING:
    from codemill.runtime import Completer

__all__ = ["ORDERS", "NgramFit", "fit_ngrams"]

ORDERS = 8
"""The longest match that counts: what is longer says the same."""
_TRIED = np.geomspace(0.01, 1000, 31)
_SWEEPS = 4
_LEAST = 1e-12
"""Of a chance, so that one token that was thought impossible does not decide."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class NgramFit:
    """escapes: of matches of 1, 2, ... tokens.

    Over `tokens` tokens of texts that were not fitted on: the shares that the model says right, alone and with n-grams,
    and bits a token.
    """

    escapes: tuple[float, ...]
    right_alone: float
    right: float
    bits_alone: float
    bits: float
    tokens: int

    @property
    def helps(self) -> bool:
        """Whether more tokens are right with n-grams, of texts that they were not fitted on."""
        return self.right > self.right_alone


@dataclass(frozen=True)
class _Place:
    """Before a token: what followed nearby (counts [orders, n], the model's chances [n]), which of them is the file's
    own, its chance, and the likeliest token's: how likely, whether it is the file's, and which of them it is."""

    counts: Numbers
    chances: Numbers
    said: int | None
    chance: float
    top: float
    top_right: bool
    top_is: int | None


def fit_ngrams(
    model: Completer, texts: Sequence[str], report: Callable[[float], None] = lambda _: None
) -> NgramFit:
    """Escapes for a model, fitted on the second half of each of some held-out texts, with all that is before it.

    What they are worth is measured with those of every other text, on the rest; what is given is fitted on all. Raises
    ValueError for fewer than two texts.
    """
    if len(texts) < 2:
        raise ValueError(f"n-grams are fitted on two texts or more, found {len(texts)}")
    seen: list[list[_Place]] = []
    for number, text in enumerate(texts):
        seen.append(_places(model, text))
        report((number + 1) / len(texts))
    some = [place for part in seen[::2] for place in part]
    rest = [place for part in seen[1::2] for place in part]
    escapes = _fitted(_Table.of(some))
    table = _Table.of(rest)
    return NgramFit(
        escapes=tuple(_fitted(_Table.of(some + rest)).tolist()),
        right_alone=float(np.mean([place.top_right for place in rest])),
        right=float(np.mean([_is_right(place, escapes.tolist()) for place in rest])),
        bits_alone=table.bits(None),
        bits=table.bits(escapes),
        tokens=len(rest),
    )


def _places(model: Completer, text: str) -> list[_Place]:
    ids, parts = model.logits(text)
    nearby = Nearby(ids[:0], ORDERS)
    found: list[_Place] = []
    rows = (row for part in parts for row in part)
    for at, row in enumerate(rows):
        nearby.add(int(ids[at]))
        if not len(ids) // 2 <= at < len(ids) - 1:
            continue
        own = np.exp(row.astype(np.float64) - row.max())
        own /= own.sum()
        follow, wanted, top = nearby.followers(), int(ids[at + 1]), int(row.argmax())
        near = np.empty(0, np.int64) if follow is None else follow.ids
        found.append(
            _Place(
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


def _where(ids: NDArray[np.int64], wanted: int) -> int | None:
    at = np.flatnonzero(ids == wanted)
    return int(at[0]) if len(at) else None


def _is_right(place: _Place, escapes: Sequence[float]) -> bool:
    if not len(place.chances):
        return place.top_right
    chances, left = weighed(place.counts, place.chances, escapes)
    best = int(chances.argmax())
    if place.top_is is None and left * place.top > chances[best]:
        return place.top_right
    return best == place.said


@dataclass(frozen=True)
class _Table:
    """Of n tokens: the model's chances [n]; how often the token itself, all, and how many different ones followed
    matches of each length [orders, n]."""

    chances: Numbers
    same: Numbers
    every: Numbers
    different: Numbers

    @classmethod
    def of(cls, places: Sequence[_Place]) -> _Table:
        """All of them, for what is fitted at once."""
        same, every, different = (np.zeros((ORDERS, len(places))) for _ in range(3))
        for number, place in enumerate(places):
            orders = len(place.counts)
            every[:orders, number] = place.counts.sum(1)
            different[:orders, number] = np.count_nonzero(place.counts, axis=1)
            if place.said is not None:
                same[:orders, number] = place.counts[:, place.said]
        return cls(np.array([place.chance for place in places]), same, every, different)

    def bits(self, escapes: Numbers | None) -> float:
        """Of a token, on average."""
        chances = self.chances
        if escapes is not None:
            for order, escape in enumerate(escapes):
                below = escape * self.different[order]
                whole = self.every[order] + below
                met = whole > 0
                chances = np.where(
                    met, (self.same[order] + below * chances) / np.where(met, whole, 1), chances
                )
        return float(-np.log2(np.maximum(chances, _LEAST)).mean())


def _fitted(table: _Table) -> Numbers:
    """One escape after another, the best of a grid, some times over: the likelihood has one bump in each."""
    escapes = np.full(ORDERS, 10.0)
    for _ in range(_SWEEPS):
        for order in range(ORDERS):
            tried = np.repeat(escapes[None], len(_TRIED), 0)
            tried[:, order] = _TRIED
            escapes = tried[int(np.argmin([table.bits(row) for row in tried]))]
    return escapes
