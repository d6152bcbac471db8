"""The house style of the pages' drawings: inline SVG, made by matplotlib in the page's own colours and font.

Colours are placeholders that become CSS variables, so that one drawing serves light and dark; text stays text. What
is drawn is plots.py's and its neighbours'.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from codemill.errors import MachineError

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "GLYPHS",
    "HALF",
    "INK",
    "LINE",
    "MARKERS",
    "MUTED",
    "PANEL",
    "SERIES",
    "Drawing",
    "Spot",
    "bars",
    "figure",
]

# Placeholder colour -> CSS variable; nothing else in a drawing uses these near-black values.
INK, MUTED, LINE, PANEL = "#010203", "#010204", "#010205", "#010206"
SERIES = tuple(f"#0102{16 + i:02x}" for i in range(8))
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", PANEL: "--panel"} | {
    colour: f"--series-{i}" for i, colour in enumerate(SERIES)
}
HALF = (4.2, 3.1)
"""Inches of half a page; what is wider is not to be read on a phone."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
# the same shapes as text, for the page's legend
GLYPHS = ("●", "■", "▲", "◆", "▼", "✚", "✖", "⬢")


@dataclass(frozen=True)
class Spot:
    """What is said where the mouse is, or a finger: place and width in percent of the drawing."""

    left: float
    top: float
    title: str
    lines: tuple[str, ...]
    width: float = 0.0

    @property
    def side(self) -> str:
        """Where its card hangs, so that it stays within the drawing."""
        across = "first" if self.left < 34 else "last" if self.left > 66 else "middle"
        return f"{across} {'below' if self.top < 50 else 'above'}"


@dataclass
class Drawing:
    """An SVG and its spots."""

    text: str = ""
    spots: tuple[Spot, ...] = ()
    _marks: list[tuple[Axes, float, float, float, str, tuple[str, ...]]] = field(
        default_factory=list
    )

    def mark(
        self, axes: Axes, x: float, y: float, title: str, *lines: str, width: float = 0.0
    ) -> None:
        """Say this at a point of the axes, or along `width` around it."""
        self._marks.append((axes, x, y, width, title, lines))

    @property
    def svg(self) -> Markup:
        """As the page takes it."""
        from markupsafe import Markup

        return Markup(self.text)

    def named(self, prefix: str) -> Drawing:
        """The drawing with `prefix` before its ids and the references to them."""
        return replace(self, text=_with_ids(self.text, prefix))

    def finish(self, page: Figure, text: str) -> None:
        """Once it is laid out: where the points came to lie."""
        self.text = text
        self.spots = tuple(_spot(page, *mark) for mark in self._marks)


def _spot(
    page: Figure,
    axes: Axes,
    x: float,
    y: float,
    width: float,
    title: str,
    lines: tuple[str, ...],
) -> Spot:
    across, up = page.bbox.size
    left, top = axes.transData.transform((x, y))
    right, _ = axes.transData.transform((x + width, y))
    wide = 100 * (right - left) / across if width else 0.0
    return Spot(100 * left / across, 100 * (1 - top / up), title, lines, wide)


def _with_ids(svg: str, prefix: str) -> str:
    return re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)


def bars(name: str, rows: Sequence[tuple[str, float, str, bool]], unit: str) -> Drawing | None:
    """A bar for each (name, value, label, whether it is pale), from the top."""
    if not rows:
        return None
    with figure(name, 4.2, 0.8 + 0.3 * len(rows)) as (page, svg):
        axes = page.subplots()
        for row, (_, value, label, pale) in enumerate(rows):
            axes.barh(row, value, height=0.6, color=SERIES[0], alpha=0.4 if pale else 1.0)
            axes.annotate(
                label,
                (value, row),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                color=INK,
                fontsize=8,
            )
        axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
        axes.set_xlim(0, max(max(value for _, value, *_ in rows), 1e-9) * 1.35)
        axes.set_xlabel(unit)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
    return svg


@contextmanager
def figure(name: str, width: float, height: float) -> Iterator[tuple[Figure, Drawing]]:
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
        page, svg = Figure(figsize=(width, height), layout="constrained"), Drawing()
        page.patch.set_alpha(0)
        yield page, svg
        buffer = io.StringIO()
        none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        page.savefig(buffer, format="svg", metadata=none)
        svg.finish(page, _inlined(buffer.getvalue(), name))


def _inlined(text: str, name: str) -> str:
    """The `<svg>` element alone, without addresses, with CSS variables and ids of its own."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = _with_ids(text, name)
    # the page's own font; matplotlib writes "font: 9px 'DejaVu Sans', ..."
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return re.sub(r'\swidth="[^"]*"|\sheight="[^"]*pt"', "", text, count=2)
