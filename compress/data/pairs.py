"""Query-and-code pairs: the data of a retrieval task, read from and written to JSONL.

Other formats join here as readers that yield `Pair`s; what is done with pairs is elsewhere.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from codemill.targets.json_lines import json_lines, text_of

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
    fields = (query_field, code_field)
    for where, row in json_lines(path, "data file", fields):
        query, code = (text_of(row, field, where, _ADVICE) for field in fields)
        yield Pair(query, code, str(row.get("origin", row.get("repo", ""))))


_ADVICE = "; name the fields with --set data.query_field= and data.code_field="
