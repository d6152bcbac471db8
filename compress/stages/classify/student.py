"""Stage `student` of a classifier: cut the student, give it a head, distil both. Writes student/, head.safetensors
and history.json."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from codemill.compress.compute import Compute
from codemill.compress.data.labelled import Labelled, read_labelled
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.rewrite.syntax import libraries_of
from codemill.compress.stages.classify.corpus import labels_of
from codemill.compress.stages.classify.evaluation import truth_of
from codemill.compress.stages.classify.labels import read_probabilities
from codemill.compress.stages.classify.teacher import facts, teaching_classifier
from codemill.compress.stages.search import Chosen, read_chosen
from codemill.compress.stages.student import HISTORY, STUDENT, cut_from
from codemill.errors import DataError, RecipeError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from codemill.compress.distill.augment import Augmented
    from codemill.compress.distill.labels import LabelTargets
    from codemill.compress.distill.loop import Point
    from codemill.compress.distill.origin import Origin
    from codemill.compress.distill.team import Team
    from codemill.compress.models.classifier import Classifier

__all__ = [
    "VERSION",
    "check_rewritable",
    "distil",
    "origin_of",
    "read_student",
    "stage",
    "steps_of",
    "targets_of",
    "teacher_probabilities",
    "untrained",
    "validator_of",
    "write_student",
]

VERSION = 1
_HEAD = "head.safetensors"
_AUGMENTATION = "augmentation.json"
_LONGEST_TRAINED = 8192
"""Of a text that is trained on in windows."""


def stage(recipe: Recipe, compute: Compute) -> Stage:
    """Depends on the data, the labels, the architecture, the model it is cut out of and the `distill` section."""
    settings = {
        "distill": recipe.distill.made_of(),
        "head": [recipe.student.head_size, recipe.data.pair_order],
        "windows": recipe.trains_on_windows,
        "rows": [recipe.data.train_pairs, recipe.data.validation_pairs],
        "max_tokens": [recipe.data.max_tokens, recipe.student.max_tokens],
        "seed": recipe.seed,
        "compute": asdict(compute),
    }
    if recipe.distill.freeze_layers == "auto":
        settings["freeze_loss"] = recipe.quality.freeze_loss

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        _distil(recipe, compute, inputs, folder, report)

    inputs = ("corpus", "search", "teacher", "labels")
    libraries: tuple[str, ...] = ("torch", "transformers", "tokenizers")
    if recipe.distill.augment:
        libraries = (*libraries, *libraries_of(recipe.distill.language))
    said = _said if recipe.distill.augment else None
    return Stage("student", VERSION, inputs, settings, libraries, work, findings=said)


def _said(folder: Path) -> str:
    return str(json.loads((folder / _AUGMENTATION).read_text())["said"])


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
    from codemill.compress.distill.augment import clear
    from codemill.compress.distill.team import led

    if recipe.distill.augment:
        # once, before the processes that follow look for it
        train = read_labelled(inputs["corpus"], "train", recipe.data.train_pairs)
        found = _augmented(recipe, compute, train.texts, folder, report)
        (folder / _AUGMENTATION).write_text(json.dumps({"said": found.said}))
    arguments = (recipe, compute, dict(inputs), folder)
    chosen = read_chosen(inputs["search"])
    with led(compute.processes, compute.device, _follow, arguments) as team:
        student, points = distil(recipe, compute, inputs, chosen, folder, report, team)
    write_student(student, chosen, folder)
    (folder / HISTORY).write_text(json.dumps([asdict(point) for point in points]))
    clear(folder)


def _follow(
    team: Team, recipe: Recipe, compute: Compute, inputs: dict[str, Path], folder: Path
) -> None:
    """In a process that trains with the one that leads: the same, but for what is written."""
    import torch

    torch.set_num_threads(max(1, compute.threads // team.size))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    chosen = read_chosen(inputs["search"])
    distil(recipe, compute, inputs, chosen, folder, lambda *_: None, team)


def distil(
    recipe: Recipe,
    compute: Compute,
    inputs: Folders,
    chosen: Chosen,
    folder: Path,
    report: Report,
    team: Team,
) -> tuple[Classifier, list[Point]]:
    """The trained student of a chosen architecture, and its validations.

    Reads the folders of the stages corpus, teacher and labels. A checkpoint in `folder` is continued from.
    """
    from codemill.compress.distill.loop import Schedule, fit
    from codemill.compress.freeze.choose import brief_steps, freeze_as_asked

    settings = recipe.distill
    student = untrained(recipe, chosen, len(labels_of(inputs["corpus"])))
    targets = targets_of(recipe, compute, inputs, chosen, folder, report)
    validate = validator_of(recipe, inputs, chosen, student, compute.bf16)
    batches, loss_of = steps_of(
        recipe, inputs, chosen, student, targets, settings.epochs, compute.bf16, team.device
    )
    schedule = Schedule.of(settings, compute.bf16)

    def trained_briefly(scratch: Path) -> float:
        some, brief = batches[: brief_steps(len(batches))], replace(schedule, validations=1)
        alone = replace(team, size=1)
        points = fit(student, some, loss_of, brief, validate, scratch, lambda *_: None, alone)
        return points[-1].metric

    freeze_as_asked(
        settings.freeze_layers,
        student.encoder,
        key="distill.freeze_layers",
        bound=recipe.quality.freeze_loss,
        train=trained_briefly,
        folder=folder,
        report=report,
        model=student,
        team=team,
    )
    points = fit(
        student,
        batches,
        loss_of,
        schedule,
        validate,
        folder,
        report,
        team,
    )
    return student, points


def validator_of(
    recipe: Recipe, inputs: Folders, chosen: Chosen, student: Classifier, bf16: bool
) -> Callable[[], float]:
    """A function that gives the student's mean recall on the validation rows as it stands."""
    from codemill.compress.models.tokenize import tokenize
    from codemill.compress.tasks.classification import validator

    held_out = read_labelled(inputs["corpus"], "validation", recipe.data.validation_pairs)
    tokens = tokenize(chosen.tokenizer_json, held_out.texts, recipe.student.max_tokens)
    truth = truth_of(held_out, read_probabilities(inputs["labels"], "validation"))
    return validator(student, tokens, held_out.rows, truth, bf16)


