"""Stage `student` of a classifier: cut the student, give it a head, distil both. Writes student/, head.safetensors
and history.json."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from codemill.compress.compute import Compute
from codemill.compress.data.labelled import Labelled, read_labelled
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.stages.classify.corpus import labels_of
from codemill.compress.stages.classify.evaluation import truth_of
from codemill.compress.stages.classify.labels import read_probabilities
from codemill.compress.stages.search import Chosen, read_chosen
from codemill.compress.stages.student import HISTORY, STUDENT, cut_from
from codemill.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    from codemill.compress.models.classifier import Classifier

__all__ = ["VERSION", "read_student", "stage", "teacher_probabilities", "untrained"]

VERSION = 1
_HEAD = "head.safetensors"
_LONGEST_TRAINED = 8192
"""Of a text that is trained on in windows."""


def stage(recipe: Recipe, compute: Compute) -> Stage:
    """Depends on the data, the labels, the architecture, the model it is cut out of and the `distill` section."""
    settings = {
        "distill": recipe.distill.model_dump(),
        "head": [recipe.student.head_size, recipe.data.pair_order],
        "long": recipe.student.long,
        "rows": [recipe.data.train_pairs, recipe.data.validation_pairs],
        "max_tokens": [recipe.data.max_tokens, recipe.student.max_tokens],
        "seed": recipe.seed,
        "compute": asdict(compute),
    }

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        _distil(recipe, compute, inputs, folder, report)

    inputs = ("corpus", "search", "teacher", "labels")
    libraries = ("torch", "transformers", "tokenizers")
    return Stage("student", VERSION, inputs, settings, libraries, work)


def untrained(recipe: Recipe, chosen: Chosen, labels: int) -> Classifier:
    """The student of a chosen architecture before it has learned anything."""
    import torch

    from codemill.compress.models.classifier import Classifier, Head

    encoder = cut_from(recipe, chosen)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        head = Head(
            chosen.architecture.hidden_size,
            labels,
            recipe.texts,
            recipe.student.head_size,
            recipe.data.pair_order == "matters",
        )
    return Classifier(encoder, head, recipe.texts)


def teacher_probabilities(train: Labelled, labels: Path) -> np.ndarray | None:
    """What a teacher said of each row: the model, where one teaches, else what the data say it said."""
    found = read_probabilities(labels)
    return train.soft if found is None else found


def _distil(
    recipe: Recipe, compute: Compute, inputs: Folders, folder: Path, report: Report
) -> None:
    from codemill.compress.distill.labels import LabelTargets, label_loss, taught_rows
    from codemill.compress.distill.loop import Schedule, fit
    from codemill.compress.models.classifier import Head, save_head
    from codemill.compress.models.surgery import save_student
    from codemill.compress.models.tokenize import tokenize, unknown_id
    from codemill.compress.tasks.classification import plan_row_batches, validator

    corpus, settings = inputs["corpus"], recipe.distill
    chosen = read_chosen(inputs["search"])
    student = untrained(recipe, chosen, len(labels_of(corpus)))
    assert isinstance(student.head, Head)
    train = read_labelled(corpus, "train", recipe.data.train_pairs)
    longest = min(recipe.data.max_tokens, chosen.architecture.max_tokens)
    windows = recipe.student.long == "split"
    tokens = tokenize(chosen.tokenizer_json, train.texts, _LONGEST_TRAINED if windows else longest)
    teacher = teacher_probabilities(train, inputs["labels"])
    targets = LabelTargets(
        tokens, train.rows, train.labels, teacher, unknown_id(chosen.tokenizer_json), longest
    )
    taught = taught_rows(targets, settings)
    if not taught.any():
        raise DataError(
            "no training row has a label to learn from, neither its own nor a teacher's: give teacher.model a model "
            "that labels, or labelled rows"
        )
    if not taught.all():
        report(
            0.0,
            f"{int((~taught).sum()):,} training rows have no label of any kind and are left out",
        )
        kept = teacher[taught] if teacher is not None else None
        targets = replace(targets, rows=train.rows[taught], gold=train.labels[taught], teacher=kept)
    held_out = read_labelled(corpus, "validation", recipe.data.validation_pairs)
    validate = validator(
        student,
        tokenize(chosen.tokenizer_json, held_out.texts, recipe.student.max_tokens),
        held_out.rows,
        truth_of(held_out, read_probabilities(inputs["labels"], "validation")),
        compute.bf16,
    )
    lengths = [min(len(text), longest) for text in tokens]
    batches = plan_row_batches(
        targets.rows, lengths, settings.batch_size, settings.epochs, recipe.seed
    )
    points = fit(
        student,
        batches,
        label_loss(student, targets, settings, compute.bf16, recipe.seed),
        Schedule.of(settings, compute.bf16),
        validate,
        folder,
        report,
    )
    save_student(student.encoder, chosen.architecture, folder / STUDENT)
    save_head(student.head, folder / _HEAD)
    (folder / HISTORY).write_text(json.dumps([asdict(point) for point in points]))


def read_student(recipe: Recipe, folder: Path) -> Classifier:
    """What the stage wrote."""
    from codemill.compress.models.classifier import Classifier, load_head
    from codemill.compress.models.surgery import load_student

    encoder, _ = load_student(folder / STUDENT)
    head = load_head(folder / _HEAD, recipe.texts, recipe.data.pair_order == "matters")
    return Classifier(encoder, head, recipe.texts).eval()
