"""An index on disk: a table of files and functions, and the rows of their embeddings.

The table is JSON, in columns: a hundred thousand functions are read in a fraction of a second. Embeddings
are 8-bit whole numbers with one scale a row, at half the size of float16 and multiplied ten times as fast;
a score, 384 wide, is off by less than .002. They lie in segments, .npy files that are named by their hash, written once
and mapped into memory: a save writes what is new, and puts all into one segment when too much of it is
gone. The table is written last and names its segments, so that an index is whole or not there.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codemill.errors import MachineError
from codemill.runtime.atomic import write_atomically
from codemill.runtime.lock import held

__all__ = ["SCHEMA", "File", "Rows", "Table", "pack_rows", "scores"]

SCHEMA = 4

Rows = NDArray[np.int8]
"""[n, dim + 4]: an embedding in 8 bits, and the bytes of the float32 that it is to be multiplied with."""

_TABLE = "index.json"
_PREFIX = "embeddings-"
_SCALE_BYTES = 4
_MOST_SEGMENTS = 8
_ORPHANED_AFTER_S = 3600
# turned into float32 at a time: what fits a processor's cache
_ROWS_AT_A_TIME = 1024
# what reading a table that was damaged, or a segment that is none, can raise
_UNSOUND = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError),
    *(ArithmeticError, RecursionError),
)


@dataclass(frozen=True, slots=True)
class File:
    """An indexed file. `spans`: of each function its line, and its first byte and the one behind its last."""

    mtime_ns: int
    size_bytes: int
    sha256: str
    names: list[str]
    spans: NDArray[np.int32]
    rows: Rows
    problem: str | None = None
    segment: str = ""
    """Where `rows` are saved, from row `first` on; none yet where it is empty."""
    first: int = 0


class Table:
    """The files of an index by name, in the folder `cache`. Files are put into `files` and `save`d."""

    def __init__(self, cache: Path, dim: int, folder: str) -> None:
        """What is there; empty where there is none, or none that is sound."""
        self._cache = cache
        self._dim = dim
        self._folder = folder
        self._segments: dict[str, Rows] = {}
        self.files: dict[str, File] = {}
        self._load()

    def blocks(self) -> Iterator[Rows]:
        """The rows of all files, in the files' order, in pieces as large as they lie together."""
        segment, start, end = "", 0, 0
        for file in self.files.values():
            if not len(file.rows):
                continue
            if file.segment and file.segment == segment and file.first == end:
                end += len(file.rows)
                continue
            if segment:
                yield self._segments[segment][start:end]
            segment, start, end = file.segment, file.first, file.first + len(file.rows)
            if not segment:
                yield file.rows
        if segment:
            yield self._segments[segment][start:end]

    def save(self) -> None:
        """Write what is new, then the table. Raises MachineError where that cannot be written."""
        try:
            # held for as long as a table is read or written
            with held(_lock(self._cache)) as alone:
                self._write_rows()
                text = _sealed(json.dumps(self._json()).encode())
                write_atomically(self._cache / _TABLE, lambda file: file.write(text))
                self._remove_others(alone)
        except OSError as error:
            raise MachineError(
                f"cannot write the index in {self._cache}: {error.strerror or error}"
            ) from error

    def _write_rows(self) -> None:
        """Save the rows that are in no segment; all of them where the segments are many, gone or half empty."""
        used = {file.segment for file in self.files.values() if file.segment}
        rows = sum(len(file.rows) for file in self.files.values())
        anew = (
            len(used) >= _MOST_SEGMENTS
            or 2 * rows < sum(len(self._segments[name]) for name in used)
            # another process has put all into one
            or not all((self._cache / name).exists() for name in used)
        )
        names = [
            name
            for name, file in self.files.items()
            if len(file.rows) and (anew or not file.segment)
        ]
        if names:
            segment = self._write([self.files[name].rows for name in names])
            self._segments[segment] = self._mapped(segment)
            first = 0
            for name in names:
                file = self.files[name]
                end = first + len(file.rows)
                kept = self._segments[segment][first:end]
                self.files[name] = replace(file, segment=segment, first=first, rows=kept)
                first = end
        used = {file.segment for file in self.files.values() if file.segment}
        self._segments = {name: self._segments[name] for name in sorted(used)}

    def _write(self, parts: list[Rows]) -> str:
        """Write a segment, a piece at a time; returns the name that its hash gives it."""
        header = io.BytesIO()
        shape = (sum(map(len, parts)), self._dim + _SCALE_BYTES)
        np.lib.format.write_array_header_1_0(
            header, {"descr": "|i1", "fortran_order": False, "shape": shape}
        )
        pieces: list[bytes | memoryview] = [header.getvalue()]
        pieces += [np.ascontiguousarray(part).data for part in parts]
        hasher = hashlib.sha256()
        for piece in pieces:
            hasher.update(piece)
        name = f"{_PREFIX}{hasher.hexdigest()}.npy"
        write_atomically(self._cache / name, lambda file: file.writelines(pieces))
        return name

    def _mapped(self, segment: str) -> Rows:
        rows: Rows = np.load(self._cache / segment, mmap_mode="r", allow_pickle=False)
        if rows.dtype != np.int8 or rows.ndim != 2 or rows.shape[1] != self._dim + _SCALE_BYTES:
            raise ValueError("the segment is not one of these embeddings")
        return rows.view(np.ndarray)

    def _json(self) -> dict[str, Any]:
        segments = list(self._segments)
        numbers = {name: number for number, name in enumerate(segments)}
        files = self.files.values()
        return {
            "schema": SCHEMA,
            "folder": self._folder,
            "segments": segments,
            "files": [
                (
                    *(name, file.mtime_ns, file.size_bytes, file.sha256, file.problem),
                    *(len(file.names), numbers.get(file.segment, 0), file.first),
                )
                for name, file in self.files.items()
            ],
            "names": [name for file in files for name in file.names],
            "spans": np.concatenate([np.empty((0, 3), np.int32), *(file.spans for file in files)])
            .ravel()
            .tolist(),
        }

    def _load(self) -> None:
        with held(_lock(self._cache)):
            # twice: without a lock, another process may replace a segment after the table was read
            for _ in range(2):
                try:
                    table = json.loads(_opened((self._cache / _TABLE).read_bytes()))
                    if table["schema"] != SCHEMA:
                        break
                    segments = {}
                    for name in table["segments"]:
                        with (self._cache / name).open("rb") as file:
                            found = hashlib.file_digest(file, "sha256").hexdigest()
                        if name != f"{_PREFIX}{found}.npy":
                            raise ValueError("a segment was changed")
                        segments[name] = self._mapped(name)
                    self.files = _files(table, segments)
                    self._segments = segments
                    return
                except FileNotFoundError:
                    continue
                except _UNSOUND:
                    break

    def _remove_others(self, alone: bool) -> None:
        """Remove segments that are not used any more, and what interrupted processes left."""
        for path in self._cache.iterdir():
            try:
                # without the lock another process may be about to name it in a table
                old = alone or time.time() - path.stat().st_mtime > _ORPHANED_AFTER_S
                if old and path.name != _TABLE and path.name not in self._segments:
                    path.unlink()
            except OSError:
                # another process was faster, or has it open
                continue


