"""What an engine made of a labelled test -> its `LabelQuality`; and of rewritten code -> its `Robustness`.

Leaves to others: asking the engine (benchmark.py), the statistics (classification.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codemill.errors import DataError
from codemill.targets import classification
from codemill.targets.classification import METRICS, Interval, Weights
from codemill.targets.evaluation import LabelledEvaluation
from codemill.targets.figures import (
    LabelFigures,
    LabelQuality,
    LengthFigures,
    Long,
    Quantity,
    Robustness,
)
from codemill.targets.metrics import Ratio

__all__ = [
    "KEPT",
    "Answered",
    "Rewrites",
    "TextLengths",
    "compared_with",
    "quality_of",
    "rewritten_rows",
    "robustness_of",
]

KEPT: tuple[Quantity, ...] = ("accuracy", "f1", "auc")
"""What an engine keeps of a baseline's, and loses, is said of these."""
_LENGTHS = 4
_CONFUSED_LABELS = 200
"""Of more labels a report would be all confusion matrix."""

Rewrites = Mapping[str, Sequence[str | None]]
"""kind of rewrite -> the evaluation's texts rewritten, None where one cannot be."""


@dataclass(frozen=True)
class Answered:
    """What an engine said of the rows: probabilities [n, labels], layers used and truncated [n]."""

    probabilities: npt.NDArray[np.float32]
    layers_used: npt.NDArray[np.int64]
    truncated: npt.NDArray[np.bool_]
    rows_per_s: float | None


@dataclass(frozen=True)
class TextLengths:
    """Tokens of each of the evaluation's texts, as an engine counts them before it cuts or divides any.

    `longest`: the most that it reads at once; `long`: what it does with more. None: it does not say.
    """

    tokens: Sequence[int]
    longest: int | None = None
    long: Long | None = None

    @property
    def mean(self) -> float:
        """Tokens of a text, on average."""
        return float(np.mean(self.tokens))

    @property
    def longer(self) -> float | None:
        """The share of the texts that are longer than what it reads at once."""
        if self.longest is None:
            return None
        return float((np.asarray(self.tokens) > self.longest).mean())


def _known(evaluation: LabelledEvaluation) -> npt.NDArray[np.bool_]:
    known: npt.NDArray[np.bool_] = np.asarray(evaluation.truth) >= 0
    if not known.any():
        raise DataError(
            f"evaluation {evaluation.name!r} has no row whose label is known; give a test with labels"
        )
    return known


def weights_of(evaluation: LabelledEvaluation) -> Weights:
    """The resamples of the rows whose label is known, the same for every engine."""
    known = np.flatnonzero(_known(evaluation))
    groups = evaluation.groups
    return classification.resampled(
        [evaluation.rows[row] for row in known],
        None if groups is None else [groups[row] for row in known],
    )


def quality_of(
    evaluation: LabelledEvaluation,
    answered: Answered,
    lengths: Sequence[int] | None,
    weights: Weights,
    reference: Answered | None,
    own: TextLengths | None = None,
) -> LabelQuality:
    """`lengths`: tokens of each text, the same for all engines; `own`: as this engine counts them.

    `reference`: what the first teacher or reference said.
    """
    known = _known(evaluation)
    found = answered.probabilities[known].astype(np.float64)
    truth = np.asarray(evaluation.truth)[known]
    whole = np.ones(len(truth))
    agreement = None
    if reference is not None:
        same = answered.probabilities.argmax(1) == reference.probabilities.argmax(1)
        agreement = float(same.mean())
    used, times = np.unique(answered.layers_used, return_counts=True)
    majority = classification.majority(found, truth, whole)
    assert majority is not None
    return LabelQuality(
        evaluation=evaluation.name,
        rows=len(truth),
        texts=len(evaluation.rows[0]),
        labels=evaluation.labels,
        clusters=weights.clusters,
        figures={
            name: classification.estimate(metric, found, truth, weights)
            for name, metric in METRICS.items()
        },
        majority=majority,
        confusion=_confusion(found, truth),
        calibration=classification.bins(found, truth),
        per_label=tuple(
            _of_label(found, truth, number, name) for number, name in enumerate(evaluation.labels)
        ),
        per_length=_by_length(evaluation, known, found.argmax(1) == truth, lengths),
        layers_used={str(layers): int(rows) for layers, rows in zip(used, times, strict=True)},
        truncated=float(answered.truncated.mean()),
        agreement=agreement,
        rows_per_s=answered.rows_per_s,
        margin=classification.margin(found, truth, weights),
        text_tokens_mean=own.mean if own else None,
        longest_tokens=own.longest if own else None,
        texts_longer=own.longer if own else None,
        long=own.long if own else None,
    )


