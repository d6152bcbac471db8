"""Code -> tokens with what a parser knows of each; and which of a model's subwords each is made of.

Tokens are the leaves of tree-sitter's tree, in all languages that rewriting knows. A model's subwords follow other
borders: `self.x` may be three tokens and two subwords. They are matched by the characters that they stand for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from codemill.compress.rewrite.grammars import words
from codemill.compress.rewrite.syntax import Node, Parsed

__all__ = ["CodeToken", "code_tokens", "name_of", "subwords_of"]

_DELIMITERS = frozenset("()[]{},;:.")
_NUMBERS = ("integer", "float", "number", "decimal", "rational", "complex", "imaginary")
_STRINGS = ("string", "char_", "character", "regex", "heredoc", "rune")
_CONSTANTS = words("true false none null nil nullptr undefined iota")
_NAMES = words("name word constant instance_variable class_variable global_variable")


@dataclass(frozen=True, slots=True)
class CodeToken:
    """A leaf of the tree: characters [start, end) of the fragment.

    kind: identifier, keyword, operator, delimiter, number, string, constant, comment, type or other. parent: the type
    of its parent node; parent_number: which of the fragment's nodes that is. depth: ancestors inside the fragment.
    """

    start: int
    end: int
    text: str
    kind: str
    parent: str
    parent_number: int
    depth: int


def code_tokens(parsed: Parsed) -> list[CodeToken]:
    """The fragment's tokens, in the order they are written; what the parser could not read is left out."""
    place = _characters(parsed)
    numbers: dict[int, int] = {}
    found = []
    for node in parsed.root.walk():
        inside = parsed.start <= node.start and node.end <= parsed.end
        if node.children or node.wrong or not inside or not node.text.strip():
            continue
        parent = node.parent
        if parent is None:
            continue
        number = numbers.setdefault(id(parent), len(numbers))
        depth = sum(parsed.start <= above.start for above in node.ancestors())
        start, end = (int(place[at - parsed.start]) for at in (node.start, node.end))
        found.append(
            CodeToken(start, end, node.text, _kind(node, parent), parent.type, number, depth)
        )
    return found


def _characters(parsed: Parsed) -> NDArray[np.int64]:
    """For each byte of the fragment, and its end: how many characters begin before it."""
    raw = np.frombuffer(parsed.source[parsed.start : parsed.end], dtype=np.uint8)
    # in UTF-8, bytes 10xxxxxx go on with a character
    begins = (raw & 0xC0) != 0x80
    return np.concatenate([[0], np.cumsum(begins)])


def _kind(node: Node, parent: Node) -> str:
    kind = node.type
    if "comment" in kind:
        return "comment"
    if any(word in kind for word in _STRINGS) or (
        any(word in parent.type for word in _STRINGS) and "interpolation" not in parent.type
    ):
        return "string"
    if node.text.lower() in _CONSTANTS:
        return "constant"
    if not node.named:
        if node.text[0].isalpha():
            return "keyword"
        return "delimiter" if set(node.text) <= _DELIMITERS else "operator"
    if "identifier" in kind or kind in _NAMES:
        return "type" if kind == "type_identifier" else "identifier"
    if node.text[0].isdigit() or any(word in kind for word in _NUMBERS):
        return "number"
    if "type" in kind:
        return "type"
    return "keyword" if node.text.isalpha() else "other"


def subwords_of(
    tokens: Sequence[CodeToken],
    offsets: Sequence[tuple[int, int]],
    special: Sequence[int],
) -> list[tuple[int, int] | None]:
    """For each token the subwords [first, last) that overlap it; None where the model's input ends before it.

    offsets: the characters of each subword, special: 1 for those that stand for no text. A subword over two tokens
    (`):`) belongs to both; white space that a subword begins with belongs to no token.
    """
    places = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    own = np.flatnonzero((np.asarray(special) == 0) & (places[:, 1] > places[:, 0]))
    if not len(own):
        return [None] * len(tokens)
    starts, ends = places[own, 0], places[own, 1]
    found: list[tuple[int, int] | None] = []
    for token in tokens:
        first = int(np.searchsorted(ends, token.start, side="right"))
        last = int(np.searchsorted(starts, token.end, side="left"))
        # half of it cut away is another token
        whole = first < last and ends[last - 1] >= token.end
        found.append((int(own[first]), int(own[last - 1]) + 1) if whole else None)
    return found


def name_of(tokens: Sequence[CodeToken]) -> CodeToken | None:
    """The name of the function that the fragment is: the first identifier that a parenthesis follows.

    A decorator's is none.
    """
    for token, after in pairwise(tokens):
        decorating = any(word in token.parent for word in ("decorator", "annotation", "call"))
        if token.kind == "identifier" and after.text == "(" and not decorating:
            return token
    return None
