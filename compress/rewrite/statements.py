"""The places inside function bodies where a statement can be inserted."""

from __future__ import annotations

from dataclasses import dataclass

from codemill.compress.rewrite.syntax import Node, Parsed

__all__ = ["Place", "places"]

# parts of the statement around them, or nothing one would write another in front of
_NOT_BEFORE = frozenset(
    {
        "ERROR",
        "case_clause",
        "else",
        "empty_statement",
        "ensure",
        "heredoc_body",
        "rescue",
    }
)


@dataclass(frozen=True)
class Place:
    """In front of the statement that begins at `at`.

    `indent` is the white space before it where it begins its line, None where it does not.
    `function` is the function it is in.
    """

    at: int
    indent: bytes | None
    function: Node

    def insertion(self, lines: list[str], newline: bytes) -> bytes:
        """`lines`, each one a whole statement, as text to insert at `at`."""
        if self.indent is None:
            return b"".join(line.encode() + b" " for line in lines)
        return b"".join(line.encode() + newline + self.indent for line in lines)


def places(parsed: Parsed) -> list[Place]:
    """Every place of the fragment where a statement may be inserted, in order."""
    found: list[Place] = []
    grammar = parsed.grammar
    bounds = grammar.functions | grammar.classes
    for block in parsed.root.walk():
        if block.type not in grammar.scopes or block.wrong:
            continue
        # the body of a switch: what is before its first case is never reached
        if block.parent is not None and block.parent.type == "switch_statement":
            continue
        owner = block.inside(bounds)
        if owner is None or owner.type not in grammar.functions:
            continue
        if grammar.name == "ruby" and block.type == "then" and not block.children:
            continue
        for statement in _after_prologue(block):
            place = _place(parsed, statement, owner)
            if place is not None:
                found.append(place)
    return sorted(found, key=lambda place: place.at)


def _after_prologue(block: Node) -> list[Node]:
    """The statements of `block` in front of which another one changes nothing."""
    statements = [
        child
        for child in block.children
        if child.named and child.type not in ("comment", "line_comment", "block_comment")
    ]
    first = 0
    while first < len(statements) and _is_text(statements[first]):
        # a docstring, or "use strict"
        first += 1
    for index, statement in enumerate(statements):
        if statement.type == "explicit_constructor_invocation":
            first = index + 1
    return [
        s
        for s in statements[first:]
        if s.type not in _NOT_BEFORE and not s.type.startswith("preproc") and not s.wrong
    ]


def _is_text(statement: Node) -> bool:
    return statement.type == "expression_statement" and statement.children[0].type in (
        "string",
        "concatenated_string",
    )


def _place(parsed: Parsed, statement: Node, owner: Node) -> Place | None:
    source, at = parsed.source, statement.start
    if not parsed.start <= at < parsed.end:
        return None
    line = source.rfind(b"\n", 0, at) + 1
    before = source[max(line, parsed.start) : at]
    if not before.strip():
        # a line that goes on from the one above is not the begin of one
        above = source[parsed.start : line].rstrip(b"\r\n")
        return None if above.endswith(b"\\") else Place(at, before, owner)
    opens_here = before.rstrip()[-1:] in (b"{", b";", b"}")
    if not parsed.grammar.braces or not opens_here or b"#" in before:
        return None
    return Place(at, None, owner)
