"""Stage `benchmark`: teacher against bundle on this machine; writes report.json and report.html.

Engines: the unmodified teacher in PyTorch fp32 and as fused ONNX fp32, the fine-tuned teacher where it
taught (PyTorch), and the bundle. Each in processes of its own, alternating (`targets.benchmark`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from codemill.compress.pipeline import Folders, Report, Stage, read_done
from codemill.compress.recipe import Recipe
from codemill.compress.stages.bundle import BUNDLE, EVALUATION
from codemill.compress.stages.finetune import facts
from codemill.compress.stages.graphs import REFERENCE
from codemill.compress.stages.student import HISTORY
from codemill.compress.teacher_worker import teacher_engine
from codemill.runtime import read_manifest, size_bytes, verify_bundle
from codemill.targets.benchmark import Progress, benchmark
from codemill.targets.engine import bundle_engine
from codemill.targets.evaluation import read_evaluation
from codemill.targets.figures import BenchmarkResult
from codemill.targets.page import render
from codemill.targets.profile import Shape
from codemill.targets.report import (
    Limit,
    SearchPoint,
    TrainingPoint,
    bundle_summary,
    limit,
    make_report,
    write_report,
)
from codemill.targets.report import Stage as StageTime

__all__ = [
    "BASELINE",
    "FINETUNED",
    "FUSED",
    "REPORT",
    "STUDENT",
    "VERSION",
    "corpus_facts",
    "headline",
    "latency_limit",
    "seen_architectures",
    "size_and_gflops",
    "stage",
    "stage_times",
    "training_points",
]

VERSION = 5
REPORT = "report.json"
BASELINE = "teacher, PyTorch fp32"
FUSED = "teacher, fused ONNX fp32"
FINETUNED = "fine-tuned teacher, PyTorch fp32"
STUDENT = "bundle"
_HEADLINE_TOKENS = 128


def stage(recipe: Recipe, threads: int, machine: str, earlier: Sequence[str]) -> Stage:
    """Depends on the bundle, the teachers, the shapes, and the machine."""
    settings = {
        "bench": recipe.bench.model_dump(),
        "budget": recipe.budget.model_dump(),
        "quality": recipe.quality.made_of(),
        "max_tokens": recipe.teacher.max_tokens,
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
    (variant,) = read_manifest(bundle).variants
    fused = bundle_engine(inputs["teacher-graphs"] / REFERENCE, None, threads, name=FUSED)
    engines = [
        teacher_engine(recipe.model, BASELINE, recipe.teacher.max_tokens, threads),
        replace(fused, role="reference"),
        bundle_engine(bundle, variant, threads, name=STUDENT),
    ]
    if facts(inputs["teacher"])["teaches"] == "finetuned":
        weights = inputs["teacher"] / "finetuned.safetensors"
        engines.insert(
            1,
            teacher_engine(recipe.model, FINETUNED, recipe.teacher.max_tokens, threads, weights),
        )
    longest = recipe.longest_common
    lengths = [tokens for tokens in recipe.bench.tokens if tokens <= longest] or [longest]
    shapes = tuple(Shape(tokens, batch) for tokens in lengths for batch in recipe.bench.batches)
    if headline(recipe) not in shapes:
        shapes = (*shapes, headline(recipe))
    evaluation = read_evaluation(
        bundle / EVALUATION,
        "standard library" if recipe.data.source == "installed" else "held-out pairs",
    )

    def say(progress: Progress) -> None:
        report(progress.fraction, progress.message)

    rounds, repeats = recipe.bench.rounds, recipe.bench.repeats
    result = benchmark(
        *(engines, evaluation, shapes, rounds, say),
        repeats=repeats,
        examples=recipe.bench.examples,
        operators=True,
    )
    summary = make_report(
        result,
        title=recipe.name,
        task=recipe.task,
        bundle=bundle_summary(bundle, variant),
        bundle_engine=STUDENT,
        baseline=BASELINE,
        limits=_limits(recipe, result, size_bytes(bundle, variant), inputs["search"]),
        recipe=recipe.model_dump(mode="json"),
        provenance=dict(read_manifest(bundle).provenance)
        | {"corpus": corpus_facts(inputs["corpus"])},
        stages=stage_times(inputs),
        training=training_points(inputs["student"]),
        search=seen_architectures(inputs["search"]),
    )
    write_report(folder / REPORT, summary)
    render([summary], folder / "report.html")


def size_and_gflops(recipe: Recipe, size: int, search: Path) -> list[Limit]:
    """The limits that are known without measuring."""
    budget, found = recipe.budget, []
    searched = json.loads((search / "search.json").read_text())
    if budget.size_bytes is not None:
        found.append(limit("size_bytes", "at most", budget.size_bytes, size))
    if searched["budget"]["gflops"] is not None:
        note = "a function of mean length"
        cost = searched["best"]["gflops"]
        found.append(
            limit("gflops", "at most", searched["budget"]["gflops"], cost, note, "estimate")
        )
    return found


def _limits(recipe: Recipe, result: BenchmarkResult, size: int, search: Path) -> list[Limit]:
    found = size_and_gflops(recipe, size, search)
    found += latency_limit(recipe, result)
    kept = result.ratio(STUDENT, BASELINE, "mrr")
    if recipe.quality.min_kept and kept is not None:
        found.append(
            limit(
                "quality_kept",
                "at least",
                recipe.quality.min_kept,
                kept.value,
                "of the teacher's MRR",
            )
        )
    return found


def latency_limit(recipe: Recipe, result: BenchmarkResult) -> list[Limit]:
    """The bundle against `budget.latency_ms`, where that says milliseconds."""
    allowed = recipe.budget.latency_ms
    if not isinstance(allowed, float):
        return []
    shape = headline(recipe)
    (latency,) = [
        x
        for x in result.engine(STUDENT).latencies
        if (x.tokens, x.batch) == (shape.tokens, shape.batch)
    ]
    note = f"{shape.tokens} tokens, batch 1"
    return [limit("latency_ms_p50", "at most", allowed, latency.latency_ms_p50, note)]


def headline(recipe: Recipe) -> Shape:
    """The shape that `budget.latency_ms` speaks of: of a pair, each of its functions has so many tokens."""
    return Shape(min(_HEADLINE_TOKENS, recipe.longest_common), 1)


def corpus_facts(folder: Path) -> dict[str, Any]:
    """What corpus.json says."""
    value: dict[str, Any] = json.loads((folder / "corpus.json").read_text())
    return value


def stage_times(inputs: Folders) -> list[StageTime]:
    """How long each stage before this one took."""
    return [StageTime(name, read_done(folder)["seconds"]) for name, folder in inputs.items()]


def training_points(folder: Path) -> list[TrainingPoint]:
    """The student's validations."""
    points = json.loads((folder / HISTORY).read_text())
    return [TrainingPoint(point["step"], point["loss"], point["metric"]) for point in points]


