"""Query-and-code pairs: the data of a retrieval task, read from and written to JSONL.

Other formats join here as readers that yield `Pair`s; what is done with pairs is elsewhere.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from codemill.errors import DataError

__all__ = ["Pair", "read_pairs", "write_pairs"]


@dataclass(frozen=True)
class Pair:
    """A query in words and the code it should find; `origin` is where it comes from (package, file)."""

    query: str
    code: str
    origin: str = ""


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    """Write one JSON object a line, gzipped (with no timestamp, so equal pairs make equal files)."""
    with (
        path.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="", compresslevel=3) as stream,
    ):
        for pair in pairs:
            row = {"query": pair.query, "code": pair.code, "origin": pair.origin}
            text = json.dumps(row, ensure_ascii=False)
            # half a surrogate pair, which an origin may hold, has no UTF-8
            stream.write(text.encode(errors="replace") + b"\n")


def read_pairs(path: Path, query_field: str = "query", code_field: str = "code") -> Iterator[Pair]:
    """Yield the pairs of a `.jsonl` or `.jsonl.gz` file.

    Raises DataError with file and line for a line that is not a JSON object, lacks a field, or
    holds an empty or non-text value, for a file that cannot be read to its end, and for one without
    any pair.
    """
    if not path.is_file():
        raise DataError(
            f"data file {path} does not exist; expected JSONL with {query_field!r} and {code_field!r}"
        )
    count = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield _pair(line, f"{path}:{number}", query_field, code_field)
                    count += 1
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"data file {path} cannot be read: {error}") from error
    if count == 0:
        raise DataError(f"data file {path} is empty; expected one JSON object a line")


def _pair(line: bytes, where: str, query_field: str, code_field: str) -> Pair:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: not a JSON object ({error}); expected one JSON object a line"
        ) from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(row).__name__}")
    for field in (query_field, code_field):
        value = row.get(field)
        if not isinstance(value, str) or not value.strip():
            found = f"found fields {sorted(row)}" if field not in row else f"found {value!r:.60}"
            raise DataError(
                f"{where}: expected text under {field!r}, {found}; "
                "name the fields with --set data.query_field= and data.code_field="
            )
        if not _is_utf8(value):
            raise DataError(
                f"{where}: the text under {field!r} holds half a surrogate pair (\\ud800 to \\udfff), "
                "which is no character; write the whole character or leave it out"
            )
    return Pair(row[query_field], row[code_field], str(row.get("origin", row.get("repo", ""))))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
