"""Statements that never have an effect: a local nobody reads, a branch that is never taken."""

from __future__ import annotations

import random
from collections.abc import Iterator

from codemill.compress.rewrite.dynamic import finds_variables_by_name
from codemill.compress.rewrite.names import fresh_names
from codemill.compress.rewrite.statements import Place, places
from codemill.compress.rewrite.syntax import Edit, Parsed

__all__ = ["dead_code"]

_MOST_INSERTIONS = 3


def dead_code(parsed: Parsed, rng: random.Random) -> list[Edit]:
    """One to three insertions at different places; none where there is no place."""
    if finds_variables_by_name(parsed):
        return []
    where = places(parsed)
    chosen = sorted(
        rng.sample(range(len(where)), min(len(where), rng.randint(1, _MOST_INSERTIONS)))
    )
    names = fresh_names(parsed, rng)
    return [_inserted(parsed, where[index], names, rng) for index in chosen]


def _inserted(parsed: Parsed, place: Place, names: Iterator[str], rng: random.Random) -> Edit:
    name, value = next(names), rng.randint(0, 99)
    branch = rng.random() < 0.5 or _jumps(place)
    unit = _unit(place)
    lines = _LINES[parsed.grammar.name](name, value, branch, unit)
    if place.indent is None:
        lines = [line.strip() for line in lines]
    return Edit(place.at, place.at, place.insertion(lines, parsed.newline))


def _unit(place: Place) -> str:
    indent = place.indent or b""
    if b"\t" in indent:
        return "\t"
    return "    " if len(indent) % 4 == 0 else "  "


def _jumps(place: Place) -> bool:
    """Whether the function has a goto or labels, which must not jump over a declaration."""
    return any(
        node.type in ("goto_statement", "labeled_statement") for node in place.function.walk()
    )


def _python(name: str, value: int, branch: bool, unit: str) -> list[str]:
    return ["if False:", f"{unit}{name} = {value}"] if branch else [f"{name} = {value}"]


def _ruby(name: str, value: int, branch: bool, unit: str) -> list[str]:
    return ["if false", f"{unit}{name} = {value}", "end"] if branch else [f"{name} = {value}"]


def _php(name: str, value: int, branch: bool, unit: str) -> list[str]:
    return _branch("if (false) {", [f"${name} = {value};"], unit, branch)


def _java(name: str, value: int, branch: bool, unit: str) -> list[str]:
    return _branch("if (false) {", [f"int {name} = {value};"], unit, branch)


def _javascript(name: str, value: int, branch: bool, unit: str) -> list[str]:
    return _branch("if (false) {", [f"let {name} = {value};"], unit, branch)


def _c(name: str, value: int, branch: bool, unit: str) -> list[str]:
    return _branch("if (0) {", [f"int {name} = {value};", f"(void) {name};"], unit, branch)


def _go(name: str, value: int, branch: bool, unit: str) -> list[str]:
    # the compiler refuses a local that is not used; the semicolon counts where all is one line
    return _branch("if false {", [f"{name} := {value};", f"_ = {name};"], unit, branch)


def _branch(head: str, lines: list[str], unit: str, branch: bool) -> list[str]:
    return [head, *(unit + line for line in lines), "}"] if branch else lines


_LINES = {
    "python": _python,
    "ruby": _ruby,
    "php": _php,
    "java": _java,
    "javascript": _javascript,
    "c": _c,
    "cpp": _c,
    "go": _go,
}
