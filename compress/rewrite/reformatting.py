"""Other white space: indentation, braces on their own line or not, blank lines, around operators.

Only the gaps between tokens are written anew, and only in ways the language cannot tell apart: a
space is taken away only between a word and an operator, a line is split or joined only at braces.
Token texts, and so strings, docstrings and comments, stay as they are. Gaps around directives,
heredocs and line continuations are not touched.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace
from itertools import pairwise

from codemill.compress.rewrite.commenting import COMMENTS
from codemill.compress.rewrite.grammars import words
from codemill.compress.rewrite.syntax import Edit, Node, Parsed

__all__ = ["reformatting"]

_OPERATIONS = words(
    "binary_expression assignment_expression augmented_assignment_expression variable_declarator "
    "init_declarator assignment augmented_assignment binary_operator comparison_operator "
    "short_var_declaration assignment_statement"
)
_OPERATOR = re.compile(r"[-+*/%<>=!&|^:]+")
_KEYWORDS = frozenset({"if", "for", "while", "switch", "catch"})
_CLOSERS = words("} ) ] end else elif except finally rescue ensure catch elsif when case default ;")
_BLOCKS_WITH_BRACES = words(
    "block constructor_body class_body compound_statement statement_block switch_block "
    "field_declaration_list declaration_list interface_body"
)
_MOST_DRAWS = 8
# numbers that go on over a sign: 0xe+1 is one token
_OPEN_NUMBER = re.compile(r"[0-9.][\w.]*")


@dataclass(frozen=True)
class _Style:
    unit: bytes
    brace_below: bool
    keeps_blank_lines: bool
    blank_lines: float
    spaced: bool
    spaced_keyword: bool
    spaced_comma: bool


@dataclass(frozen=True)
class _Token:
    """A leaf, or a node that is not to be looked into; `depth` is how far its line is indented."""

    node: Node
    depth: int
    begins_statement: bool
    operator: bool
    frozen: bool
    # an operator whose spaces on both sides can be taken away
    tight: bool = False


def reformatting(parsed: Parsed, rng: random.Random) -> list[Edit]:
    """Edits of white space alone, in a style drawn by `rng` that is not the one it has."""
    tokens = _tightened(parsed, _tokens(parsed))
    for _ in range(_MOST_DRAWS):
        edits = _in_style(parsed, tokens, _drawn(rng), rng)
        if edits:
            return edits
    return []


def _drawn(rng: random.Random) -> _Style:
    return _Style(
        unit=rng.choice((b"  ", b"    ", b"        ", b"\t", b"   ")),
        brace_below=rng.random() < 0.5,
        keeps_blank_lines=rng.random() < 0.5,
        blank_lines=rng.choice((0.0, 0.0, 0.3)),
        spaced=rng.random() < 0.5,
        spaced_keyword=rng.random() < 0.5,
        spaced_comma=rng.random() < 0.7,
    )


def _in_style(
    parsed: Parsed, tokens: list[_Token], style: _Style, rng: random.Random
) -> list[Edit]:
    base, outermost = _base(parsed, tokens)
    edits: list[Edit] = []
    for left, right in pairwise(tokens):
        start, end = left.node.end, right.node.start
        if start < parsed.start or end > parsed.end or left.frozen or right.frozen:
            continue
        gap = parsed.source[start:end]
        if gap.strip() or end < start:
            continue
        indent = base + style.unit * max(0, right.depth - outermost)
        new = _gap(parsed, left, right, gap, indent, style)
        if right.begins_statement and gap.count(b"\n") == 1 and rng.random() < style.blank_lines:
            new = parsed.newline + new
        if new != gap:
            edits.append(Edit(start, end, new))
    return edits


def _base(parsed: Parsed, tokens: list[_Token]) -> tuple[bytes, int]:
    """The indentation of the fragment's first line, and the depth of what is there."""
    for token in tokens:
        if token.node.start >= parsed.start and token.node.end > token.node.start:
            return parsed.source[parsed.start : token.node.start].split(b"\n")[-1], token.depth
    return b"", 0


