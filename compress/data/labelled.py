"""Labelled data of a user -> a corpus of three splits on disk, with what was found on the way.

Splits that are not given are drawn by the seed. Duplicates and contradictions are taken out of train and
validation (`clean.py`); a test that is given stays whole. Texts of train that a held-out split has too
are removed, pairs only counted (`overlap.py`). Memory holds numbers and hashes, the texts wait on disk
beside the corpus: as much space again as the data unpacked, for as long as this runs.
Lengths in tokens are not known here; `findings.py` says what was found in words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codemill.compress.data.clean import repeats
from codemill.compress.data.corpus import (
    Labelled,
    SplitArrays,
    read_labelled,
    read_report,
    write_files,
)
from codemill.compress.data.drawn import draw_splits, pairs_of_labels
from codemill.compress.data.findings import findings, warnings_of
from codemill.compress.data.gather import UNDECIDED, Gathered, Table, gather
from codemill.compress.data.overlap import counted, recurrence, without_overlap
from codemill.compress.data.rows import Skipped
from codemill.compress.data.sources import AUTO, SPLITS, LabelledSource, SplitFile
from codemill.compress.data.spill import Hashes, TextStore, drawn_order
from codemill.errors import DataError

__all__ = [
    "AUTO",
    "SPLITS",
    "Labelled",
    "LabelledSource",
    "SplitFile",
    "findings",
    "read_labelled",
    "read_report",
    "write_corpus",
]

_TRAIN, _VALIDATION, _TEST = range(3)
_PAIR_LABELS = ("different", "same")
_EXAMPLES = 5


def write_corpus(
    folder: Path,
    source: LabelledSource,
    *,
    seed: int = 0,
    train_examples: int | None = None,
    validation_examples: int | None = None,
    test_examples: int | None = None,
) -> dict[str, Any]:
    """Read `source`, split it, check it, and write the corpus into `folder`; returns what corpus.json says.

    The numbers are the most rows of a split. None: all, but of a held-out split that is drawn here a
    tenth, at most 10,000. Raises DataError for data that nothing can be learned from.
    """
    most = {_TRAIN: train_examples, _VALIDATION: validation_examples, _TEST: test_examples}
    folder.mkdir(parents=True, exist_ok=True)
    skipped = Skipped()
    with TextStore(folder / ".texts.spill") as store:
        gathered = gather(source, store, skipped)
        normal = store.normal_hashes()
        table, cleaned = _cleaned(gathered, normal, source.symmetric)
        given = bool((table.split == _TEST).any()) or (
            source.split_field is not None and bool((table.split == _VALIDATION).any())
        )
        if given and not source.pairs_from_label:
            # a test that is given stays whole
            most[_TEST] = None
        table, how, warnings = _split(table, normal, source, most, seed)
        labels = gathered.labels
        if source.pairs_from_label:
            labels = list(source.labels or _PAIR_LABELS)
            table, made = _pairs(table, normal, most, seed)
            warnings += made
        rows, leakage = _chosen(table, normal, store, gathered.names, source.symmetric, most, seed)
        _check_classes(table.take(rows["train"]), labels)
        numbers, arrays = _arrays(table, rows, normal, source.symmetric)
        report = {
            "version": 1,
            "labels": labels,
            "texts": int(table.texts.shape[1]),
            "seed": seed,
            "splits_drawn": how,
            "fields": gathered.fields,
            "rows_read": gathered.rows_read,
            "counts": {name: len(rows[name]) for name in SPLITS},
            "distinct_texts": len(numbers),
            "balance": {name: _balance(arrays[name], labels) for name in SPLITS},
            "teacher": {name: _teacher(arrays[name]) for name in SPLITS},
            "groups": {name: len(_named(arrays[name].groups)) for name in SPLITS},
            "groups_shared": _groups_shared(table, rows, _where(table, gathered.names)),
            "skipped": {"counts": dict(skipped.counts), "examples": skipped.examples},
            "unknown_ids": {
                "rows": gathered.unknown_rows,
                "ids": gathered.unknown_count,
                "first": gathered.unknown_ids,
            },
            "repeats": cleaned,
            "leakage": leakage,
        }
        report["warnings"] = [*gathered.warnings, *warnings, *warnings_of(report)]
        write_files(folder, (store.get(number) for number in numbers.tolist()), arrays, report)
    return report


def _where(table: Table, names: list[str]) -> Callable[[int], str]:
    return lambda row: f"{names[table.files[row]]}:{table.lines[row]}"


def _among(gathered: Gathered, rows: NDArray[np.int64]) -> Callable[[int], str]:
    return lambda at: gathered.where(int(rows[at]))


def _cleaned(
    gathered: Gathered, normal: Hashes, symmetric: bool
) -> tuple[Table, dict[str, dict[str, Any]]]:
    """The table without repeated rows, but for those of a given test, which are only counted."""
    table = gathered.table
    keys = table.keys(normal, symmetric)
    alive = np.ones(len(keys), bool)
    found = {}
    for split in np.unique(table.split).tolist():
        rows = np.flatnonzero(table.split == split)
        name = "all" if split == UNDECIDED else SPLITS[split]
        seen = repeats(keys[rows], table.labels[rows], _among(gathered, rows))
        found[name] = {**seen.as_json(), "rows": len(rows), "removed": split != _TEST}
        if split != _TEST:
            alive[rows] = seen.keep
    return table.take(alive), found


def _split(
    table: Table,
    normal: Hashes,
    source: LabelledSource,
    most: dict[int, int | None],
    seed: int,
) -> tuple[Table, str, list[str]]:
    """The table with every row in a split, how that came about, and warnings."""
    split, warnings = table.split, []
    if source.split_field is not None and not (split == _TEST).any():
        # the one held-out set there is should be what a figure is reported on
        split = np.where(split == _VALIDATION, _TEST, split).astype(np.int8)
        if (split == _TEST).any():
            warnings.append(
                f"{source.split_field!r} names no test: its validation rows are the test, "
                "and validation is drawn from train"
            )
    wanted = {
        number: None if source.pairs_from_label else most[number]
        for number in (_VALIDATION, _TEST)
        if not (split == number).any()
    }
    groups = table.labels if source.pairs_from_label else table.groups
    asked = source.group_field is not None or source.pairs_from_label
    ready = replace(table, split=split, groups=groups)
    pairs = table.texts.shape[1] == 2 and not (groups >= 0).any()
    functions = normal[table.texts] if pairs else None
    keys = table.keys(normal, source.symmetric)
    drawn = draw_splits(ready, keys, wanted, seed, asked, functions)
    names = " and ".join(SPLITS[number] for number in sorted(wanted))
    how = f"{names} drawn {drawn.how}" if wanted else "given"
    return replace(ready, split=drawn.split), how, warnings + drawn.warnings


def _pairs(
    table: Table, normal: Hashes, most: dict[int, int | None], seed: int
) -> tuple[Table, list[str]]:
    """Pairs in the place of single texts; train keeps no text that a held-out split has."""
    hashes = normal[table.texts[:, 0]]
    leaked = (table.split == _TRAIN) & np.isin(hashes, hashes[table.split != _TRAIN])
    warnings = []
    if leaked.any():
        warnings.append(f"{int(leaked.sum()):,} texts of train are held out too, and were removed")
    table, hashes = table.take(~leaked), hashes[~leaked]
    held = {number: set(np.unique(table.labels[table.split == number]).tolist()) for number in most}
    for number, found in held.items():
        if len(found) < 2:
            raise DataError(
                f"pairs_from_label: {SPLITS[number]} has {len(found)} of {len(set().union(*held.values()))} "
                "labels; different pairs need two: bring about 20 labels or more, or give the splits"
            )
    shared = held[_TRAIN] & (held[_VALIDATION] | held[_TEST])
    if shared:
        warnings.append(f"{len(shared):,} labels of train are in a held-out split too")
    return pairs_of_labels(table, hashes, most, seed), warnings


def _chosen(
    table: Table,
    normal: Hashes,
    store: TextStore,
    names: list[str],
    symmetric: bool,
    most: dict[int, int | None],
    seed: int,
) -> tuple[dict[str, NDArray[np.int64]], dict[str, Any]]:
    """The rows of each split, in their final order, and the report's `leakage`."""
    keys, where = table.keys(normal, symmetric), _where(table, names)

    def ordered(split: int) -> NDArray[np.int64]:
        rows = np.flatnonzero(table.split == split)
        return rows[drawn_order(keys[rows], seed)]

    def text_of(row: int) -> str:
        return store.get(int(table.texts[row, 0]))[1]

    test = ordered(_TEST)[: most[_TEST]]
    validation, train = ordered(_VALIDATION), ordered(_TRAIN)
    leakage: dict[str, Any]
    if table.texts.shape[1] == 1:
        kept = without_overlap(validation, test, keys, text_of, where, most[_VALIDATION])
        held = np.concatenate([test, kept.rows])
        left = without_overlap(train, held, keys, text_of, where, most[_TRAIN])
        leakage = {"validation": kept.as_json(), "train": left.as_json()}
        rows = {"train": left.rows, "validation": kept.rows, "test": test}
    else:
        validation, train = validation[: most[_VALIDATION]], train[: most[_TRAIN]]
        rows = {"train": train, "validation": validation, "test": test}
        leakage = {}
        for name in ("validation", "test"):
            found = _recurs(table, keys, normal, rows[name], train)
            leakage[name] = counted(found, [where(row) for row in rows[name].tolist()])
    for name, chosen in rows.items():
        if not len(chosen):
            raise DataError(
                f"no rows are left for {name}: {len(table.split):,} distinct rows were read; "
                "bring more data, or give the splits"
            )
    return rows, leakage