def pack_rows(embeddings: NDArray[np.float32]) -> Rows:
    """Embeddings [n, dim] as rows."""
    scales = np.abs(embeddings).max(axis=1, keepdims=True, initial=0) / 127
    # of an embedding that is all zeros
    scales[scales == 0] = 1
    whole = np.rint(embeddings / scales).astype(np.int8)
    return np.concatenate([whole, scales.astype("<f4").view(np.int8)], axis=1)


def scores(rows: Rows, query: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine similarity of each row with a query [dim] of length 1: [n]."""
    found = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), _ROWS_AT_A_TIME):
        part = rows[start : start + _ROWS_AT_A_TIME]
        scales = np.ascontiguousarray(part[:, len(query) :]).view("<f4")[:, 0]
        found[start : start + len(part)] = (
            part[:, : len(query)].astype(np.float32) @ query
        ) * scales
    return found


def _lock(cache: Path) -> Path:
    # beside the indexes: one lock for all
    return cache.parent.with_suffix(".lock")


def _sealed(text: bytes) -> bytes:
    """The object of JSON with the SHA-256 of its text as the last value: a wrong digit is damage too."""
    return text[:-1] + _seal(text)


def _opened(sealed: bytes) -> bytes:
    text = sealed[: -len(_seal(b""))] + b"}"
    if _sealed(text) != sealed:
        raise ValueError("the table was changed")
    return text


def _seal(text: bytes) -> bytes:
    return b', "sha256": "%s"}' % hashlib.sha256(text).hexdigest().encode()


def _files(table: dict[str, Any], segments: dict[str, Rows]) -> dict[str, File]:
    """The files of a table; ValueError and its like where it is not sound."""
    found: dict[str, File] = {}
    names = [os.fspath(name) for name in table["names"]]
    spans = np.array(table["spans"], dtype=np.int32).reshape(len(names), 3)
    ordered = list(segments.items())
    start = 0
    for name, mtime_ns, size_bytes, sha256, problem, count, number, first in table["files"]:
        segment, rows = ordered[number] if count else ("", _NO_ROWS)
        end = start + count
        if not (0 <= first <= first + count <= len(rows) and end <= len(names)):
            raise ValueError("the table names rows that are not there")
        found[str(name)] = File(
            mtime_ns=int(mtime_ns),
            size_bytes=int(size_bytes),
            sha256=str(sha256),
            names=names[start:end],
            spans=spans[start:end],
            rows=rows[first : first + count],
            problem=problem,
            segment=segment,
            first=first,
        )
        start = end
    if start != len(names):
        raise ValueError("the table has functions of no file")
    return found


_NO_ROWS: Rows = np.empty((0, 0), dtype=np.int8)
