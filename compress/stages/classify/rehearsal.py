"""Stage `rehearsal` of a classifier: the whole way once with an untrained student, before anything expensive.

As the rehearsal of every run (`stages/rehearsal.py`), whose file it writes and whose checks it makes.
"""

from __future__ import annotations

import json
import shutil
import statistics
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from codemill.compress.compute import Compute
from codemill.compress.data.labelled import Labelled, read_labelled
from codemill.compress.models.export import export_classifier
from codemill.compress.models.tokenize import tokenize
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.rewrite import Rewrite
from codemill.compress.stages.classify.corpus import labels_of
from codemill.compress.stages.classify.evaluation import items_of
from codemill.compress.stages.classify.exits import has_exits, trained_as
from codemill.compress.stages.classify.rewrites import MOST_TEXTS
from codemill.compress.stages.classify.student import check_rewritable, origin_of, untrained
from codemill.compress.stages.quantized import has_qat, rehearsed
from codemill.compress.stages.rehearsal import (
    FACTS,
    MANIFEST_ALLOWANCE,
    Prediction,
    check_prediction,
    predicted,
    read_prediction,
    said_of_qat,
    timed,
)
from codemill.compress.stages.search import read_chosen
from codemill.runtime import load_classifier, size_bytes
from codemill.targets.profile import target_named

if TYPE_CHECKING:
    from codemill.compress.distill.origin import Origin
    from codemill.compress.models.classifier import Classifier

__all__ = ["VERSION", "stage"]

VERSION = 3
_FIXED_SECONDS = 45.0
_SECONDS_PER_ROUND = 30.0
_TIMED = 20
_STEPS = 4


def stage(recipe: Recipe, compute: Compute, machine: str) -> Stage:
    """Depends on the architecture, the recipe's amounts, and the machine."""
    settings = {
        "rows": [recipe.data.train_pairs, recipe.data.validation_pairs],
        "max_tokens": [recipe.data.max_tokens, recipe.student.max_tokens],
        "head": [recipe.student.head_size, recipe.data.pair_order],
        "long": recipe.student.long,
        "distill": recipe.distill.made_of(),
        "quantize": [recipe.quantize.method, recipe.quantize.epochs],
        "rounds": recipe.bench.rounds,
        "compute": asdict(compute),
        **({"exits": trained_as(recipe)} if has_exits(recipe) else {}),
    }

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        prediction = _rehearse(recipe, compute, inputs, folder, report)
        check_prediction(recipe, prediction)
        (folder / FACTS).write_text(json.dumps(asdict(prediction), indent=1))

    libraries = ("torch", "transformers", "optimum-onnx", "onnx", "onnxruntime")
    inputs = ("corpus", "search")
    return Stage(
        "rehearsal", VERSION, inputs, settings, libraries, work, machine, lambda f: _said(recipe, f)
    )


def _said(recipe: Recipe, folder: Path) -> str:
    found = read_prediction(folder)
    row = "a pair" if recipe.texts == 2 else "a function"
    return (
        f"predicted: {found.size_bytes / 1e6:.2f} MB, {found.latency_ms:.2f} ms {row} of the data, "
        f"{found.total_seconds / 60:.0f} minutes of training and measuring from here{said_of_qat(found)} (a teacher's "
        "own come on top)"
    )


