"""Stage `export`: the student as plain graphs, as fused fp32, and in the forms that `quantize` asks for.

Writes candidates/ (a bundle with all of them) and export.json, which says what was accepted (`quantized.py`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from codemill.compress.architecture import Architecture
from codemill.compress.models.export import export_bundle
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.stages.corpus import read_split
from codemill.compress.stages.quantized import (
    FACTS,
    add_trained,
    forms,
    has_qat,
    is_trained,
    libraries_of,
    said_of,
    settings_of,
)
from codemill.compress.stages.search import read_chosen
from codemill.compress.stages.student import STUDENT
from codemill.targets.evaluation import Evaluation
from codemill.targets.profile import Shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "CALIBRATED",
    "CANDIDATES",
    "TOKENS",
    "VERSION",
    "calibration_of",
    "export_student",
    "stage",
    "validation_of",
]

VERSION = 4
CANDIDATES = "candidates"
TOKENS = 128
CALIBRATED = 256
"""Rows of training data that are at hand for it."""


def stage(recipe: Recipe, threads: int, machine: str) -> Stage:
    """Depends on the student, the validation pairs, the `quantize` section, and the machine it times on."""
    settings = {
        **settings_of(recipe),
        "validation_pairs": recipe.data.validation_pairs,
        "max_tokens": recipe.student.max_tokens,
        "threads": threads,
    }

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        from codemill.compress.models.surgery import load_student

        student, architecture = load_student(inputs["student"] / STUDENT)
        report(0.0, "exporting")
        # of a run that was killed
        shutil.rmtree(folder / CANDIDATES, ignore_errors=True)
        candidates = folder / CANDIDATES
        export_student(recipe, inputs["search"], student, architecture, candidates)
        if is_trained(inputs):
            trained, _ = load_student(inputs["qat"] / STUDENT)
            add_trained(
                candidates,
                lambda to: export_student(recipe, inputs["search"], trained, architecture, to),
            )
        found = forms(
            recipe,
            candidates,
            architecture,
            validation_of(recipe, inputs["corpus"]),
            calibration_of(inputs["corpus"]),
            Shape(min(TOKENS, recipe.longest_common), 1),
            threads,
            lambda share, what: report(0.1 + 0.9 * share, what),
        )
        (folder / FACTS).write_text(json.dumps(found, indent=1))

    inputs = ("student", "search", "corpus", *(("qat",) if has_qat(recipe) else ()))
    return Stage("export", VERSION, inputs, settings, libraries_of(recipe), work, machine, said_of)


def export_student(
    recipe: Recipe,
    search: Path,
    student: PreTrainedModel,
    architecture: Architecture,
    folder: Path,
) -> None:
    """Write a bundle of the student's plain graphs; search: the folder of that stage."""
    export_bundle(
        student,
        folder,
        heads=architecture.heads,
        tokenizer_json=read_chosen(search).tokenizer_json,
        max_tokens=recipe.student.max_tokens,
        precisions=("plain",),
        name=folder.name,
        architecture=architecture.to_json(),
    )


def calibration_of(corpus: Path) -> list[tuple[str, ...]]:
    """Texts that the student learned from, one by one."""
    learned = read_split(corpus, "train", CALIBRATED)
    return [(text,) for pair in learned for text in (pair.query, pair.code)]


def validation_of(recipe: Recipe, corpus: Path) -> Evaluation:
    """What forms of a student are compared on."""
    pairs = read_split(corpus, "validation", recipe.data.validation_pairs)
    return Evaluation(
        "validation", tuple(pair.query for pair in pairs), tuple(pair.code for pair in pairs)
    )
