"""Rows of a user's file, one at a time: JSON Lines, JSON, CSV, tab-separated, Parquet, datasets.

Nothing is held but the row at hand (a `.json` array excepted). What fields mean is `fields.py`. A bad
row is skipped and counted; what makes a file unusable as a whole is a DataError.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import importlib
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from codemill.errors import DataError, MachineError
from codemill.targets.json_lines import check_there

__all__ = ["PAIR_COLUMNS", "Row", "Skipped", "read_rows"]

PAIR_COLUMNS = ("id1", "id2", "label", "teacher")
"""what the columns of a list of pairs without a header are called, by position."""

_EXPECTED = "expected .jsonl, .json, .csv, .tsv or .parquet (text also .gz or .zst), hf:owner/name, or a saved dataset"
_MOST_LINE_BYTES = 10_000_000
_MOST_JSON_BYTES = 300_000_000
_BATCH = 256
_EXAMPLES = 5
_JUDGED_ROWS = 1_000


@dataclass(frozen=True)
class Row:
    """A row and where it stands (`file:line`, or `file:row` where there are no lines)."""

    file: str
    line: int
    value: Mapping[str, Any]

    @property
    def where(self) -> str:
        """`file:line`."""
        return f"{self.file}:{self.line}"


@dataclass
class Skipped:
    """The rows that were left out, counted by kind, with the first five of each; judges each file as it is read."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    _file: str = ""
    _good: int = 0
    _bad: int = 0
    _first: list[str] = field(default_factory=list)

    def begin(self, file: str) -> None:
        """Start to judge a file."""
        self._file, self._good, self._bad, self._first = file, 0, 0, []

    def good(self) -> None:
        """Count a row that is kept."""
        self._good += 1

    def bad(self, kind: str, where: str, why: str) -> None:
        """Count a row that is left out. Raises DataError once most of the first 1,000 rows are bad."""
        self.counts[kind] += 1
        self._bad += 1
        shown = self.examples.setdefault(kind, [])
        if len(shown) < _EXAMPLES:
            shown.append(f"{where}: {why}")
        if len(self._first) < _EXAMPLES:
            self._first.append(f"{where}: {kind}: {why}")
        if self._good + self._bad <= _JUDGED_ROWS and self._bad > _JUDGED_ROWS // 2:
            self._refuse(f"more than half of the first {_JUDGED_ROWS:,} rows are bad")

    def end(self) -> None:
        """The file has been read. Raises DataError where no row, or less than half of a short file, was good."""
        if not self._good:
            self._refuse("no row is good" if self._bad else f"there are no rows; {_EXPECTED}")
        if self._good + self._bad <= _JUDGED_ROWS and self._bad > self._good:
            self._refuse(f"{self._bad:,} of {self._good + self._bad:,} rows are bad")

    def _refuse(self, why: str) -> None:
        raise DataError("\n  ".join([f"data file {self._file}: {why}", *self._first]))


