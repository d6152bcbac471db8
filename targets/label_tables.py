"""The report's section on a classifier: what it confuses, where it is weak, what its intervals mean.

The headline figures are rows of the engines' table (tables.py); how this looks is report.html.j2's,
the drawings are label_plots.py's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from codemill.targets.classification import Interval
from codemill.targets.figures import EngineResult, LabelQuality, Quantity
from codemill.targets.report import Report
from codemill.targets.tables import DASH, Cell, Row, interval, row_word, signed, signed_interval

__all__ = ["Confusion", "LabelSection", "label_section"]

_DRAWN = {
    "rows": "{rows}, each drawn by itself",
    "groups": "whole groups (projects), because {rows} of one group resemble each other",
    "functions": "functions, because {rows} share them: a pair weighs as often as both were drawn",
}


_MOST_LABELS = 12
"""Up to so many labels a table of all decisions can be read; of more, the most frequent mistakes are shown."""
_MISTAKES = 15


@dataclass(frozen=True)
class Confusion:
    """An engine's decisions: for each label, (rows, share of the label's rows) by decision.

    Of many labels, `mistakes`: (label, decided, rows, share of the label's rows), the most frequent first.
    """

    engine: str
    labels: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[int, float], ...]], ...]
    mistakes: tuple[tuple[str, str, int, float], ...] = ()


@dataclass(frozen=True)
class LabelSection:
    """What the template shows. Tables are (heads, lines), a line's first cell its name."""

    lead: str
    notes: tuple[str, ...]
    confusions: tuple[Confusion, ...]
    per_label: tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]
    per_length: tuple[tuple[str, ...], tuple[tuple[str, ...], ...]] | None
    differences: tuple[tuple[str, ...], tuple[Row, ...]] | None
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
        lead=f"{mine.rows:,} {word} of the set \u201c{mine.evaluation}\u201d have a known label.",
        notes=tuple(_notes(report, mine)),
        confusions=tuple(
            _confusion(engine, quality) for engine, quality in shown if quality.confusion
        ),
        per_label=_per_label(shown),
        per_length=_per_length(shown),
        differences=_differences(report),
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
    for engine in (report.student, *([teacher] if teacher else [])):
        if engine.labelling is not None:
            whose = "the bundle" if engine is report.student else engine.name
            yield from _not_separated(whose, engine.labelling)
    missing = [x.label for x in mine.per_label if not x.rows]
    if missing:
        yield f"No row of the test has the label {', '.join(missing)}."


def _not_separated(whose: str, quality: LabelQuality) -> Iterator[str]:
    """Where the set is too small, or too hard, for a figure of an engine to mean anything."""
    margin, auc = quality.margin, quality.figures.get("auc")
    always = max(quality.per_label, key=lambda x: x.rows).label
    if margin is not None and margin.low is not None and margin.low <= 0:
        found = f"a margin of {signed(margin.value)} ({signed_interval(margin)})"
        if margin.below_zero:
            yield (
                f"On this set {whose} is worse than always saying \u201c{always}\u201d: {found} in accuracy."
            )
        else:
            yield (
                f"This set does not separate {whose} from always saying \u201c{always}\u201d: {found} in accuracy, "
                "which may be none. Its accuracy is no evidence that it tells the labels apart."
            )
    if auc is not None and auc.low is not None and auc.low <= 0.5:
        found = f"its AUC is {auc.value:.3f} ({interval(auc)})"
        if auc.high is not None and auc.high < 0.5:
            yield f"On this set {whose} ranks rows the wrong way round: {found}, and chance gives 0.5."
        else:
            yield (
                f"This set does not separate {whose} from chance: {found}, which holds 0.5. Whatever its scores "
                "say of a row here, the toss of a coin may say as well."
            )


_COMPARED: tuple[tuple[Quantity, str], ...] = (
    ("accuracy", "accuracy"),
    ("f1", "F1"),
    ("auc", "AUC"),
)


def _differences(report: Report) -> tuple[tuple[str, ...], tuple[Row, ...]] | None:
    """The bundle's figures less those of each teacher and reference, and what the interval says."""
    mine, found = report.bundle_engine, report.benchmark
    bases = list(dict.fromkeys(d.baseline for d in found.differences if d.engine == mine))
    if not bases:
        return None
    bases.sort(key=lambda name: name != report.baseline)
    rows = []
    for name, said in _COMPARED:
        less = [found.difference(mine, base, name) for base in bases]
        rows.append(Row(said, tuple(_difference_cell(x) if x else None for x in less)))
    return tuple(f"minus {base}" for base in bases), tuple(rows)


def _difference_cell(less: Interval) -> Cell:
    if less.low is None:
        return Cell(signed(less.value))
    said = "above it" if less.above_zero else "below it" if less.below_zero else "not told apart"
    return Cell(signed(less.value), f"{signed_interval(less)} · {said}")


def _confusion(engine: EngineResult, quality: LabelQuality) -> Confusion:
    lines = []
    for label, row in zip(quality.labels, quality.confusion, strict=False):
        total = sum(row)
        lines.append((label, tuple((n, n / total if total else 0.0) for n in row)))
    if len(quality.labels) <= _MOST_LABELS:
        return Confusion(engine.name, quality.labels, tuple(lines))
    mistakes = [
        (label, decided, n, part)
        for label, cells in lines
        for decided, (n, part) in zip(quality.labels, cells, strict=False)
        if n and decided != label
    ]
    mistakes.sort(key=lambda x: -x[2])
    return Confusion(engine.name, quality.labels, (), tuple(mistakes[:_MISTAKES]))


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
