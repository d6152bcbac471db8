"""Which identifiers to rename, and to what.

By name, not by binding: a name is changed only if each of its occurrences in the fragment is known
to stand for a local or a parameter declared there. All of them then become the same fresh name, so
whatever shadowed whatever still does, and no scope has to be resolved beyond "is it inside one".
A name that also stands for anything else (a field found without `this`, a global, a type, an
argument of a macro that may look at its spelling) stays.
"""

from __future__ import annotations

import random
from collections import defaultdict

from codemill.compress.rewrite.dynamic import finds_variables_by_name
from codemill.compress.rewrite.names import fresh_names, words_of
from codemill.compress.rewrite.python_names import python_occurrences
from codemill.compress.rewrite.roles import Blocked, Declared, Role, role_of
from codemill.compress.rewrite.syntax import Edit, Node, Parsed

__all__ = ["renaming"]

# inside one of these a bare name may be inherited rather than local
_CLASS_BODIES = {
    "java": frozenset({"class_body", "interface_body", "enum_body"}),
    "cpp": frozenset({"field_declaration_list"}),
    "php": frozenset[str](),
}


def renaming(parsed: Parsed, rng: random.Random) -> tuple[list[Edit], dict[str, str]]:
    """The edits that rename every local and parameter that safely can be, and old to new names."""
    if finds_variables_by_name(parsed):
        return [], {}
    python = parsed.grammar.name == "python"
    occurrences = python_occurrences(parsed) if python else _occurrences(parsed)
    fresh = fresh_names(parsed, rng)
    # drawn in the order they are written, so that a seed gives the same names on every machine
    names = {
        name: next(fresh) for name in sorted(occurrences, key=lambda n: occurrences[n][0].start)
    }
    edits = [
        Edit(node.start, node.end, _spelled(node, names[name]).encode())
        for name, nodes in occurrences.items()
        for node in nodes
    ]
    return edits, names


def _spelled(node: Node, name: str) -> str:
    # `{x}` of JavaScript names a property as well, and that stays
    return f"{node.text}: {name}" if node.type.startswith("shorthand_property") else name


def _occurrences(parsed: Parsed) -> dict[str, list[Node]]:
    """The nodes of each name that can be renamed."""
    language = parsed.grammar.name
    blocked: set[str] = set()
    found: defaultdict[str, list[tuple[Node, Role]]] = defaultdict(list)
    for node in parsed.root.walk():
        if node.children:
            continue
        if node.wrong or node.type == "preproc_arg":
            blocked |= words_of(node.text)
            continue
        if not node.named:
            continue
        role = role_of(node, language)
        if isinstance(role, Blocked):
            blocked.add(node.text)
        elif role is not None:
            found[node.text].append((node, role))
    bodies = _CLASS_BODIES.get(language, frozenset[str]())
    return {
        name: [node for node, _ in roles]
        for name, roles in found.items()
        if name not in blocked and _all_local(roles, bodies)
    }


def _all_local(roles: list[tuple[Node, Role]], bodies: frozenset[str]) -> bool:
    """Whether each use is where a declaration of its name is seen, in the same class body."""
    declared = [(node, role) for node, role in roles if isinstance(role, Declared)]
    for node, role in roles:
        if isinstance(role, Declared):
            continue
        seen = [(at, r) for at, r in declared if r.start <= node.start < r.end]
        if not seen:
            return False
        if bodies:
            nearest = max(seen, key=lambda pair: (pair[1].start, pair[0].start))[0]
            if nearest.inside(bodies) is not node.inside(bodies):
                return False
    return bool(declared)
