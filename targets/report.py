"""report.json: what a run or a benchmark found, typed and versioned. How it looks is page.py.

One file is one machine's measurements of one bundle. The search, the training and the stages are
there when the bundle was made in the same run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from codemill.errors import DataError
from codemill.runtime.atomic import write_atomically
from codemill.targets.analysis import LayerAnalysis, check_figures
from codemill.targets.classification import Interval
from codemill.targets.codec import from_json, to_json
from codemill.targets.environment import Environment
from codemill.targets.figures import (
    BenchmarkResult,
    EngineResult,
    LabelQuality,
    Quantity,
    Source,
)
from codemill.targets.json_file import read_json_file
from codemill.targets.variants import VariantSummary, variants_of

__all__ = [
    "SCHEMA",
    "BundleSummary",
    "Limit",
    "Report",
    "SearchPoint",
    "Stage",
    "TrainingPoint",
    "bundle_summary",
    "check_machine",
    "check_schema",
    "limit",
    "make_report",
    "read_report",
    "report_schema",
    "write_report",
]

SCHEMA = 2
_READ = (1, SCHEMA)
"""What is read: schema 1 has fewer keys."""

_LEAST, _MOST = 1e-9, 1e15
_LATENCY = {
    "tokens": 1,
    "batch": 1,
    "engine_tokens": 0,
    "latency_ms_p50": _LEAST,
    "latency_ms_p90": _LEAST,
    "latency_ms_p99": _LEAST,
    "functions_per_s": 0,
}
"""A latency's figures, and the least that each can be."""


@dataclass(frozen=True)
class BundleSummary:
    """Which bundle: its name, its digest and the variant that was measured.

    `files`: name -> bytes of what ships for that variant; `exits`: the layers after which inference may end;
    `variants`: all that the bundle holds, and what cannot run on the machine of the report.
    """

    name: str
    digest: str | None
    variant: str | None
    size_bytes: int
    architecture: dict[str, Any]
    files: dict[str, int] = field(default_factory=dict)
    exits: tuple[int, ...] = ()
    variants: tuple[VariantSummary, ...] = ()


@dataclass(frozen=True)
class Limit:
    """A bound that was set, what was found, and whether it is met; `met` None: not measured.

    `name` carries the unit (`size_bytes`, `latency_ms_p50`), `note` says at what shape, or
    against what.
    """

    name: str
    bound: Literal["at most", "at least"]
    limit: float
    value: float | None
    met: bool | None
    note: str
    source: Source


@dataclass(frozen=True)
class Stage:
    """A step of the pipeline and its wall time; `cached`: taken from an earlier run, whose time
    `seconds` is.
    """

    name: str
    seconds: float
    cached: bool = False


@dataclass(frozen=True)
class TrainingPoint:
    """One point of the training curve; `quality` is the validation's metric."""

    step: int
    loss: float | None = None
    quality: float | None = None


@dataclass(frozen=True)
class SearchPoint:
    """One architecture that the search looked at, in words; `gflops` a function.

    `quality` and `latency_ms` as estimated, where the search knew them; `front`: whether it is on the Pareto front.
    """

    label: str
    size_bytes: float
    gflops: float
    quality: float | None = None
    latency_ms: float | None = None
    front: bool = False
    chosen: bool = False


@dataclass(frozen=True)
class Report:
    """All of report.json. `bundle_engine` and `baseline` name engines of `benchmark`.

    `target`: the kind of machine that it was measured as, where one was asked for, as `compress bench --target` takes
    it (a profile's file without its folder).
    """

    schema: int
    codemill: str
    created_at: str
    title: str
    task: str
    bundle: BundleSummary
    bundle_engine: str
    baseline: str | None
    benchmark: BenchmarkResult
    limits: tuple[Limit, ...] = ()
    recipe: dict[str, Any] | None = None
    provenance: dict[str, Any] | None = None
    stages: tuple[Stage, ...] = ()
    training: tuple[TrainingPoint, ...] = ()
    search: tuple[SearchPoint, ...] = ()
    analysis: LayerAnalysis | None = None
    target: str | None = None

    @property
    def student(self) -> EngineResult:
        """The result of the engine that runs the bundle."""
        return self.benchmark.engine(self.bundle_engine)

    @property
    def teacher(self) -> EngineResult | None:
        """The result of the engine that the bundle is compared with first, if there is one."""
        return self.benchmark.engine(self.baseline) if self.baseline else None

    @property
    def quality_kept(self) -> float | None:
        """MRR, or accuracy, of the bundle over the baseline's."""
        if self.baseline is None:
            return None
        quantity: Quantity = "accuracy" if self.student.labelling else "mrr"
        ratio = self.benchmark.ratio(self.bundle_engine, self.baseline, quantity)
        return ratio.value if ratio else None


