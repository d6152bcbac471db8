"""report.html: one file that opens anywhere, from one report or from several machines' reports.

No script, no request to anywhere: the style and the plots are inside. What is said about a figure
is decided in tables.py, the layout in report.html.j2.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from codemill.errors import InputError
from codemill.runtime.engines import WEB
from codemill.targets.analysis_page import analysis_section
from codemill.targets.cost_section import cost_section
from codemill.targets.drawing import GLYPHS, Drawing
from codemill.targets.environment import machine_id
from codemill.targets.figures import EngineResult, Quantity, Source
from codemill.targets.label_tables import label_section
from codemill.targets.profile import Shape
from codemill.targets.report import Report, imported
from codemill.targets.search_section import search_section
from codemill.targets.tables import (
    Cell,
    Row,
    amount,
    busy_said,
    cards,
    cold_memory_cell,
    engine_rows,
    environment_rows,
    headline_shape,
    kept,
    label_cell,
    latency_cell,
    limit_value,
    quality_cell,
    ratio_of,
    size_cell,
    start_cell,
    times,
    words,
)
from codemill.targets.template import template_named
from codemill.targets.variants import variant_rows

__all__ = ["render"]

_AGAINST: tuple[Literal["size", "latency"], ...] = ("size", "latency")
_MOST_SEARCHES = 2
"""So many reports on a page each have their search drawn."""


def render(reports: Sequence[Report], out: str | os.PathLike[str]) -> Path:
    """Write the page for `reports` to `out`: one in full, or several side by side, then in full.

    Figures of a report that another machine made are marked imported. Raises InputError for no
    report, MachineError when the `bench` extra is missing.
    """
    if not reports:
        raise InputError("a page needs at least one report")
    here = machine_id()
    shown = [r if r.benchmark.environment.machine_id == here else imported(r) for r in reports]
    drawn = _searches_drawn(shown)
    page = template_named("report.html.j2").render(
        title=shown[0].title if len(shown) == 1 else f"{shown[0].title}: {len(shown)} reports",
        comparison=_side_by_side(shown) if len(shown) > 1 else None,
        sections=[
            _section(report, number, draws_search=number in drawn)
            for number, report in enumerate(shown)
        ],
    )
    path = Path(out)
    path.write_text(page, encoding="utf-8")
    return path


def _searches_drawn(reports: Sequence[Report]) -> list[int]:
    """The reports whose search is drawn and listed: of more than two reports, the first that has one."""
    searched = [number for number, report in enumerate(reports) if report.search]
    return searched if len(reports) <= _MOST_SEARCHES else searched[:1]


def _section(report: Report, number: int, *, draws_search: bool) -> dict[str, Any]:
    """One report, as the template takes it."""
    from codemill.targets import label_plots, plots

    prefix = f"r{number}"
    environment = report.benchmark.environment
    engines = _ordered(report)
    students = [e for e in engines if e.name == report.bundle_engine]
    others = [e for e in engines if e.name != report.bundle_engine]
    series = [plots.Series(e.name, i, e) for i, e in enumerate([*students, *others])]
    shape = headline_shape(report.student)
    more = [p.label for p in report.search if p.chosen]
    batches = sorted({x.batch for e in engines for x in e.latencies})
    drawn: list[tuple[str, Drawing | None]] = [
        (
            "Quality against size (dashed: the Pareto front)",
            plots.pareto(series, shape, "size", more),
        ),
        (
            "Quality against latency (dashed: the Pareto front)",
            plots.pareto(series, shape, "latency", more),
        ),
        *(
            (f"Latency by length, batch {batch}", plots.latency_by_tokens(series, batch))
            for batch in batches
        ),
        ("Quality", plots.quality_bars(series)),
        ("Calibration (dashed: as sure as right)", label_plots.calibration(series)),
        ("Layers used", label_plots.layers_used(series, bool(report.bundle.exits))),
        ("Training", plots.training_curve(report.training)),
        ("Where the time went", plots.stage_times(report.stages)),
    ]
    return {
        "report": report,
        "machine": _machine_name(report),
        "browser_variants": [e.variant for e in _in_browsers(report) if e.variant],
        "is_imported": report.student.size.source == "imported",
        "cards": list(cards(report, shape)),
        "warnings": list(_warnings(report)),
        "limits": [(x, amount(x.name, x.limit), limit_value(x)) for x in report.limits],
        "engines": engines,
        "labels": label_section(report),
        "analysis": report.analysis and analysis_section(report.analysis, prefix),
        "rows": list(engine_rows(report, engines)),
        "legend": [
            (s.label, s.engine.role, s.number % 8, GLYPHS[s.number % len(GLYPHS)]) for s in series
        ],
        # ids stay apart when several reports share a page
        "plots": [("half", name, drawing.named(prefix)) for name, drawing in drawn if drawing],
        "cost": cost_section(
            report.bundle,
            _own_tokens(report, shape),
            report.student.precision,
            report.student.operators,
            prefix,
        ),
        "search": search_section(report.search, prefix),
        "draws_search": draws_search,
        "examples": report.student.quality.examples if report.student.quality else (),
        "environment": list(_environment_rows(report)),
        "busy": busy_said(environment, bool(report.benchmark.comparisons)),
        "variants": variant_rows(report.bundle.variants, _measured(report)),
        "doubts": report.benchmark.doubts,
        "recipe": _pretty(report.recipe),
        "again": _bench_command(report),
        "evaluation_sha256": _evaluation_sha256(report.student),
        "provenance": _pretty(report.provenance),
        "architecture": _pretty(report.bundle.architecture or None),
        "shape": shape,
        "seconds": f"{report.benchmark.seconds:,.0f}",
        "order": " | ".join(" → ".join(turn) for turn in report.benchmark.order),
    }


def _bench_command(report: Report) -> str:
    """What measures the bundle as it was measured; the report does not know its folder."""
    command = ["compress", "bench", "BUNDLE"]
    if report.bundle.variant:
        command += ["--variant", report.bundle.variant]
    if report.student.threads:
        command += ["--threads", str(report.student.threads)]
    if report.target:
        command += ["--target", report.target]
    for engine in _in_browsers(report):
        command += ["--browser", "PAGES"]
        if engine.variant not in (None, report.bundle.variant):
            command += ["--browser-variant", str(engine.variant)]
    return shlex.join([*command, "--rounds", str(report.benchmark.rounds), "--out", "FOLDER"])


def _in_browsers(report: Report) -> list[EngineResult]:
    """The engine that ran the bundle in a browser, where one did."""
    return [engine for engine in report.benchmark.engines if engine.provider == WEB]


def _evaluation_sha256(engine: EngineResult) -> str | None:
    asked = engine.quality or engine.labelling
    return asked.evaluation_sha256 if asked else None


def _measured(report: Report) -> list[str]:
    """The bundle's variants that the report has figures of."""
    found = (report.bundle.variant, *(engine.variant for engine in _in_browsers(report)))
    return [name for name in found if name]


