"""Stage `export` of a classifier: encoder and head as fused fp32 and int8 graphs, and the two gates of int8.

Writes candidates/ (a bundle with both variants) and export.json, which says what was accepted. The gates are
those of every run: not slower than fp32, and no more accuracy lost on validation than the recipe allows. A recipe
with exits gets exited/ too: the accepted variant in parts, calibrated, and whether it ships in place of the other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
from codemill.compress.stages.export import CANDIDATES, FACTS, TOKENS, accepted, gates_of, said_of
from codemill.compress.stages.search import Chosen, read_chosen
from codemill.export.candidates import FP32, INT8

__all__ = ["VERSION", "shipped", "stage"]

VERSION = 3
_EXITED = "exited"
_ROUNDS = 5


def stage(recipe: Recipe, threads: int, machine: str) -> Stage:
    """Depends on the student, the validation rows, the `quantize` section, and the machine it times on."""
    settings = {
        "quantize": recipe.quantize.model_dump(),
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
        chosen = read_chosen(inputs["search"])
        quantized = recipe.quantize.method == "dynamic-int8" and chosen.architecture.bits == 8
        export_classifier(
            read_student(recipe, inputs["student"]),
            folder / CANDIDATES,
            labels=labels_of(inputs["corpus"]),
            heads=chosen.architecture.heads,
            tokenizer_json=chosen.tokenizer_json,
            max_tokens=recipe.student.max_tokens,
            precisions=("fp32", "int8") if quantized else ("fp32",),
            name=CANDIDATES,
            architecture=chosen.architecture.to_json(),
            long=recipe.student.long,
        )
        found: dict[str, Any] = {"accepted": FP32, "gates": None}
        if quantized:
            found = _gates(recipe, folder / CANDIDATES, inputs, threads, report)
        if has_exits(recipe):
            found["exits"] = _exits(
                recipe, chosen, found["accepted"], inputs, folder, threads, report
            )
        (folder / FACTS).write_text(json.dumps(found, indent=1))

    libraries = ("torch", "transformers", "optimum-onnx", "onnx", "onnxruntime")
    inputs = ("student", "search", "corpus", "labels", *(("exits",) if has_exits(recipe) else ()))
    return Stage(
        "export",
        VERSION,
        inputs,
        settings,
        libraries,
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
    inputs: Folders,
    folder: Path,
    threads: int,
    report: Report,
) -> dict[str, Any] | None:
    """Export the accepted variant in parts, calibrate it, and decide; None where the student has no place for exits."""
    exiting = read_exiting(recipe, inputs["student"], inputs["exits"])
    if exiting is None:
        return None
    report(0.9, "exporting with exits")
    export_classifier(
        exiting.whole,
        folder / _EXITED,
        labels=labels_of(inputs["corpus"]),
        heads=chosen.architecture.heads,
        tokenizer_json=chosen.tokenizer_json,
        max_tokens=recipe.student.max_tokens,
        precisions=(variant.removeprefix("cpu-"),),
        name=_EXITED,
        architecture=chosen.architecture.to_json(),
        exiting=exiting,
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


def _gates(
    recipe: Recipe, candidates: Path, inputs: Folders, threads: int, report: Report
) -> dict[str, Any]:
    """Measure int8 against fp32 on the validation rows, each in processes of its own."""
    from dataclasses import replace

    from codemill.targets.benchmark import Progress, benchmark
    from codemill.targets.engine import bundle_engine
    from codemill.targets.profile import Shape

    corpus, labels = inputs["corpus"], inputs["labels"]
    rows = read_labelled(corpus, "validation", recipe.data.validation_pairs)
    truth = truth_of(rows, read_probabilities(labels, "validation"))
    evaluation = evaluation_of(rows, labels_of(corpus), "validation", truth)
    fp32 = replace(bundle_engine(candidates, FP32, threads, name=FP32), role="reference")
    int8 = bundle_engine(candidates, INT8, threads, name=INT8)

    def say(progress: Progress) -> None:
        report(0.1 + 0.9 * progress.fraction, progress.message)

    shape = Shape(min(TOKENS, recipe.student.max_tokens), 1)
    result = benchmark([fp32, int8], evaluation, [shape], _ROUNDS, say)
    kept = result.ratio(INT8, FP32, "accuracy")
    if kept is not None:
        return gates_of(recipe, result, shape, 1 - kept.value)
    found = gates_of(recipe, result, shape, 1.0)
    # a share of nothing: a gate that cannot be judged is not passed
    why = "fp32 labels no row of validation right, so no share of its accuracy can be kept"
    found["gates"]["quality"] |= {"passed": False, "why": why}
    return {**found, "accepted": FP32}
