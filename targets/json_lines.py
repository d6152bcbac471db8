"""JSON Lines that a user hands over, gzipped or not: an object a line, each error with file and line."""

from __future__ import annotations

import gzip
import json
import reprlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from codemill.errors import DataError

__all__ = ["check_there", "json_lines", "text_of"]

_MOST_LINE_BYTES = 10_000_000
_MOST_CHARACTERS = 1_000_000


def json_lines(
    path: Path, what: str, fields: Sequence[str], most_bytes: int | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`file:line`, the object) of every line that is not blank.

    `what` is what messages call the file, `fields` what they say should be in a line; `most_bytes`
    is the most that it may unpack to. Raises DataError for a line that is not a JSON object or has
    more than 10,000,000 bytes, and for a file that is empty or cannot be read to its end.
    """
    expected = f"expected one JSON object a line with {' and '.join(map(repr, fields))}"
    check_there(path, what, expected)
    number = size = found = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            while line := stream.readline(_MOST_LINE_BYTES + 1):
                number, size = number + 1, size + len(line)
                where = f"{path}:{number}"
                if len(line) > _MOST_LINE_BYTES:
                    raise DataError(f"{where}: longer than {_MOST_LINE_BYTES:,} bytes; {expected}")
                if most_bytes is not None and size > most_bytes:
                    raise DataError(f"{what} {path} unpacks to more than {most_bytes:,} bytes")
                if line.strip():
                    yield where, _object(line, where, expected)
                    found += 1
    except (OSError, EOFError, zlib.error) as error:
        after = f" after line {number}" if number else ""
        raise DataError(f"{what} {path} cannot be read{after}: {error}") from error
    if not found:
        raise DataError(f"{what} {path} is empty; {expected}")


def check_there(path: Path, what: str, expected: str) -> None:
    """Raise DataError where `path` is no file, before anything is read: a pipe would wait for ever."""
    try:
        if path.is_file():
            return
        found = "is not a file" if path.exists() else "does not exist"
        found = "is a folder" if path.is_dir() else found
    except OSError as error:
        raise DataError(f"{what} {str(path)!r:.200} cannot be read: {error.strerror}") from error
    raise DataError(f"{what} {path} {found}; {expected}")


def _object(line: bytes, where: str, expected: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not a JSON object ({error}); {expected}") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(row).__name__}")
    return row


def text_of(row: Mapping[str, Any], field: str, where: str, advice: str = "") -> str:
    """The text under `field`; DataError where it is missing, blank, far too long or not Unicode."""
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        found = reprlib.repr(value) if field in row else f"fields {reprlib.repr(sorted(row))}"
        raise DataError(f"{where}: expected text under {field!r}, found {found}{advice}")
    if len(value) > _MOST_CHARACTERS:
        raise DataError(
            f"{where}: the text under {field!r} has {len(value):,} characters, "
            f"at most {_MOST_CHARACTERS:,} are taken; leave it out or split it"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: the text under {field!r} holds half a surrogate pair (\\ud800 to \\udfff), "
            "which is no character; write the whole character or leave it out"
        ) from error
    return value