def steps_of(
    recipe: Recipe,
    inputs: Folders,
    chosen: Chosen,
    student: Classifier,
    targets: LabelTargets,
    epochs: float,
    bf16: bool,
    device: str,
) -> tuple[list[np.ndarray], Callable[[np.ndarray], Tensor]]:
    """The rows of every step, and the loss of a step."""
    from codemill.compress.distill.labels import label_loss
    from codemill.compress.tasks.classification import plan_row_batches

    settings = recipe.distill
    origin = origin_of(recipe, chosen, inputs["corpus"], inputs["teacher"], device)
    lengths = [min(len(text), targets.longest) for text in targets.tokens]
    batches = plan_row_batches(targets.rows, lengths, settings.batch_size, epochs, recipe.seed)
    return batches, label_loss(student, targets, settings, bf16, recipe.seed, origin)


def targets_of(
    recipe: Recipe,
    compute: Compute,
    inputs: Folders,
    chosen: Chosen,
    folder: Path,
    report: Report,
) -> LabelTargets:
    """What there is to learn from, without the rows that have no label of any kind."""
    from codemill.compress.distill.labels import LabelTargets, taught_rows
    from codemill.compress.models.tokenize import tokenize, unknown_id

    train = read_labelled(inputs["corpus"], "train", recipe.data.train_pairs)
    longest = min(recipe.data.max_tokens, chosen.architecture.max_tokens)
    windows = recipe.trains_on_windows
    most = _LONGEST_TRAINED if windows else longest
    variants: tuple[list[np.ndarray], ...] = ()
    if recipe.distill.augment:
        found = _augmented(recipe, compute, train.texts, folder, report)
        variants = tuple(tokenize(chosen.tokenizer_json, texts, most) for texts in found.variants)
    teacher = teacher_probabilities(train, inputs["labels"])
    if teacher is not None:
        # a trial of fewer rows reads the first labels
        teacher = teacher[: len(train.rows)]
    targets = LabelTargets(
        tokenize(chosen.tokenizer_json, train.texts, most),
        train.rows,
        train.labels,
        teacher,
        unknown_id(chosen.tokenizer_json),
        longest,
        variants,
    )
    taught = taught_rows(targets, recipe.distill)
    if not taught.any():
        raise DataError(
            "no training row has a label to learn from, neither its own nor a teacher's: give teacher.model a model "
            "that labels, or labelled rows"
        )
    if taught.all():
        return targets
    report(
        0.0, f"{int((~taught).sum()):,} training rows have no label of any kind and are left out"
    )
    kept = teacher[taught] if teacher is not None else None
    return replace(targets, rows=train.rows[taught], gold=train.labels[taught], teacher=kept)


