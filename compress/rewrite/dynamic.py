"""Whether a fragment finds its variables by their names at run time; then none is renamed or added."""

from __future__ import annotations

import re

from codemill.compress.rewrite.syntax import Node, Parsed

__all__ = ["finds_variables_by_name"]

_PATTERNS = {
    "javascript": re.compile(r"\beval\s*\(|\bwith\s*\("),
    "php": re.compile(
        r"\b(?:compact|extract|parse_str|get_defined_vars|eval|include|include_once|require"
        r"|require_once)\b|\$\$|\$\{"
    ),
    # a named group of a regular expression becomes a local
    "ruby": re.compile(r"\b(?:eval|binding|local_variables|\w+_eval)\b|\(\?<\w"),
}
_PYTHON = frozenset({"locals", "eval", "exec", "_getframe", "currentframe"})
# ordinary names as well, so only where they are called
_PYTHON_CALLS = frozenset({"vars", "dir"})


def finds_variables_by_name(parsed: Parsed) -> bool:
    """Whether anything in it may look a variable up by its name, or list all there are."""
    if parsed.grammar.name == "python":
        return any(_is_dynamic(node) for node in parsed.root.walk())
    pattern = _PATTERNS.get(parsed.grammar.name)
    return pattern is not None and pattern.search(parsed.code) is not None


def _is_dynamic(node: Node) -> bool:
    if node.type != "identifier" or node.parent is None:
        return False
    called = node.parent.type == "call" and node.field == "function"
    return node.text in _PYTHON or (called and node.text in _PYTHON_CALLS)
