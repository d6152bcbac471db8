"""Search the functions of a folder's source files by meaning, with an index that keeps itself current.

The index of a folder lives in the cache (`table.py`), one for each bundle and variant. Opening it reads
the files that changed, embeds their functions and forgets those that went. It is a cache: what cannot be
read is built again. Exact search over one matrix product: a million functions are out of scope, a hundred
thousand take a hundredth of a second.
"""

from __future__ import annotations

import hashlib
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codemill.errors import DataError, InputError, MachineError
from codemill.runtime.cache import cache_folder
from codemill.runtime.encoder import Encoder
from codemill.runtime.files import source_files
from codemill.runtime.languages import LANGUAGES, language_of
from codemill.runtime.reading import LARGEST_FILE_BYTES, Located, code_at, embedded, read_functions
from codemill.runtime.table import SCHEMA, File, Table, pack_rows, scores

__all__ = ["Hit", "Index"]

# functions embedded at a time: enough to sort by length, few enough to lose
_CHUNK = 1024
_SAVE_EVERY_S = 30
# a file written this shortly before it was read may be written again without its time changing
_SETTLED_AFTER_NS = 2 * 10**9
# no file's time: one that is read again by the next update (0 is 1970, which archives give their files)
_AGAIN = -1

Progress = Callable[[int, int], object]
"""Called with (files done, files to do)."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A function found: `score` is the cosine similarity with the query, `code` its source now."""

    path: Path
    line: int
    qualified_name: str
    language: str
    score: float
    code: str


@dataclass(frozen=True, slots=True)
class _Read:
    """A file that was read and whose functions are still to be embedded."""

    name: str
    file: File
    texts: list[str]


