"""Stage `export` of a classifier: encoder and head as plain graphs, as fused fp32, and as `quantize` asks for.

Writes candidates/ (a bundle with all these forms) and export.json, which says what was accepted (`quantized.py`). A
recipe with exits gets exited/ too: the accepted form in parts, calibrated, and whether it ships in place of the other.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codemill.compress.data.labelled import read_labelled
from codemill.compress.models.export import export_classifier
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.stages.classify.corpus import labels_of
from codemill.compress.stages.classify.evaluation import evaluation_of, items_of, truth_of
from codemill.compress.stages.classify.exits import has_exits, read_exiting
from codemill.compress.stages.classify.labels import read_probabilities
from codemill.compress.stages.classify.leaving import decided, said_of_exits
from codemill.compress.stages.classify.student import read_student
from codemill.compress.stages.export import CALIBRATED, CANDIDATES, TOKENS
from codemill.compress.stages.quantized import (
    FACTS,
    accepted,
    add_trained,
    forms,
    has_qat,
    how_of,
    is_trained,
    libraries_of,
    said_of,
    settings_of,
)
from codemill.compress.stages.search import Chosen, read_chosen
from codemill.export.derive import derive
from codemill.export.quantize.settings import Method
from codemill.targets.evaluation import LabelledEvaluation
from codemill.targets.profile import Shape

if TYPE_CHECKING:
    from codemill.compress.exits.heads import Exiting
    from codemill.compress.models.classifier import Classifier

__all__ = ["VERSION", "calibration_of", "export_student", "shipped", "stage", "validation_of"]

VERSION = 4
_EXITED = "exited"


def stage(recipe: Recipe, threads: int, machine: str) -> Stage:
    """Depends on the student, the validation rows, the `quantize` section, and the machine it times on."""
    settings = {
        **settings_of(recipe),
        "validation_pairs": recipe.data.validation_pairs,
        "max_tokens": recipe.student.max_tokens,
        "order": recipe.data.pair_order,
        "long": recipe.student.long,
        "threads": threads,
    }
    if has_exits(recipe):
        bound = {"max_loss": recipe.exits.max_loss, "size_bytes": recipe.budget.size_bytes}
        settings["exits"] = bound

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        report(0.0, "exporting")
        for left in (CANDIDATES, _EXITED):
            # of a run that was killed
            shutil.rmtree(folder / left, ignore_errors=True)
        chosen, corpus = read_chosen(inputs["search"]), inputs["corpus"]
        student = read_student(recipe, inputs["student"])
        export_student(recipe, chosen, corpus, student, folder / CANDIDATES)
        if is_trained(inputs):
            trained = read_student(recipe, inputs["qat"])
            add_trained(
                folder / CANDIDATES,
                lambda to: export_student(recipe, chosen, corpus, trained, to),
            )
        validation = validation_of(recipe, inputs)
        found = forms(
            recipe,
            folder / CANDIDATES,
            chosen.architecture,
            validation,
            calibration_of(corpus),
            Shape(min(TOKENS, recipe.student.max_tokens), 1),
            threads,
            lambda share, what: report(0.1 + 0.8 * share, what),
        )
        if has_exits(recipe):
            found["exits"] = _exits(
                recipe, chosen, found["accepted"], validation, inputs, folder, threads, report
            )
        (folder / FACTS).write_text(json.dumps(found, indent=1))

    asked = {"qat": has_qat(recipe), "exits": has_exits(recipe)}
    inputs = ("student", "search", "corpus", "labels", *(name for name in asked if asked[name]))
    return Stage(
        "export",
        VERSION,
        inputs,
        settings,
        libraries_of(recipe),
        work,
        machine,
        _said,
    )


def shipped(folder: Path) -> tuple[Path, str, dict[str, Any] | None]:
    """Of what the stage wrote: the bundle that was accepted, which of its variants, and what is known of its exits."""
    found = accepted(folder)
    exits = found.get("exits")
    left = exits if exits is not None and exits["accepted"] else None
    return folder / (CANDIDATES if left is None else _EXITED), found["accepted"], left


def _said(folder: Path) -> str:
    found = accepted(folder)
    said = said_of(folder, metric="accuracy")
    return f"{said}; {said_of_exits(found['exits'])}" if found.get("exits") else said


def _exits(
    recipe: Recipe,
    chosen: Chosen,
    variant: str,
    validation: LabelledEvaluation,
    inputs: Folders,
    folder: Path,
    threads: int,
    report: Report,
) -> dict[str, Any] | None:
    """Export the accepted variant in parts, calibrate it, and decide; None where the student has no place for exits."""
    student = "qat" if variant == Method.QAT else "student"
    exiting = read_exiting(recipe, inputs[student], inputs["exits"])
    if exiting is None:
        return None
    report(0.9, "exporting with exits")
    export_student(
        recipe, chosen, inputs["corpus"], exiting.whole, folder / _EXITED, exiting=exiting
    )
    # as the accepted one of the whole was made
    derive(
        folder / _EXITED,
        how_of(recipe, Method(variant)),
        validation=validation,
        calibration=calibration_of(inputs["corpus"]),
    )
    rows = read_labelled(inputs["corpus"], "validation", recipe.data.validation_pairs)
    return decided(
        recipe,
        folder / CANDIDATES,
        folder / _EXITED,
        variant,
        threads,
        items_of(rows),
        truth_of(rows, read_probabilities(inputs["labels"], "validation")),
        lambda at, what: report(0.9 + at / 10, what),
    )


def validation_of(recipe: Recipe, inputs: Folders) -> LabelledEvaluation:
    """What forms of a student are compared on."""
    rows = read_labelled(inputs["corpus"], "validation", recipe.data.validation_pairs)
    truth = truth_of(rows, read_probabilities(inputs["labels"], "validation"))
    return evaluation_of(rows, labels_of(inputs["corpus"]), "validation", truth)


def export_student(
    recipe: Recipe,
    chosen: Chosen,
    corpus: Path,
    student: Classifier,
    folder: Path,
    exiting: Exiting | None = None,
) -> None:
    """Write a bundle of the student's plain graphs, in parts where it has exits."""
    export_classifier(
        student,
        folder,
        labels=labels_of(corpus),
        heads=chosen.architecture.heads,
        tokenizer_json=chosen.tokenizer_json,
        max_tokens=recipe.student.max_tokens,
        precisions=("plain",),
        name=folder.name,
        architecture=chosen.architecture.to_json(),
        long=recipe.student.long,
        exiting=exiting,
    )


def calibration_of(corpus: Path) -> list[tuple[str, ...]]:
    """Texts that the student learned from, one by one."""
    return [(text,) for text in read_labelled(corpus, "train", CALIBRATED).texts]
