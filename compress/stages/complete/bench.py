"""Stage `benchmark` of completion: the bundle and the unmodified teacher complete the test's lines; report.json, .html.

Engines: the teacher at full depth, and the bundle at full depth, with n-grams where they count, with exits, and as it
ships; where tokens may be given up, with that and without. Each is a process of its own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from codemill import __version__
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.stages.bench import REPORT, corpus_facts, stage_times
from codemill.compress.stages.bundle import BUNDLE
from codemill.compress.stages.complete.bundle import THRESHOLDS, evaluation_of, variant_of
from codemill.compress.stages.complete.corpus import read_texts
from codemill.compress.stages.complete.labels import (
    decoder_from,
    learns,
    open_decoder_of,
    rounding_of,
)
from codemill.runtime import read_manifest, size_bytes, verify_bundle
from codemill.runtime.completion.decoding import decoding_of
from codemill.targets.completion_benchmark import (
    CompletionEngine,
    CompletionReport,
    ExitFacts,
    ThresholdPoint,
    benchmark_completion,
    means_of,
    write_completion_report,
)
from codemill.targets.completion_page import render_completion
from codemill.targets.engine import bundle_engine
from codemill.targets.environment import this_environment
from codemill.targets.report import Limit, TrainingPoint, bundle_summary, limit

__all__ = ["VERSION", "stage"]

VERSION = 4
_TEACHER_SHARE = 0.2
"""Of the stage's time, about: rounding the teacher."""
TEACHER = "teacher, full depth"
FULL = "bundle, full depth"
NGRAMS = "bundle, full depth, n-grams"
EXITS = "bundle, exits"
SHIPPED = "as it ships: "


def stage(recipe: Recipe, threads: int, machine: str, earlier: Sequence[str]) -> Stage:
    """Depends on the bundle, the lines, and the machine."""
    settings = {
        "max_tokens": recipe.complete.max_new_tokens,
        "quality": recipe.quality.made_of(),
        "budget": recipe.budget.model_dump(),
        "examples": recipe.bench.examples,
        "threads": threads,
    }

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        _measure(recipe, threads, inputs, folder, report)

    return Stage("benchmark", VERSION, tuple(earlier), settings, ("onnxruntime",), work, machine)