def read_rows(source: str, skipped: Skipped, columns: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of a file, a folder that `datasets` saved, or `hf:owner/name[:config][@split]`.

    `columns` name those of a tab-separated file that has no header (it has one where the first line
    begins with the first of these names). Raises DataError for a source that cannot be read to its end,
    MachineError where a package is missing that reads it.
    """
    if source.startswith("hf:"):
        return _hub(source)
    path = Path(source)
    if path.is_dir():
        return _saved(path)
    check_there(path, "data file", _EXPECTED)
    name = path.name.lower()
    bare = name.removesuffix(".gz").removesuffix(".zst")
    kind = bare.rpartition(".")[2]
    if kind == "parquet" and bare == name:
        return _parquet(path)
    readers: dict[str, Callable[[Path, Skipped], Iterator[Row]]] = {
        "jsonl": _json_lines,
        "ndjson": _json_lines,
        "json": _json_array,
        "csv": lambda path, skipped: _table(path, skipped, ","),
        "tsv": lambda path, skipped: _table(path, skipped, "\t"),
    }
    if columns and kind in ("tsv", "txt"):
        return _list(path, skipped, columns)
    if kind not in readers:
        raise DataError(f"data file {path}: unknown kind {Path(bare).suffix!r}; {_EXPECTED}")
    return readers[kind](path, skipped)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The unpacked bytes; what goes wrong while they are read becomes a DataError."""
    packed: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error)
    with contextlib.ExitStack() as stack:
        try:
            raw = stack.enter_context(path.open("rb"))
            stream: IO[bytes] = raw
            if path.suffix.lower() == ".gz":
                unpacked = gzip.GzipFile(fileobj=raw)
                stack.callback(unpacked.close)
                stream = io.BufferedReader(unpacked, 1 << 16)
            elif path.suffix.lower() == ".zst":
                zstandard = _package(
                    "zstandard", f"{path} is packed with zstd", "'codemill[compress]'"
                )
                packed += (zstandard.ZstdError,)
                reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
                stream = io.BufferedReader(stack.enter_context(reader), 1 << 16)
            yield stream
        except packed as error:
            raise DataError(f"data file {path} cannot be read: {error}") from error


