"""Fresh names: plain words that occur nowhere in a fragment.

A name that occurs nowhere in it can capture nothing it uses. None of the words is a keyword, a
built-in function or a usual macro of any of the languages.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from codemill.compress.rewrite.syntax import Parsed

__all__ = ["fresh_names", "words_of"]

_FIRST = tuple(
    re.findall(
        r"\w+",
        "first last next prior inner outer left right upper lower near far main extra local given "
        "fixed plain spare whole outside current known closing wanted",
    )
)
_SECOND = tuple(
    re.findall(
        r"\w+",
        "value item entry part piece result amount total level state token block point limit "
        "offset number record source text content buffer cursor marker position element holder "
        "answer figure",
    )
)
_WORD = re.compile(r"[^\W\d]\w*")


def words_of(code: str) -> frozenset[str]:
    """Whatever could be a name in `code`, comments and strings included."""
    return frozenset(_WORD.findall(code))


def fresh_names(parsed: Parsed, rng: random.Random) -> Iterator[str]:
    """Names without end that are not in the fragment, in an order drawn by `rng`."""
    taken = words_of(parsed.source.decode(errors="replace"))
    names = [*_SECOND]
    for first in _FIRST:
        for second in _SECOND:
            joined = first + second.title() if parsed.grammar.camel_case else f"{first}_{second}"
            names.append(joined)
    rng.shuffle(names)
    for round_ in range(1_000_000):
        for name in names:
            candidate = f"{name}{round_}" if round_ else name
            if candidate not in taken:
                yield candidate
