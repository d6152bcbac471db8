"""Comments taken out, or neutral ones put in. Docstrings are code and stay."""

from __future__ import annotations

import random
import re

from codemill.compress.rewrite.statements import places
from codemill.compress.rewrite.syntax import Edit, Node, Parsed

__all__ = ["COMMENTS", "commenting"]

COMMENTS = frozenset({"comment", "line_comment", "block_comment"})
_NEUTRAL = (
    "see above",
    "as before",
    "next step",
    "nothing special here",
    "the usual case",
    "go on",
    "this part is straightforward",
    "note the order",
)
# comments that tools obey: the interpreter, the compiler, cgo
_OBEYED = re.compile(
    r"#!|#.*(?:coding[:=]|frozen_string_literal|warn_indent|shareable_constant)|//go:|//export |//line |// \+build"
    r"|//\s*#cgo|/\*\s*#|//[#@]|#\["
)
_MOST_INSERTIONS = 3


def commenting(parsed: Parsed, rng: random.Random) -> list[Edit]:
    """Remove every comment, or insert some: either at even odds, where there are comments."""
    comments = [
        node
        for node in parsed.root.walk()
        if node.type in COMMENTS and not node.wrong and not _OBEYED.match(node.text)
    ]
    comments = [node for node in comments if not _in_directive(parsed, node)]
    if comments and rng.random() < 0.5:
        return [_removed(parsed, node) for node in comments]
    where = [place for place in places(parsed) if place.indent is not None]
    if not where:
        return [_removed(parsed, node) for node in comments]
    chosen = sorted(
        rng.sample(range(len(where)), min(len(where), rng.randint(1, _MOST_INSERTIONS)))
    )
    lines = [f"{parsed.grammar.comment} {rng.choice(_NEUTRAL)}" for _ in chosen]
    return [
        Edit(where[i].at, where[i].at, where[i].insertion([line], parsed.newline))
        for i, line in zip(chosen, lines, strict=True)
    ]


def _in_directive(parsed: Parsed, node: Node) -> bool:
    """Whether it shares its line with a directive of the preprocessor."""
    if parsed.grammar.name not in ("c", "cpp"):
        return False
    line = parsed.source.rfind(b"\n", 0, node.start) + 1
    return parsed.source[line : node.start].lstrip().startswith(b"#")


def _removed(parsed: Parsed, node: Node) -> Edit:
    source = parsed.source
    # a line comment may take its line's end with it (PHP, Ruby's =begin)
    end = node.start + len(source[node.start : node.end].rstrip(b"\r\n"))
    line = source.rfind(b"\n", 0, node.start) + 1
    following = source.find(b"\n", end)
    line_end = len(source) if following < 0 else following
    before, after = source[line : node.start], source[end:line_end]
    if not before.strip() and not after.strip():
        # alone on its lines: they go, too; the last line leaves the end of the one before it
        if following >= 0:
            return Edit(max(line, parsed.start), min(following + 1, parsed.end), b"")
        return Edit(max(line, parsed.start), min(end, parsed.end), b"")
    if not after.strip():
        return Edit(node.start - (len(before) - len(before.rstrip())), end, b"")
    # between two things on a line; one over several lines may stand for the end of a line
    return Edit(node.start, end, parsed.newline if b"\n" in source[node.start : end] else b" ")