def seen_architectures(folder: Path) -> list[SearchPoint]:
    """What the search looked at, and what it chose."""
    searched = json.loads((folder / "search.json").read_text())
    points = [
        *(_search_point(item, item["architecture"]) for item in searched["seen"]),
        *(_search_point(item, item["architecture"], front=True) for item in searched["front"]),
    ]
    return [*points, _search_point(searched["best"], searched["best"], chosen=True)]


def _search_point(
    item: dict[str, Any], architecture: dict[str, Any], *, front: bool = False, chosen: bool = False
) -> SearchPoint:
    costs = (item["size_bytes"], item["gflops"], item["quality"], item["latency_ms"])
    return SearchPoint(_shape(architecture), *costs, front=front, chosen=chosen)


def _shape(architecture: dict[str, Any]) -> str:
    """In words: what a reader of the front tells candidates apart by."""
    copied = ", ".join(map(str, architecture["copied_layers"]))
    rank = architecture["embedding_rank"]
    tokens = "byte-pair tokens" if architecture["tokenizer"] == "bpe" else "tokens"
    said = [
        f"{architecture['layers']} layers{f' ({copied})' if copied else ''} x {architecture['hidden_size']}",
        f"{architecture['heads']} heads of {architecture['head_size']}",
        f"{architecture['intermediate_size']:,} inner",
        f"{architecture['vocab_size']:,} {tokens}",
        "full embedding" if rank is None else f"rank {rank}",
        f"{architecture['bits']} bits",
    ]
    return ", ".join(said)
