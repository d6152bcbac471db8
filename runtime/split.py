"""Where a text that is too long for a model is divided: between functions, else between statements.

Any language: it looks at lines, their indentation and their last character, and parses nothing.
Python's own parser, which knows better, is used where functions are listed (`functions.py`); here
half a file of C is as likely. Nothing is lost: the pieces, joined, are the text.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence

from codemill.runtime.texts import Cut, Texts

__all__ = ["pieces_of", "split_text"]

_TAB = 4
# a piece is filled at least so far before the best boundary beyond is looked for
_LEAST_FILLED = 0.5
_CLOSING = re.compile(r"[})\]]|(?:end|else|elif|except|catch|finally)\b")
_STATEMENT_ENDS = (";", "}", ":", "{")


def pieces_of(text: str, texts: Texts) -> list[Cut]:
    """`text` as a model reads it: whole where it fits, else in pieces that fit."""
    whole = texts.cut(text)
    if not whole.truncated:
        return [whole]
    return _fitting(text, texts, texts.max_tokens)


def _fitting(text: str, texts: Texts, most_tokens: int) -> list[Cut]:
    starts, special = texts.token_starts(text)
    found = []
    for piece in split_text(text, starts, max(1, most_tokens - special)):
        cut = texts.cut(piece)
        # by itself a piece may have some more tokens than it had within the whole
        if cut.truncated and len(piece) > 1 and most_tokens > 1:
            found += _fitting(piece, texts, min(most_tokens, texts.max_tokens) // 2)
        else:
            found.append(cut)
    return found


def split_text(text: str, token_starts: Sequence[int], most_tokens: int) -> list[str]:
    """`text` in pieces of `most_tokens` at most, in order.

    `token_starts` are the places where its tokens start, in rising order. A piece ends before the
    line that is the best to begin another among those from half of `most_tokens` on: of least
    indentation (a function, or a statement of the outermost block), then after a blank line, then
    after `;`, `}`, `{` or `:`, then the last of them. A line is divided only where it is too long
    by itself. The same text gives the same pieces.
    """
    if most_tokens < 1:
        raise ValueError(f"most_tokens should be a whole number from 1, found {most_tokens!r}")
    if len(token_starts) <= most_tokens:
        return [text]
    lines = _line_starts(text)
    pieces = []
    start = 0
    while True:
        first = bisect_left(token_starts, start)
        if len(token_starts) - first <= most_tokens:
            pieces.append(text[start:])
            return pieces
        # beyond this place the piece would have a token too many
        limit = token_starts[first + most_tokens]
        half = token_starts[first + int(most_tokens * _LEAST_FILLED)]
        end = _boundary(text, lines, start, half, limit)
        pieces.append(text[start:end])
        start = end


def _boundary(text: str, lines: Sequence[int], start: int, half: int, limit: int) -> int:
    """The best place to end a piece, after `start` and up to `limit`."""
    last = bisect_left(lines, limit + 1)
    usual = range(bisect_left(lines, max(half, start + 1)), last)
    # none in the second half: a long line ends the piece early rather than be divided
    early = range(bisect_left(lines, start + 1), last)
    for found in (usual, early):
        candidates = [i for i in found if _text_of(text, lines, i).strip()]
        if candidates:
            return lines[max(candidates, key=lambda i: _fitness(text, lines, i))]
    # one line, or blank lines only; places of tokens may coincide
    return max(limit, start + 1)


def _fitness(text: str, lines: Sequence[int], i: int) -> tuple[int, bool, bool, int]:
    """How well line `i` begins a piece; the largest is best."""
    line = _text_of(text, lines, i)
    stripped = line.lstrip(" \t")
    indentation = sum(_TAB if c == "\t" else 1 for c in line[: len(line) - len(stripped)])
    # what closes or continues a block belongs to what is before it
    if _CLOSING.match(stripped):
        indentation += _TAB
    before = _text_of(text, lines, i - 1).strip() if i else ""
    return -indentation, not before, before.endswith(_STATEMENT_ENDS), i


def _text_of(text: str, lines: Sequence[int], i: int) -> str:
    return text[lines[i] : lines[i + 1]] if i + 1 < len(lines) else text[lines[i] :]


def _line_starts(text: str) -> list[int]:
    starts = [0]
    place = text.find("\n")
    while place >= 0:
        starts.append(place + 1)
        place = text.find("\n", place + 1)
    # a line after the last line end is empty
    return starts
