"""Where code to look at comes from: a file of any kind that is read for training, or the installed packages.

A sample of fixed size, drawn by a seed; nothing else is held, however large the file.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from codemill.compress.data.fields import (
    CODE,
    CODE1,
    LABEL,
    BadValueError,
    label_in,
    text_in,
)
from codemill.compress.data.installed import installed_packages, pairs_of_file
from codemill.compress.data.rows import Skipped, read_rows
from codemill.errors import DataError

__all__ = ["INSTALLED", "Snippet", "read_snippets"]

INSTALLED = "installed"
_QUERY = ("query", "docstring", "nl")
_OF_ONE_FILE = 2
_TESTS = frozenset(("tests", "test", "testing"))


@dataclass(frozen=True)
class Snippet:
    """A piece of code, usually a function, with what words say of it and its label, where there are any."""

    code: str
    query: str | None = None
    label: str | None = None


def read_snippets(
    data: str,
    most: int,
    seed: int,
    *,
    code_field: str | None = None,
    query_field: str | None = None,
    label_field: str | None = None,
) -> list[Snippet]:
    """At most `most` snippets of `data`: `installed`, or a file as `read_rows` takes it.

    Fields that are not named: code, func, function, original_string, text (or code1 ... of pairs); query, docstring,
    nl; label, target. Raises DataError where there is nothing to read.
    """
    if data == INSTALLED:
        return _installed(most, seed)
    chance = random.Random(seed)
    kept: list[Snippet] = []
    for number, snippet in enumerate(_rows(data, code_field, query_field, label_field)):
        # reservoir sampling: after n rows each is kept with the chance most / n
        if number < most:
            kept.append(snippet)
        elif (place := chance.randrange(number + 1)) < most:
            kept[place] = snippet
    return kept


def _rows(
    data: str, code_field: str | None, query_field: str | None, label_field: str | None
) -> Iterator[Snippet]:
    skipped = Skipped()
    skipped.begin(data)
    for row in read_rows(data, skipped):
        try:
            snippet = _snippet(row.value, code_field, query_field, label_field)
        except BadValueError as error:
            skipped.bad(error.kind, row.where, str(error))
            continue
        skipped.good()
        yield snippet
    skipped.end()


def _snippet(
    row: Mapping[str, Any],
    code_field: str | None,
    query_field: str | None,
    label_field: str | None,
) -> Snippet:
    code = code_field or next((name for name in (*CODE, *CODE1) if name in row), None)
    if code is None:
        raise BadValueError(
            "missing field",
            f"expected one of {', '.join(CODE)}, found {sorted(row)!r:.200}; name it with --code-field",
        )
    query = query_field or next((name for name in _QUERY if name in row and name != code), None)
    label = label_field or next((name for name in LABEL if name in row), None)
    words = None
    if query is not None and (query_field is not None or isinstance(row[query], str)):
        words = text_in(row, query) if query_field or row[query].strip() else None
    # a label on a pair says nothing of its first half
    single = code_field is not None or code in CODE
    said = label_in(row, label, None) if label is not None and single else None
    return Snippet(text_in(row, code), words, said)


def _installed(most: int, seed: int) -> list[Snippet]:
    """Functions with docstrings of the packages that codemill needs, at most two of a file."""
    files = [item for name in installed_packages() for item in _files(name)]
    chance = random.Random(seed)
    chance.shuffle(files)
    found: list[Snippet] = []
    for item in files:
        pairs = pairs_of_file(item)
        for pair in chance.sample(pairs, min(_OF_ONE_FILE, len(pairs))):
            found.append(Snippet(pair.code, pair.query))
        if len(found) >= most:
            return found[:most]
    if not found:
        raise DataError(
            "no installed package has a function with a docstring; give code with --data FILE.jsonl"
        )
    return found


def _files(package: str) -> list[tuple[str, str]]:
    """(path, name) of a package's Python files without its tests, by name."""
    distribution = metadata.distribution(package)
    return sorted(
        (
            (str(distribution.locate_file(file)), f"{package}:{file.as_posix()}")
            for file in distribution.files or ()
            if file.suffix == ".py" and ".." not in file.parts and not _TESTS & set(file.parts)
        ),
        key=lambda item: item[1],
    )
