"""Stage `qat` of a classifier: as of every student (`stages/qat.py`); its head learns too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from codemill.compress.compute import Compute
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.stages.classify.export import calibration_of, export_student, validation_of
from codemill.compress.stages.classify.student import (
    read_student,
    steps_of,
    targets_of,
    validator_of,
    write_student,
)
from codemill.compress.stages.qat import LIBRARIES, findings, settings_of, train_if_needed
from codemill.compress.stages.search import Chosen, read_chosen
from codemill.targets.profile import target_named

if TYPE_CHECKING:
    from codemill.compress.distill.loop import Point
    from codemill.compress.models.classifier import Classifier

__all__ = ["VERSION", "stage"]

VERSION = 1


def stage(recipe: Recipe, compute: Compute) -> Stage:
    """Depends on the student and all that it was made of, and on the `quantize` section."""
    settings = {
        **settings_of(recipe, compute),
        "head": [recipe.student.head_size, recipe.data.pair_order],
        "long": recipe.student.long,
        "windows": recipe.trains_on_windows,
    }

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        chosen = read_chosen(inputs["search"])
        student = read_student(recipe, inputs["student"])

        def export(bundle: Path) -> None:
            export_student(recipe, chosen, inputs["corpus"], student, bundle)

        def learn(report: Report) -> tuple[float, list[Point]]:
            found = _distilled(recipe, compute, inputs, chosen, student, folder, report)
            write_student(student, chosen, folder)
            return found

        train_if_needed(
            recipe,
            chosen.architecture,
            folder,
            report,
            export=export,
            learn=learn,
            evaluation=validation_of(recipe, inputs),
            calibration=calibration_of(inputs["corpus"]),
            threads=compute.threads,
        )

    inputs = ("corpus", "search", "teacher", "labels", "student")
    return Stage(
        "qat",
        VERSION,
        inputs,
        settings,
        LIBRARIES,
        work,
        findings=lambda folder: findings(folder, "accuracy"),
    )


def _distilled(
    recipe: Recipe,
    compute: Compute,
    inputs: Folders,
    chosen: Chosen,
    student: Classifier,
    folder: Path,
    report: Report,
) -> tuple[float, list[Point]]:
    """Distil a trained student further, in place, rounded as int8 will have it; its validation before, and since.

    In float32, of which the rounding is a part, in one process, on texts as they are. A checkpoint in `folder` is
    continued from.
    """
    from codemill.compress.distill.loop import fit
    from codemill.compress.distill.team import Team
    from codemill.compress.quantize import rounded, schedule_of

    as_they_are = recipe.distill.model_copy(update={"augment": 0.0})
    recipe = recipe.model_copy(update={"distill": as_they_are})
    team, schedule = Team(device=compute.device), schedule_of(recipe)
    targets = targets_of(recipe, compute, inputs, chosen, folder, report)
    validate = validator_of(recipe, inputs, chosen, student, bf16=False)
    batches, loss_of = steps_of(
        recipe, inputs, chosen, student, targets, schedule.epochs, False, team.device
    )
    with rounded(student, target_named(recipe.target).reduced_range):
        before = validate()
        points = fit(student, batches, loss_of, schedule, validate, folder, report, team)
    return before, points
