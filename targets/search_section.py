"""The report's section on the architecture search: what was looked at, its Pareto front, what was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from codemill.targets.drawing import HALF, MUTED, SERIES, Drawing, figure
from codemill.targets.plots import front_of
from codemill.targets.report import SearchPoint
from codemill.targets.tables import digits

__all__ = ["SearchSection", "search_section"]

_MOST_ROWS = 300
_Axis = Literal["size", "latency"]
_AXES: tuple[_Axis, ...] = ("size", "latency")


@dataclass(frozen=True)
class SearchSection:
    """What the template shows. `rows` are of the front, a row's first cell the architecture; `left_out` of them."""

    lead: str
    chosen: str | None
    drawings: tuple[tuple[str, str, Drawing], ...]
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left_out: int


def search_section(points: Sequence[SearchPoint], prefix: str) -> SearchSection | None:
    """None where nothing was searched. `prefix` keeps the ids of several reports on one page apart."""
    if not points:
        return None
    known = any(p.quality is not None for p in points)
    named = "quality, as predicted" if known else "GFLOPs a function"
    looked = [p for p in points if not p.chosen]
    front = [p for p in looked if p.front] or _best(looked, known)
    drawn: list[tuple[str, str, Drawing]] = []
    for against in _AXES:
        drawing = _drawn(points, front, known, against)
        if drawing is not None:
            title = f"{'Quality' if known else 'GFLOPs'} against {against} (dashed: the front of these two)"
            drawn.append(("half", title, drawing.named(prefix)))
    rows = sorted(
        {(p.label, p.size_bytes): p for p in [*front, *(p for p in points if p.chosen)]}.values(),
        key=lambda p: -(_worth(p, known) or 0.0),
    )
    if any(p.front for p in looked):
        lead = f"No architecture within the budget beats one of these {len(front):,} in all that was searched for."
    else:
        count = f"{len(looked):,} architecture{'s' if len(looked) != 1 else ''}"
        lead = f"The search looked at {count} for {named}; those over the budget are there too."
    return SearchSection(
        lead=lead,
        chosen=next((p.label for p in points if p.chosen), None),
        drawings=tuple(drawn),
        heads=("architecture", named, "MB", "ms", "GFLOPs"),
        rows=tuple(_row(p, known) for p in rows[:_MOST_ROWS]),
        left_out=max(0, len(rows) - _MOST_ROWS),
    )


def _best(points: Sequence[SearchPoint], known: bool) -> list[SearchPoint]:
    """Where the search kept no front: what nothing smaller, or nothing faster, beats."""
    kept: dict[str, SearchPoint] = {}
    for against in _AXES:
        placed = {at: p for p in points if (at := _place(p, known, against)) is not None}
        kept |= {placed[at].label: placed[at] for at in front_of(list(placed))}
    return list(kept.values())


def _drawn(
    points: Sequence[SearchPoint], front: Sequence[SearchPoint], known: bool, against: _Axis
) -> Drawing | None:
    places = [at for p in points if (at := _place(p, known, against)) is not None]
    if len(set(places)) < 2:
        return None
    with figure(f"search-{against}", *HALF) as (page, svg):
        axes = page.subplots()
        xs, ys = zip(*places, strict=True)
        axes.scatter(xs, ys, s=11, color=MUTED, alpha=0.5, linewidths=0)
        best = front_of(places)
        axes.plot(*zip(*best, strict=True), color=MUTED, linestyle=(0, (3, 3)), linewidth=1)
        # the chosen one last: on top
        for p in [*front, *(p for p in points if p.chosen)]:
            at = _place(p, known, against)
            if at is None:
                continue
            if p.chosen:
                axes.scatter([at[0]], [at[1]], s=70, color=SERIES[0], zorder=3)
            title = f"{'Chosen: ' if p.chosen else ''}{p.label}"
            svg.mark(axes, *at, title, ", ".join(_figures(p, known)))
        axes.set_xlabel(
            "size, MB" if against == "size" else "ms of 128 tokens, by the latency profile"
        )
        axes.set_ylabel("quality, as predicted" if known else "GFLOPs a function")
        axes.margins(0.08, 0.14)
    return svg


def _worth(p: SearchPoint, known: bool) -> float | None:
    return p.quality if known else p.gflops


def _place(p: SearchPoint, known: bool, against: _Axis) -> tuple[float, float] | None:
    """Where it stands; None where one of the two is not known of it."""
    x = p.size_bytes / 1e6 if against == "size" else p.latency_ms
    y = _worth(p, known)
    return None if x is None or y is None else (x, y)


def _figures(p: SearchPoint, known: bool) -> list[str]:
    """As the card of a point says them."""
    said = [f"quality {p.quality:.3f}"] if known and p.quality is not None else []
    said.append(f"{p.size_bytes / 1e6:.2f} MB")
    said += [] if p.latency_ms is None else [f"{digits(p.latency_ms)} ms"]
    return [*said, f"{digits(p.gflops)} GFLOPs"]


def _row(p: SearchPoint, known: bool) -> tuple[str, ...]:
    return (
        f"{p.label}{' (chosen)' if p.chosen else ''}",
        "–" if (worth := _worth(p, known)) is None else f"{worth:.3f}",
        f"{p.size_bytes / 1e6:.2f}",
        "–" if p.latency_ms is None else digits(p.latency_ms),
        digits(p.gflops),
    )