def _measure(recipe: Recipe, threads: int, inputs: Folders, folder: Path, report: Report) -> None:
    bundle, variant = inputs["bundle"] / BUNDLE, variant_of(recipe)
    verify_bundle(bundle)
    thresholds = json.loads((inputs["bundle"] / THRESHOLDS).read_text())
    environment = this_environment()
    own = bundle_engine(bundle, variant, threads, name="bundle")
    full = {"exits": False, "drafts": False}
    plain = full | {"ngrams": False}
    point = next((x for x in thresholds["curve"] if x["rate"] == thresholds["chosen"]), None)
    ngrams = bool(decoding_of(read_manifest(bundle)).escapes)
    engines = [CompletionEngine(FULL, own, plain)]
    if ngrams:
        engines.append(CompletionEngine(NGRAMS, own, full))
    leave: list[tuple[float | None, None]] = []
    if point is not None:
        leave = [(item, None) for item in point["bounds"]]
        engines.append(CompletionEngine(EXITS, own, {"exits": leave, "drafts": False}))
    stop = thresholds["stop"] or ()
    gives_up = any(item is not None for item in stop)
    # what ships: with stops only where the recipe wants them
    ships = gives_up and recipe.complete.stop_right is not None
    names = []
    for stops in (False, True)[: 1 + gives_up]:
        what = means_of(exits=bool(leave), ngrams=ngrams, stops=stops)
        names.append(f"bundle, {SHIPPED if stops is ships else ''}{what}")
        leaves = [item for item, _ in leave] or [None] * len(stop)
        bounds = list(zip(leaves, stop, strict=True)) if stops else leave
        engines.append(CompletionEngine(names[-1], own, {"exits": bounds or False, "drafts": True}))
    headline = names[ships]
    baseline, begun = FULL, 0.0
    if decoder_from(recipe):
        report(0.0, "writing the teacher's graphs")
        teacher = _teacher(
            recipe,
            threads,
            inputs["corpus"],
            folder / "teacher",
            lambda share, what: report(_TEACHER_SHARE * share, f"the teacher: {what}"),
        )
        found = bundle_engine(teacher, variant, threads, name="teacher")
        engines.insert(0, CompletionEngine(TEACHER, replace(found, role="teacher"), plain))
        baseline, begun = TEACHER, _TEACHER_SHARE
    places = evaluation_of(recipe, inputs["corpus"], "test")
    results = benchmark_completion(
        engines,
        places,
        baseline,
        recipe.complete.max_new_tokens,
        lambda share, what: report(begun + (1 - begun) * share, what),
        examples=recipe.bench.examples,
    )
    shutil.rmtree(folder / "teacher", ignore_errors=True)
    exits = json.loads((inputs["exits"] / "exits.json").read_text())
    manifest = read_manifest(bundle)
    size = size_bytes(bundle, variant)
    made = CompletionReport(
        schema=1,
        codemill=__version__,
        created_at=environment.measured_at,
        title=recipe.name,
        task=recipe.task,
        bundle=bundle_summary(bundle, variant),
        bundle_engine=headline,
        baseline=baseline,
        evaluation=places.name,
        evaluation_sha256=places.sha256,
        engines=results,
        environment=environment,
        exits=tuple(
            ExitFacts(layer, agrees, right)
            for layer, agrees, right in zip(
                exits["layers"], exits.get("agrees", ()), exits.get("right", ()), strict=True
            )
        ),
        never_right=exits.get("never_right"),
        curve=tuple(
            ThresholdPoint(
                item["rate"],
                item["loss"],
                item["speedup"],
                item["figures"]["layers_mean"],
                item["rate"] == thresholds["chosen"],
            )
            for item in thresholds["curve"]
        ),
        limits=tuple(_limits(recipe, size, results, headline)),
        recipe=recipe.model_dump(mode="json"),
        provenance=dict(manifest.provenance) | {"corpus": corpus_facts(inputs["corpus"])},
        stages=tuple(stage_times(inputs)),
        training=tuple(_training(recipe, inputs)),
    )
    write_completion_report(folder / REPORT, made)
    render_completion([made], folder / "report.html")


def _teacher(recipe: Recipe, threads: int, corpus: Path, folder: Path, report: Report) -> Path:
    """The teacher as it is, at the bundle's precision, rounded as the bundle is; beside a student as it would ship."""
    from codemill.compress.models.causal import pieces_of
    from codemill.export.decoder.bundle import write_completion
    from codemill.export.decoder.mixed import ROUNDING_LOSS

    complete = recipe.complete
    most_loss = complete.rounding_loss if recipe.student.init == "whole" else ROUNDING_LOSS
    folder.mkdir(parents=True, exist_ok=True)
    model = open_decoder_of(recipe.model)
    pieces = {
        name: pieces_of(
            read_texts(corpus, name)[:most],
            model.tokenizer_json,
            complete.piece_tokens,
            model.prompting.begin,
        )
        for name, most in (("train", complete.rounding_pieces), ("validation", None))
    }
    rounding = rounding_of(recipe, model.weights, pieces, folder, threads, report, most_loss)
    write_completion(
        model.weights,
        folder,
        name="teacher",
        tokenizer_json=model.tokenizer_json,
        prompting=model.prompting,
        max_tokens=recipe.student.max_tokens,
        precisions=(complete.precision,),
        roundings={complete.precision: rounding},
    )
    return folder


def _limits(recipe: Recipe, size: int, results: Sequence[Any], headline: str) -> list[Limit]:
    found = []
    if recipe.budget.size_bytes is not None:
        found.append(limit("size_bytes", "at most", recipe.budget.size_bytes, size))
    if recipe.quality.min_kept:
        own = next(item for item in results if item.name == headline)
        lost = own.exact_match_loss
        found.append(
            limit(
                "quality_kept",
                "at least",
                recipe.quality.min_kept,
                None if lost is None else 1 - lost.value,
                "of the baseline's exact match",
            )
        )
    return found


def _training(recipe: Recipe, inputs: Folders) -> list[TrainingPoint]:
    path = inputs["student"] / "student.json" if learns(recipe) else inputs["exits"] / "exits.json"
    points = json.loads(path.read_text()).get("points", ())
    return [TrainingPoint(point["step"], point["loss"], point["metric"]) for point in points]
