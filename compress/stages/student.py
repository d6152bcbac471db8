"""Stage `student`: cut the student out of the teacher and distil it. Writes student/ and history.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from codemill.compress.compute import Compute
from codemill.compress.models.load import TeacherModel, load_teacher, resolve_model
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.stages.corpus import read_split
from codemill.compress.stages.finetune import teaching_model
from codemill.compress.stages.labels import read_labels
from codemill.compress.stages.search import Chosen, read_chosen

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from codemill.compress.distill.loop import Point, Targets

__all__ = [
    "HISTORY",
    "STUDENT",
    "VERSION",
    "cut",
    "cut_from",
    "distil",
    "stage",
    "targets_of",
    "validator_of",
]

VERSION = 1
STUDENT = "student"
HISTORY = "history.json"


def stage(recipe: Recipe, compute: Compute) -> Stage:
    """Depends on the data, the labels, the architecture, the teacher's weights and the `distill` section."""
    settings = {
        "distill": recipe.distill.made_of(),
        "train_pairs": recipe.data.train_pairs,
        "validation_pairs": recipe.data.validation_pairs,
        "max_tokens": recipe.data.max_tokens,
        "seed": recipe.seed,
        "compute": asdict(compute),
    }
    if recipe.distill.freeze_layers == "auto":
        settings["freeze_loss"] = recipe.quality.freeze_loss

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        _distill(recipe, compute, inputs, folder, report)

    inputs = ("corpus", "search", "teacher", "labels")
    return Stage(
        "student", VERSION, inputs, settings, ("torch", "transformers", "tokenizers"), work
    )


def cut(teacher: TeacherModel, chosen: Chosen, seed: int = 0) -> PreTrainedModel:
    """The untrained student; `seed` draws the weights of a fresh one."""
    from codemill.compress.models.surgery import cut_student, fresh_student

    if not chosen.architecture.copied_layers:
        return fresh_student(chosen.architecture, teacher.model.config, seed)
    return cut_student(teacher, chosen.architecture, chosen.parts or chosen.kept, chosen.counts)


def cut_from(recipe: Recipe, chosen: Chosen) -> PreTrainedModel:
    """The untrained student of a recipe: cut out of the model that it names, or drawn by the seed."""
    from transformers import BertConfig

    from codemill.compress.models.surgery import fresh_student

    if recipe.origin is None:
        return fresh_student(chosen.architecture, BertConfig(), recipe.seed)
    return cut(load_teacher(resolve_model(recipe.origin)), chosen, recipe.seed)


def _distill(
    recipe: Recipe, compute: Compute, inputs: Folders, folder: Path, report: Report
) -> None:
    from codemill.compress.models.surgery import save_student

    chosen = read_chosen(inputs["search"])
    student, points = distil(recipe, compute, inputs, chosen, folder, report)
    save_student(student, chosen.architecture, folder / STUDENT)
    (folder / HISTORY).write_text(json.dumps([asdict(point) for point in points]))


def distil(
    recipe: Recipe,
    compute: Compute,
    inputs: Folders,
    chosen: Chosen,
    folder: Path,
    report: Report,
) -> tuple[PreTrainedModel, list[Point]]:
    """The trained student of a chosen architecture, and its validations.

    Reads the folders of the stages corpus, teacher and labels; of the labels, as many as the recipe
    has training pairs. A checkpoint in `folder` is continued from.
    """
    from codemill.compress.distill.loop import Schedule, train
    from codemill.compress.freeze.choose import brief_schedule, freeze_as_asked

    student = cut(teaching_model(recipe, inputs["teacher"]), chosen, recipe.seed)
    targets = targets_of(recipe, inputs, chosen)
    validate = validator_of(recipe, inputs, chosen, student, compute.bf16)
    schedule = Schedule.of(recipe.distill, compute.bf16)

    def trained_briefly(scratch: Path) -> float:
        brief = brief_schedule(schedule, len(targets.queries))
        found = train(student, targets, brief, recipe.seed, validate, scratch, lambda *_: None)
        return found[-1].metric

    freeze_as_asked(
        recipe.distill.freeze_layers,
        student,
        key="distill.freeze_layers",
        bound=recipe.quality.freeze_loss,
        train=trained_briefly,
        folder=folder,
        report=report,
    )
    points = train(student, targets, schedule, recipe.seed, validate, folder, report)
    return student, points


def targets_of(recipe: Recipe, inputs: Folders, chosen: Chosen) -> Targets:
    """What there is to learn: the training pairs, and the teacher's embeddings of them."""
    from codemill.compress.distill.loop import Targets, narrowed
    from codemill.compress.tasks.retrieval import tokenize_pairs

    pairs = read_split(inputs["corpus"], "train", recipe.data.train_pairs)
    longest = min(recipe.data.max_tokens, chosen.architecture.max_tokens)
    tokens = tokenize_pairs(pairs, chosen.tokenizer_json, longest)
    queries, codes = (
        read_labels(inputs["labels"], side)[: len(pairs)] for side in ("queries", "codes")
    )
    aims = (
        narrowed(queries, codes, chosen.architecture.hidden_size)
        if recipe.distill.losses.cosine
        else None
    )
    return Targets(tokens.queries, tokens.codes, queries, codes, aims)


def validator_of(
    recipe: Recipe, inputs: Folders, chosen: Chosen, student: PreTrainedModel, bf16: bool
) -> Callable[[], float]:
    """A function that gives the student's MRR on the validation pairs as it stands."""
    from codemill.compress.tasks.retrieval import tokenize_pairs, validator

    held_out = read_split(inputs["corpus"], "validation", recipe.data.validation_pairs)
    tokens = tokenize_pairs(held_out, chosen.tokenizer_json, recipe.student.max_tokens)
    return validator(student, tokens, bf16)