def _rehearse(
    recipe: Recipe, compute: Compute, inputs: Folders, folder: Path, report: Report
) -> Prediction:
    from codemill.compress.exits.heads import Exiting, exit_layers
    from codemill.compress.quantize import rounded

    chosen = read_chosen(inputs["search"])
    labels = labels_of(inputs["corpus"])
    rows = read_labelled(inputs["corpus"], "train", recipe.data.train_pairs)
    check_rewritable(recipe, rows.texts)
    precision = "int8" if chosen.architecture.bits == 8 else "fp32"
    report(0.1, "exporting an untrained student")
    # of a run that was killed
    shutil.rmtree(folder / "student", ignore_errors=True)
    student = untrained(recipe, chosen, len(labels))
    exiting = None
    if isinstance(recipe.exits.after, tuple):
        # a list of layers is refused where it cannot be, and its heads count against the budget
        exiting = Exiting(student, exit_layers(recipe.exits.after, chosen.architecture.layers))
    export_classifier(
        student,
        folder / "student",
        labels=labels,
        heads=chosen.architecture.heads,
        tokenizer_json=chosen.tokenizer_json,
        max_tokens=recipe.student.max_tokens,
        precisions=("plain", precision),
        name=recipe.name,
        architecture=chosen.architecture.to_json(),
        long=recipe.student.long,
        exiting=exiting,
    )
    report(0.5, "timing it")
    latency_ms = _latency_ms(folder / "student", compute.threads, rows)
    report(0.7, "timing a few training steps")
    origin = origin_of(recipe, chosen, inputs["corpus"], None)
    told = (recipe, student, chosen.tokenizer_json, rows, origin)
    training = _training_seconds(*told, recipe.distill.epochs, compute.bf16)
    qat = None
    if has_qat(recipe) and chosen.architecture.bits != 32:
        with rounded(student, target_named(recipe.target).reduced_range):
            qat = _training_seconds(*told, recipe.quantize.epochs, bf16=False)
    exits = {}
    if has_exits(recipe):
        # heads alone: the texts are encoded once, forward only
        passes = recipe.exits.epochs if recipe.exits.train == "all" else 1 / 3
        exits = {"exits": training * passes / recipe.distill.epochs}
    seconds = {
        "student": training,
        **exits,
        "export, bundle, benchmark": _FIXED_SECONDS
        + recipe.bench.rounds * _SECONDS_PER_ROUND
        + _reading_seconds(recipe, inputs["corpus"], latency_ms),
    }
    size = size_bytes(folder / "student", f"cpu-{precision}") + MANIFEST_ALLOWANCE
    report(0.9, "quantizing it as it will be")
    reading = recipe.data.validation_pairs * latency_ms / 1e3
    seconds["forms"] = rehearsed(recipe, chosen.architecture, folder / "student", reading)
    return predicted(recipe, size, latency_ms, seconds, qat)


def _latency_ms(bundle: Path, threads: int, rows: Labelled) -> float:
    """Median milliseconds of one row of the data, alone in a call."""
    items = items_of(rows)[:_TIMED]
    with load_classifier(bundle, threads=threads) as model:
        timings = []
        for _ in range(2):  # the first pass warms up
            timings = [timed(partial(model.probabilities, [item])) for item in items]
    return statistics.median(timings) * 1e3


def _reading_seconds(recipe: Recipe, corpus: Path, latency_ms: float) -> float:
    """What reading the validation and the test takes the student, and a sample of the test in each rewriting.

    The gates read the validation in fp32 and int8, the bundle both, the benchmark the test as both.
    """
    validation = len(read_labelled(corpus, "validation", recipe.data.validation_pairs).texts)
    test = len(read_labelled(corpus, "test").texts)
    texts = 3 * validation + 3 * test + 2 * len(Rewrite) * min(test, MOST_TEXTS)
    return texts * latency_ms / 1e3 / recipe.texts


def _training_seconds(
    recipe: Recipe,
    student: Classifier,
    tokenizer_json: str,
    rows: Labelled,
    origin: Origin | None,
    epochs: float,
    bf16: bool,
) -> float:
    """Of so many passes over the training rows, and the validations between."""
    import torch

    from codemill.compress.distill.labels import LabelTargets, label_loss
    from codemill.compress.freeze.freeze import freeze_bottom
    from codemill.compress.tasks.classification import plan_row_batches

    settings = recipe.distill
    longest = min(recipe.data.max_tokens, recipe.student.max_tokens)
    # what a few steps need of a large corpus
    tokens = tokenize(tokenizer_json, rows.texts, longest)
    known = np.maximum(rows.labels, 0)
    targets = LabelTargets(tokens, rows.rows, known)
    loss_of = label_loss(student, targets, settings, bf16, origin=origin)
    lengths = [len(text) for text in tokens]
    batches = plan_row_batches(rows.rows, lengths, settings.batch_size, 1.0, recipe.seed)
    if isinstance(settings.freeze_layers, int):
        # more than there are is refused here
        freeze_bottom(student.encoder, settings.freeze_layers, "distill.freeze_layers")
    weights = [value for value in student.parameters() if value.requires_grad]

    def step(batch: np.ndarray) -> object:
        return torch.autograd.grad(loss_of(batch), weights, allow_unused=True)

    taken = [timed(partial(step, batch)) for batch in batches[:_STEPS]]
    steps = max(1.0, len(rows.rows) * epochs / settings.batch_size)
    # the first steps compile kernels
    per_step = float(np.median(taken[1:] or taken))
    # a validation runs forward only, over texts that no two batches share
    share = recipe.data.validation_pairs / settings.batch_size * settings.validations / 3
    return per_step * (steps + share)
