"""One function for every kind of rewriting: parse, propose, apply, check."""

from __future__ import annotations

import random
from enum import Enum

from codemill.compress.rewrite import guard
from codemill.compress.rewrite.commenting import commenting
from codemill.compress.rewrite.dead_code import dead_code
from codemill.compress.rewrite.reformatting import reformatting
from codemill.compress.rewrite.renaming import renaming
from codemill.compress.rewrite.syntax import Edit, Parsed, edited, grammar_of, language_of, parse

__all__ = ["Rewrite", "rewrite"]


class Rewrite(Enum):
    """What to change about a piece of code; its meaning never is."""

    RENAME = "rename"
    """Locals and parameters get other names."""
    REFORMAT = "reformat"
    """Other white space."""
    COMMENTS = "comments"
    """Comments go, or neutral ones come."""
    DEAD_CODE = "dead-code"
    """Statements without effect come in."""
    ALL = "all"
    """All of them, as far as each one can be done."""


# names first: what comes later adds names that need no renaming
_IN_TURN = (Rewrite.RENAME, Rewrite.DEAD_CODE, Rewrite.COMMENTS, Rewrite.REFORMAT)


def rewrite(code: str, language: str | None, kind: Rewrite, seed: int) -> str | None:
    """`code`, written differently; the same for the same `seed`.

    `code` may be a fragment, such as a method without its class. Without a `language` it is
    guessed. A parameter that is renamed is one the callers outside of `code` no longer know by that
    name, where the language lets them (keyword arguments of Python).

    Returns None where the code cannot be parsed or there is nothing to rewrite. Raises DataError
    for a language that is not among `LANGUAGES`.
    """
    name = language if language is not None else language_of(code)
    if name is None:
        return None
    parsed = parse(code, grammar_of(name))
    if parsed is None:
        return None
    if kind is not Rewrite.ALL:
        changed = _once(parsed, kind, seed)
        return None if changed is None else changed.code
    current = parsed
    for each in _IN_TURN:
        current = _once(current, each, seed) or current
    return None if current is parsed else current.code


def _once(parsed: Parsed, kind: Rewrite, seed: int) -> Parsed | None:
    """The fragment after one kind of rewriting, parsed; None where nothing came of it."""
    # seeded by the text as well, or all functions of a data set would get the same names
    rng = random.Random(f"{seed} {kind.value} {parsed.source!r}")
    names: dict[str, str] = {}
    edits: list[Edit]
    match kind:
        case Rewrite.RENAME:
            edits, names = renaming(parsed, rng)
        case Rewrite.REFORMAT:
            edits = reformatting(parsed, rng)
        case Rewrite.COMMENTS:
            edits = commenting(parsed, rng)
        case _:
            edits = dead_code(parsed, rng)
    if not edits:
        return None
    code = edited(parsed, edits)
    if code == parsed.code:
        return None
    after = parse(code, parsed.grammar)
    if after is None:
        return None
    if kind is Rewrite.DEAD_CODE:
        kept = guard.same_with_insertions(parsed, after)
    else:
        kept = guard.same_but_for_names(parsed, after, names)
    return after if kept else None