def bundle_summary(folder: str | os.PathLike[str], variant: str) -> BundleSummary:
    """Of a variant of the bundle in a folder."""
    from codemill.runtime.bundle import MANIFEST, TOKENIZER, digest, read_manifest

    manifest = read_manifest(folder)
    files = {
        path: manifest.files[path].size_bytes
        for path in (TOKENIZER, *dict.fromkeys(manifest.variant(variant).files))
    }
    files[MANIFEST] = (Path(folder) / MANIFEST).stat().st_size
    return BundleSummary(
        manifest.name,
        digest(manifest),
        variant,
        sum(files.values()),
        dict(manifest.architecture),
        files,
        tuple(item["layer"] for item in manifest.exits),
        variants_of(Path(folder), manifest),
    )


def limit(
    name: str,
    bound: Literal["at most", "at least"],
    limit: float,
    value: float | None,
    note: str = "",
    source: Source = "measured",
) -> Limit:
    """A `Limit` with `met` worked out; a value equal to its limit meets it."""
    met = None
    if value is not None:
        met = value <= limit if bound == "at most" else value >= limit
    return Limit(name, bound, limit, value, met, note, source)


def make_report(
    benchmark: BenchmarkResult,
    *,
    title: str,
    task: str,
    bundle: BundleSummary | None = None,
    bundle_engine: str | None = None,
    baseline: str | None = None,
    limits: Sequence[Limit] = (),
    recipe: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    stages: Sequence[Stage] = (),
    training: Sequence[TrainingPoint] = (),
    search: Sequence[SearchPoint] = (),
    target: str | None = None,
) -> Report:
    """Put a report together.

    `bundle_engine` defaults to the first engine of role bundle, `baseline` to the first teacher,
    else the first reference. Raises DataError when there is no bundle among the engines, and
    InputError when a name is not an engine's.
    """
    from codemill import __version__

    roles: dict[str, str] = {}
    for engine in benchmark.engines:
        roles.setdefault(engine.role, engine.name)
    chosen = bundle_engine or roles.get("bundle")
    if chosen is None:
        raise DataError("a report needs an engine of role 'bundle' among those measured")
    against = baseline or roles.get("teacher") or roles.get("reference")
    student = benchmark.engine(chosen)
    if against is not None:
        benchmark.engine(against)
    return Report(
        schema=SCHEMA,
        codemill=__version__,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        title=title,
        task=task,
        bundle=bundle or BundleSummary(title, None, None, student.size.size_bytes, {}),
        bundle_engine=chosen,
        baseline=against,
        benchmark=benchmark,
        limits=tuple(limits),
        recipe=dict(recipe) if recipe is not None else None,
        provenance=dict(provenance) if provenance is not None else None,
        stages=tuple(stages),
        training=tuple(training),
        search=tuple(search),
        target=target,
    )


def report_schema() -> dict[str, Any]:
    """The JSON schema of the files that `read_report` takes."""
    from codemill.targets.schema import json_schema

    found = json_schema(Report, "codemill report.json")
    found["properties"]["schema"] = {"type": "integer", "minimum": _READ[0], "maximum": SCHEMA}
    return found


def write_report(path: str | os.PathLike[str], report: Report) -> None:
    """Write report.json, by rename, so that a reader never sees half of it."""
    try:
        text = json.dumps(to_json(report), indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"the report holds what JSON cannot: {error}") from error
    write_atomically(Path(path), lambda file: file.write(f"{text}\n".encode()))


def read_report(path: str | os.PathLike[str]) -> Report:
    """Read a report.json of this schema; DataError naming the file, the key and what is wrong.

    What it gives back, the page can draw: figures that no measurement gives are refused.
    """
    file = Path(path)
    data = read_json_file(file, "a report", f"there is no report {file}")
    check_schema(file, data, _READ)
    report = from_json(Report, data, str(file))
    _check_names(report, str(file))
    _check_figures(report, str(file))
    if report.analysis is not None:
        check_figures(report.analysis, f"{file}.analysis")
    check_machine(report.benchmark.environment, f"{file}.benchmark.environment")
    return report


def check_schema(file: Path, data: object, read: Sequence[int]) -> None:
    """Raise DataError where a file holds no report, or one of a schema that is not among those that are read."""
    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(schema, int) or isinstance(schema, bool):
        raise DataError(f"{file} is not a report: it has no schema number")
    if schema not in read:
        made = data.get("codemill", "another version")
        newer = "; install a newer codemill" if schema > max(read) else ""
        raise DataError(
            f"{file} is of schema {schema}, made by codemill {made!s:.40}; this version reads "
            f"{' and '.join(map(str, read))}{newer}"
        )
    if not {"title", "bundle_engine"} & data.keys():
        # a bundle's manifest and a latency profile have a schema number, too
        raise DataError(
            f"{file} is not a report: it has neither a title nor a bundle_engine; give a report.json of "
            "`compress run` or `compress bench`"
        )


