"""Files of labelled rows -> one table of numbers, their texts on disk; bad rows skipped and counted."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codemill.compress.data.fields import (
    ID,
    BadValueError,
    Fields,
    fields_of,
    has_label,
    id_in,
    label_in,
    teacher_in,
    text_in,
)
from codemill.compress.data.rows import PAIR_COLUMNS, Row, Skipped, read_rows
from codemill.compress.data.sources import AUTO, SPLITS, LabelledSource, SplitFile
from codemill.compress.data.spill import Hashes, TextStore, hash_of_text, mixed
from codemill.errors import DataError
from codemill.runtime.values import check_name

__all__ = ["UNDECIDED", "Gathered", "Table", "first_rows", "gather"]

UNDECIDED = -1
"""as a split: not given, to be drawn."""
_SPLIT_NAMES = {
    "train": 0, "training": 0, "valid": 1, "validation": 1, "val": 1, "dev": 1, "test": 2,
}  # fmt: skip
_MOST_LABELS = 1_000
_FIRST = 5
_LOOKED_AT = 50
"""Rows of a file that tell what its fields are called."""


@dataclass(frozen=True)
class Table:
    """Rows as numbers; every array has one entry a row."""

    split: NDArray[np.int8]
    """index into SPLITS, or UNDECIDED"""
    texts: NDArray[np.int32]
    """[n, 1 | 2], numbers of the text store"""
    labels: NDArray[np.int32]
    """-1: none"""
    teacher: NDArray[np.float32] | None
    """[n, classes], NaN where there is none; None: no row has any"""
    groups: NDArray[np.int32]
    """-1: none"""
    files: NDArray[np.int16]
    lines: NDArray[np.int64]

    def take(self, rows: NDArray[Any]) -> Table:
        """These rows, by number or by a mask."""
        teacher = None if self.teacher is None else self.teacher[rows]
        taken = {
            name: value[rows]
            for name, value in vars(self).items()
            if name != "teacher" and value is not None
        }
        return Table(teacher=teacher, **taken)

    def keys(self, normal: Hashes, symmetric: bool) -> Hashes:
        """One hash a row of its texts, up to white space (and up to their order, where they are symmetric)."""
        hashes = normal[self.texts]
        if hashes.shape[1] == 1:
            return hashes[:, 0]
        if symmetric:
            hashes = np.sort(hashes, axis=1)
        return mixed(hashes[:, 0], 1) ^ mixed(hashes[:, 1], 2)


@dataclass(frozen=True)
class Gathered:
    """The table, and what was met on the way."""

    table: Table
    names: list[str]
    """of the files, as `Table.files` numbers them"""
    labels: list[str]
    fields: dict[str, dict[str, Any]]
    rows_read: int
    unknown_rows: int
    """rows of pair lists that name an id without a function"""
    unknown_ids: list[str]
    """the first five of these ids"""
    unknown_count: int
    warnings: list[str]

    def where(self, row: int) -> str:
        """`file:line` of a row of the table."""
        return f"{self.names[self.table.files[row]]}:{self.table.lines[row]}"


class _Builder:
    """The columns while they grow."""

    def __init__(self, source: LabelledSource, store: TextStore, skipped: Skipped) -> None:
        self.source, self.store, self.skipped = source, store, skipped
        self.declared = None if source.pairs_from_label else source.labels
        self.codes = {name: code for code, name in enumerate(self.declared or ())}
        self.names: list[str] = []
        self.fields: dict[str, dict[str, Any]] = {}
        self.texts: int | None = source.texts
        self.functions: dict[str, int] = {}
        self.unknown: dict[str, None] = {}
        self.unknown_rows = 0
        self.warnings: list[str] = []
        self.width: int | None = None if self.declared is None else len(self.declared)
        self.soft = array("f")
        self.split, self.text, self.label = array("b"), array("i"), array("i")
        self.soft_row, self.hard = array("i"), array("i")
        self.group, self.file, self.line = array("Q"), array("h"), array("q")

    def code_of(self, label: str | None, where: str) -> int:
        if label is None:
            return -1
        if label not in self.codes:
            if len(self.codes) >= _MOST_LABELS:
                raise DataError(
                    f"{where}: {label!r:.100} is the label number {_MOST_LABELS + 1:,}, more than a classifier is "
                    "made for; name the right field with label_field, or the labels with `labels`"
                )
            if not self.source.pairs_from_label:
                _check_label(label, where)
            self.codes[label] = len(self.codes)
        return self.codes[label]

    def read_functions(self, file: str) -> None:
        self.skipped.begin(file)
        names: tuple[str, str] | None = None
        plain = replace(self.source, functions=None, code2_field=None)
        head, rows = first_rows(read_rows(file, self.skipped))
        for row in rows:
            try:
                if names is None:
                    found = _fields_of(head, row, plain, SplitFile(file), 1)
                    names = (found.id or ID[0], found.texts[0])
                name, text = id_in(row.value, names[0]), text_in(row.value, names[1])
                if name in self.functions:
                    raise BadValueError(
                        "id stands twice", f"the id {name!r:.100} has a function already"
                    )
            except BadValueError as error:
                self.skipped.bad(error.kind, row.where, str(error))
                continue
            self.functions[name] = self.store.add(name, text)
            self.skipped.good()
        self.skipped.end()

    def read(self, file: SplitFile, split: int) -> None:
        self.skipped.begin(file.file)
        self.names.append(file.file)
        fields: Fields | None = None
        columns = PAIR_COLUMNS if self.source.functions is not None else ()
        head, rows = first_rows(read_rows(file.file, self.skipped, columns))
        # rows of a label that none of the first rows has
        late = 0
        for row in rows:
            try:
                if fields is None:
                    fields = _fields_of(head, row, self.source, file, self.texts)
                    self.begin(file, fields, head)
                self.add(row, fields, split)
            except BadValueError as error:
                self.skipped.bad(error.kind, row.where, str(error))
                continue
            late += fields.label is None and self.asks_labels(file) and has_label(row.value)
            self.skipped.good()
        if late:
            self.warnings.append(
                f"{file.file}: {late:,} rows have a label that none of the first {len(head)} has, and it is not read; "
                "name its field with label_field"
            )
        self.skipped.end()

    def asks_labels(self, file: SplitFile) -> bool:
        """Whether a label is to be read where there is one."""
        asked = self.source.label_field if file.label_field == AUTO else file.label_field
        return asked == AUTO

    def begin(self, file: SplitFile, fields: Fields, head: Sequence[Row]) -> None:
        self.texts = len(fields.texts)
        self.fields[file.file] = fields.as_json()
        if fields.label is None and fields.teacher is None:
            self.warnings.append(
                f"{file.file}: no labels are read; its rows are for a teacher to label"
            )
        named = any(str(row.value.get("split")) in _SPLIT_NAMES for row in head)
        if fields.split is None and named and self.source.source:
            self.warnings.append(
                f"{file.file}: the rows have a field 'split', which is not used; use it with split_field: split"
            )

    def add(self, row: Row, fields: Fields, split: int) -> None:
        value, where = row.value, row.where
        if fields.split is not None:
            name = str(value.get(fields.split)).lower()
            if name not in _SPLIT_NAMES:
                expected = ", ".join(_SPLIT_NAMES)
                raise BadValueError(
                    "unknown split",
                    f"{fields.split!r} is {name!r:.100}; expected one of {expected}",
                )
            split = _SPLIT_NAMES[name]
        label = None if fields.label is None else label_in(value, fields.label, self.declared)
        if label is None and self.source.pairs_from_label:
            raise BadValueError("missing label", "a pair cannot be made of a row without a label")
        said = None
        if fields.teacher is not None:
            said = teacher_in(value, fields.teacher, self.declared, self.width, where)
        texts = self.texts_of(value, fields)
        # from here on the row is good
        self.text.extend(texts)
        self.split.append(split)
        self.label.append(self.code_of(label, where))
        self.hard.append(self.code_of(said, where) if isinstance(said, str) else -1)
        self.soft_row.append(-1)
        if isinstance(said, list):
            self.width = len(said)
            self.soft_row[-1] = len(self.soft) // len(said)
            self.soft.extend(said)
        group = None if fields.group is None else value.get(fields.group)
        self.group.append(0 if group is None or group == "" else hash_of_text(str(group)) | 1)
        self.file.append(len(self.names) - 1)
        self.line.append(row.line)

    def texts_of(self, value: Mapping[str, Any], fields: Fields) -> list[int]:
        if self.source.functions is not None:
            ids = [id_in(value, name) for name in fields.texts]
            unknown = [name for name in ids if name not in self.functions]
            if unknown:
                self.unknown_rows += 1
                self.unknown.update(dict.fromkeys(unknown))
                raise BadValueError(
                    "unknown function id", f"no function has the id {unknown[0]!r:.100}"
                )
            return [self.functions[name] for name in ids]
        texts = [text_in(value, name) for name in fields.texts]
        single = fields.id is not None and fields.id in value and len(texts) == 1
        name = id_in(value, str(fields.id)) if single else ""
        return [self.store.add(name, text) for text in texts]

    def table(self) -> tuple[Table, list[str]]:
        labels = list(self.declared) if self.declared is not None else _sorted(list(self.codes))
        if self.soft and self.declared is None:
            if not labels:
                labels = [str(number) for number in range(self.width or 0)]
            elif len(labels) != self.width:
                raise DataError(
                    f"the teacher gives {self.width} numbers a row, but {len(labels)} labels were found "
                    f"({', '.join(labels[:10])}); name the teacher's labels, in its order, under `labels`"
                )
        to_sorted = np.full(len(self.codes) + 1, -1, np.int32)
        for name, code in self.codes.items():
            to_sorted[code] = labels.index(name)
        count = len(self.label)
        hard = to_sorted[np.frombuffer(self.hard, np.int32)]
        soft_row = np.frombuffer(self.soft_row, np.int32)
        teacher: NDArray[np.float32] | None = None
        if (hard >= 0).any() or self.soft:
            teacher = np.full((count, len(labels)), np.nan, np.float32)
            teacher[hard >= 0] = np.eye(len(labels), dtype=np.float32)[hard[hard >= 0]]
            if self.soft:
                soft = np.frombuffer(self.soft, np.float32).reshape(-1, len(labels))
                teacher[soft_row >= 0] = soft[soft_row[soft_row >= 0]]
        values, groups = np.unique(np.frombuffer(self.group, np.uint64), return_inverse=True)
        if len(values) and values[0] == 0:
            groups = groups - 1
        texts = np.frombuffer(self.text, np.int32).reshape(count, -1)
        table = Table(
            split=np.frombuffer(self.split, np.int8),
            texts=self.store.distinct()[texts],
            labels=to_sorted[np.frombuffer(self.label, np.int32)],
            teacher=teacher,
            groups=groups.astype(np.int32),
            files=np.frombuffer(self.file, np.int16),
            lines=np.frombuffer(self.line, np.int64),
        )
        return table, labels


def first_rows(rows: Iterator[Row]) -> tuple[list[Row], Iterator[Row]]:
    """The first rows, and all of them."""
    head = list(islice(rows, _LOOKED_AT))
    return head, chain(head, rows)


def _fields_of(
    head: Sequence[Row], row: Row, source: LabelledSource, file: SplitFile, texts: int | None
) -> Fields:
    """By the first rows; by `row` where none of those has what it takes."""
    try:
        return fields_of([first.value for first in head], source, file, texts)
    except BadValueError:
        return fields_of([row.value], source, file, texts)


def _check_label(label: str, where: str) -> None:
    """Raise DataError for a label that no bundle can hold: it would be refused after the search."""
    try:
        check_name(label, "label")
    except ValueError as error:
        raise DataError(
            f"{where}: {label!r:.100} cannot be a label of a bundle: {error!s:.150}; give the labels shorter names of "
            "one line, or name the right field with label_field"
        ) from error


def gather(source: LabelledSource, store: TextStore, skipped: Skipped) -> Gathered:
    """Read all the files of a source. Raises DataError for a file that is unusable as a whole."""
    built = _Builder(source, store, skipped)
    if source.functions is not None:
        built.read_functions(source.functions)
    if source.source is not None:
        built.read(SplitFile(source.source), UNDECIDED)
    for number, split in enumerate(SPLITS):
        for file in source.files(split):
            built.read(file, number)
    table, labels = built.table()
    return Gathered(
        table,
        built.names,
        labels,
        built.fields,
        len(table.labels),
        built.unknown_rows,
        list(built.unknown)[:_FIRST],
        len(built.unknown),
        built.warnings,
    )


def _sorted(labels: list[str]) -> list[str]:
    """In numeric order where all are numbers."""
    try:
        return sorted(labels, key=lambda name: (float(name), name))
    except ValueError:
        return sorted(labels)
