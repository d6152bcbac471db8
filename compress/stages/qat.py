"""Stage `qat`: the student distilled further for int8, where that is asked for, or no int8 form is good enough.

Quantization-aware training (`compress/quantize.py`). With `quantize.method: auto` the int8 forms that need no training
are made first and compared with float32 on validation; the first that keeps the bound ends the stage. Writes qat.json,
and student/ where the student was trained. A recipe that asks for neither has no such stage.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codemill.compress.architecture import Architecture
from codemill.compress.compute import Compute
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.stages.export import calibration_of, export_student, validation_of
from codemill.compress.stages.quantized import QAT_FACTS, how_of
from codemill.compress.stages.search import Chosen, read_chosen
from codemill.compress.stages.student import STUDENT, targets_of, validator_of
from codemill.export.candidates import PLAIN
from codemill.export.quantize.settings import Method
from codemill.runtime import load_classifier, load_encoder
from codemill.runtime.atomic import write_atomically
from codemill.targets.evaluation import Evaluation, LabelledEvaluation
from codemill.targets.metrics import mrr
from codemill.targets.profile import target_named

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from codemill.compress.distill.loop import Point

__all__ = ["LIBRARIES", "VERSION", "findings", "settings_of", "stage", "train_if_needed"]

VERSION = 1
LIBRARIES = ("torch", "transformers", "tokenizers", "optimum-onnx", "onnx", "onnxruntime", "nncf")
_TRIED = "tried.json"
_UNTRAINED = (Method.WEIGHTS_INT8, Method.DYNAMIC, Method.STATIC, Method.CONTROLLED)
"""The int8 forms without training, those first that round least and are made soonest."""


def settings_of(recipe: Recipe, compute: Compute) -> dict[str, Any]:
    """What the stage depends on, beside its inputs, whatever the task."""
    return {
        "quantize": recipe.quantize.made_of(),
        "reduced_range": target_named(recipe.target).reduced_range,
        "distill": recipe.distill.made_of(),
        "rows": [recipe.data.train_pairs, recipe.data.validation_pairs],
        "max_tokens": [recipe.data.max_tokens, recipe.student.max_tokens],
        "seed": recipe.seed,
        "compute": asdict(compute),
    }


def stage(recipe: Recipe, compute: Compute) -> Stage:
    """Depends on the student and all that it was made of, and on the `quantize` section."""

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        from codemill.compress.models.surgery import load_student, save_student

        chosen = read_chosen(inputs["search"])
        student, architecture = load_student(inputs["student"] / STUDENT)

        def export(bundle: Path) -> None:
            export_student(recipe, inputs["search"], student, architecture, bundle)

        def learn(report: Report) -> tuple[float, list[Point]]:
            found = _distilled(recipe, inputs, chosen, student, folder, report)
            save_student(student, architecture, folder / STUDENT)
            return found

        corpus = inputs["corpus"]
        train_if_needed(
            recipe,
            architecture,
            folder,
            report,
            export=export,
            learn=learn,
            evaluation=validation_of(recipe, corpus),
            calibration=calibration_of(corpus),
            threads=compute.threads,
        )

    inputs = ("corpus", "search", "teacher", "labels", "student")
    return Stage(
        "qat",
        VERSION,
        inputs,
        settings_of(recipe, compute),
        LIBRARIES,
        work,
        findings=lambda folder: findings(folder, "MRR"),
    )


def _distilled(
    recipe: Recipe,
    inputs: Folders,
    chosen: Chosen,
    student: PreTrainedModel,
    folder: Path,
    report: Report,
) -> tuple[float, list[Point]]:
    """Distil a trained student further, in place, rounded as int8 will have it; its validation before, and since.

    In float32, of which the rounding is a part. A checkpoint in `folder` is continued from.
    """
    from codemill.compress.distill.loop import train
    from codemill.compress.quantize import rounded, schedule_of

    targets = targets_of(recipe, inputs, chosen)
    validate = validator_of(recipe, inputs, chosen, student, bf16=False)
    with rounded(student, target_named(recipe.target).reduced_range):
        before = validate()
        points = train(student, targets, schedule_of(recipe), recipe.seed, validate, folder, report)
    return before, points


def train_if_needed(
    recipe: Recipe,
    architecture: Architecture,
    folder: Path,
    report: Report,
    *,
    export: Callable[[Path], None],
    learn: Callable[[Report], tuple[float, list[Point]]],
    evaluation: Evaluation | LabelledEvaluation,
    calibration: Sequence[tuple[str, ...]],
    threads: int,
) -> None:
    """Write qat.json, after training where that is called for.

    export: writes a bundle of the student's plain graphs; learn: trains the student and writes it, and gives its
    validation rounded, before and after. evaluation: the validation's.
    """
    found: dict[str, Any] = {"trained": False, "tried": []}
    if architecture.bits != 32:
        if recipe.quantize.method == "auto":
            found["tried"] = _tried(
                recipe, folder, export, evaluation, calibration, threads, report
            )
        good = [item for item in found["tried"] if item["lost"] <= recipe.quantize.max_loss]
        if not good:
            before, points = learn(report)
            found |= {
                "trained": True,
                "before": before,
                "points": [asdict(point) for point in points],
            }
    (folder / QAT_FACTS).write_text(json.dumps(found, indent=1))
    (folder / _TRIED).unlink(missing_ok=True)


def findings(folder: Path, metric: str) -> str:
    """What was found, for people; `metric` is what forms were compared by."""
    found: dict[str, Any] = json.loads((folder / QAT_FACTS).read_text())
    lost = ", ".join(f"{item['form']} loses {item['lost']:.1%}" for item in found["tried"])
    if not found["trained"]:
        if not lost:
            return "the student stays in float32: no training for int8"
        return f"no training for int8: of validation {metric} {lost}"
    best = max(point["metric"] for point in found["points"])
    why = f" because of validation {metric} {lost}" if lost else ""
    return (
        f"trained for int8{why}: its validation, rounded in torch, is {best:.4f} and was "
        f"{found['before']:.4f} before"
    )


def _tried(
    recipe: Recipe,
    folder: Path,
    export: Callable[[Path], None],
    evaluation: Evaluation | LabelledEvaluation,
    calibration: Sequence[tuple[str, ...]],
    threads: int,
    report: Report,
) -> list[dict[str, Any]]:
    """The share of float32's quality that each form without training loses, until one keeps the bound."""
    from codemill.export.derive import derive

    path = folder / _TRIED
    if path.is_file():
        # of a run that was killed while it trained
        kept: list[dict[str, Any]] = json.loads(path.read_text())
        return kept
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch, "student")
        export(bundle)
        whole = _quality(bundle, PLAIN, evaluation, threads)
        for method in _UNTRAINED:
            report(0.0, f"what {method.value} loses")
            derive(bundle, how_of(recipe, method), validation=evaluation, calibration=calibration)
            quality = _quality(bundle, method.value, evaluation, threads)
            # of nothing, nothing is lost
            lost = 1 - quality / whole if whole else 0.0
            found.append({"form": method.value, "lost": lost})
            if lost <= recipe.quantize.max_loss:
                break
    write_atomically(path, lambda file: file.write(json.dumps(found).encode()))
    return found


def _quality(
    bundle: Path, variant: str, evaluation: Evaluation | LabelledEvaluation, threads: int
) -> float:
    """MRR, or the accuracy on rows with a label, of a bundle's variant."""
    if isinstance(evaluation, Evaluation):
        with load_encoder(bundle, variant=variant, threads=threads) as model:
            return mrr(model.encode(evaluation.queries), model.encode(evaluation.codes))
    rows = [
        (item, label)
        for item, label in zip(evaluation.items, evaluation.truth, strict=True)
        if label >= 0
    ]
    with load_classifier(bundle, variant=variant, threads=threads) as judge:
        said = judge.probabilities([item for item, _ in rows]).argmax(1)
    return float((said == [label for _, label in rows]).mean()) if rows else 0.0
