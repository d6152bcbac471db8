"""One run: the stages of a recipe in order, what they will take, what came out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from codemill.compress import pipeline
from codemill.compress.compute import Compute, compute_of
from codemill.compress.lock import working_in
from codemill.compress.pipeline import Done, Folders, Progress, Stage
from codemill.compress.places import check_bundle_out, put_bundle, scratch_beside
from codemill.compress.preflight import Preflight, preflight
from codemill.compress.recipe import Recipe
from codemill.compress.stages import (
    bench,
    bundle,
    corpus,
    export,
    finetune,
    graphs,
    labels,
    qat,
    rehearsal,
    search,
    student,
)
from codemill.compress.stages.classify import bench as classify_bench
from codemill.compress.stages.classify import bundle as classify_bundle
from codemill.compress.stages.classify import corpus as classify_corpus
from codemill.compress.stages.classify import exits as classify_exits
from codemill.compress.stages.classify import export as classify_export
from codemill.compress.stages.classify import labels as classify_labels
from codemill.compress.stages.classify import qat as classify_qat
from codemill.compress.stages.classify import rehearsal as classify_rehearsal
from codemill.compress.stages.classify import student as classify_student
from codemill.compress.stages.classify import teacher as classify_teacher
from codemill.compress.stages.complete import bench as complete_bench
from codemill.compress.stages.complete import bundle as complete_bundle
from codemill.compress.stages.complete import corpus as complete_corpus
from codemill.compress.stages.complete import exits as complete_exits
from codemill.compress.stages.complete import labels as complete_labels
from codemill.compress.stages.complete import search as complete_search
from codemill.compress.stages.complete import student as complete_student
from codemill.compress.stages.complete import tokens as complete_tokens
from codemill.compress.stages.quantized import has_qat
from codemill.errors import MachineError, RecipeError, RefusedError
from codemill.runtime import pack
from codemill.runtime.atomic import sync_file, write_atomically
from codemill.targets.codec import to_json
from codemill.targets.completion_benchmark import CompletionReport, read_completion_report
from codemill.targets.environment import machine_id
from codemill.targets.figures import EngineResult
from codemill.targets.report import Report as BenchReport
from codemill.targets.report import read_report

__all__ = ["Plan", "RunResult", "plan", "run", "run_search", "stages_of"]

_REPORTS = ("report.html", "report.json")


def stages_of(recipe: Recipe) -> list[Stage]:
    """The ordered stages. What can fail early comes early: nothing before `teacher` takes long."""
    compute, machine = compute_of(recipe), machine_id()
    threads = compute.threads
    if recipe.task == "completion":
        return _completion_stages(recipe, compute, machine)
    if recipe.task != "retrieval":
        return _classifier_stages(recipe, compute, machine)
    stages = [
        corpus.stage(recipe, threads),
        search.stage(recipe),
        rehearsal.stage(recipe, compute, machine),
        finetune.stage(recipe, compute),
        graphs.stage(recipe),
        labels.stage(recipe, threads),
        student.stage(recipe, compute),
    ]
    if has_qat(recipe):
        stages.append(qat.stage(recipe, compute))
    stages.append(export.stage(recipe, threads, machine))
    stages.append(bundle.stage(recipe, threads, _shaping(stages)))
    stages.append(bench.stage(recipe, threads, machine, [stage.name for stage in stages]))
    return stages


def _classifier_stages(recipe: Recipe, compute: Compute, machine: str) -> list[Stage]:
    threads = compute.threads
    stages = [
        classify_corpus.stage(recipe),
        search.stage(recipe),
        classify_rehearsal.stage(recipe, compute, machine),
        classify_teacher.stage(recipe),
        classify_labels.graphs_stage(recipe),
        classify_labels.stage(recipe, threads),
        classify_student.stage(recipe, compute),
    ]
    if classify_exits.has_exits(recipe):
        stages.append(classify_exits.stage(recipe, compute))
    if has_qat(recipe):
        stages.append(classify_qat.stage(recipe, compute))
    stages.append(classify_export.stage(recipe, threads, machine))
    stages.append(classify_bundle.stage(recipe, threads, _shaping(stages)))
    stages.append(classify_bench.stage(recipe, threads, machine, [stage.name for stage in stages]))
    return stages


def _completion_stages(recipe: Recipe, compute: Compute, machine: str) -> list[Stage]:
    threads = compute.threads
    stages = [complete_corpus.stage(recipe)]
    if recipe.student.init != "whole":
        stages.append(complete_search.stage(recipe))
    elif complete_labels.chooses_tokens(recipe):
        stages.append(complete_tokens.stage(recipe))
    if complete_labels.learns(recipe):
        stages.append(complete_student.stage(recipe, compute))
    stages += [complete_labels.stage(recipe, compute), complete_exits.stage(recipe, compute)]
    stages.append(complete_bundle.stage(recipe, threads, machine, _shaping(stages)))
    stages.append(complete_bench.stage(recipe, threads, machine, [stage.name for stage in stages]))
    return stages


def _shaping(stages: Sequence[Stage]) -> dict[str, str]:
    """The keys of the stages that shape what ships: the rehearsal only measures."""
    return {name: key for name, key in pipeline.keys_of(stages).items() if name != "rehearsal"}


@dataclass(frozen=True)
class Plan:
    """What a run would do: the resolved recipe, which stages are finished already, the pre-flight checks."""

    recipe: Recipe
    stages: list[tuple[str, bool]]
    preflight: Preflight

    def to_json(self) -> dict[str, Any]:
        """For `--dry-run --json`."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "stages": [{"name": name, "cached": cached} for name, cached in self.stages],
            "preflight": self.preflight.to_json(),
        }