def check_machine(environment: Environment, where: str) -> None:
    """Raise DataError where the page cannot show the machine."""
    from_json(_Machine, environment.machine, f"{where}.machine")


@dataclass(frozen=True)
class _Machine:
    """What the page shows of `environment.machine`, which is plain data otherwise."""

    cpu: str | None = None
    os: str | None = None
    physical_cores: int | None = None
    logical_cores: int | None = None
    memory_bytes: int | None = None
    instruction_sets: tuple[str, ...] | None = None
    providers: tuple[str, ...] | None = None


def _check_names(report: Report, where: str) -> None:
    """Names are followed when the page is drawn: better to say here what they miss."""
    names = [engine.name for engine in report.benchmark.engines]
    for key, name in (("bundle_engine", report.bundle_engine), ("baseline", report.baseline)):
        if name is not None and name not in names:
            raise DataError(f"{where}.{key}: no engine {name!r:.80} was measured: {names!r:.200}")
    if len(set(names)) < len(names):
        raise DataError(f"{where}.benchmark.engines: two have one name: {names!r:.200}")


def _check_figures(report: Report, where: str) -> None:
    for key, value, least, most in _bounded(report):
        if value is not None and not least <= value <= most:
            above = f"of at least {least:g}" if value < least else f"of at most {most:g}"
            raise DataError(f"{where}.{key}: expected a number {above}, found {value!r}")
    engines = report.benchmark.engines
    shapes = [{(x.tokens, x.batch) for x in engine.latencies} for engine in engines]
    for number, found in enumerate(shapes):
        key = f"{where}.benchmark.engines[{number}].latencies"
        if not found:
            raise DataError(f"{key}: expected at least one measurement, found none")
        if found != shapes[0]:
            raise DataError(f"{key}: expected the same tokens and batches as every other engine's")
    if len({engine.quality is None for engine in engines}) > 1:
        raise DataError(
            f"{where}.benchmark.engines: expected a quality for all engines or for none"
        )


def _bounded(report: Report) -> Iterator[tuple[str, float | None, float, float]]:
    """(key, value, least, most) of every figure that a plot or a ratio cannot take any number for."""
    measured = report.benchmark
    for number, engine in enumerate(measured.engines):
        at = f"benchmark.engines[{number}]"
        # the others' may be unknown; a logarithmic axis needs one above 0
        yield (
            f"{at}.size.size_bytes",
            engine.size.size_bytes,
            int(engine.name == report.bundle_engine),
            _MOST,
        )
        for key in ("cold_start_ms_p50", "cold_start_ms_max", "load_ms_p50", "first_encode_ms_p50"):
            yield f"{at}.cold_start.{key}", getattr(engine.cold_start, key), 0, _MOST
        for key in ("cold_peak_rss_bytes", "peak_rss_bytes"):
            yield f"{at}.memory.{key}", getattr(engine.memory, key), 0, _MOST
        for index, latency in enumerate(engine.latencies):
            for key, least in _LATENCY.items():
                yield f"{at}.latencies[{index}].{key}", getattr(latency, key), least, _MOST
        if (quality := engine.quality) is not None:
            yield f"{at}.quality.functions", quality.functions, 1, _MOST
            yield f"{at}.quality.functions_per_s", quality.functions_per_s, 0, _MOST
            for key in ("mrr", "recall_at_10"):
                yield f"{at}.quality.{key}", getattr(quality, key), 0, 1
            for index, example in enumerate(quality.examples):
                yield f"{at}.quality.examples[{index}].rank", example.rank, 1, _MOST
        if (labelling := engine.labelling) is not None:
            yield from _bounded_labelling(f"{at}.labelling", labelling)
        if (energy := engine.energy) is not None:
            yield f"{at}.energy.energy_j_per_function", energy.energy_j_per_function, 0, _MOST
        if (operators := engine.operators) is not None:
            for index, time in enumerate(operators.times):
                yield f"{at}.operators.times[{index}].time_ms", time.time_ms, 0, _MOST
    for number, comparison in enumerate(measured.comparisons):
        at, ratio = f"benchmark.comparisons[{number}].ratio", comparison.ratio
        is_share = comparison.quantity in _SHARES
        yield f"{at}.value", ratio.value, 0 if is_share else _LEAST, _MOST
        yield f"{at}.low", ratio.low, 0, _MOST
        yield f"{at}.high", ratio.high, 0, _MOST
    for number, item in enumerate(measured.differences):
        yield from _bounded_interval(f"benchmark.differences[{number}]", item.difference)
    yield "benchmark.environment.cpu_busy_share", measured.environment.cpu_busy_share, 0, 1
    if (ceiling := measured.environment.ceiling) is not None:
        for key in ("gemm_gflops", "read_gb_per_s"):
            yield f"benchmark.environment.ceiling.{key}", getattr(ceiling, key), _LEAST, _MOST
    for number, clock in enumerate(measured.round_clock_mhz):
        yield f"benchmark.round_clock_mhz[{number}]", clock, 0, _MOST
    for number, stage in enumerate(report.stages):
        yield f"stages[{number}].seconds", stage.seconds, 0, _MOST
    for number, point in enumerate(report.search):
        yield f"search[{number}].size_bytes", point.size_bytes, 0, _MOST
        yield f"search[{number}].gflops", point.gflops, 0, _MOST
        yield f"search[{number}].latency_ms", point.latency_ms, 0, _MOST
        yield f"search[{number}].quality", point.quality, -_MOST, _MOST
    for name, size in report.bundle.files.items():
        yield f"bundle.files.{name:.80}", size, 0, _MOST