class Index:
    """The functions of the source files below a folder, embedded. Made by `Index.open`.

    One thread at a time. Several processes may have the same index open: each writes whole
    tables, one after the other, and the last one stays.
    """

    def __init__(
        self, folder: Path, encoder: Encoder, cache: Path, exclude: frozenset[str] = frozenset()
    ) -> None:
        self.folder = folder
        self.exclude = exclude
        self.passed_over: dict[str, int] = {}
        """Files of each language that cannot be read here: the extra `find` is not installed."""
        self._encoder = encoder
        self._table = Table(cache, encoder.dim, os.fspath(folder.resolve()))

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        encoder: Encoder,
        progress: Progress | None = None,
        exclude: Iterable[str] = (),
    ) -> Index:
        """The index of `folder`, made or brought up to date.

        `progress(done, total)` counts the files that have to be read. Files and folders that a pattern of
        `exclude` names, written as in .gitignore, are left out; each choice of them is an index of its own.
        Raises DataError where there is no such folder, and MachineError where the cache cannot be written.
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
            why = (
                f": it is a file; its folder is {os.fspath(root.parent)!r}" if root.exists() else ""
            )
            raise DataError(f"there is no folder {os.fspath(folder)!r} to search{why}")
        without = frozenset(exclude)
        # the version stands for how functions are read: another reading is another index
        key = "\0".join(
            (
                *(os.fspath(root.resolve()), encoder.digest, encoder.variant),
                *(__version__, str(SCHEMA), *sorted(without)),
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
        return sum(len(file.names) for file in self._table.files.values())

    @property
    def files(self) -> int:
        """Source files in the index, those that could not be read included."""
        return len(self._table.files)

    @property
    def unreadable(self) -> dict[Path, str]:
        """The files that could not be read, or not to the end, and why."""
        return {
            self.folder / name: file.problem
            for name, file in self._table.files.items()
            if file.problem is not None
        }

    def update(self, progress: Progress | None = None) -> int:
        """Bring the index up to date with the folder; returns how many functions were embedded.

        A file is read again where its time or size differs, and embedded again only where its
        content does. What was embedded is saved every half minute, and when the update is
        interrupted: the next one continues.
        """
        sources = source_files(self.folder, self.exclude)
        self.passed_over = dict(sources.passed_over)
        present, files = sources.files, self._table.files
        stale = [
            name for name, status in present.items() if not _is_current(files.get(name), status)
        ]
        if not stale and present.keys() == files.keys():
            if progress is not None:
                progress(0, 0)
            return 0
        # a file that was moved or copied keeps its embeddings
        known = {(file.sha256, language_of(name)): file for name, file in files.items()}
        outdated = set(stale)
        self._table.files = {
            name: files[name] for name in present if name in files and name not in outdated
        }
        embedded = 0
        saved = time.monotonic()
        waiting: list[_Read] = []
        count = 0
        try:
            for done, name in enumerate(stale):
                if progress is not None:
                    progress(done, len(stale))
                read = self._read(name, present[name], known)
                waiting.append(read)
                count += len(read.texts)
                if count >= _CHUNK:
                    embedded += self._embed(waiting)
                    waiting, count = [], 0
                    if time.monotonic() - saved > _SAVE_EVERY_S:
                        self._table.save()
                        saved = time.monotonic()
            embedded += self._embed(waiting)
        finally:
            done_files = self._table.files
            self._table.files = {name: done_files[name] for name in present if name in done_files}
            # a file that cannot be read is tried each time: nothing new is nothing to write
            if _facts(self._table.files) != _facts(files):
                self._table.save()
        if progress is not None:
            progress(len(stale), len(stale))
        return embedded

    def search(
        self, query: str, top: int = 10, languages: Iterable[str] | None = None
    ) -> list[Hit]:
        """The `top` functions nearest in meaning to `query`, the best first; of `languages` alone, if given.

        What is found is read from its file: where one has changed since the index was brought up
        to date, it is brought up to date once more. Raises InputError for an empty query and for a
        language that is not known.
        """
        check_query(query)
        if top < 1:
            raise ValueError(f"top should be at least 1, found {top}")
        wanted = None if languages is None else frozenset(languages)
        if wanted is not None and (unknown := sorted(wanted - set(LANGUAGES))):
            raise InputError(
                f"{unknown[0]!r} is no language that is searched; they are: {', '.join(LANGUAGES)}"
            )
        embedding = self._encoder.encode([query])[0]
        hits = self._hits(embedding, top, wanted)
        if None in hits:
            self.update()
            hits = self._hits(embedding, top, wanted)
        # a file that changes faster than it can be read is left out
        return [hit for hit in hits if hit is not None]

    def _hits(
        self, embedding: NDArray[np.float32], top: int, languages: frozenset[str] | None
    ) -> list[Hit | None]:
        """The best functions; None in the place of one whose file is not what was indexed."""
        found = [scores(rows, embedding) for rows in self._table.blocks()]
        if not found:
            return []
        every = np.concatenate(found)
        names = list(self._table.files)
        starts = list(
            accumulate((len(file.names) for file in self._table.files.values()), initial=0)
        )
        if languages is not None:
            for number, name in enumerate(names):
                if language_of(name) not in languages:
                    every[starts[number] : starts[number + 1]] = -np.inf
        contents: dict[str, bytes | None] = {}
        hits: list[Hit | None] = []
        for row in _best(every, top):
            # the last file that begins here or before: those without functions begin where the next does
            number = bisect_right(starts, row) - 1
            name = names[number]
            if name not in contents:
                contents[name] = self._content(name)
            content, file = contents[name], self._table.files[name]
            if content is None:
                hits.append(None)
                continue
            line, start, end = file.spans[row - starts[number]].tolist()
            hits.append(
                Hit(
                    path=self.folder / name,
                    line=line,
                    qualified_name=file.names[row - starts[number]],
                    language=language_of(name) or "",
                    score=float(every[row]),
                    code=code_at(name, content, start, end),
                )
            )
        return hits

    def _content(self, name: str) -> bytes | None:
        """A file's content; None where it is another by now."""
        file = self._table.files[name]
        with suppress(OSError):
            content = (self.folder / name).read_bytes()
            if hashlib.sha256(content).hexdigest() == file.sha256:
                return content
        # an update reads it again whatever its time and size say
        self._table.files[name] = replace(file, mtime_ns=_AGAIN)
        return None

    def _read(
        self, name: str, status: os.stat_result, known: dict[tuple[str, str | None], File]
    ) -> _Read:
        """A file with the functions that are to be embedded; with its rows and none where it is known."""
        settled = time.time_ns() - status.st_mtime_ns > _SETTLED_AFTER_NS
        file = File(
            mtime_ns=status.st_mtime_ns if settled else _AGAIN,
            size_bytes=status.st_size,
            sha256="",
            names=[],
            spans=np.empty((0, 3), dtype=np.int32),
            rows=np.empty((0, 0), dtype=np.int8),
        )
        functions: list[Located] = []
        problem: str | None
        try:
            if status.st_size > LARGEST_FILE_BYTES:
                raise ValueError(f"larger than {LARGEST_FILE_BYTES} bytes")
            content = (self.folder / name).read_bytes()
            sha256 = hashlib.sha256(content).hexdigest()
            same = known.get((sha256, language_of(name)))
            if same is not None:
                kept = replace(same, mtime_ns=file.mtime_ns, size_bytes=file.size_bytes)
                return _Read(name, kept, [])
            file = replace(file, sha256=sha256)
            reading = read_functions(name, content)
            functions, problem = reading.functions, reading.problem
        except OSError as error:
            # what kept it from being read changes neither its time nor its size: it is tried again
            file, problem = replace(file, mtime_ns=_AGAIN), error.strerror or str(error)
        except ValueError as error:
            problem = str(error)
        spans = [(item.function.line, item.start, item.end) for item in functions]
        file = replace(
            file,
            names=[item.function.qualified_name for item in functions],
            spans=np.array(spans, dtype=np.int32).reshape(-1, 3),
            problem=problem,
        )
        return _Read(name, file, [embedded(item.function) for item in functions])

    def _embed(self, waiting: list[_Read]) -> int:
        """Embed the functions of files that were read, and put these into the table."""
        texts = [text for read in waiting for text in read.texts]
        rows = pack_rows(self._encoder.encode(texts))
        start = 0
        for read in waiting:
            end = start + len(read.texts)
            file = replace(read.file, rows=rows[start:end]) if read.texts else read.file
            self._table.files[read.name] = file
            start = end
        return len(texts)


def check_query(query: str) -> None:
    """Raise InputError for a query that says nothing."""
    if not query.strip():
        raise InputError("the query is empty; say what the function does")


def _facts(files: Mapping[str, File]) -> list[tuple[str, int, int, str, str | None]]:
    """What tells whether a table of these files is another: their content decides the rest."""
    return [
        (name, file.mtime_ns, file.size_bytes, file.sha256, file.problem)
        for name, file in files.items()
    ]


def _is_current(file: File | None, status: os.stat_result) -> bool:
    return (
        file is not None
        and file.mtime_ns == status.st_mtime_ns
        and file.size_bytes == status.st_size
    )


def _best(values: NDArray[np.float32], top: int) -> list[int]:
    """Places of the `top` largest values, the largest first, the first of equal ones first."""
    if top < len(values):
        # all that are at least the last one that is wanted, so that equal ones keep their order
        least = np.partition(values, len(values) - top)[len(values) - top]
        places = np.flatnonzero(values >= least)
    else:
        places = np.arange(len(values))
    chosen = places[np.argsort(-values[places], kind="stable")][:top]
    return [int(place) for place in chosen if np.isfinite(values[place])]