@dataclass(frozen=True)
class RunResult:
    """What a run made. Paths of the bundle and of its report; the report itself; the stages."""

    bundle: Path
    report_html: Path
    report_json: Path
    size_bytes: int
    report: BenchReport | CompletionReport
    stages: tuple[Done, ...]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "bundle": str(self.bundle),
            "report_html": str(self.report_html),
            "report_json": str(self.report_json),
            "size_bytes": self.size_bytes,
            **_measured(self.report),
            "architecture": self.report.bundle.architecture,
            "peak_rss_bytes": max(done.peak_rss_bytes for done in self.stages),
            "stages": [
                {
                    "name": done.name,
                    "seconds": done.seconds,
                    "cached": done.cached,
                    "peak_rss_bytes": done.peak_rss_bytes,
                    "folder": str(done.folder),
                }
                for done in self.stages
            ],
        }


def _measured(report: BenchReport | CompletionReport) -> dict[str, Any]:
    if isinstance(report, CompletionReport):
        engines = {item.name: to_json(item) for item in report.engines}
        return {"engines": engines, "baseline": report.baseline, "engine": report.bundle_engine}
    return {
        "teacher": report.teacher and _engine(report.teacher),
        "student": _engine(report.student),
        "quality_kept": report.quality_kept,
    }


def _engine(result: EngineResult) -> dict[str, Any]:
    quality = result.quality
    return {
        "name": result.name,
        "size_bytes": result.size.size_bytes,
        "mrr": quality.mrr if quality else None,
        "recall_at_10": quality.recall_at_10 if quality else None,
        **_labelling(result),
        "latencies": [
            {
                "tokens": latency.tokens,
                "batch": latency.batch,
                "latency_ms_p50": latency.latency_ms_p50,
                "latency_ms_p90": latency.latency_ms_p90,
                "latency_ms_p99": latency.latency_ms_p99,
            }
            for latency in result.latencies
        ],
        "cold_start_ms_p50": result.cold_start.cold_start_ms_p50,
        "peak_rss_bytes": result.memory.peak_rss_bytes,
        "cold_peak_rss_bytes": result.memory.cold_peak_rss_bytes,
    }


def _labelling(result: EngineResult) -> dict[str, Any]:
    if result.labelling is None:
        return {}
    found = {name: item and item.value for name, item in result.labelling.figures.items()}
    return {**found, "majority": result.labelling.majority, "rows": result.labelling.rows}


