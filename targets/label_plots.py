"""Drawings of a classifier's quality: how far its confidence can be believed, and where rows leave it.

The house style of a drawing is drawing.py's.
"""

from __future__ import annotations

from collections.abc import Sequence

from codemill.targets.drawing import INK, MUTED, Drawing, figure
from codemill.targets.plots import Series

__all__ = ["calibration", "layers_used"]


def calibration(series: Sequence[Series]) -> Drawing | None:
    """Share of right decisions by confidence, a dot a bin and the larger the more rows; on the line is honest."""
    shown = [(s, s.engine.labelling) for s in series if s.engine.labelling]
    if not any(quality.calibration for _, quality in shown):
        return None
    least = min(x.confidence for _, quality in shown for x in quality.calibration)
    with figure("calibration", 4.2, 3.4) as (page, svg):
        axes = page.subplots()
        axes.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (3, 3)), linewidth=1)
        # the bundle last: on top
        for s, quality in reversed(shown):
            bins = quality.calibration
            most = max((x.rows for x in bins), default=1)
            at = [x.confidence for x in bins], [x.accuracy for x in bins]
            axes.plot(*at, color=s.colour, linewidth=1.2, alpha=0.8)
            dots = [12 + 90 * x.rows / most for x in bins]
            axes.scatter(*at, s=dots, color=s.colour, marker=s.marker, alpha=0.9, zorder=3)
        axes.set_xlim(max(0.0, least - 0.05), 1.03)
        axes.set_ylim(-0.03, 1.05)
        axes.set_xlabel("confidence (dots: rows)")
        axes.set_ylabel("share of right decisions")
    return svg


def layers_used(series: Sequence[Series], exits: bool) -> Drawing | None:
    """Rows by how many layers they went through; None where no engine has early exits. `exits`: the bundle has."""
    shown = [(s, s.engine.labelling) for s in series if s.engine.labelling]
    shown = [
        (s, quality)
        for s, quality in shown
        if len(quality.layers_used) > 1 or (exits and s.number == 0)
    ]
    if not shown:
        return None
    with figure("layers", 4.2, 0.9 + 1.5 * len(shown)) as (page, svg):
        panels = page.subplots(len(shown), 1, squeeze=False)[:, 0]
        for axes, (s, quality) in zip(panels, shown, strict=True):
            counts = sorted((int(layers), rows) for layers, rows in quality.layers_used.items())
            total = sum(rows for _, rows in counts)
            mean = sum(layers * rows for layers, rows in counts) / total
            layers, shares = zip(*((n, rows / total) for n, rows in counts), strict=True)
            axes.bar(layers, shares, width=0.6, color=s.colour)
            for n, share in zip(layers, shares, strict=True):
                axes.annotate(
                    f"{share:.0%}",
                    (n, share),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="center",
                    color=INK,
                    fontsize=8,
                )
            axes.set_title(f"{s.label}: {mean:.2f} layers a row", loc="left", fontsize=9, color=INK)
            axes.set_xticks(layers)
            axes.set_ylim(0, max(shares) * 1.2)
            axes.set_ylabel("share of rows")
            axes.grid(axis="x", visible=False)
        panels[-1].set_xlabel("layers used")
    return svg