_SHARES = ("mrr", "recall_at_10", "accuracy", "f1", "auc")


def _bounded_labelling(
    at: str, labelling: LabelQuality
) -> Iterator[tuple[str, float | None, float, float]]:
    yield f"{at}.rows", labelling.rows, 1, _MOST
    yield f"{at}.texts", labelling.texts, 1, 2
    for key in ("majority", "truncated", "agreement"):
        yield f"{at}.{key}", getattr(labelling, key), 0, 1
    yield f"{at}.rows_per_s", labelling.rows_per_s, 0, _MOST
    for name, found in labelling.figures.items():
        yield from _bounded_interval(f"{at}.figures.{name}", found)
    yield from _bounded_interval(f"{at}.margin", labelling.margin)
    yield f"{at}.text_tokens_mean", labelling.text_tokens_mean, 0, _MOST
    yield f"{at}.longest_tokens", labelling.longest_tokens, 1, _MOST
    yield f"{at}.texts_longer", labelling.texts_longer, 0, 1
    for number, found_bin in enumerate(labelling.calibration):
        yield f"{at}.calibration[{number}].rows", found_bin.rows, 1, _MOST
        yield f"{at}.calibration[{number}].confidence", found_bin.confidence, 0, 1
        yield f"{at}.calibration[{number}].accuracy", found_bin.accuracy, 0, 1
    for layers, rows in labelling.layers_used.items():
        # a key that is no number gives a figure that cannot be
        yield f"{at}.layers_used.{layers:.20}", rows if layers.isdecimal() else -1, 1, _MOST
    for number, item in enumerate(labelling.robustness):
        for key in ("survived", "survived_low", "survived_high"):
            yield f"{at}.robustness[{number}].{key}", getattr(item, key), 0, 1
        for key in ("rows", "texts"):
            yield f"{at}.robustness[{number}].{key}", getattr(item, key), 1, _MOST


def _bounded_interval(
    at: str, interval: Interval | None
) -> Iterator[tuple[str, float | None, float, float]]:
    if interval is not None:
        for key in ("value", "low", "high"):
            yield f"{at}.{key}", getattr(interval, key), -1, 1


def imported(report: Report) -> Report:
    """The same report as another machine shows it: what was measured there is imported here."""
    engines = tuple(
        replace(
            engine,
            size=replace(engine.size, source=_seen(engine.size.source)),
            cold_start=replace(engine.cold_start, source=_seen(engine.cold_start.source)),
            memory=replace(engine.memory, source=_seen(engine.memory.source)),
            latencies=tuple(replace(x, source=_seen(x.source)) for x in engine.latencies),
            quality=engine.quality and replace(engine.quality, source=_seen(engine.quality.source)),
            labelling=engine.labelling
            and replace(engine.labelling, source=_seen(engine.labelling.source)),
            energy=engine.energy and replace(engine.energy, source=_seen(engine.energy.source)),
            operators=engine.operators
            and replace(engine.operators, source=_seen(engine.operators.source)),
        )
        for engine in report.benchmark.engines
    )
    return replace(
        report,
        benchmark=replace(report.benchmark, engines=engines),
        limits=tuple(replace(x, source=_seen(x.source)) for x in report.limits),
    )


def _seen(source: Source) -> Source:
    return "imported" if source == "measured" else source
