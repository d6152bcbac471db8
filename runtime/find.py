"""Search a folder's Python functions by meaning, with an index on disk that keeps itself current.

The index of a folder lives in the cache, one for each bundle and variant: a table of files and
functions (JSON) and one matrix of embeddings (float16 .npy). Opening it reads the files that
changed, embeds their functions and forgets those that went. It is a cache: what cannot be read is
built again. Exact search over one matrix product: a million functions are out of scope, ten
thousand take a millisecond.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codemill.errors import DataError, InputError, MachineError
from codemill.runtime.atomic import write_atomically
from codemill.runtime.cache import cache_folder
from codemill.runtime.encoder import Encoder
from codemill.runtime.functions import Function, functions_of
from codemill.runtime.lock import held

__all__ = ["Hit", "Index", "python_files"]

SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages", "venv"})
"""Folders not looked into, besides hidden ones and virtual environments of any name."""

_SCHEMA = 1
_TABLE = "index.json"
_MATRIX_PREFIX = "embeddings-"
_LARGEST_FILE_BYTES = 4 * 2**20
# functions embedded at a time: enough to sort by length, few enough to lose
_CHUNK = 512
_SAVE_EVERY_S = 30
# a file written this shortly before it was read may be written again without its time changing
_SETTLED_AFTER_NS = 2 * 10**9
_ORPHANED_AFTER_S = 3600
_ROWS_AT_A_TIME = 8192
# what reading a table that was damaged, or a matrix that is none, can raise
_UNSOUND = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError),
    *(ArithmeticError, RecursionError),
)

Progress = Callable[[int, int], object]
"""Called with (files done, files to do)."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A function found: `score` is the cosine similarity with the query, `code` its source now."""

    path: Path
    line: int
    qualified_name: str
    score: float
    code: str


@dataclass(frozen=True, slots=True)
class _File:
    """An indexed file. `functions` are (qualified name, line); `embeddings` float16 [n, dim]."""

    mtime_ns: int
    size_bytes: int
    sha256: str
    functions: tuple[tuple[str, int], ...]
    embeddings: NDArray[np.float16]
    error: str | None = None


