"""Stages `teacher-graphs` and `labels` of a classifier: the teacher as a bundle, and its probabilities of every
training and validation row, in shards that a killed run keeps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from codemill.compress.data.labelled import read_labelled
from codemill.compress.models.export import export_classifier
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.stages.classify.corpus import labels_of
from codemill.compress.stages.classify.evaluation import items_of
from codemill.compress.stages.classify.teacher import facts, teaching_classifier
from codemill.runtime import Classifier, load_classifier
from codemill.runtime.atomic import write_atomically

__all__ = ["TEACHING", "VERSION", "graphs_stage", "read_probabilities", "stage"]

VERSION = 1
TEACHING = "teaching"
_SHARD = 1024


def graphs_stage(recipe: Recipe) -> Stage:
    """The teaching classifier as a bundle: in recipe's `label_precision` to label with, in fp32 to compare with."""
    settings = {
        "label_precision": recipe.teacher.label_precision,
        "max_tokens": recipe.teacher.max_tokens,
    }

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        if facts(inputs["teacher"])["teaches"] == "data":
            return
        from codemill.compress.models.surgery import architecture_of

        report(0.0, "exporting the teacher")
        teacher, tokenizer_json = teaching_classifier(recipe, inputs["corpus"], inputs["teacher"])
        export_classifier(
            teacher,
            folder / TEACHING,
            labels=labels_of(inputs["corpus"]),
            heads=teacher.encoder.config.num_attention_heads,
            tokenizer_json=tokenizer_json,
            max_tokens=recipe.teacher.max_tokens,
            precisions=tuple(dict.fromkeys((recipe.teacher.label_precision, "fp32"))),
            name="teacher",
            architecture=architecture_of(teacher.encoder, recipe.teacher.max_tokens).to_json(),
        )

    libraries = ("torch", "transformers", "optimum-onnx", "onnx", "onnxruntime")
    inputs = ("corpus", "teacher")
    return Stage("teacher-graphs", VERSION, inputs, settings, libraries, work)


def stage(recipe: Recipe, threads: int) -> Stage:
    """Depends on the teaching graph and on how many rows are used."""
    settings = {
        "rows": [recipe.data.train_pairs, recipe.data.validation_pairs],
        "label_precision": recipe.teacher.label_precision,
        "threads": threads,
    }

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        bundle = inputs["teacher-graphs"] / TEACHING
        if not bundle.is_dir():
            return
        amounts = {"validation": recipe.data.validation_pairs, "train": recipe.data.train_pairs}
        variant = f"cpu-{recipe.teacher.label_precision}"
        with load_classifier(bundle, variant=variant, threads=threads) as teacher:
            for split, most in amounts.items():
                items = items_of(read_labelled(inputs["corpus"], split, most))
                _label(teacher, split, items, folder, report)

    inputs = ("corpus", "teacher-graphs")
    return Stage("labels", VERSION, inputs, settings, ("onnxruntime", "tokenizers"), work)


def _label(
    teacher: Classifier, split: str, items: Sequence[Any], folder: Path, report: Report
) -> None:
    started, labelled = time.monotonic(), 0
    for number, start in enumerate(range(0, len(items), _SHARD)):
        path, shard = folder / f"{split}-{number:05d}.npy", items[start : start + _SHARD]
        if not path.is_file():
            write_atomically(path, partial(_save, teacher.probabilities(shard)))
            labelled += len(shard)
        rate = labelled / max(time.monotonic() - started, 1e-3)
        done = start + len(shard)
        report(done / len(items), f"{split} row {done}/{len(items)}, {rate:.0f} rows a second")


def _save(found: np.ndarray, file: IO[bytes]) -> None:
    np.save(file, found)


def read_probabilities(folder: Path, split: str = "train") -> np.ndarray | None:
    """float32 [n, labels], in the order of the split's rows; None where no model labelled."""
    shards = sorted(folder.glob(f"{split}-*.npy"))
    return np.concatenate([np.load(path) for path in shards]) if shards else None
