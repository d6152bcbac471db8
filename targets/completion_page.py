"""report.html of bundles that complete, one or several. The house style is page.py's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codemill.targets.completion_benchmark import CompletionReport, CompletionResult
from codemill.targets.cost_section import cost_section
from codemill.targets.drawing import INK, MARKERS, MUTED, SERIES, Drawing, figure
from codemill.targets.plots import stage_times, training_curve
from codemill.targets.tables import amount, busy_said, environment_rows, limit_value
from codemill.targets.template import template_named

if TYPE_CHECKING:
    from codemill.targets.resampling import Interval

__all__ = ["completion_rows", "render_completion"]

_CONTEXT = 128
"""Tokens that a token attends to where the costs of the model's parts are shown."""

_Cell = tuple[str, str | None]
_Row = tuple[str, list[_Cell]]


def render_completion(reports: Sequence[CompletionReport], out: Path) -> Path:
    """Write the page to `out`: one report in full, or several side by side, then in full.

    Raises MachineError when the `bench` extra is missing.
    """
    title = reports[0].title
    page = template_named("completion.html.j2").render(
        title=title if len(reports) == 1 else f"{title}: {len(reports)} reports",
        comparison=_side_by_side(reports) if len(reports) > 1 else None,
        sections=[_section(report, f"r{number}") for number, report in enumerate(reports)],
    )
    out.write_text(page, encoding="utf-8")
    return out


def _section(report: CompletionReport, prefix: str) -> dict[str, Any]:
    """One report, as the template takes it."""
    drawn = [
        ("Loss against speed, on the lines that thresholds are chosen by", _curve(report)),
        ("Layers a token takes", _layers(report)),
        ("Training", training_curve(report.training)),
        ("Where the time went", stage_times(report.stages)),
    ]
    own = report.engine(report.bundle_engine)
    others = [item for item in report.engines if item is not own]
    return {
        "report": report,
        "places": f"{own.figures.places:,}",
        "machine": _machine_of(report),
        "busy": busy_said(report.environment),
        "cards": _cards(report),
        "limits": [(x, amount(x.name, x.limit), limit_value(x)) for x in report.limits],
        "groups": _groups(report),
        "plots": [("half", title, drawing.named(prefix)) for title, drawing in drawn if drawing],
        "cost": cost_section(
            report.bundle, _CONTEXT, (report.bundle.variant or "").rsplit("-", 1)[-1], None, prefix
        ),
        "examples": [
            (
                example,
                [(x.name, x.examples[n].text) for x in others if len(x.examples) > n],
            )
            for n, example in enumerate(own.examples)
        ],
        "facts": list(_facts(report)),
        "recipe": json.dumps(report.recipe, indent=1) if report.recipe else None,
    }


def _side_by_side(reports: Sequence[CompletionReport]) -> dict[str, Any]:
    """The bundles of several reports, a column each."""
    parts = [[(_, dict(rows)) for _, rows in _groups(report)] for report in reports]
    own = [[item.name for item in report.engines].index(report.bundle_engine) for report in reports]
    groups = []
    for number, (group, rows) in enumerate(_groups(reports[0])):
        cells = [
            (
                name,
                [_cell_of(part[number][1], name, at) for part, at in zip(parts, own, strict=True)],
            )
            for name, _ in rows
        ]
        groups.append((group, cells))
    return {
        "columns": [
            (report.title, report.bundle.variant or report.bundle_engine, _machine_of(report))
            for report in reports
        ],
        "baselines": [report.baseline for report in reports],
        "groups": groups,
    }


def _cell_of(rows: Mapping[str, list[_Cell]], name: str, engine: int) -> _Cell:
    return rows[name][engine] if name in rows else ("–", None)


def _machine_of(report: CompletionReport) -> str:
    machine = report.environment.machine
    return f"{machine.get('cpu', 'unknown processor')}, {machine.get('physical_cores')} cores"


def completion_rows(report: CompletionReport) -> list[tuple[str, ...]]:
    """The headline figures of each engine, for a terminal."""
    rows: list[tuple[str, ...]] = [("", *(item.name for item in report.engines))]
    for _, part in _groups(report):
        for name, cells in part:
            rows.append(
                (name, *(main if small is None else f"{main} {small}" for main, small in cells))
            )
    return rows


def _cards(report: CompletionReport) -> list[tuple[str, str, str]]:
    own = report.engine(report.bundle_engine)
    figures = own.figures
    cards = [
        ("size on disk", f"{own.size_bytes / 1e6:.1f} MB", report.bundle.variant or ""),
        (
            "a line completed, p50",
            f"{figures.completion_ms_p50:.1f} ms",
            f"p90 {figures.completion_ms_p90:.1f} ms",
        ),
        ("exact match", f"{figures.exact_match:.1%}", f"ROUGE-L {figures.rouge_l:.3f}"),
    ]
    if own.speedup is not None:
        times, lost = own.speedup, own.exact_match_loss
        cards.insert(1, ("as fast as the baseline", f"{times.value:.2f}x", _range(times, "{:.2f}")))
        if lost is not None:
            cards.append(("exact match lost", f"{lost.value:.1%}", _range(lost, "{:.1%}")))
    return cards


def _range(interval: Interval, form: str) -> str:
    if interval.low is None or interval.high is None:
        return ""
    return f"[{form.format(interval.low)}, {form.format(interval.high)}]"


