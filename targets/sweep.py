"""The table of `compress telly`: fine-tuning with more and more layers frozen (Telly, 2304.05216), also as a page.

What a row is measured with is compress/telly.py's. The page is one self-contained file, in the style of report.html.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codemill.runtime.atomic import write_atomically
from codemill.targets.drawing import MUTED, SERIES, Drawing, figure
from codemill.targets.environment import Environment
from codemill.targets.template import template_named

__all__ = ["Sweep", "SweepRow", "Validation", "recommended", "reference", "render_sweep", "said"]

_SCHEMA = 1


@dataclass(frozen=True)
class Validation:
    """A validation while training: after how many seconds of training, and what it said."""

    training_s: float
    metric: float


@dataclass(frozen=True)
class SweepRow:
    """One whole fine-tuning. frozen_layers: None where nothing is frozen, 0 for the embeddings alone.

    training_s: all of it, what is kept of frozen layers (`frozen_states_s`) included, validations not.
    epoch_s: of it an epoch. converged_s: of it up to the best validation. Peaks are of a process of the row's own;
    before_training_rss_bytes is what that held when training began.
    """

    frozen_layers: int | None
    metric: float
    trainable_parameters: int
    parameters: int
    epoch_s: float
    converged_s: float
    training_s: float
    frozen_states_s: float
    frozen_states_bytes: int
    peak_rss_bytes: int
    before_training_rss_bytes: int
    validations: tuple[Validation, ...]


@dataclass(frozen=True)
class Sweep:
    """The rows, and what they were measured of. freeze_loss: the share of quality that a recommendation may lose."""

    name: str
    task: str
    model: str
    metric: str
    original_metric: float | None
    epochs: float
    cache: str
    freeze_loss: float
    rows: tuple[SweepRow, ...]
    environment: Environment
    schema: int = _SCHEMA


def reference(sweep: Sweep) -> SweepRow:
    """Full fine-tuning, or, where that was not asked for, the row with the least frozen."""
    return min(sweep.rows, key=lambda row: -1 if row.frozen_layers is None else row.frozen_layers)


def recommended(sweep: Sweep) -> SweepRow:
    """The row with the most frozen layers that lost no more than `freeze_loss` of the reference's metric."""
    least = reference(sweep).metric * (1 - sweep.freeze_loss)
    within = [row for row in sweep.rows if row.metric >= least]
    return max(within, key=lambda row: -1 if row.frozen_layers is None else row.frozen_layers)


def said(sweep: Sweep) -> list[tuple[str, ...]]:
    """The table for people: a heading row, then a row each; shares are of the reference."""
    full = reference(sweep)
    rows: list[tuple[str, ...]] = [
        ("frozen", sweep.metric, "trainable", "s an epoch", "s to the best", "s in all", "peak MB")
    ]
    for row in sweep.rows:
        rows.append(
            (
                _named(row),
                f"{row.metric:.4f}",
                f"{row.trainable_parameters / 1e6:.2f} M ({row.trainable_parameters / row.parameters:.0%})",
                f"{row.epoch_s:.1f}{_share(row.epoch_s, full.epoch_s)}",
                f"{row.converged_s:.1f}{_share(row.converged_s, full.converged_s)}",
                f"{row.training_s:.1f}{_share(row.training_s, full.training_s)}",
                f"{row.peak_rss_bytes / 1e6:.0f}{_share(row.peak_rss_bytes, full.peak_rss_bytes)}",
            )
        )
    return rows


def _named(row: SweepRow) -> str:
    return "none" if row.frozen_layers is None else str(row.frozen_layers)


def _share(value: float, whole: float) -> str:
    return f" ({value / whole:.0%})" if whole else ""


def render_sweep(sweep: Sweep, out: str | os.PathLike[str]) -> Path:
    """Write the page to `out`. Raises MachineError where the `bench` extra is missing."""
    heading, *rows = said(sweep)
    chosen = recommended(sweep)
    page = template_named("sweep.html.j2").render(
        title=f"{sweep.name}: frozen layers",
        sweep=sweep,
        plot=_plot(sweep),
        heading=heading,
        rows=rows,
        chosen=_named(chosen),
        full=_named(reference(sweep)),
        cards=_cards(sweep, chosen),
        machine=sweep.environment.machine,
    )
    path = Path(out)
    write_atomically(path, lambda file: file.write(page.encode()))
    return path


def _cards(sweep: Sweep, chosen: SweepRow) -> list[tuple[str, str, str]]:
    full = reference(sweep)
    of = f"of {full.metric:.4f}, {_named(full)} frozen"
    return [
        ("recommended to freeze", _named(chosen), f"{sweep.freeze_loss:.1%} may be lost"),
        (f"{sweep.metric} there", f"{chosen.metric:.4f}", of),
        (
            "of the time in all",
            f"{chosen.training_s / full.training_s:.0%}",
            f"{chosen.training_s:.0f} s",
        ),
        (
            "of the peak memory",
            f"{chosen.peak_rss_bytes / full.peak_rss_bytes:.0%}",
            f"{chosen.peak_rss_bytes / 1e6:.0f} MB",
        ),
    ]


def _plot(sweep: Sweep) -> Drawing:
    """Metric, time and memory by frozen layers; dashed: the reference."""
    full, names = reference(sweep), [_named(row) for row in sweep.rows]
    panels: Sequence[tuple[str, list[float], float]] = (
        (sweep.metric, [row.metric for row in sweep.rows], full.metric),
        ("seconds in all", [row.training_s for row in sweep.rows], full.training_s),
        ("peak MB", [row.peak_rss_bytes / 1e6 for row in sweep.rows], full.peak_rss_bytes / 1e6),
    )
    with figure("telly", 8.6, 3.1) as (page, svg):
        places = list(range(len(names)))
        every: Any = page.subplots(1, len(panels))
        for axes, (label, values, whole) in zip(every, panels, strict=True):
            axes.axhline(whole, color=MUTED, linestyle=(0, (3, 3)), linewidth=1)
            axes.plot(places, values, color=SERIES[0], marker="o", markersize=5, linewidth=1.6)
            axes.set_title(label, loc="left", fontsize=9)
            axes.set_xticks(places, names)
            axes.set_xlabel("layers frozen")
        kept = [row.frozen_states_s for row in sweep.rows]
        if any(kept):
            every[1].bar(places, kept, width=0.5, color=SERIES[1], alpha=0.6)
    return svg
