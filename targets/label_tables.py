"""The report's section on a classifier: what it confuses, where it is weak, what its intervals mean.

The headline figures are rows of the engines' table (tables.py); how this looks is report.html.j2's,
the drawings are label_plots.py's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from codemill.targets.figures import EngineResult, LabelQuality
from codemill.targets.report import Report
from codemill.targets.tables import DASH, row_word

__all__ = ["Confusion", "LabelSection", "label_section"]

_DRAWN = {
    "rows": "{rows}, each drawn by itself",
    "groups": "whole groups (projects), because {rows} of one group resemble each other",
    "functions": "functions, because {rows} share them: a pair weighs as often as both were drawn",
}


@dataclass(frozen=True)
class Confusion:
    """An engine's decisions: for each label, (rows, share of the label's rows) by decision."""

    engine: str
    labels: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[int, float], ...]], ...]


@dataclass(frozen=True)
class LabelSection:
    """What the template shows. Tables are (heads, lines), a line's first cell its name."""

    lead: str
    notes: tuple[str, ...]
    confusions: tuple[Confusion, ...]
    per_label: tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]
    per_length: tuple[tuple[str, ...], tuple[tuple[str, ...], ...]] | None
    drawn: str


def label_section(report: Report) -> LabelSection | None:
    """The section of the bundle and its baseline; None of a bundle that embeds."""
    mine = report.student.labelling
    if mine is None:
        return None
    shown = [(report.student, mine)]
    if (other := report.teacher) is not None and other.labelling is not None:
        shown.insert(0, (other, other.labelling))
    word = f"{row_word(mine)}s"
    return LabelSection(
        lead=f"{mine.rows:,} {word} of {mine.evaluation} whose label is known.",
        notes=tuple(_notes(report, mine)),
        confusions=tuple(_confusion(engine, quality) for engine, quality in shown),
        per_label=_per_label(shown),
        per_length=_per_length(shown),
        drawn=_DRAWN.get(mine.clusters, mine.clusters).format(rows=word),
    )


def _notes(report: Report, mine: LabelQuality) -> Iterator[str]:
    """What a reader should know before believing a figure."""
    teacher = report.teacher
    if teacher is None:
        yield (
            "No teacher was measured beside this bundle: its labels came from data, or the teacher is "
            "not here. Its figures stand alone; nothing below is a share of a teacher's."
        )
    elif teacher.role != "teacher":
        yield (
            f"No teacher was measured: the labels came from data, or the teacher is not here. Shares kept "
            f"are of {teacher.name}, a reference."
        )
    accuracy, auc = mine.figures.get("accuracy"), mine.figures.get("auc")
    if accuracy is not None and accuracy.low is not None and accuracy.low <= mine.majority:
        yield (
            f"This test cannot tell the bundle's accuracy from that of always saying the most frequent "
            f"label: {mine.majority:.3f} is not below its interval "
            f"({accuracy.low:.3f}{DASH}{accuracy.high:.3f})."
        )
    if auc is not None and auc.low is not None and auc.low <= 0.5:
        yield (
            f"This test cannot tell the bundle's order of rows from chance: the interval of its AUC "
            f"({auc.low:.3f}{DASH}{auc.high:.3f}) is not above 0.5."
        )
    missing = [x.label for x in mine.per_label if not x.rows]
    if missing:
        yield f"No row of the test has the label {', '.join(missing)}."


def _confusion(engine: EngineResult, quality: LabelQuality) -> Confusion:
    lines = []
    for label, row in zip(quality.labels, quality.confusion, strict=False):
        total = sum(row)
        lines.append((label, tuple((n, n / total if total else 0.0) for n in row)))
    return Confusion(engine.name, quality.labels, tuple(lines))


def _per_label(
    shown: Sequence[tuple[EngineResult, LabelQuality]],
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Precision, recall and F1 of the bundle, and F1 of the baseline."""
    *others, (_, mine) = shown
    heads = ("rows", "precision", "recall", "F1", *(f"F1, {e.name}" for e, _ in others))
    theirs = [{x.label: x.f1 for x in quality.per_label} for _, quality in others]
    return heads, tuple(
        (
            x.label,
            f"{x.rows:,}",
            *map(_figure, (x.precision, x.recall, x.f1)),
            *(_figure(f1s.get(x.label)) for f1s in theirs),
        )
        for x in mine.per_label
    )


def _per_length(
    shown: Sequence[tuple[EngineResult, LabelQuality]],
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]] | None:
    """Accuracy of each quarter of the rows by length; the rows are the same for all engines."""
    mine = shown[-1][1]
    if not mine.per_length:
        return None
    heads = ("rows", *(f"accuracy, {engine.name}" for engine, _ in shown))
    lines = []
    for number, x in enumerate(mine.per_length):
        found = [quality.per_length[number : number + 1] for _, quality in shown]
        cells = (_figure(part[0].accuracy if part else None) for part in found)
        lines.append((f"{x.tokens_from:,}{DASH}{x.tokens_to:,}", f"{x.rows:,}", *cells))
    return heads, tuple(lines)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