def _gap(
    parsed: Parsed, left: _Token, right: _Token, gap: bytes, indent: bytes, style: _Style
) -> bytes:
    grammar, newline = parsed.grammar, parsed.newline
    opens = (
        right.node.text == "{"
        and right.node.parent is not None
        and right.node.parent.type in _BLOCKS_WITH_BRACES
        and right.node.parent.parent is not None
        # a block of its own stays on a line of its own
        and right.node.parent.parent.type not in grammar.blocks
    )
    movable = grammar.braces and not grammar.line_bound
    lines = gap.count(b"\n")
    if lines:
        if movable and opens and not style.brace_below and left.node.type not in COMMENTS:
            return b" "
        return newline * (2 if lines > 1 and style.keeps_blank_lines else 1) + indent
    if movable and opens and style.brace_below and left.node.type not in COMMENTS:
        return newline + indent if _is_long(parsed, right.node.parent) else gap
    if left.node.type in COMMENTS or right.node.type in COMMENTS or grammar.name == "ruby":
        return gap
    if left.node.text == ",":
        return b" " if style.spaced_comma else b""
    if left.node.text in _KEYWORDS and right.node.text == "(" and grammar.braces:
        return b" " if style.spaced_keyword or grammar.name == "go" else b""
    for operator, other in ((left, right), (right, left)):
        if operator.operator and not other.operator:
            if style.spaced:
                return b" "
            return b"" if operator.tight else gap
    return gap


def _is_long(parsed: Parsed, block: Node | None) -> bool:
    return block is not None and b"\n" in parsed.source[block.start : block.end]


def _joins(parsed: Parsed, left: Node, right: Node) -> bool:
    """Whether the two tokens stay two without a space between them."""
    before = chr(parsed.source[left.end - 1]) if left.end else " "
    after = chr(parsed.source[right.start])
    if _OPEN_NUMBER.fullmatch(left.text) and left.text[-1] in "eEpP.":
        return False
    return _is_word(before) != _is_word(after)


def _tightened(parsed: Parsed, tokens: list[_Token]) -> list[_Token]:
    """The tokens with `tight` found out; `a< -1` would be legal, but nobody writes it."""
    result = list(tokens)
    for index in range(1, len(tokens) - 1):
        left, here, right = (token.node for token in tokens[index - 1 : index + 2])
        if tokens[index].operator and _joins(parsed, left, here) and _joins(parsed, here, right):
            result[index] = replace(tokens[index], tight=True)
    return result


def _is_word(character: str) -> bool:
    return character.isalnum() or character in "_()[]$" or ord(character) > 127


def _tokens(parsed: Parsed) -> list[_Token]:
    grammar = parsed.grammar
    tokens: list[_Token] = []
    # node, depth, whether it begins a statement, whether it is frozen
    waiting: list[tuple[Node, int, bool, bool]] = [(parsed.root, 0, False, False)]
    while waiting:
        node, depth, begins, frozen = waiting.pop()
        text = node.text
        directive = node.type.startswith("preproc") or (text.startswith("#") and not grammar.braces)
        if directive and node.type in COMMENTS:
            directive = text.startswith("#!")
        hard = node.type in ("heredoc_body", "text", "php_tag", "?>", "html_comment")
        if not node.children or node.type in grammar.frozen:
            # a line's end that the grammar of Go counts as a token is white space here
            if node.end == node.start or (text and not text.strip()):
                continue
            frozen = frozen or hard or directive or text.startswith(("=begin", "#"))
            if node.type in COMMENTS:
                frozen = text.startswith(("=begin", "#!")) or hard
            tokens.append(_Token(node, depth, begins, _is_operator(node), frozen or node.wrong))
            continue
        waiting.extend(reversed(_children(node, depth, begins, parsed)))
    return tokens


def _children(
    node: Node, depth: int, begins: bool, parsed: Parsed
) -> list[tuple[Node, int, bool, bool]]:
    grammar = parsed.grammar
    inner: list[tuple[Node, int, bool, bool]] = []
    last = len(node.children) - 1
    for index, child in enumerate(node.children):
        text = child.text
        if node.type in grammar.blocks:
            edge = grammar.braces and index in (0, last) and text in ("{", "}")
            inner.append((child, depth if edge or text == "end" else depth + 1, not edge, False))
        elif node.type in grammar.cases:
            statement = index > 0 and child.named and child.field not in ("value", "pattern")
            inner.append((child, depth + 1 if statement else depth, statement, False))
        elif node.parent is None or node.type == "statement_list":
            inner.append((child, depth, True, False))
        else:
            same = (
                index == 0
                or child.type in grammar.blocks
                or text in _CLOSERS
                or child.type.endswith(("_clause", "_declarator"))
                or child.type in grammar.cases
                or child.type in ("statement_list", "do_block", "block")
                or (parsed.grammar.name == "python" and child.type in _PYTHON_SAME)
            )
            inner.append((child, depth if same else depth + 1, begins and index == 0, False))
    return inner


# the definition below its decorators
_PYTHON_SAME = frozenset({"function_definition", "class_definition", "decorator"})


def _is_operator(node: Node) -> bool:
    return (
        node.parent is not None
        and node.parent.type in _OPERATIONS
        and not node.named
        and _OPERATOR.fullmatch(node.text) is not None
        and node.text not in (":", "!")
    )