def _groups(report: CompletionReport) -> list[tuple[str, list[_Row]]]:
    def row(name: str, of: Callable[[CompletionResult], _Cell]) -> _Row:
        return name, [of(item) for item in report.engines]

    def relative(
        of: Callable[[CompletionResult], Interval | None], form: str
    ) -> Callable[[CompletionResult], _Cell]:
        def cell(item: CompletionResult) -> _Cell:
            found = of(item)
            return ("–", None) if found is None else (form.format(found.value), _range(found, form))

        return cell

    speed = [
        row("a line, mean", lambda x: (f"{x.figures.completion_ms_mean:.1f} ms", None)),
        row("a line, p50", lambda x: (f"{x.figures.completion_ms_p50:.1f} ms", None)),
        row("a line, p90", lambda x: (f"{x.figures.completion_ms_p90:.1f} ms", None)),
        row("a line, p99", lambda x: (f"{x.figures.completion_ms_p99:.1f} ms", None)),
        row("first piece, p50", lambda x: (f"{x.figures.first_ms_p50:.1f} ms", None)),
        row("as fast as the baseline", relative(lambda x: x.speedup, "{:.2f}")),
        row("tokens a second, completing", lambda x: (f"{x.figures.tokens_per_s:.0f}", None)),
        row("tokens a second, decode", lambda x: (f"{x.decode_tokens_per_s:.0f}", None)),
        row("tokens a second, prefill", lambda x: (f"{x.prefill_tokens_per_s:.0f}", None)),
    ]
    quality = [
        row("exact match", lambda x: (f"{x.figures.exact_match:.1%}", None)),
        row("exact match lost", relative(lambda x: x.exact_match_loss, "{:.1%}")),
        row("edit similarity", lambda x: (f"{x.figures.edit_similarity:.3f}", None)),
        row("ROUGE-L", lambda x: (f"{x.figures.rouge_l:.3f}", None)),
        row("ROUGE-L lost", relative(lambda x: x.rouge_l_loss, "{:.1%}")),
        # of each engine's own tokens, which may be others than another's
        row(
            "next token right",
            lambda x: (
                "–" if x.next_token_accuracy is None else f"{x.next_token_accuracy:.1%}",
                None,
            ),
        ),
        row("BLEU", lambda x: (f"{x.figures.bleu:.3f}", None)),
    ]
    if any(item.pass_at_1 is not None for item in report.engines):
        quality.append(row("pass@1, HumanEval", relative(lambda x: x.pass_at_1, "{:.1%}")))
    tokens = [
        row("tokens a line", lambda x: (f"{x.figures.tokens_mean:.1f}", None)),
        row("layers a token", lambda x: (f"{x.figures.layers_mean:.1f}", None)),
        row("drafted", lambda x: (f"{x.figures.drafted:.1%}", None)),
        row("given up", lambda x: (f"{x.figures.stopped:.1%}", None)),
    ]
    rest = [
        row("size on disk", lambda x: (f"{x.size_bytes / 1e6:.1f} MB", None)),
        row("peak memory", lambda x: (f"{x.peak_rss_bytes / 1e6:.0f} MB", None)),
        row("cold start", lambda x: (f"{x.cold_start_ms / 1e3:.2f} s", None)),
    ]
    return [("Speed", speed), ("Quality", quality), ("Tokens", tokens), ("Cost", rest)]


def _curve(report: CompletionReport) -> Drawing | None:
    if not report.curve:
        return None
    with figure("curve", 4.2, 3.0) as (page, svg):
        axes = page.subplots()
        points = sorted(report.curve, key=lambda item: item.speedup)
        xs, ys = [item.speedup for item in points], [100 * item.loss for item in points]
        axes.plot(xs, ys, color=SERIES[0], linewidth=1.4)
        for item in points:
            axes.scatter(
                [item.speedup],
                [100 * item.loss],
                s=70 if item.chosen else 22,
                color=SERIES[0],
                marker=MARKERS[3] if item.chosen else MARKERS[0],
                zorder=3,
            )
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.set_xlabel("times as fast as without exits (diamond: ships)")
        axes.set_ylabel("loss, % of full depth")
    return svg


def _layers(report: CompletionReport) -> Drawing | None:
    shown = [item for item in report.engines if len(item.figures.layers) > 1]
    if not shown:
        return None
    own = shown[0]
    with figure("layers", 4.2, 3.0) as (page, svg):
        axes = page.subplots()
        names = list(own.figures.layers)
        shares = [100 * own.figures.layers[name] for name in names]
        bars = axes.bar(names, shares, color=SERIES[0], width=0.6)
        axes.bar_label(bars, fmt="%.0f %%", color=INK, fontsize=8)
        axes.set_xlabel("layers")
        axes.set_ylabel("% of tokens")
        axes.margins(y=0.15)
    return svg


def _facts(report: CompletionReport) -> Iterator[tuple[str, str]]:
    # of a bundle from elsewhere none of this was checked
    shape, provenance = report.bundle.architecture, report.provenance or {}
    size = f"{shape.get('layers')} layers x {shape.get('hidden_size')}"
    yield (
        "architecture",
        ", ".join(map(str, (shape.get("family"), size, f"{shape.get('vocab_size')} tokens"))),
    )
    teacher, corpus = provenance.get("teacher"), provenance.get("corpus")
    if isinstance(teacher, dict) and "model" in teacher:
        yield "made from", str(teacher["model"])
    if isinstance(corpus, dict) and {"pieces", "files"} <= corpus.keys():
        yield "learned from", f"{corpus['pieces']} pieces of {corpus['files']} files"
    yield from environment_rows(report.environment)
    how = (
        "compress run with the recipe below, saved as recipe.yaml (JSON is YAML)"
        if report.recipe
        else "compress bench with this bundle"
    )
    yield "reproduce", how
