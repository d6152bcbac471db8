"""Code to a syntax tree, through tree-sitter, and edits of its text.

The tree is copied into `Node`s of our own: the walks over it are many, and py-tree-sitter makes a
new object at every step. Offsets are bytes of `Parsed.source`, the fragment in its wrapper.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from functools import cache
from typing import NamedTuple

import tree_sitter
import tree_sitter_c
import tree_sitter_cpp
import tree_sitter_go
import tree_sitter_java
import tree_sitter_javascript
import tree_sitter_php
import tree_sitter_python
import tree_sitter_ruby

from codemill.compress.rewrite.grammars import GRAMMARS, Grammar
from codemill.errors import DataError

__all__ = [
    "LANGUAGES",
    "Edit",
    "Node",
    "Parsed",
    "commonest_language",
    "edited",
    "grammar_of",
    "language_of",
    "libraries_of",
    "parse",
]

LANGUAGES = tuple(GRAMMARS)

# what data sets call them
_ALIASES = {
    "py": "python",
    "js": "javascript",
    "c++": "cpp",
    "cc": "cpp",
    "golang": "go",
    "rb": "ruby",
}
_ENCODING_ERRORS = "surrogatepass"
_GUESSED = 20
_CODE = re.compile(
    r"[={}\[\]<>]|;[ \t]*$|^[ \t]*(?:async[ \t]+)?def[ \t]+\w|^[ \t]*end[ \t]*$|^[ \t]*[\w.$:]+\(.*\)[ \t]*$",
    re.MULTILINE,
)
"""What code has and plain prose has not: Ruby parses most sentences without an error."""


@dataclass(slots=True, eq=False)
class Node:
    """A node: `field` is its name in its parent, `text` is filled where it has no children."""

    type: str
    field: str | None
    start: int
    end: int
    named: bool
    wrong: bool
    parent: Node | None
    text: str = ""
    children: list[Node] = dataclass_field(default_factory=list)

    def ancestors(self) -> Iterator[Node]:
        """The parent, its parent, up to the root."""
        node = self.parent
        while node is not None:
            yield node
            node = node.parent

    def walk(self) -> Iterator[Node]:
        """This node and all below it, in the order they are written."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(reversed(node.children))

    def inside(self, types: frozenset[str]) -> Node | None:
        """The nearest ancestor of one of these types."""
        return next((node for node in self.ancestors() if node.type in types), None)


@dataclass(frozen=True)
class Parsed:
    """A fragment and its tree. `source[start:end]` is the fragment, around it the wrapper."""

    grammar: Grammar
    source: bytes
    start: int
    end: int
    root: Node
    errors: int

    @property
    def code(self) -> str:
        """The fragment."""
        return self.source[self.start : self.end].decode(errors=_ENCODING_ERRORS)

    @property
    def newline(self) -> bytes:
        """How its lines end."""
        return b"\r\n" if b"\r\n" in self.source else b"\n"


class Edit(NamedTuple):
    """Replace `source[start:end]` by `text`."""

    start: int
    end: int
    text: bytes


def grammar_of(language: str) -> Grammar:
    """The grammar of a language by its name or usual short form; DataError for any other."""
    name = language.lower()
    grammar = GRAMMARS.get(_ALIASES.get(name, name))
    if grammar is None:
        raise DataError(
            f"code in {language!r} cannot be rewritten: the languages are {', '.join(LANGUAGES)}; "
            "name one of them, or none to have it guessed"
        )
    return grammar


def libraries_of(language: str | None) -> tuple[str, ...]:
    """The distributions that parse this language, by whichever of its names; None: that guess among all of them."""
    names = LANGUAGES if language is None else (grammar_of(language).name,)
    return ("tree-sitter", *(f"tree-sitter-{name}" for name in names))


def parse(code: str, grammar: Grammar) -> Parsed | None:
    """The tree of `code`, in whichever wrapper it has the fewest errors.

    None where that leaves errors, except for a language with macros, where up to a few are borne.
    """
    source = _encoded(code)
    if source is None:
        return None
    best: tuple[int, bytes, int, tree_sitter.Tree] | None = None
    for before, after in _wrappers(code, grammar):
        wrapped = before.encode() + source + after.encode()
        tree = _parser(grammar.name).parse(wrapped)
        errors = _errors(tree)
        if best is None or errors < best[0]:
            best = (errors, wrapped, len(before), tree)
        if not errors:
            break
    if best is None:
        return None
    errors, wrapped, start, tree = best
    if errors and not grammar.tolerant:
        return None
    return Parsed(grammar, wrapped, start, start + len(source), _copied(tree, wrapped), errors)


