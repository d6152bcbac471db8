"""Stage `benchmark` of a classifier: teacher, the student in fp32, and the bundle on this machine.

Engines: the classifier that taught, as fused ONNX fp32 (none where the data taught), the student before it was
quantized, and the bundle. Quality is measured on the test; robustness on a sample of it whose code is rewritten
without another meaning. Writes report.json and report.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.stages.bench import (
    REPORT,
    STUDENT,
    corpus_facts,
    headline,
    latency_limit,
    seen_architectures,
    size_and_gflops,
    stage_times,
    training_points,
)
from codemill.compress.stages.bundle import BUNDLE, EVALUATION
from codemill.compress.stages.classify.labels import TEACHING
from codemill.compress.stages.classify.rewrites import rewritten
from codemill.compress.stages.export import CANDIDATES
from codemill.compress.stages.quantized import PLAIN_FORM
from codemill.export.candidates import FP32
from codemill.runtime import read_manifest, size_bytes, verify_bundle
from codemill.targets.benchmark import Progress, benchmark
from codemill.targets.engine import Engine, bundle_engine
from codemill.targets.evaluation import read_labelled_evaluation
from codemill.targets.figures import BenchmarkResult
from codemill.targets.page import render
from codemill.targets.profile import Shape
from codemill.targets.report import Limit, bundle_summary, limit, make_report, write_report

__all__ = ["TEACHER", "UNQUANTIZED", "VERSION", "stage"]

VERSION = 3
TEACHER = "teacher, fused ONNX fp32"
UNQUANTIZED = "student, fp32"


def stage(recipe: Recipe, threads: int, machine: str, earlier: Sequence[str]) -> Stage:
    """Depends on the bundle, the teacher, the shapes, and the machine."""
    settings = {
        "bench": recipe.bench.model_dump(),
        "budget": recipe.budget.model_dump(),
        "quality": recipe.quality.made_of(),
        "seed": recipe.seed,
        "threads": threads,
    }

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        _measure(recipe, threads, inputs, folder, report)

    return Stage(
        "benchmark", VERSION, tuple(earlier), settings, ("torch", "onnxruntime"), work, machine
    )


def _measure(recipe: Recipe, threads: int, inputs: Folders, folder: Path, report: Report) -> None:
    bundle = inputs["bundle"] / BUNDLE
    verify_bundle(bundle)
    manifest = read_manifest(bundle)
    (variant,) = manifest.variants
    engines: list[Engine] = []
    teaching = inputs["teacher-graphs"] / TEACHING
    if teaching.is_dir():
        engines.append(
            replace(bundle_engine(teaching, FP32, threads, name=TEACHER), role="teacher")
        )
    plain = bundle_engine(inputs["export"] / CANDIDATES, PLAIN_FORM, threads, name=UNQUANTIZED)
    if variant != FP32:
        engines.append(replace(plain, role="reference"))
    engines.append(bundle_engine(bundle, variant, threads, name=STUDENT))
    baseline = TEACHER if teaching.is_dir() else UNQUANTIZED if variant != FP32 else None
    longest = recipe.longest_common
    lengths = [tokens for tokens in recipe.bench.tokens if tokens <= longest] or [longest]
    shapes = [Shape(tokens, batch) for tokens in lengths for batch in recipe.bench.batches]
    if headline(recipe) not in shapes:
        shapes.append(headline(recipe))
    evaluation = read_labelled_evaluation(bundle / EVALUATION, "test")
    report(0.0, "rewriting some of the test's code without changing its meaning")
    rewrites = rewritten(evaluation, recipe.seed)

    def say(progress: Progress) -> None:
        report(progress.fraction, progress.message)

    result = benchmark(
        engines,
        evaluation,
        shapes,
        recipe.bench.rounds,
        say,
        repeats=recipe.bench.repeats,
        rewrites=rewrites,
        operators=True,
    )
    size = size_bytes(bundle, variant)
    summary = make_report(
        result,
        title=recipe.name,
        task=recipe.task,
        bundle=bundle_summary(bundle, variant),
        bundle_engine=STUDENT,
        baseline=baseline,
        limits=_limits(recipe, result, size, inputs["search"]),
        recipe=recipe.model_dump(mode="json"),
        provenance=dict(manifest.provenance) | {"corpus": corpus_facts(inputs["corpus"])},
        stages=stage_times(inputs),
        training=training_points(inputs["student"]),
        search=seen_architectures(inputs["search"]),
    )
    write_report(folder / REPORT, summary)
    render([summary], folder / "report.html")


def _limits(recipe: Recipe, result: BenchmarkResult, size: int, search: Path) -> list[Limit]:
    found = size_and_gflops(recipe, size, search)
    found += latency_limit(recipe, result)
    quality = result.engine(STUDENT).labelling
    if recipe.quality.min_accuracy and quality is not None:
        found.append(
            limit(
                "accuracy", "at least", recipe.quality.min_accuracy, quality.accuracy, "on the test"
            )
        )
    kept = result.ratio(STUDENT, TEACHER, "accuracy") if _taught(result) else None
    if recipe.quality.min_kept and kept is not None:
        found.append(
            limit(
                "quality_kept",
                "at least",
                recipe.quality.min_kept,
                kept.value,
                "of the teacher's accuracy",
            )
        )
    return found


def _taught(result: BenchmarkResult) -> bool:
    return any(engine.name == TEACHER for engine in result.engines)
