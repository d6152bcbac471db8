"""The report's plots of engines, training and stages, in the style of drawing.py.

Engines are told apart by colour and by marker; the page's one legend names them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from codemill.targets.drawing import HALF, INK, MARKERS, MUTED, SERIES, Drawing, bars, figure
from codemill.targets.figures import EngineResult
from codemill.targets.profile import Shape
from codemill.targets.report import Stage, TrainingPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Series",
    "front_of",
    "latency_by_tokens",
    "pareto",
    "quality_bars",
    "stage_times",
    "training_curve",
]


@dataclass(frozen=True)
class Series:
    """An engine as the plots show it: its number chooses colour and marker; 0 is the bundle."""

    label: str
    number: int
    engine: EngineResult

    @property
    def colour(self) -> str:
        """The placeholder of its CSS variable."""
        return SERIES[self.number % len(SERIES)]

    @property
    def marker(self) -> str:
        """matplotlib's name of its marker."""
        return MARKERS[self.number % len(MARKERS)]


def pareto(
    series: Sequence[Series], shape: Shape, against: Literal["size", "latency"], more: Sequence[str]
) -> Drawing | None:
    """Quality against size, or against latency at `shape`; the dashed line is the Pareto front.

    Quality is MRR, or accuracy where the engines label. `more`: what is said of the bundle besides its figures.
    """
    shown = [s for s in series if _quality(s.engine) is not None]
    if len(shown) < 2:
        return None
    name = "accuracy" if shown[0].engine.labelling else "MRR"
    x_of: Callable[[Series], float] = _size_mb if against == "size" else lambda s: _p50(s, shape)
    points = [(x_of(s), _quality(s.engine) or 0.0, s) for s in shown]
    points = [point for point in points if point[0]]
    if len(points) < 2:
        return None
    with figure(f"pareto-{against}", *HALF) as (page, svg):
        axes = page.subplots()
        front = front_of([(x, y) for x, y, _ in points])
        axes.plot(*zip(*front, strict=True), color=MUTED, linestyle=(0, (3, 3)), linewidth=1)
        for x, y, s in points:
            axes.scatter([x], [y], s=70, color=s.colour, marker=s.marker, zorder=3)
            # which another report need not have
            took = [f"{_short(ms)} ms"] if (ms := _p50(s, shape)) else []
            said = (f"{name} {y:.3f}", f"{_size_mb(s):.2f} MB", *took)
            svg.mark(axes, x, y, s.label, ", ".join(said), *(more if s.number == 0 else ()))
        axes.set_xscale("log")
        axes.margins(y=0.22)
        _plain_log(axes, [x for x, _, _ in points], "x")
        of = f"ms a {_row(shown)}, {_said(shape)} (log)"
        axes.set_xlabel("size on disk, MB (log)" if against == "size" else of)
        axes.set_ylabel(name)
    return svg


def latency_by_tokens(series: Sequence[Series], batch: int) -> Drawing | None:
    """p50 milliseconds a function by input length, at one batch size; all batch sizes have one scale."""
    every = [x.latency_ms_p50 for s in series for x in s.engine.latencies]
    with figure(f"latency-{batch}", *HALF) as (page, svg):
        axes = page.subplots()
        lengths: set[int] = set()
        for s in series:
            found = sorted((x for x in s.engine.latencies if x.batch == batch), key=_tokens)
            lengths |= {x.tokens for x in found}
            axes.plot(
                [x.tokens for x in found],
                [x.latency_ms_p50 for x in found],
                color=s.colour,
                marker=s.marker,
                markersize=6,
                linewidth=1.8,
            )
            for x in found:
                if s.number == 0:
                    _label(axes, x.tokens, x.latency_ms_p50, _short(x.latency_ms_p50), s.colour)
                said = f"{_short(x.latency_ms_p50)} ms, p90 {_short(x.latency_ms_p90)} ms"
                of = f"{x.tokens} tokens, batch {batch}"
                svg.mark(axes, x.tokens, x.latency_ms_p50, s.label, of, said)
        axes.set_yscale("log")
        axes.set_xticks(sorted(lengths))
        axes.set_xlabel(f"tokens, batch {batch}")
        axes.margins(x=0.1)
        _plain_log(axes, every, "y")
        axes.set_ylabel(f"ms a {_row(series)}, p50 (log)")
    return svg if lengths else None