class Index:
    """The functions of the Python files below a folder, embedded. Made by `Index.open`.

    One thread at a time. Several processes may have the same index open: each writes whole
    tables, one after the other, and the last one stays.
    """

    def __init__(
        self, folder: Path, encoder: Encoder, cache: Path, exclude: frozenset[str] = frozenset()
    ) -> None:
        self.folder = folder
        self.exclude = exclude
        self._encoder = encoder
        self._cache = cache
        self._files: dict[str, _File] = _load(cache, encoder.dim)
        self._matrix: NDArray[np.float16] | None = None

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        encoder: Encoder,
        progress: Progress | None = None,
        exclude: Iterable[str] = (),
    ) -> Index:
        """The index of `folder`, made or brought up to date.

        `progress(done, total)` counts the files that have to be read. Folders named in `exclude`,
        at any depth, are left out; each choice of them is an index of its own. Raises DataError where
        there is no such folder, and MachineError where the cache cannot be written.
        """
        from codemill import __version__

        root = Path(folder)
        try:
            there = root.is_dir()
        except OSError as error:
            raise DataError(
                f"the folder {os.fspath(folder)!r} cannot be looked into: {error.strerror or error}"
            ) from error
        if not there:
            raise DataError(f"there is no folder {os.fspath(folder)!r} to search")
        without = frozenset(exclude)
        # the version stands for how functions are read: another reading is another index
        key = "\0".join(
            (
                *(os.fspath(root.resolve()), encoder.digest, encoder.variant),
                *(__version__, str(_SCHEMA), *sorted(without)),
            )
        )
        name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        cache = cache_folder("indexes") / name
        try:
            cache.mkdir(exist_ok=True)
        except OSError as error:
            raise MachineError(f"cannot make {cache}: {error.strerror or error}") from error
        index = cls(root, encoder, cache, without)
        index.update(progress)
        return index

    def __len__(self) -> int:
        """Functions in the index."""
        return sum(len(file.functions) for file in self._files.values())

    @property
    def files(self) -> int:
        """Python files in the index, those that could not be read included."""
        return len(self._files)

    @property
    def unreadable(self) -> dict[Path, str]:
        """The files that have no functions here because they could not be read, and why."""
        return {
            self.folder / name: file.error
            for name, file in self._files.items()
            if file.error is not None
        }

    def update(self, progress: Progress | None = None) -> int:
        """Bring the index up to date with the folder; returns how many functions were embedded.

        A file is read again where its time or size differs, and embedded again only where its
        content does. What was embedded is saved every half minute, so that an update that is
        interrupted continues.
        """
        present = dict(python_files(self.folder, self.exclude))
        stale = [name for name, status in present.items() if not self._is_current(name, status)]
        changed = bool(stale) or present.keys() != self._files.keys()
        # a file that was moved or copied keeps its embeddings
        known = {file.sha256: file for file in self._files.values() if file.error is None}
        self._files = {name: self._files[name] for name in present if name in self._files}
        for name in stale:
            self._files.pop(name, None)
        self._matrix = None
        embedded = 0
        saved = time.monotonic()
        waiting: list[tuple[str, _File, list[Function]]] = []
        try:
            for done, name in enumerate(stale):
                if progress is not None:
                    progress(done, len(stale))
                file, functions = self._read(name, present[name], known)
                waiting.append((name, file, functions))
                if sum(len(item[2]) for item in waiting) >= _CHUNK:
                    embedded += self._embed(waiting)
                    waiting = []
                    if time.monotonic() - saved > _SAVE_EVERY_S:
                        self._save(present)
                        saved = time.monotonic()
            embedded += self._embed(waiting)
        finally:
            if changed:
                self._save(present)
        if progress is not None:
            progress(len(stale), len(stale))
        return embedded

    def search(self, query: str, top: int = 10) -> list[Hit]:
        """The `top` functions nearest in meaning to `query`, the best first.

        What is found is read from its file: where one has changed since the index was brought up
        to date, it is brought up to date once more. Raises InputError for an empty query.
        """
        if not query.strip():
            raise InputError("the query is empty; say what the function does")
        if top < 1:
            raise ValueError(f"top should be at least 1, found {top}")
        embedding = self._encoder.encode([query])[0]
        hits = self._hits(embedding, top)
        if None in hits:
            self.update()
            hits = self._hits(embedding, top)
        # a file that changes faster than it can be read is left out
        return [hit for hit in hits if hit is not None]

    def _hits(self, embedding: NDArray[np.float32], top: int) -> list[Hit | None]:
        """The best functions; None in the place of one whose file is not what was indexed."""
        if self._matrix is None:
            self._matrix = _stack([file.embeddings for file in self._files.values()], self._dim)
        if not len(self._matrix):
            return []
        scores = np.concatenate(
            [
                self._matrix[start : start + _ROWS_AT_A_TIME].astype(np.float32) @ embedding
                for start in range(0, len(self._matrix), _ROWS_AT_A_TIME)
            ]
        )
        rows = [
            (name, qualified_name, line)
            for name, file in self._files.items()
            for qualified_name, line in file.functions
        ]
        sources: dict[str, dict[tuple[str, int], str] | None] = {}
        hits: list[Hit | None] = []
        for row in np.argsort(-scores, kind="stable")[:top]:
            name, qualified_name, line = rows[row]
            if name not in sources:
                sources[name] = self._codes(name)
            codes = sources[name]
            if codes is None:
                hits.append(None)
                continue
            hits.append(
                Hit(
                    path=self.folder / name,
                    line=line,
                    qualified_name=qualified_name,
                    score=float(scores[row]),
                    code=codes[qualified_name, line],
                )
            )
        return hits

    @property
    def _dim(self) -> int:
        return self._encoder.dim

    def _codes(self, name: str) -> dict[tuple[str, int], str] | None:
        """Code of a file's functions by name and line; None where the file is another by now."""
        try:
            content = (self.folder / name).read_bytes()
        except OSError:
            return None
        if hashlib.sha256(content).hexdigest() != self._files[name].sha256:
            return None
        return {(item.qualified_name, item.line): item.code for item in functions_of(content)}

    def _is_current(self, name: str, status: os.stat_result) -> bool:
        file = self._files.get(name)
        return (
            file is not None
            and file.mtime_ns == status.st_mtime_ns
            and file.size_bytes == status.st_size
        )

    def _read(
        self, name: str, status: os.stat_result, known: dict[str, _File]
    ) -> tuple[_File, list[Function]]:
        """A file without its embeddings, and the functions to embed; or one known, and none."""
        settled = time.time_ns() - status.st_mtime_ns > _SETTLED_AFTER_NS
        functions: list[Function] = []
        embeddings = np.empty((0, self._dim), dtype=np.float16)
        sha256, error = "", None
        try:
            if status.st_size > _LARGEST_FILE_BYTES:
                raise ValueError(f"larger than {_LARGEST_FILE_BYTES} bytes")
            content = (self.folder / name).read_bytes()
            sha256 = hashlib.sha256(content).hexdigest()
            if sha256 in known:
                same = known[sha256]
                names, embeddings = same.functions, same.embeddings
            else:
                functions = functions_of(content)
                names = tuple((item.qualified_name, item.line) for item in functions)
        except (OSError, SyntaxError, ValueError) as problem:
            error, names = str(problem), ()
        file = _File(
            mtime_ns=status.st_mtime_ns if settled else 0,
            size_bytes=status.st_size,
            sha256=sha256,
            functions=names,
            embeddings=embeddings,
            error=error,
        )
        return file, functions

    def _embed(self, waiting: list[tuple[str, _File, list[Function]]]) -> int:
        codes = [item.code for _, _, functions in waiting for item in functions]
        embeddings = self._encoder.encode(codes).astype(np.float16)
        start = 0
        for name, file, functions in waiting:
            if functions:
                end = start + len(functions)
                file = _File(
                    mtime_ns=file.mtime_ns,
                    size_bytes=file.size_bytes,
                    sha256=file.sha256,
                    functions=file.functions,
                    embeddings=embeddings[start:end],
                    error=file.error,
                )
                start = end
            self._files[name] = file
        return len(codes)

    def _save(self, order: dict[str, os.stat_result]) -> None:
        """Write the index: the matrix under a name of its own, then the table that names it."""
        self._files = {name: self._files[name] for name in order if name in self._files}
        buffer = io.BytesIO()
        matrix = _stack([file.embeddings for file in self._files.values()], self._dim)
        np.save(buffer, matrix, allow_pickle=False)
        content = buffer.getvalue()
        matrix_name = f"{_MATRIX_PREFIX}{hashlib.sha256(content).hexdigest()}.npy"
        table = {
            "schema": _SCHEMA,
            "folder": os.fspath(self.folder.resolve()),
            "embeddings": matrix_name,
            "files": {
                name: {
                    "mtime_ns": file.mtime_ns,
                    "size_bytes": file.size_bytes,
                    "sha256": file.sha256,
                    "functions": file.functions,
                    "error": file.error,
                }
                for name, file in self._files.items()
            },
        }
        try:
            with held(_lock(self._cache)) as alone:
                write_atomically(self._cache / matrix_name, lambda file: file.write(content))
                write_atomically(
                    self._cache / _TABLE, lambda file: file.write(json.dumps(table).encode())
                )
                _remove_others(self._cache, matrix_name, alone)
        except OSError as error:
            raise MachineError(
                f"cannot write the index in {self._cache}: {error.strerror or error}"
            ) from error


