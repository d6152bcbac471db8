"""The report's plots as inline SVG, drawn by matplotlib in the page's own colours and font.

Colours are placeholders that become CSS variables, so that one drawing serves light and dark; text
stays text. Engines are told apart by colour and by marker; the page's one legend names them.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from codemill.errors import MachineError
from codemill.targets.figures import EngineResult
from codemill.targets.profile import Shape
from codemill.targets.report import SearchPoint, Stage, TrainingPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "GLYPHS",
    "Series",
    "figure",
    "latency_by_tokens",
    "pareto",
    "quality_bars",
    "search_points",
    "stage_times",
    "training_curve",
    "with_ids",
]

# Placeholder colour -> CSS variable; nothing else in a drawing uses these near-black values.
INK, MUTED, LINE = "#010203", "#010204", "#010205"
SERIES = tuple(f"#0102{16 + i:02x}" for i in range(8))
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line"} | {
    colour: f"--series-{i}" for i, colour in enumerate(SERIES)
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
# the same shapes as text, for the page's legend
GLYPHS = ("●", "■", "▲", "◆", "▼", "✚", "✖", "⬢")


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


def with_ids(svg: str, prefix: str) -> str:
    """The drawing with `prefix` before its ids and the references to them."""
    return re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)


def pareto(series: Sequence[Series], shape: Shape) -> str | None:
    """Quality against size, and against latency at `shape`; the dashed line is the Pareto front.

    Quality is MRR, or accuracy where the engines label.
    """
    shown = [s for s in series if _quality(s.engine) is not None]
    if len(shown) < 2:
        return None
    with figure("pareto", 8.6, 3.3) as (page, svg):
        left, right = page.subplots(1, 2, sharey=True)
        for axes, x_of, label in (
            (left, _size_mb, "size on disk, MB (log)"),
            (right, lambda s: _p50(s, shape), f"ms a {_row(shown)}, {_said(shape)} (log)"),
        ):
            points = [(x_of(s), _quality(s.engine) or 0.0, s) for s in shown]
            points = [point for point in points if point[0]]
            front = _front([(x, y) for x, y, _ in points])
            axes.plot(*zip(*front, strict=True), color=MUTED, linestyle=(0, (3, 3)), linewidth=1)
            for x, y, s in points:
                axes.scatter([x], [y], s=70, color=s.colour, marker=s.marker, zorder=3)
            axes.set_xscale("log")
            axes.margins(y=0.22)
            _plain_log(axes, [x for x, _, _ in points], "x")
            axes.set_xlabel(label)
        left.set_ylabel("accuracy" if shown[0].engine.labelling else "MRR")
    return svg.text


def latency_by_tokens(series: Sequence[Series]) -> str | None:
    """p50 milliseconds a function by input length, a panel for each batch size."""
    batches = sorted({x.batch for s in series for x in s.engine.latencies})
    if not batches:
        return None
    with figure("latency", 8.6, 3.3) as (page, svg):
        panels = page.subplots(1, len(batches), sharey=True, squeeze=False)[0]
        for axes, batch in zip(panels, batches, strict=True):
            lengths: set[int] = set()
            for s in series:
                found = sorted((x for x in s.engine.latencies if x.batch == batch), key=_tokens)
                lengths |= {x.tokens for x in found}
                ms = [x.latency_ms_p50 for x in found]
                axes.plot(
                    [x.tokens for x in found],
                    ms,
                    color=s.colour,
                    marker=s.marker,
                    markersize=6,
                    linewidth=1.8,
                )
                if s.number == 0:
                    for x in found:
                        _label(axes, x.tokens, x.latency_ms_p50, _short(x.latency_ms_p50), s.colour)
            axes.set_yscale("log")
            axes.set_xticks(sorted(lengths))
            axes.set_xlabel(f"tokens, batch {batch}")
            axes.margins(x=0.1)
        every = [x.latency_ms_p50 for s in series for x in s.engine.latencies]
        _plain_log(panels[0], every, "y")
        panels[0].set_ylabel(f"ms a {_row(series)}, p50 (log)")
    return svg.text


def quality_bars(series: Sequence[Series]) -> str | None:
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
    return svg.text


def stage_times(stages: Sequence[Stage]) -> str | None:
    """Seconds of each stage; those taken from the cache are pale."""
    if not stages:
        return None
    with figure("stages", 4.2, 0.8 + 0.3 * len(stages)) as (page, svg):
        axes = page.subplots()
        longest = max(stage.seconds for stage in stages)
        for row, stage in enumerate(stages):
            alpha = 0.4 if stage.cached else 1.0
            axes.barh(row, stage.seconds, height=0.6, color=SERIES[0], alpha=alpha)
            axes.annotate(
                _clock(stage.seconds) + (", cached" if stage.cached else ""),
                (stage.seconds, row),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                color=INK,
                fontsize=8,
            )
        axes.set_yticks(range(len(stages)), [stage.name for stage in stages])
        axes.set_xlim(0, max(longest, 1e-9) * 1.35)
        axes.set_xlabel("seconds")
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
    return svg.text


def training_curve(points: Sequence[TrainingPoint]) -> str | None:
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
    return svg.text


def search_points(points: Sequence[SearchPoint]) -> str | None:
    """The architectures looked at, in the two measures that matter most; the large dot is the chosen one.

    A Pareto front: estimated quality against latency, the larger the more bytes. Else GFLOPs against size.
    """
    if not points:
        return None
    front = [p for p in points if p.front and p.quality is not None and p.latency_ms is not None]
    with figure("search", 4.2, 3.1) as (page, svg):
        axes = page.subplots()
        if front:
            sizes = [p.size_bytes / 1e6 for p in front]
            dots = [4 + 12 * size / max(sizes) for size in sizes]
            axes.scatter(*_places(front, True), s=dots, color=MUTED, alpha=0.55, linewidths=0)
            axes.set_xlabel("ms of 128 tokens, by the profile (dots: size)")
            axes.set_ylabel("quality, as predicted")
        else:
            axes.scatter(*_places(points, False), s=9, color=MUTED, alpha=0.45, linewidths=0)
            axes.set_xlabel("size, MB")
            axes.set_ylabel("GFLOPs a function")
        for p in (p for p in points if p.chosen):
            axes.scatter(*_places([p], bool(front)), s=60, color=SERIES[0], zorder=3)
            label = "\n".join(textwrap.wrap(f"chosen: {p.label}", 44))
            axes.set_title(label, loc="left", color=SERIES[0], fontsize=9)
        axes.margins(0.08, 0.14)
    return svg.text


def _places(points: Sequence[SearchPoint], front: bool) -> tuple[list[float], list[float]]:
    """x and y: of a Pareto front latency and quality, else megabytes and GFLOPs."""
    if front:
        return [p.latency_ms or 0.0 for p in points], [p.quality or 0.0 for p in points]
    return [p.size_bytes / 1e6 for p in points], [p.gflops for p in points]


@dataclass
class _Svg:
    text: str = ""


@contextmanager
def figure(name: str, width: float, height: float) -> Iterator[tuple[Figure, _Svg]]:
    """An empty figure, `width` x `height` inches; on leaving, its SVG is in the second value."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MachineError(
            "report.html needs matplotlib, which is not installed: pip install 'codemill[bench]'"
        ) from error
    style: Any = {
        # names come from files of others: they are no formulas
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": LINE,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": LINE,
        "grid.linewidth": 0.7,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "xtick.minor.visible": False,
    }
    with mpl.rc_context(style):
        page, svg = Figure(figsize=(width, height), layout="constrained"), _Svg()
        page.patch.set_alpha(0)
        yield page, svg
        buffer = io.StringIO()
        none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        page.savefig(buffer, format="svg", metadata=none)
    svg.text = _inlined(buffer.getvalue(), name)


def _inlined(text: str, name: str) -> str:
    """The `<svg>` element alone, without addresses, with CSS variables and ids of its own."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = with_ids(text, name)
    # the page's own font; matplotlib writes "font: 9px 'DejaVu Sans', ..."
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return re.sub(r'\swidth="[^"]*"|\sheight="[^"]*pt"', "", text, count=2)


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
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
    import textwrap

    return "\n".join(textwrap.wrap(label, 18))
