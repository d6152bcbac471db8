"""A text whose keys and values are kept: what of it can be used again when it has changed.

An editor sends its whole text for each keystroke. What is the same from the beginning on needs nothing; where
something was changed in the middle, what follows it is moved (positional integrity encoding), which leaves keys and
values that were computed with another beginning: an approximation, and so only for long ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from codemill.runtime.completion.cache import Cache
    from codemill.runtime.completion.parts import Backend

__all__ = ["Document", "Left", "shared"]

KEPT_END = 64
"""Tokens that an end should have to be moved and not computed again."""


@dataclass
class Left:
    """A token that left early: after which exit, and the hidden state it left with, [width]."""

    at: int
    exit: int
    hidden: NDArray[np.float32]


@dataclass
class Document:
    """Tokens whose keys and values are in `cache`, all of them but those of upper layers of tokens that left early.

    These are filled in when a later token needs them, several at once. prompt: how many of the tokens were asked with;
    what follows was answered.
    """

    cache: Cache
    tokens: list[int] = field(default_factory=list)
    prompt: int = 0
    left: list[Left] = field(default_factory=list)

    def rewind(self, tokens: int) -> None:
        """Forget all but the first `tokens` tokens."""
        del self.tokens[tokens:]
        self.left = [item for item in self.left if item.at < tokens]

    def alike(self, wanted: Sequence[int]) -> tuple[int, int]:
        """How many tokens are the same from the beginning, and how many at the end of what was asked with before.

        The last token of `wanted` is in neither, unless it ends a longer end: it is always computed.
        """
        start = min(shared(self.tokens, wanted), len(wanted) - 1)
        rest = min(self.prompt, len(self.tokens), len(wanted)) - start
        asked = self.tokens[: self.prompt]
        end = shared(asked[::-1], wanted[::-1], rest) if rest > 0 else 0
        return start, end

    def reuse(self, wanted: Sequence[int], backend: Backend, move: bool) -> list[tuple[int, int]]:
        """Bring the cache as near to `wanted` as it gets without computing; the spans [start, end) that lack.

        The last token is always among them: what follows it is asked for. Keys and values before a span are there, and
        those behind it too.
        """
        start, end = self.alike(wanted)
        prompt, self.prompt = self.prompt, len(wanted)
        if not move or backend.decoding.rotary is None or end < KEPT_END:
            self.rewind(start)
            return [(start, len(wanted))]
        # what was answered then is no part of the text, or it would be asked with
        self.rewind(prompt)
        if self.left:
            backend.fill(self)
        old = len(self.tokens)
        to = len(wanted) - end
        self.cache.grow(len(wanted))
        self.cache.move(old - end, old, to)
        self.left = []
        self.tokens = list(wanted[:-1])
        spans = [(start, to)] if to > start else []
        return [*spans, (len(wanted) - 1, len(wanted))]


def shared(first: Sequence[int], second: Sequence[int], most: int | None = None) -> int:
    """How many tokens two sequences begin with that are the same, `most` at most."""
    count = min(len(first), len(second))
    if most is not None:
        count = min(count, most)
    # in chunks, whose comparison is the library's
    at = 0
    while at < count:
        step = min(256, count - at)
        if first[at : at + step] != second[at : at + step]:
            while at < count and first[at] == second[at]:
                at += 1
            return at
        at += step
    return count