def _recurs(
    table: Table, keys: Hashes, normal: Hashes, rows: NDArray[np.int64], train: NDArray[np.int64]
) -> NDArray[np.int8]:
    hashes = normal[table.texts]
    return recurrence(hashes[rows], keys[rows], hashes[train], keys[train])


def _check_classes(train: Table, labels: list[str]) -> None:
    """Raise DataError where train has labels, and all of them are the same."""
    found = set(_named(train.labels).tolist())
    if train.teacher is not None:
        said = train.teacher[~np.isnan(train.teacher[:, 0])]
        found |= set(said.argmax(axis=1).tolist())
    if len(found) == 1:
        name, known = labels[found.pop()], int((train.labels >= 0).sum())
        raise DataError(
            f"one class only: all {known:,} rows of train that have a label have {name!r}; a classifier "
            "needs two or more. Is label_field the right field, and is the file whole?"
        )


def _arrays(
    table: Table, rows: dict[str, NDArray[np.int64]], normal: Hashes, symmetric: bool
) -> tuple[NDArray[np.int32], dict[str, SplitArrays]]:
    """The numbers of the texts in the order of first use, test first, and the arrays that point into them."""
    used = np.concatenate([table.texts[rows[name]].ravel() for name in reversed(SPLITS)])
    values, first, inverse = np.unique(used, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    renumbered = place[inverse]
    keys = table.keys(normal, symmetric)
    width, at = table.texts.shape[1], 0
    arrays = {}
    for name in reversed(SPLITS):
        mine = rows[name]
        recurs = np.zeros(len(mine), np.int8)
        if width == 2 and name != "train":
            recurs = _recurs(table, keys, normal, mine, rows["train"])
        teacher = None if table.teacher is None else table.teacher[mine]
        arrays[name] = SplitArrays(
            rows=renumbered[at : at + len(mine) * width].reshape(-1, width),
            labels=table.labels[mine],
            soft=None if teacher is None or np.isnan(teacher).all() else teacher,
            groups=table.groups[mine],
            recurs=recurs,
        )
        at += len(mine) * width
    return values[order], arrays


def _groups_shared(
    table: Table, rows: dict[str, NDArray[np.int64]], where: Callable[[int], str]
) -> dict[str, dict[str, Any]]:
    """The groups of each held-out split that train has too: how many, how many rows, and a few of these."""
    train = rows["train"]
    names, first = np.unique(table.groups[train], return_index=True)
    found = {}
    for split in ("validation", "test"):
        mine = table.groups[rows[split]]
        shared = np.intersect1d(names[names >= 0], mine)
        places = [int(np.flatnonzero(mine == group)[0]) for group in shared[:_EXAMPLES]]
        found[split] = {
            "groups": len(shared),
            "rows": int(np.isin(mine, shared).sum()),
            "examples": [
                [where(int(rows[split][at])), where(int(train[first[names == group][0]]))]
                for at, group in zip(places, shared, strict=False)
            ],
        }
    return found


def _named(values: NDArray[np.int32]) -> NDArray[np.int32]:
    return np.unique(values[values >= 0])


def _balance(arrays: SplitArrays, labels: list[str]) -> dict[str, int]:
    counts = {name: int((arrays.labels == code).sum()) for code, name in enumerate(labels)}
    unlabelled = int((arrays.labels < 0).sum())
    return {**counts, "(unlabelled)": unlabelled} if unlabelled else counts


def _teacher(arrays: SplitArrays) -> dict[str, Any]:
    """How many rows a teacher has labelled, and how many of those that have a label it has right."""
    if arrays.soft is None:
        return {"rows": 0}
    said = ~np.isnan(arrays.soft[:, 0])
    both = said & (arrays.labels >= 0)
    right = arrays.soft[both].argmax(axis=1) == arrays.labels[both]
    return {"rows": int(said.sum()), "with_label": int(both.sum()), "right": int(right.sum())}