def _own_tokens(report: Report, shape: Shape) -> float:
    """What the bundle's tokenizer makes of the texts of a shape."""
    for x in report.student.latencies:
        if (x.tokens, x.batch) == (shape.tokens, shape.batch) and x.engine_tokens:
            return x.engine_tokens
    return shape.tokens


def _ordered(report: Report) -> list[EngineResult]:
    """Engines as columns: what the bundle is compared with first, the bundle last."""
    return sorted(
        report.benchmark.engines,
        key=lambda e: (e.name == report.bundle_engine, e.name != report.baseline),
    )


def _warnings(report: Report) -> Iterator[str]:
    """What a reader should not have to find in the table."""
    for x in report.limits:
        if x.met is False:
            found = limit_value(x)
            note = f" ({x.note})" if x.note else ""
            allowed = f"{x.bound} {amount(x.name, x.limit)}"
            yield f"Limit not met: {words(x.name)}{note} is {found}, allowed is {allowed}."
    for c in report.benchmark.comparisons:
        mine = (c.engine, c.baseline) == (report.bundle_engine, report.baseline)
        if mine and c.quantity == "latency" and c.ratio.below_parity:
            yield (
                f"The bundle is slower than {c.baseline} at {c.tokens} tokens, batch {c.batch}: "
                f"{times(c.ratio)} its speed."
            )