def quality_bars(series: Sequence[Series]) -> Drawing | None:
    """MRR and Recall@10, an engine a bar."""
    shown = [s for s in series if s.engine.quality]
    if not shown:
        return None
    with figure("quality", 4.2, 0.9 + 0.62 * len(shown)) as (page, svg):
        axes = page.subplots()
        for row, s in enumerate(shown):
            quality = s.engine.quality
            assert quality is not None
            pair = ((quality.mrr, -0.17, 1.0, "MRR"), (quality.recall_at_10, 0.17, 0.45, "R@10"))
            for value, shift, alpha, name in pair:
                axes.barh(row + shift, value, height=0.3, color=s.colour, alpha=alpha)
                axes.annotate(
                    f"{name} {value:.3f}",
                    (value, row + shift),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    color=INK,
                    fontsize=8,
                )
        axes.set_yticks(range(len(shown)), [_wrapped(s.label) for s in shown])
        axes.set_xlim(0, 1.18)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
    return svg


def stage_times(stages: Sequence[Stage]) -> Drawing | None:
    """Seconds of each stage; those taken from the cache are pale."""
    return bars(
        "stages",
        [
            (x.name, x.seconds, _clock(x.seconds) + (", cached" if x.cached else ""), x.cached)
            for x in stages
        ],
        "seconds",
    )


def training_curve(points: Sequence[TrainingPoint]) -> Drawing | None:
    """Loss and validation quality by step, on an axis each, in panels of their own."""
    curves = [
        (name, [(p.step, value) for p in points if (value := getattr(p, key)) is not None])
        for name, key in (("loss", "loss"), ("validation quality", "quality"))
    ]
    curves = [(name, curve) for name, curve in curves if len(curve) > 1]
    if not curves:
        return None
    with figure("training", 4.2, 1.5 * len(curves) + 0.5) as (page, svg):
        panels = page.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, curve) in zip(panels, curves, strict=True):
            axes.plot(*zip(*curve, strict=True), color=SERIES[0], linewidth=1.6)
            axes.set_ylabel(name)
        panels[-1].set_xlabel("step")
    return svg


def front_of(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats both ways (less x, more y), by x."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def _plain_log(axes: Axes, values: Sequence[float], which: Literal["x", "y"]) -> None:
    """Give a logarithmic axis room around `values` and a few round ticks, written out."""
    spread = max(max(values) / min(values), 2.0) ** 0.12
    low, high = min(values) / spread / 1.1, max(values) * spread * 1.1
    decades = [10.0**power for power in range(-5, 8)]
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [step * d for d in decades for step in steps if low <= step * d <= high]
        if len(ticks) >= 3:
            break
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)
    limits = axes.set_xlim if which == "x" else axes.set_ylim
    limits(low, high)


def _label(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    axes.annotate(
        text,
        (x, y),
        xytext=(0, -13),
        textcoords="offset points",
        ha="center",
        color=colour,
        fontsize=8,
    )


def _quality(engine: EngineResult) -> float | None:
    if engine.labelling is not None:
        return engine.labelling.accuracy
    return engine.quality.mrr if engine.quality else None


def _row(series: Sequence[Series]) -> str:
    """What one timed row is."""
    pairs = any(s.engine.labelling and s.engine.labelling.texts == 2 for s in series)
    return "pair" if pairs else "function"


def _size_mb(s: Series) -> float:
    return s.engine.size.size_bytes / 1e6


def _p50(s: Series, shape: Shape) -> float:
    for x in s.engine.latencies:
        if (x.tokens, x.batch) == (shape.tokens, shape.batch):
            return x.latency_ms_p50
    return 0.0


def _tokens(latency: Any) -> int:
    return int(latency.tokens)


def _said(shape: Shape) -> str:
    return f"{shape.tokens} tokens, batch {shape.batch}"


def _short(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 1 else f"{ms:.2f}"


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def _wrapped(label: str) -> str:
    return "\n".join(textwrap.wrap(label, 18))
