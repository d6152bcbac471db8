"""Which names of a piece of Python are locals throughout; the compiler's own symbol table says so.

Positions come from tree-sitter, because `ast` of Python 3.11 has none inside an f-string.
"""

from __future__ import annotations

import symtable
import warnings
from collections import defaultdict

from codemill.compress.rewrite.syntax import Node, Parsed

__all__ = ["python_occurrences"]

_KEPT = frozenset({"self", "cls", "_"})
_NOT_A_VARIABLE = {("attribute", "attribute"), ("keyword_argument", "name")}
_PATTERNS = frozenset({"case_pattern"})


def python_occurrences(parsed: Parsed) -> dict[str, list[Node]]:
    """The nodes of each name that is nothing but a local or a parameter in this fragment."""
    local = _local_names(parsed)
    found: defaultdict[str, list[Node]] = defaultdict(list)
    for node in parsed.root.walk():
        if node.type != "identifier" or node.text not in local or node.parent is None:
            continue
        place = (node.parent.type, node.field)
        if place == ("keyword_argument", "name"):
            # it may be a parameter of a function that is here
            local -= _if_parameter(node.text, parsed)
        shown = node.parent.type == "interpolation" and any(
            child.type == "=" for child in node.parent.children
        )
        if shown or node.inside(_PATTERNS) or node.parent.type == "dotted_name":
            local -= {node.text}
        elif place not in _NOT_A_VARIABLE:
            found[node.text].append(node)
    # `f"{x + 1=}"` shows what is deeper inside as well
    for node in parsed.root.walk():
        if node.type == "interpolation" and any(child.type == "=" for child in node.children):
            local -= {below.text for below in node.walk() if below.type == "identifier"}
    return {name: nodes for name, nodes in found.items() if name in local}


def _local_names(parsed: Parsed) -> frozenset[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            table = symtable.symtable(parsed.source.decode(), "fragment", "exec")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return frozenset()
    local: set[str] = set()
    other = set(_KEPT)
    waiting = [table]
    while waiting:
        scope = waiting.pop()
        waiting.extend(scope.get_children())
        in_function = isinstance(scope, symtable.Function)
        for symbol in scope.get_symbols():
            name = symbol.get_name()
            plain = not (symbol.is_imported() or symbol.is_namespace() or name.startswith("__"))
            if in_function and plain and symbol.is_local():
                local.add(name)
            elif not ((in_function or scope.get_type() == "class") and symbol.is_free()):
                other.add(name)
    return frozenset(local - other)


def _if_parameter(name: str, parsed: Parsed) -> frozenset[str]:
    for node in parsed.root.walk():
        if node.type in ("parameters", "lambda_parameters") and any(
            below.type == "identifier" and below.text == name for below in node.walk()
        ):
            return frozenset({name})
    return frozenset()
