"""Stage `corpus` of labelled data: its three splits and distinct texts, checked; see data/labelled.py."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from codemill.compress.data.labelled import (
    AUTO,
    LabelledSource,
    SplitFile,
    findings,
    read_labelled,
    read_report,
    write_corpus,
)
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Data, Recipe, Split
from codemill.errors import DataError
from codemill.targets.json_lines import check_there

__all__ = ["VERSION", "labels_of", "source_of", "stage"]

VERSION = 2
_HUB = "hf:"


def source_of(recipe: Recipe) -> LabelledSource:
    """Where a recipe's labelled data come from."""
    data = recipe.data
    return LabelledSource(
        source=None if data.train else _local(data.source),
        train=_files(data.train),
        validation=_files(data.validation),
        test=_files(data.test),
        functions=data.functions and _local(data.functions),
        texts=recipe.texts,
        # its default is the one of pairs of query and code
        code_field=data.code_field if "code_field" in data.model_fields_set else None,
        code2_field=data.code2_field,
        label_field=data.label_field or AUTO,
        id_field=data.id_field,
        group_field=data.group_field,
        split_field=data.split_field,
        teacher_field=data.teacher_field,
        labels=data.labels,
        symmetric=data.pair_order == "any",
        pairs_from_label=data.pairs == "from-label",
    )


def _files(splits: tuple[Split, ...] | None) -> tuple[SplitFile, ...]:
    return tuple(
        SplitFile(_local(item.file), item.label_field, item.teacher_field) for item in splits or ()
    )


def _local(name: str) -> str:
    return name if name.startswith(_HUB) else str(Path(name).expanduser())


def stage(recipe: Recipe) -> Stage:
    """Depends on what the files hold and how they are read; of a set on a hub, on its name."""
    data = recipe.data
    source = source_of(recipe)
    named = ("source", "train", "validation", "test", "functions")
    settings: dict[str, Any] = {
        "seed": recipe.seed,
        "task": recipe.task,
        "files": {name: _contents(data, name) for name in named},
        "code_field": source.code_field,
        "read": data.model_dump(mode="json", exclude={*named, "packages", "query_field"}),
    }

    def work(_: Folders, folder: Path, report: Report) -> None:
        report(0.0, "reading, splitting and checking the rows")
        write_corpus(
            folder,
            source,
            seed=recipe.seed,
            train_examples=data.train_pairs,
            validation_examples=data.validation_pairs,
            test_examples=None if data.test else data.test_pairs,
        )
        if recipe.teacher.model is None:
            _check_taught(folder)
        if not (read_labelled(folder, "test").labels >= 0).any():
            raise DataError(
                "no row of the test has a label, so nothing could be said of how good the classifier is: give "
                "labelled rows as data.test; the other splits may be labelled by the teacher"
            )

    return Stage("corpus", VERSION, (), settings, ("numpy",), work, findings=_findings)


def _check_taught(folder: Path) -> None:
    """Raise DataError where nothing says what the rows of train or validation are, and no model will."""
    for split in ("train", "validation"):
        rows = read_labelled(folder, split)
        if rows.soft is None and not (rows.labels >= 0).any():
            raise DataError(
                f"no row of {split} has a label, neither its own nor a teacher's, and teacher.model is null: name a "
                "model that labels them, data.teacher_field, or data.label_field"
            )


def _findings(folder: Path) -> str:
    return "\n    ".join(findings(read_report(folder)))


def labels_of(corpus: Path) -> tuple[str, ...]:
    """The labels, in the order of their numbers."""
    return tuple(read_report(corpus)["labels"])


def _contents(data: Data, name: str) -> Any:
    """What a file holds, not where it lies: one that was moved is read no second time."""
    if name == "source" and data.train:
        return None
    value = getattr(data, name)
    if value is None:
        return None
    if isinstance(value, str):
        return _hash(value, f"data.{name}")
    return [
        [_hash(item.file, f"data.{name}"), item.label_field, item.teacher_field] for item in value
    ]


def _hash(name: str, key: str) -> str:
    if name.startswith(_HUB):
        return name
    path = Path(name).expanduser()
    digest = hashlib.sha256()
    for file in _files_of(path, key):
        try:
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        except OSError as error:
            raise DataError(f"{key}: {str(file)!r} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _files_of(path: Path, key: str) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(file for file in path.rglob("*") if file.is_file())
    else:
        check_there(
            path, key, "expected a file of labelled rows, a folder of `datasets`, or hf:owner/name"
        )
        yield path