def edited(parsed: Parsed, edits: Iterable[Edit]) -> str:
    """The fragment with `edits`, which may touch but not overlap, done; those outside it are not."""
    parts: list[bytes] = []
    at = parsed.start
    for edit in sorted(edits):
        if edit.start < at or edit.end > parsed.end:
            continue
        parts += [parsed.source[at : edit.start], edit.text]
        at = edit.end
    parts.append(parsed.source[at : parsed.end])
    return b"".join(parts).decode(errors=_ENCODING_ERRORS)


def commonest_language(texts: Sequence[str]) -> str | None:
    """What most of the first texts are written in, None where that is nothing known; `language_of` guesses each."""
    found = [language_of(text) for text in texts[:_GUESSED]]
    known = [name for name in found if name is not None]
    return max(sorted(set(known)), key=known.count) if known else None


def language_of(code: str) -> str | None:
    """The language in which `code` parses with the fewest errors; None where none is likely, as for prose.

    Between languages where it parses equally well (a small C function is C++ and nearly Java), words
    that are common in one of them decide.
    """
    source = _encoded(code)
    if source is None or not _CODE.search(code):
        return None
    ranked: list[tuple[int, int, int]] = []
    for rank, grammar in enumerate(GRAMMARS.values()):
        errors = min(
            _errors(_parser(grammar.name).parse(before.encode() + source + after.encode()))
            for before, after in _wrappers(code, grammar)
        )
        hints = len({found.group() for found in re.finditer(grammar.hints, code, re.MULTILINE)})
        # errors and no word of it: another language, or prose
        if hints or not errors:
            ranked.append((errors, -hints, rank))
    if not ranked:
        return None
    _, _, rank = min(ranked)
    return LANGUAGES[rank]


def _encoded(code: str) -> bytes | None:
    if "\0" in code:
        return None
    return code.encode(errors=_ENCODING_ERRORS)


def _wrappers(code: str, grammar: Grammar) -> tuple[tuple[str, str], ...]:
    if grammar.name == "python":
        # an indented method needs a block around it, and nothing else can have one
        return grammar.wrappers[1:] if code[:1] in (" ", "\t") else grammar.wrappers[:1]
    if grammar.name == "php" and "<?" in code:
        return (("", ""),)
    return grammar.wrappers


@cache
def _parser(language: str) -> tree_sitter.Parser:
    pointers = {
        "python": tree_sitter_python.language,
        "java": tree_sitter_java.language,
        "c": tree_sitter_c.language,
        "cpp": tree_sitter_cpp.language,
        "javascript": tree_sitter_javascript.language,
        "php": tree_sitter_php.language_php,
        "go": tree_sitter_go.language,
        "ruby": tree_sitter_ruby.language,
    }
    return tree_sitter.Parser(tree_sitter.Language(pointers[language]()))


def _errors(tree: tree_sitter.Tree) -> int:
    """The nodes of `tree` that are errors or were made up by the parser."""
    if not tree.root_node.has_error:
        return 0
    count = 0
    waiting = [tree.root_node]
    while waiting:
        node = waiting.pop()
        if node.is_error or node.is_missing:
            count += 1
        waiting.extend(child for child in node.children if child.has_error or child.is_missing)
    return count


def _copied(tree: tree_sitter.Tree, source: bytes) -> Node:
    """The whole tree as `Node`s; an error makes `wrong` of itself and all below it."""
    cursor = tree.walk()
    root = _node(cursor, None)
    here = root
    while True:
        if cursor.goto_first_child():
            child = _node(cursor, here)
            here.children.append(child)
            here = child
            continue
        here.text = source[here.start : here.end].decode(errors="replace")
        while not cursor.goto_next_sibling():
            if not cursor.goto_parent() or here.parent is None:
                return root
            here = here.parent
        assert here.parent is not None
        sibling = _node(cursor, here.parent)
        here.parent.children.append(sibling)
        here = sibling


def _node(cursor: tree_sitter.TreeCursor, parent: Node | None) -> Node:
    node = cursor.node
    assert node is not None
    wrong = node.is_error or node.is_missing or (parent is not None and parent.wrong)
    return Node(
        node.type, cursor.field_name, node.start_byte, node.end_byte, node.is_named, wrong, parent
    )
