"""Stages `teacher-graphs` and `labels` of a classifier: each teacher as a bundle, and its probabilities of every
training and validation row, in shards that a killed run keeps.

A teacher that reads data flow is no bundle: it labels in torch. What several teachers say is averaged where it is read.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from codemill.compress.data.labelled import Labelled, read_labelled, read_report
from codemill.compress.models.export import export_classifier
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.progress import duration
from codemill.compress.recipe import Recipe
from codemill.compress.rewrite.syntax import libraries_of
from codemill.compress.stages.classify.corpus import labels_of
from codemill.compress.stages.classify.evaluation import items_of
from codemill.compress.stages.classify.teacher import facts, teaching_of
from codemill.compress.stages.classify.teaching import folder_name, models_of
from codemill.runtime import load_classifier, read_manifest
from codemill.runtime.atomic import write_atomically
from codemill.runtime.bundle import MANIFEST

__all__ = ["TEACHING", "VERSION", "graphs_stage", "read_probabilities", "stage"]

VERSION = 2
TEACHING = "teaching"
_SHARD = 1024
_CALL = 256
"""Rows of a call, between which progress is reported, where each takes long."""
_TIMED = 16
_SPLITS = ("validation", "train")

_Labels = Callable[[str, int, int], np.ndarray]
"""split, and which of its rows, from and to -> float32 [rows, labels]"""


def graphs_stage(recipe: Recipe) -> Stage:
    """The teaching classifiers as bundles: in `label_precision` to label with, the first in fp32 too, to compare."""
    settings = {
        "label_precision": recipe.teacher.label_precision,
        "max_tokens": recipe.teacher.max_tokens,
    }

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        if facts(inputs["teacher"])["teaches"] == "data":
            return
        names = models_of(recipe)
        for number, name in enumerate(names):
            made = folder / folder_name(number) / TEACHING
            in_torch = number == 0 and recipe.teacher.data_flow is not None
            # the manifest is what is written last
            if not in_torch and not (made / MANIFEST).is_file():
                report(number / len(names), f"exporting {name}")
                _export(recipe, inputs, number, made)
                # before the next one is loaded
                gc.collect()

    libraries = ("torch", "transformers", "optimum-onnx", "onnx", "onnxruntime")
    inputs = ("corpus", "teacher")
    return Stage("teacher-graphs", VERSION, inputs, settings, libraries, work)


def _export(recipe: Recipe, inputs: Folders, number: int, folder: Path) -> None:
    from codemill.compress.models.surgery import architecture_of

    teaching = teaching_of(recipe, inputs["corpus"], inputs["teacher"], number)
    wanted = (recipe.teacher.label_precision, *(() if number else ("fp32",)))
    encoder = teaching.classifier.encoder
    export_classifier(
        teaching.classifier,
        folder,
        labels=labels_of(inputs["corpus"]),
        heads=encoder.config.num_attention_heads,
        tokenizer_json=teaching.tokenizer_json,
        max_tokens=recipe.teacher.max_tokens,
        precisions=tuple(dict.fromkeys(wanted)),
        name="teacher",
        architecture=architecture_of(encoder, recipe.teacher.max_tokens).to_json(),
        joined=teaching.joined,
    )


def stage(recipe: Recipe, threads: int) -> Stage:
    """Depends on the teachers' graphs, on a teacher that has none, and on how many rows are used."""
    amounts = (recipe.data.validation_pairs, recipe.data.train_pairs)
    settings: dict[str, Any] = {
        "rows": [recipe.data.train_pairs, recipe.data.validation_pairs],
        "label_precision": recipe.teacher.label_precision,
        "threads": threads,
    }
    inputs: tuple[str, ...] = ("corpus", "teacher-graphs")
    libraries: tuple[str, ...] = ("onnxruntime", "tokenizers")
    if recipe.teacher.data_flow is not None:
        settings["max_tokens"] = recipe.teacher.max_tokens
        inputs = (*inputs, "teacher")
        libraries = (
            *(*libraries, "torch", "transformers"),
            *libraries_of(recipe.teacher.data_flow),
        )

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        names = models_of(recipe)
        if not names:
            return
        there = read_report(inputs["corpus"])["counts"]
        rows = [min(most, there[split]) for split, most in zip(_SPLITS, amounts, strict=True)]
        told = _Told(report, len(names) * sum(rows))
        for number, name in enumerate(names):
            told.name = f"{name}: " if len(names) > 1 else ""
            own = folder / folder_name(number)
            own.mkdir(exist_ok=True)
            _label_all(recipe, inputs, number, own, told, threads)
            gc.collect()

    return Stage("labels", VERSION, inputs, settings, libraries, work, findings=_findings)


def _findings(folder: Path) -> str:
    every = _said(folder, "train")
    if not every:
        return "no model labels"
    if len(every) == 1:
        return f"{len(every[0]):,} training rows"
    alike = np.mean([(every[0].argmax(1) == other.argmax(1)).mean() for other in every[1:]])
    return (
        f"{len(every[0]):,} training rows by {len(every)} teachers; the others decide as the first one on "
        f"{100 * alike:.0f} % of them"
    )


