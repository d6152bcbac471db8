"""Stage `exits` of a classifier: heads after some of the student's layers, which learn what its last head says.

Writes exits.json and a head's weights for each exit; where the layers learned too, the student once more. A recipe
without exits has no such stage. Whether exits ship is decided on the final files (`leaving.py`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codemill.compress.compute import Compute
from codemill.compress.data.labelled import read_labelled
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.stages.classify.evaluation import truth_of
from codemill.compress.stages.classify.labels import read_probabilities
from codemill.compress.stages.classify.student import (
    read_student,
    teacher_probabilities,
    write_student,
)
from codemill.compress.stages.search import read_chosen
from codemill.errors import DataError

if TYPE_CHECKING:
    from codemill.compress.exits.heads import Exiting

__all__ = ["VERSION", "has_exits", "read_exiting", "stage", "trained_as"]

VERSION = 1
_FACTS = "exits.json"
_DISTIL = ("batch_size", "warmup", "label_temperature", "class_weights", "validations", "patience")


def has_exits(recipe: Recipe) -> bool:
    """Whether a recipe asks for exits at all."""
    return recipe.exits.after != "none"


def stage(recipe: Recipe, compute: Compute) -> Stage:
    """Depends on the student, the rows, their labels and the `exits` section."""
    settings = {
        "exits": trained_as(recipe),
        "distill": {name: getattr(recipe.distill, name) for name in _DISTIL},
        "losses": [recipe.distill.losses.teacher, recipe.distill.losses.gold],
        "ordered": recipe.data.pair_order,
        "rows": [recipe.data.train_pairs, recipe.data.validation_pairs],
        "max_tokens": [recipe.data.max_tokens, recipe.student.max_tokens],
        "seed": recipe.seed,
        "compute": asdict(compute),
    }
    if recipe.exits.freeze_layers == "auto":
        settings["freeze_loss"] = recipe.quality.freeze_loss

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        _train(recipe, compute, inputs, folder, report)

    inputs = ("corpus", "search", "labels", "student")
    libraries = ("torch", "transformers", "tokenizers")
    return Stage("exits", VERSION, inputs, settings, libraries, work, findings=_findings)


def trained_as(recipe: Recipe) -> dict[str, Any]:
    """Of the `exits` section what shapes the training, and not what is decided after it."""
    return {key: item for key, item in recipe.exits.made_of().items() if key != "max_loss"}


def _findings(folder: Path) -> str:
    found = _facts(folder)
    if not found["layers"]:
        return "a student of one layer has no place for an exit"
    places = ", ".join(map(str, found["layers"]))
    judged = "the exits and the last head" if found["train"] == "all" else "the exits"
    return f"exits after layer {places}: mean recall on validation {found['recall']:.3f}, the mean of {judged}"


def _train(recipe: Recipe, compute: Compute, inputs: Folders, folder: Path, report: Report) -> None:
    from codemill.compress.distill import exits as distill
    from codemill.compress.distill.loop import Schedule, fit
    from codemill.compress.distill.team import ALONE, Team
    from codemill.compress.exits.heads import Exiting, exit_layers, write_heads
    from codemill.compress.freeze.choose import brief_steps, freeze_as_asked
    from codemill.compress.models.tokenize import tokenize
    from codemill.compress.tasks.classification import plan_row_batches

    chosen, settings = read_chosen(inputs["search"]), recipe.distill
    layers = exit_layers(recipe.exits.after, chosen.architecture.layers)
    found: dict[str, Any] = {"layers": layers, "train": recipe.exits.train, "recall": None}
    if not layers:
        (folder / _FACTS).write_text(json.dumps(found, indent=1))
        return
    whole = recipe.exits.train == "all"
    exiting = Exiting(read_student(recipe, inputs["student"]), layers).to(compute.device)
    corpus, labels = inputs["corpus"], inputs["labels"]
    train = read_labelled(corpus, "train", recipe.data.train_pairs)
    held_out = read_labelled(corpus, "validation", recipe.data.validation_pairs)
    truth = truth_of(held_out, read_probabilities(labels, "validation"))
    if not (truth >= 0).any():
        raise DataError(
            "no validation row has a label, its own or a teacher's, by which exits could be judged and calibrated: "
            "give labelled rows as data.validation, or set exits.after: none"
        )
    longest = min(recipe.data.max_tokens, chosen.architecture.max_tokens)
    tokens = tokenize(chosen.tokenizer_json, train.texts, longest)
    held_tokens = tokenize(chosen.tokenizer_json, held_out.texts, recipe.student.max_tokens)
    parts = [(tokens, "train"), (held_tokens, "validation")]
    states, held_states = (
        distill.states_of(exiting, texts, folder, name, compute.bf16, report)
        for texts, name in parts
    )
    exiting.to("cpu")
    targets = distill.ExitTargets(
        train.rows,
        distill.final_probabilities(exiting.whole, states, train.rows),
        train.labels,
        teacher_probabilities(train, labels),
    )
    sides, held_sides = distill.kept(states), distill.kept(held_states)
    if whole:
        sides = distill.encoded(exiting, tokens, compute.bf16)
        held_sides = distill.encoded(exiting, held_tokens, compute.bf16)
    schedule = Schedule(
        epochs=recipe.exits.epochs,
        learning_rate=recipe.exits.learning_rate,
        temperature=settings.temperature,
        losses=settings.losses,
        bf16=compute.bf16,
        **{name: getattr(settings, name) for name in ("batch_size", "warmup")},
        **{name: getattr(settings, name) for name in ("validations", "patience")},
    )
    lengths = [len(text) for text in tokens]
    batches = plan_row_batches(
        train.rows, lengths, settings.batch_size, recipe.exits.epochs, recipe.seed
    )
    loss_of = distill.exit_loss(exiting, sides, targets, settings, whole)
    validate = distill.validated(exiting, held_sides, held_out.rows, truth, whole)
    # heads alone are too small for a GPU to be worth the way
    team = Team(device=compute.device) if whole else ALONE

    def trained_briefly(scratch: Path) -> float:
        some, brief = batches[: brief_steps(len(batches))], replace(schedule, validations=1)
        tried = fit(exiting, some, loss_of, brief, validate, scratch, lambda *_: None, team)
        return tried[-1].metric

    freeze_as_asked(
        recipe.exits.freeze_layers,
        exiting.whole.encoder,
        key="exits.freeze_layers",
        bound=recipe.quality.freeze_loss,
        train=trained_briefly,
        folder=folder,
        report=report,
        model=exiting,
    )
    points = fit(
        exiting if whole else exiting.heads,
        batches,
        loss_of,
        schedule,
        validate,
        folder,
        report,
        team,
    )
    write_heads(exiting, folder)
    if whole:
        write_student(exiting.whole, chosen, folder)
    best = max(point.metric for point in points)
    found |= {"recall": best, "points": [asdict(point) for point in points]}
    (folder / _FACTS).write_text(json.dumps(found, indent=1))
    for path in folder.glob("states-*.npy"):
        # gigabytes of a large corpus, and computed again in minutes
        path.unlink()


def _facts(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / _FACTS).read_text())
    return value


def read_exiting(recipe: Recipe, student: Path, folder: Path) -> Exiting | None:
    """The student with its exits as the stage left both, of the folders of stage `student` and of this one.

    None where the student has no place for an exit.
    """
    from codemill.compress.exits.heads import Exiting, read_heads

    found = _facts(folder)
    if not found["layers"]:
        return None
    ordered = recipe.data.pair_order == "matters"
    heads = read_heads(folder, found["layers"], recipe.texts, ordered)
    classifier = read_student(recipe, folder if found["train"] == "all" else student)
    return Exiting(classifier, found["layers"], heads).eval()