def _side_by_side(reports: Sequence[Report]) -> dict[str, Any]:
    """The bundles of several reports, a column each."""
    from codemill.targets import plots

    shape = headline_shape(reports[0].student)

    def row(name: str, cell: Callable[[Report], Cell | None]) -> Row:
        return Row(name, tuple(cell(report) for report in reports))

    def compared(report: Report, quantity: Quantity) -> Cell | None:
        at = shape if quantity == "latency" else None
        ratio = ratio_of(report, report.student, quantity, at)
        if ratio is None:
            return None
        share = quantity in ("mrr", "accuracy")
        return Cell(kept(ratio) if share else times(ratio), source=_source(report))

    def scored(report: Report) -> Cell | None:
        return label_cell(report.student, "accuracy", None)

    at = f"{shape.tokens} tokens, batch {shape.batch}"
    labels = [report for report in reports if report.student.labelling]
    word = " or pair" if labels else ""
    quality = []
    if len(labels) < len(reports):
        quality += [
            row("MRR", lambda r: quality_cell(r.student, "mrr", None)),
            row("MRR against the baseline", lambda r: compared(r, "mrr")),
        ]
    if labels:
        quality += [
            row("accuracy", scored),
            row("accuracy against the baseline", lambda r: compared(r, "accuracy")),
        ]

    def doubts(report: Report) -> Cell | None:
        busy = busy_said(report.benchmark.environment) is not None
        found = len(report.benchmark.doubts) + busy
        return Cell(f"{found}, below") if found else None

    names = [f"{number}. {report.title}" for number, report in enumerate(reports, 1)]
    series = [
        plots.Series(names[number], number, report.student) for number, report in enumerate(reports)
    ]
    drawn = [
        (
            f"Quality against {what} (dashed: the Pareto front)",
            plots.pareto(series, shape, what, ()),
        )
        for what in _AGAINST
    ]
    return {
        "columns": [
            (name, list(_column(report))) for name, report in zip(names, reports, strict=True)
        ],
        "legend": [(s.label, s.number % 8, GLYPHS[s.number % len(GLYPHS)]) for s in series],
        "plots": [("half", name, drawing.named("all")) for name, drawing in drawn if drawing],
        "rows": [
            row("baseline", lambda r: Cell(r.baseline) if r.baseline else None),
            row("size on disk", lambda r: size_cell(r.student)),
            *quality,
            row(f"a function{word}, {at}", lambda r: latency_cell(r.student, shape)),
            row("speed against the baseline", lambda r: compared(r, "latency")),
            row("cold start", lambda r: start_cell(r.student)),
            row("peak memory, first answer", lambda r: cold_memory_cell(r.student)),
            row("reasons to doubt its times", doubts),
        ],
    }


def _column(report: Report) -> Iterator[str]:
    """What tells a report from another of the same bundle."""
    yield report.bundle.variant or report.bundle_engine
    yield _machine_name(report)
    threads = report.student.threads
    said = f", {threads} thread{'s' if threads > 1 else ''}" if threads else ""
    yield f"{report.created_at[:16].replace('T', ' ')}{said}"


def _source(report: Report) -> Source:
    return report.student.size.source


def _environment_rows(report: Report) -> Iterator[tuple[str, str]]:
    yield from environment_rows(report.benchmark.environment)
    for engine in report.benchmark.engines:
        how = [engine.provider, engine.precision, engine.variant and f"variant {engine.variant}"]
        if engine.threads:
            how.append(f"{engine.threads} thread" + ("s" if engine.threads > 1 else ""))
        how += [f"{n} {v}" for n, v in engine.packages.items() if n in ("torch", "transformers")]
        yield f"engine {engine.name}", ", ".join(x for x in how if x) or engine.role
    if clocks := report.benchmark.round_clock_mhz:
        yield "clock, round by round", ", ".join(f"{clock:,.0f}" for clock in clocks) + " MHz"


def _machine_name(report: Report) -> str:
    machine = report.benchmark.environment.machine
    return f"{machine.get('cpu')}, {machine.get('physical_cores')} cores"


def _pretty(data: object) -> str | None:
    return None if data is None else json.dumps(data, indent=2, ensure_ascii=False, default=str)