class _Told:
    """How many rows are labelled, of all that each teacher labels, and how fast."""

    def __init__(self, report: Report, total: int) -> None:
        self._report, self._total = report, max(total, 1)
        self._done = self._labelled = 0
        self._started = time.monotonic()
        self.name = ""

    def expects(self, seconds_per_row: float) -> None:
        """Say what all of it will take, when a few rows have been timed."""
        left = self._total - self._done
        self._report(
            self._done / self._total,
            f"{self.name}{left:,} rows to label, about {duration(seconds_per_row * left)} in all",
        )
        self._started, self._labelled = time.monotonic(), 0

    def found(self, rows: int) -> None:
        """Rows that an earlier attempt labelled."""
        self._done += rows

    def labelled(self, rows: int, split: str) -> None:
        """Rows of this attempt."""
        self._done += rows
        self._labelled += rows
        rate = self._labelled / max(time.monotonic() - self._started, 1e-3)
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
        said = f"{self.name}{split}, row {self._done:,} of {self._total:,}, {speed} rows a second"
        self._report(self._done / self._total, said)


def _label_all(
    recipe: Recipe, inputs: Folders, number: int, folder: Path, told: _Told, threads: int
) -> None:
    """Both splits by one teacher: with its bundle, or in torch where it is none."""
    bundle = inputs["teacher-graphs"] / folder_name(number) / TEACHING
    amounts = (recipe.data.validation_pairs, recipe.data.train_pairs)
    splits = {
        split: read_labelled(inputs["corpus"], split, most)
        for split, most in zip(_SPLITS, amounts, strict=True)
    }
    if bundle.is_dir():
        joined = bool(read_manifest(bundle).input["joined"])
        variant = f"cpu-{recipe.teacher.label_precision}"
        with load_classifier(bundle, variant=variant, threads=threads) as teacher:
            items = {split: items_of(rows) for split, rows in splits.items()}

            def with_graphs(split: str, start: int, end: int) -> np.ndarray:
                return teacher.probabilities(items[split][start:end])

            _label(with_graphs, splits, folder, told, _rows_a_call(recipe, joined))
        return
    teaching = teaching_of(recipe, inputs["corpus"], inputs["teacher"], number)

    def in_torch(split: str, start: int, end: int) -> np.ndarray:
        rows = splits[split]
        tokens, numbered = teaching.read(
            rows.texts, rows.rows[start:end], recipe.teacher.max_tokens
        )
        return teaching.classifier.probabilities(tokens, numbered)

    _label(in_torch, splits, folder, told, _rows_a_call(recipe, teaching.joined))


def _rows_a_call(recipe: Recipe, joined: bool) -> int:
    """Many, of which those of like length share a run, and those that pairs share are encoded once."""
    return _CALL if joined or recipe.teacher.data_flow is not None else _SHARD


def _label(
    probabilities: _Labels, splits: dict[str, Labelled], folder: Path, told: _Told, call: int
) -> None:
    timed = False
    for split, rows in splits.items():
        count = len(rows.rows)
        for number, start in enumerate(range(0, count, _SHARD)):
            path, end = folder / f"{split}-{number:05d}.npy", min(start + _SHARD, count)
            if path.is_file():
                told.found(end - start)
                continue
            if not timed:
                told.expects(_seconds_per_row(probabilities, split, start, end))
                timed = True
            parts = []
            for first in range(start, end, call):
                last = min(first + call, end)
                parts.append(probabilities(split, first, last))
                told.labelled(last - first, split)
            write_atomically(path, partial(_save, np.concatenate(parts)))


def _seconds_per_row(probabilities: _Labels, split: str, start: int, end: int) -> float:
    taken = 0.0
    # the first call allocates and compiles
    for many in (2, _TIMED):
        last = min(start + many, end)
        began = time.perf_counter()
        probabilities(split, start, last)
        taken = (time.perf_counter() - began) / (last - start)
    return taken


def _save(found: np.ndarray, file: IO[bytes]) -> None:
    np.save(file, found)


def read_probabilities(folder: Path, split: str = "train") -> np.ndarray | None:
    """float32 [n, labels], in the order of the split's rows, the mean of all teachers; None where no model labelled."""
    every = _said(folder, split)
    if len(every) < 2:
        return every[0] if every else None
    mean: np.ndarray = np.stack(every).mean(0)
    return mean


def _said(folder: Path, split: str) -> list[np.ndarray]:
    """What each teacher said of the split's rows: float32 [n, labels]."""
    found: list[np.ndarray] = []
    while shards := sorted((folder / folder_name(len(found))).glob(f"{split}-*.npy")):
        found.append(np.concatenate([np.load(path) for path in shards]))
    return found