def _package(name: str, why: str, source: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MachineError(
            f"{why}; reading it needs the package {name}: pip install {source}"
        ) from error


def _lines(path: Path, skipped: Skipped) -> Iterator[tuple[int, bytes]]:
    """(number, line) of every line that is neither blank nor too long to be a row."""
    number = 0
    with _opened(path) as stream:
        while line := stream.readline(_MOST_LINE_BYTES + 1):
            number += 1
            if len(line) > _MOST_LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = stream.readline(_MOST_LINE_BYTES)
                skipped.bad(
                    "line too long", f"{path}:{number}", f"more than {_MOST_LINE_BYTES:,} bytes"
                )
            elif line.strip():
                yield number, line


def _json_lines(path: Path, skipped: Skipped) -> Iterator[Row]:
    for number, line in _lines(path, skipped):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            skipped.bad("not JSON", f"{path}:{number}", str(error))
            continue
        if isinstance(value, dict):
            yield Row(str(path), number, value)
        else:
            skipped.bad("not an object", f"{path}:{number}", f"found {type(value).__name__}")


def _json_array(path: Path, skipped: Skipped) -> Iterator[Row]:
    with _opened(path) as stream:
        text = stream.read(_MOST_JSON_BYTES + 1)
    advice = "expected one array of objects; a large file is better as .jsonl, an object a line"
    if len(text) > _MOST_JSON_BYTES:
        raise DataError(f"data file {path} has more than {_MOST_JSON_BYTES:,} bytes; {advice}")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        # JSON Lines under the name .json is common, and its first line alone is JSON
        if not isinstance(error, json.JSONDecodeError) or not error.msg.startswith("Extra data"):
            raise DataError(f"data file {path} is not JSON ({error}); {advice}") from error
        yield from _json_lines(path, skipped)
        return
    if isinstance(values, dict):
        values = [values]
    if not isinstance(values, list):
        raise DataError(f"data file {path} holds a {type(values).__name__}; {advice}")
    for number, value in enumerate(values, 1):
        if isinstance(value, dict):
            yield Row(str(path), number, value)
        else:
            skipped.bad("not an object", f"{path}:{number}", f"found {type(value).__name__}")


def _table(path: Path, skipped: Skipped, delimiter: str) -> Iterator[Row]:
    """CSV with a header; a quoted field may span lines."""
    # the module's limit is global; it is only ever raised
    csv.field_size_limit(max(csv.field_size_limit(), _MOST_LINE_BYTES))
    with _opened(path) as stream:
        # bytes that are no UTF-8 become half surrogates, which the fields' check then finds
        text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(text, delimiter=delimiter)
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise DataError(f"{path}:1: a name stands twice in the header {header!r:.200}")
        while True:
            line = reader.line_num + 1
            try:
                values = next(reader, None)
            except csv.Error as error:
                skipped.bad("not CSV", f"{path}:{line}", str(error))
                continue
            if values is None:
                break
            if not values:
                continue
            if len(values) == len(header):
                yield Row(str(path), line, dict(zip(header, values, strict=True)))
            else:
                why = f"{len(values)} fields, the header has {len(header)}"
                skipped.bad("not CSV", f"{path}:{line}", why)
        text.detach()


def _list(path: Path, skipped: Skipped, columns: Sequence[str]) -> Iterator[Row]:
    """Tab-separated without a header, or with one that begins with the first of `columns`."""
    names: Sequence[str] = columns
    for number, line in _lines(path, skipped):
        try:
            values = line.decode("utf-8-sig").rstrip("\r\n").split("\t")
        except UnicodeDecodeError as error:
            skipped.bad("not UTF-8", f"{path}:{number}", str(error))
            continue
        if number == 1 and values[0] == columns[0]:
            names = values
        elif 2 <= len(values) <= len(names):
            yield Row(str(path), number, dict(zip(names, values, strict=False)))
        else:
            why = f"{len(values)} tab-separated columns; expected {' '.join(names)}"
            skipped.bad("not a pair", f"{path}:{number}", why)


def _parquet(path: Path) -> Iterator[Row]:
    arrow = _package("pyarrow", f"{path} is a Parquet file", "'codemill[compress]'")
    parquet = _package("pyarrow.parquet", f"{path} is a Parquet file", "'codemill[compress]'")
    number = 0
    try:
        # neither mapped nor read ahead: memory stays that of a batch
        with parquet.ParquetFile(path, memory_map=False, pre_buffer=False) as stored:
            for batch in stored.iter_batches(batch_size=_BATCH, use_threads=False):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(str(path), number, value)
    except (OSError, arrow.ArrowException) as error:
        raise DataError(f"data file {path} cannot be read: {error}") from error


def _saved(folder: Path) -> Iterator[Row]:
    """A folder of `Dataset.save_to_disk`: streams of Arrow, which need no `datasets` to be read."""
    state = folder / "state.json"
    if (folder / "dataset_dict.json").is_file():
        found = sorted(path.name for path in folder.iterdir() if path.is_dir())
        raise DataError(f"{folder} holds several splits: name one of them, {folder}/{found[0]}")
    if not state.is_file():
        raise DataError(f"{folder} is a folder without state.json; {_EXPECTED}")
    arrow = _package("pyarrow", f"{folder} is a saved dataset", "'codemill[compress]'")
    number = 0
    try:
        names = [item["filename"] for item in json.loads(state.read_bytes())["_data_files"]]
        if any(Path(name).name != name for name in names):
            raise DataError(f"{state} names files outside its folder: {names!r:.200}")
        for name in names:
            with (folder / name).open("rb") as raw, arrow.ipc.open_stream(raw) as batches:
                for batch in batches:
                    for at in range(0, batch.num_rows, _BATCH):
                        for value in batch.slice(at, _BATCH).to_pylist():
                            number += 1
                            yield Row(str(folder), number, value)
    except (OSError, ValueError, KeyError, TypeError, arrow.ArrowException) as error:
        raise DataError(f"saved dataset {folder} cannot be read: {error}") from error


def _hub(source: str) -> Iterator[Row]:
    """A dataset of a hub, streamed; code of its own is never run."""
    rest, _, split = source.removeprefix("hf:").partition("@")
    name, _, config = rest.partition(":")
    if not name:
        raise DataError(f"{source!r}: expected hf:owner/name[:config][@split]")
    datasets = _package("datasets", f"{source} is a dataset of a hub", "datasets")
    number = 0
    try:
        stream = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        for value in stream:
            number += 1
            yield Row(source, number, value)
    except MachineError:
        raise
    except Exception as error:
        # the library raises what its many backends raise
        after = f" after row {number:,}" if number else ""
        raise DataError(f"{source} cannot be read{after}: {error}") from error