def check_rewritable(recipe: Recipe, texts: Sequence[str]) -> None:
    """Raise DataError where a recipe wants texts rewritten whose language cannot be told."""
    if recipe.distill.augment and recipe.distill.language is None:
        from codemill.compress.distill.augment import language_among

        language_among(texts)


def _augmented(
    recipe: Recipe, compute: Compute, texts: list[str], folder: Path, report: Report
) -> Augmented:
    from codemill.compress.distill.augment import augmented

    return augmented(texts, recipe.distill, recipe.seed, folder, compute.threads, report)


def origin_of(
    recipe: Recipe, chosen: Chosen, corpus: Path, teacher: Path | None, device: str = "cpu"
) -> Origin | None:
    """What the losses of the origin learn from; None where the recipe asks for none of them.

    teacher: the folder of that stage; where it fine-tuned the model that the student is cut out of, and that one
    teaches, it is the fine-tuned one. None: the model as it came.
    Raises RecipeError for a student whose tokens or layers are not the origin's.
    """
    import torch

    from codemill.compress.distill.origin import Origin
    from codemill.compress.models.load import load_teacher, resolve_model

    asked = recipe.distill.losses.of_origin
    if not asked:
        return None
    copied = chosen.architecture.copied_layers
    if recipe.origin is None or not copied or not chosen.kept:
        raise RecipeError(
            f"distill.losses.{asked[0]}: the student's tokens and layers have to be those of the model it is cut "
            "out of, and this one is fresh or has tokens of its own; set it to 0, or give student.tokenizer: pruned "
            "and a model as student.init"
        )
    if (
        teacher is not None
        and recipe.origin == recipe.teacher.model
        and facts(teacher)["teaches"] == "finetuned"
    ):
        teaching, _ = teaching_classifier(recipe, corpus, teacher)
        encoder, pooling = teaching.encoder, teaching.pooling
    else:
        loaded = load_teacher(resolve_model(recipe.origin))
        encoder, pooling = loaded.model, loaded.pooling
    return Origin(encoder.eval().to(device), pooling, torch.tensor(chosen.kept), copied)


def write_student(student: Classifier, chosen: Chosen, folder: Path) -> None:
    """Write the encoder's weights and the head's."""
    from codemill.compress.models.classifier import Head, save_head
    from codemill.compress.models.surgery import save_student

    assert isinstance(student.head, Head)
    save_student(student.encoder, chosen.architecture, folder / STUDENT)
    save_head(student.head, folder / _HEAD)


def read_student(recipe: Recipe, folder: Path) -> Classifier:
    """What the stage wrote."""
    from codemill.compress.models.classifier import Classifier, load_head
    from codemill.compress.models.surgery import load_student

    encoder, _ = load_student(folder / STUDENT)
    head = load_head(folder / _HEAD, recipe.texts, recipe.data.pair_order == "matters")
    return Classifier(encoder, head, recipe.texts).eval()
