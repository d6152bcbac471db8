"""Whether a rewriting changed anything its kind may not change: both texts are parsed and compared.

The last word on every rewriting. It holds token by token; Python is also compared as `ast` sees it,
since there white space is syntax.
"""

from __future__ import annotations

import ast
import warnings

from codemill.compress.rewrite.commenting import COMMENTS
from codemill.compress.rewrite.syntax import Node, Parsed

__all__ = ["same_but_for_names", "same_with_insertions"]


def same_but_for_names(before: Parsed, after: Parsed, names: dict[str, str]) -> bool:
    """Whether the two are alike but for white space, comments, and `names`, old to new."""
    if after.errors > before.errors:
        return False
    if before.grammar.name == "python":
        trees = _python_tree(before), _python_tree(after)
        if trees[0] is None or trees[1] is None:
            return False
        return ast.dump(_Renamed(names).visit(trees[0])) == ast.dump(trees[1])
    old, new = _shape(before), _shape(after)
    return len(old) == len(new) and all(
        kind == other_kind and (text == other or names.get(text) == other)
        for (kind, text), (other_kind, other) in zip(old, new, strict=True)
    )


def same_with_insertions(before: Parsed, after: Parsed) -> bool:
    """Whether every token of the one is in the other, in the same order."""
    if after.errors > before.errors:
        return False
    if before.grammar.name == "python" and _python_tree(after) is None:
        return False
    old = [part for part in _shape(before) if part[1]]
    new = iter([part for part in _shape(after) if part[1]])
    return all(part in new for part in old)


def _shape(parsed: Parsed) -> list[tuple[str, str]]:
    """The tree as its nodes' types and the leaves' texts, without comments."""
    shape: list[tuple[str, str]] = []
    for node in parsed.root.walk():
        if node.type in COMMENTS:
            continue
        if node.type == "shorthand_property_identifier":
            # `{x}` is what `{x: x}` says
            shape += [("pair", ""), ("property_identifier", node.text), (":", ":")]
            shape.append(("identifier", node.text))
        elif node.type == "shorthand_property_identifier_pattern":
            shape += _pattern(node)
        elif node.type != "object_assignment_pattern":
            shape.append((node.type, "" if node.children else node.text.strip()))
    return shape


def _pattern(node: Node) -> list[tuple[str, str]]:
    inner = [("property_identifier", node.text), (":", ":")]
    if node.parent is not None and node.parent.type == "object_assignment_pattern":
        return [("pair_pattern", ""), *inner, ("assignment_pattern", ""), ("identifier", node.text)]
    return [("pair_pattern", ""), *inner, ("identifier", node.text)]


def _python_tree(parsed: Parsed) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(parsed.source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


class _Renamed(ast.NodeTransformer):
    """The variables of a tree under other names; attributes and keywords of calls are none."""

    def __init__(self, names: dict[str, str]) -> None:
        self.names = names

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for field in ("id", "arg", "name"):
            value = getattr(node, field, None)
            if isinstance(value, str) and not isinstance(node, (ast.keyword, ast.alias)):
                setattr(node, field, self.names.get(value, value))
        if isinstance(node, ast.Nonlocal):
            node.names = [self.names.get(name, name) for name in node.names]
        return node