def python_files(
    folder: Path, exclude: frozenset[str] = frozenset()
) -> Iterator[tuple[str, os.stat_result]]:
    """The Python files below `folder` as relative POSIX paths, in order; links are not followed."""
    skipped = SKIPPED_FOLDERS | exclude
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name not in skipped
            and not (Path(parent) / name / "pyvenv.cfg").exists()
        )
        for name in sorted(files):
            path = Path(parent) / name
            if name.endswith(".py"):
                try:
                    status = path.lstat()
                except OSError:
                    # deleted since it was listed
                    continue
                # neither a link nor a pipe
                if stat.S_ISREG(status.st_mode):
                    yield path.relative_to(folder).as_posix(), status


def _load(cache: Path, dim: int) -> dict[str, _File]:
    """The index in `cache`; empty where there is none, or none that is sound."""
    with held(_lock(cache)):
        # twice: without a lock, another process may replace the matrix after the table was read
        for _ in range(2):
            try:
                table = json.loads((cache / _TABLE).read_bytes())
                content = (cache / table["embeddings"]).read_bytes()
                name = f"{_MATRIX_PREFIX}{hashlib.sha256(content).hexdigest()}.npy"
                if name != table["embeddings"] or table["schema"] != _SCHEMA:
                    continue
                matrix = np.load(io.BytesIO(content), allow_pickle=False)
                return _files(table["files"], matrix, dim)
            except FileNotFoundError:
                continue
            except _UNSOUND:
                break
    return {}


def _lock(cache: Path) -> Path:
    # beside the indexes: one lock for all, held for as long as a table is read or written
    return cache.parent.with_suffix(".lock")


def _files(table: dict[str, Any], matrix: NDArray[np.float16], dim: int) -> dict[str, _File]:
    found = {}
    start = 0
    for name, item in table.items():
        functions = tuple((str(function), int(line)) for function, line in item["functions"])
        end = start + len(functions)
        found[name] = _File(
            mtime_ns=int(item["mtime_ns"]),
            size_bytes=int(item["size_bytes"]),
            sha256=str(item["sha256"]),
            functions=functions,
            embeddings=matrix[start:end],
            error=item["error"],
        )
        start = end
    if matrix.shape != (start, dim) or matrix.dtype != np.float16:
        raise ValueError("the matrix is not that of the table")
    return found


def _stack(parts: list[NDArray[np.float16]], dim: int) -> NDArray[np.float16]:
    return np.concatenate([np.empty((0, dim), dtype=np.float16), *parts])


def _remove_others(cache: Path, matrix_name: str, alone: bool) -> None:
    """Remove the matrix that was replaced, and what interrupted processes left."""
    for path in cache.iterdir():
        try:
            # without the lock another process may be about to name it in a table
            old = alone or time.time() - path.stat().st_mtime > _ORPHANED_AFTER_S
            if old and path.name not in (matrix_name, _TABLE):
                path.unlink()
        except OSError:
            # another process was faster, or has it open
            continue