def _confusion(
    probabilities: npt.NDArray[np.float64], truth: npt.NDArray[np.int64]
) -> tuple[tuple[int, ...], ...]:
    if probabilities.shape[1] > _CONFUSED_LABELS:
        return ()
    return classification.confusion(probabilities, truth)


def _of_label(
    probabilities: npt.NDArray[np.float64], truth: npt.NDArray[np.int64], number: int, name: str
) -> LabelFigures:
    # as if there were two labels, this one and all others
    chosen = probabilities.argmax(1) == number
    pair = np.stack([~chosen, chosen], 1).astype(np.float64)
    mine, whole = (truth == number).astype(np.int64), np.ones(len(truth))
    return LabelFigures(
        name,
        int(mine.sum()),
        METRICS["precision"](pair, mine, whole),
        METRICS["recall"](pair, mine, whole),
        METRICS["f1"](pair, mine, whole),
    )


def _by_length(
    evaluation: LabelledEvaluation,
    known: npt.NDArray[np.bool_],
    right: npt.NDArray[np.bool_],
    lengths: Sequence[int] | None,
) -> tuple[LengthFigures, ...]:
    if lengths is None:
        return ()
    tokens = np.array([sum(lengths[text] for text in row) for row in evaluation.rows])[known]
    found = []
    for part in np.array_split(np.argsort(tokens, kind="stable"), _LENGTHS):
        if len(part):
            ends = int(tokens[part].min()), int(tokens[part].max())
            found.append(LengthFigures(*ends, len(part), float(right[part].mean())))
    return tuple(found)


def compared_with(
    name: str, evaluation: LabelledEvaluation, one: Answered, other: Answered, weights: Weights
) -> tuple[Ratio | None, Interval | None]:
    """The share of the other engine's figure that this one keeps, and its own less the other's."""
    known = _known(evaluation)
    truth = np.asarray(evaluation.truth)[known]
    mine, theirs = (side.probabilities[known].astype(np.float64) for side in (one, other))
    less, kept = classification.compared(METRICS[name], mine, theirs, truth, weights)
    ratio = Ratio(kept.value, kept.low, kept.high, len(truth)) if kept else None
    return ratio, less


def rewritten_rows(
    evaluation: LabelledEvaluation, texts: Sequence[str | None]
) -> tuple[list[int], list[tuple[str, ...]]]:
    """The rows all of whose texts could be rewritten, and these texts."""
    rows, items = [], []
    for number, row in enumerate(evaluation.rows):
        made = [texts[index] for index in row]
        if all(text is not None for text in made):
            rows.append(number)
            items.append(tuple(text for text in made if text is not None))
    return rows, items


def robustness_of(
    kind: str,
    evaluation: LabelledEvaluation,
    rows: Sequence[int],
    before: Answered,
    after: npt.NDArray[np.float32],
) -> Robustness:
    """Decisions of these rows before they were rewritten and after, with an interval over these rows."""
    chosen = np.asarray(rows)
    old, new = before.probabilities[chosen].argmax(1), after.argmax(1)
    truth = np.asarray(evaluation.truth)[chosen]
    known = truth >= 0

    def share(decided: npt.NDArray[np.int64]) -> float | None:
        return float((decided == truth)[known].mean()) if known.any() else None

    of_rows = [evaluation.rows[row] for row in rows]
    groups = evaluation.groups
    weights = classification.resampled(
        of_rows, None if groups is None else [groups[row] for row in rows]
    )
    survived = classification.share(old == new, weights)
    assert survived is not None
    return Robustness(
        kind,
        len(rows),
        survived.value,
        share(old),
        share(new),
        texts=len({text for row in of_rows for text in row}),
        survived_low=survived.low,
        survived_high=survived.high,
    )