def plan(recipe: Recipe, work: Path) -> Plan:
    """Look, and do nothing."""
    stages = stages_of(recipe)
    cached = pipeline.status(stages, work)
    keys = pipeline.keys_of(stages)
    held = sum(
        path.stat().st_size
        for name, key in keys.items()
        for path in pipeline.folder_of(work, name, key).rglob("*")
        if path.is_file()
    )
    return Plan(recipe, list(cached.items()), preflight(recipe, work, held))


def run(recipe: Recipe, work: Path, out: Path, progress: Progress, wait: bool = False) -> RunResult:
    """Run the recipe and put the bundle at `out`: a folder, or one .mill file with the report beside it.

    Raises RefusedError where a budget or the quality bound is not met; the report then stays in `work`.
    Where another run works in `work`, waits for it or, without `wait`, raises MachineError.
    """
    check_bundle_out(out, work)
    checked = plan(recipe, work)
    # what is finished takes neither memory nor disk
    if not all(cached for _, cached in checked.stages):
        checked.preflight.raise_if_impossible()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _use_threads(compute_of(recipe).threads)
    with working_in(work, wait, progress.say):
        done = pipeline.run_stages(stages_of(recipe), work, progress)
        folders: Folders = {name: finished.folder for name, finished in done.items()}
        read = read_completion_report if recipe.task == "completion" else read_report
        report: BenchReport | CompletionReport = read(folders["benchmark"] / bench.REPORT)
        _refuse_missed(report, folders["benchmark"])
        made, html, json_path = _deliver(
            folders["bundle"] / bundle.BUNDLE, folders["benchmark"], out
        )
    return RunResult(made, html, json_path, report.bundle.size_bytes, report, tuple(done.values()))


def run_search(recipe: Recipe, work: Path, progress: Progress, wait: bool = False) -> Path:
    """Run the stages up to the architecture search; returns the folder of that stage."""
    if recipe.task == "completion":
        raise RecipeError(
            "`compress search` is of students that embed or label; `compress run` searches the shape of one that "
            "completes"
        )
    stages = stages_of(recipe)
    upto = [stage.name for stage in stages].index("search") + 1
    with working_in(work, wait, progress.say):
        return pipeline.run_stages(stages[:upto], work, progress)["search"].folder


def _use_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _refuse_missed(report: BenchReport | CompletionReport, folder: Path) -> None:
    missed = [bound for bound in report.limits if bound.met is False]
    if missed:
        said = "; ".join(
            f"{bound.name} is {bound.value:,.4g}, {bound.bound} {bound.limit:,.4g} was asked for"
            for bound in missed
        )
        raise RefusedError(
            f"refused, nothing was shipped: {said}. The figures are in {folder / 'report.html'}"
        )


def _deliver(made: Path, reports: Path, out: Path) -> tuple[Path, Path, Path]:
    """Copy the bundle and its report to `out`, appearing there whole."""
    try:
        with scratch_beside(out) as scratch:
            if out.suffix == ".mill":
                return _deliver_packed(made, reports, out)
            shutil.copytree(made, scratch / "new")
            for name in _REPORTS:
                shutil.copyfile(reports / name, scratch / "new" / name)
            for path in scratch.rglob("*"):
                if path.is_file():
                    sync_file(path)
            put_bundle(scratch / "new", out, scratch)
    except OSError as error:
        raise MachineError(
            f"the bundle is made, and cannot be put at {out}: {error.strerror or error}. Run the same command "
            "again with room there, or with another --out; nothing is computed twice"
        ) from error
    return out, out / "report.html", out / "report.json"


def _deliver_packed(made: Path, reports: Path, out: Path) -> tuple[Path, Path, Path]:
    """As one .mill file, the report beside it."""
    html, json_path = (out.with_suffix(f".{name}") for name in _REPORTS)
    for name, path in zip(_REPORTS, (html, json_path), strict=True):
        write_atomically(path, partial(_copy, reports / name))
    pack(made, out)
    return out, html, json_path


def _copy(source: Path, file: IO[bytes]) -> None:
    file.write(source.read_bytes())
