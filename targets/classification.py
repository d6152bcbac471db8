"""Quality of a classifier from its probabilities: numpy only, no I/O.

A metric takes weights of the rows, a line of them for each resample of a bootstrap, so that one
formula serves the figure itself (weights of one) and its interval (resampling.py), without a loop
over resamples. scikit-learn, whose figures these are (a test holds them to it), is not installed
on a laptop that is being measured.

With two classes the last is the positive one. All rows have a label here: who asks leaves the
others out. An undefined value (AUC with one class only) is None; NaN stands for it in arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from codemill.errors import DataError
from codemill.targets.resampling import Interval, Weights, interval_of, replicates, resampled

__all__ = [
    "METRICS",
    "Bin",
    "Interval",
    "Metric",
    "Weights",
    "accuracy",
    "auc",
    "bins",
    "brier",
    "compared",
    "confusion",
    "difference",
    "ece",
    "estimate",
    "f1",
    "majority",
    "margin",
    "mcc",
    "precision",
    "ratio",
    "recall",
    "resampled",
    "share",
]

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]
Lines = npt.NDArray[np.float64]

# of equal width, as in Guo et al. 2017, https://arxiv.org/abs/1706.04599
_BINS = 15


@dataclass(frozen=True)
class Bin:
    """Rows of like confidence: the mean of it, and the share of them that are right."""

    confidence: float
    accuracy: float
    rows: int


@dataclass(frozen=True)
class Metric:
    """A figure of probabilities [n, classes] and labels [n] under weights of the rows.

    `lines` takes weights [resamples, n] and gives a value for each, NaN where it is undefined.
    """

    lines: Callable[[Floats, Ints, Lines], Lines]

    def __call__(self, probabilities: Floats, labels: Ints, weights: Floats) -> float | None:
        """The figure under weights [n]; None where it is undefined."""
        _check(probabilities, labels)
        line = np.asarray(weights, dtype=np.float64)[None]
        found = float(self.lines(probabilities, labels, line)[0])
        return None if np.isnan(found) else found


def estimate(
    metric: Metric, probabilities: Floats, labels: Ints, weights: Weights
) -> Interval | None:
    """The figure and its interval; None where it is undefined."""
    _check(probabilities, labels)
    return interval_of(replicates([lambda of: metric.lines(probabilities, labels, of)], weights)[0])


def difference(
    metric: Metric, one: Floats, other: Floats, labels: Ints, weights: Weights
) -> Interval | None:
    """The figure of `one` less that of `other`, over the same resamples.

    "One beats the other" means that the whole interval is above 0 (`Interval.above_zero`).
    """
    mine, theirs = _both(metric, one, other, labels, weights)
    return interval_of(mine - theirs)


def ratio(
    metric: Metric, one: Floats, other: Floats, labels: Ints, weights: Weights
) -> Interval | None:
    """The figure of `one` over that of `other`, over the same resamples: the share kept."""
    mine, theirs = _both(metric, one, other, labels, weights)
    return interval_of(_over(mine, theirs))


def compared(
    metric: Metric, one: Floats, other: Floats, labels: Ints, weights: Weights
) -> tuple[Interval | None, Interval | None]:
    """`difference` and `ratio` of the two, worked out together."""
    mine, theirs = _both(metric, one, other, labels, weights)
    return interval_of(mine - theirs), interval_of(_over(mine, theirs))


def margin(probabilities: Floats, labels: Ints, weights: Weights) -> Interval | None:
    """Accuracy less that of always saying the label that is the most frequent in the rows.

    The same label in every resample: what it is compared with is a classifier that was chosen, not one that
    adapts to what was drawn. Where the interval is not above 0, the rows do not show that anything was learned.
    """
    _check(probabilities, labels)
    always = np.bincount(labels, minlength=probabilities.shape[1]).argmax()
    gained = (probabilities.argmax(1) == labels) - 1.0 * (labels == always)
    return share(gained, weights)


def share(values: npt.NDArray[Any], weights: Weights) -> Interval | None:
    """The mean of `values` [n], a number or a truth for each row."""
    numbers = np.asarray(values, dtype=np.float64)
    return interval_of(replicates([lambda of: _over(of @ numbers, of.sum(axis=1))], weights)[0])


def confusion(probabilities: Floats, labels: Ints) -> tuple[tuple[int, ...], ...]:
    """Rows by label, then by decision."""
    classes = probabilities.shape[1]
    cells = np.bincount(labels * classes + probabilities.argmax(1), minlength=classes**2)
    return tuple(tuple(row) for row in cells.reshape(classes, classes).tolist())


def bins(probabilities: Floats, labels: Ints) -> tuple[Bin, ...]:
    """Calibration: rows by confidence (the largest probability), 15 bins without the empty ones."""
    rows, confidence, right = _binned(probabilities, labels, np.ones((1, len(labels))))
    return tuple(
        Bin(float(sum_ / n), float(correct / n), int(n))
        for n, sum_, correct in zip(rows[0], confidence[0], right[0], strict=True)
        if n
    )


def _accuracy(probabilities: Floats, labels: Ints, weights: Lines) -> Lines:
    right = (probabilities.argmax(1) == labels).astype(np.float64)
    return _over(weights @ right, weights.sum(axis=1))


def _majority(probabilities: Floats, labels: Ints, weights: Lines) -> Lines:
    counts = weights @ np.eye(probabilities.shape[1])[labels]
    return _over(counts.max(axis=1), counts.sum(axis=1))


def _precision(probabilities: Floats, labels: Ints, weights: Lines) -> Lines:
    right, label, decided = _counts(probabilities, labels, weights)
    # as scikit-learn: 0 for a class that occurs and is never decided
    never = np.where(label > 0, 0.0, np.nan)
    return _of_positive(np.where(decided > 0, _over(right, decided), never))


def _recall(probabilities: Floats, labels: Ints, weights: Lines) -> Lines:
    right, label, _ = _counts(probabilities, labels, weights)
    return _of_positive(_over(right, label))


def _f1(probabilities: Floats, labels: Ints, weights: Lines) -> Lines:
    right, label, decided = _counts(probabilities, labels, weights)
    return _of_positive(_over(2 * right, label + decided))


def _mcc(probabilities: Floats, labels: Ints, weights: Lines) -> Lines:
    right, label, decided = _counts(probabilities, labels, weights)
    total = label.sum(axis=1)
    spread = total**2 - (label**2).sum(axis=1)
    spread_decided = total**2 - (decided**2).sum(axis=1)
    top = right.sum(axis=1) * total - (label * decided).sum(axis=1)
    found = _over(top, np.sqrt(np.maximum(spread * spread_decided, 0)))
    # all rows of one decision: no correlation, unless all are of one class too
    return np.where((spread_decided <= 0) & (spread > 0), 0.0, found)


def _auc(probabilities: Floats, labels: Ints, weights: Lines) -> Lines:
    classes = probabilities.shape[1]
    if classes == 2:
        return _area(probabilities[:, 1], labels == 1, weights)
    areas = [_area(probabilities[:, c], labels == c, weights) for c in range(classes)]
    return _of_positive(np.stack(areas, axis=1))


def _ece(probabilities: Floats, labels: Ints, weights: Lines) -> Lines:
    rows, confidence, right = _binned(probabilities, labels, weights)
    return _over(np.abs(confidence - right).sum(axis=1), rows.sum(axis=1))


def _brier(probabilities: Floats, labels: Ints, weights: Lines) -> Lines:
    wrong = (probabilities - np.eye(probabilities.shape[1])[labels]) ** 2
    # half, so that 1 is the worst, and with two classes it is the positive one's squared error
    return _over(weights @ (wrong.sum(axis=1) / 2), weights.sum(axis=1))


accuracy = Metric(_accuracy)
"""Share of right decisions."""
f1 = Metric(_f1)
"""F1 of the positive class; with more than two classes the mean over them (macro)."""
precision = Metric(_precision)
"""Precision of the positive class; with more than two classes the mean over them."""
recall = Metric(_recall)
"""Recall of the positive class; with more than two classes the mean over them."""
auc = Metric(_auc)
"""Area under the ROC curve, ties half; with more than two classes the mean of one against the rest."""
mcc = Metric(_mcc)
"""Matthews' correlation, for any number of classes (Gorodkin's R_K)."""
ece = Metric(_ece)
"""Expected calibration error over 15 equal-width bins of the largest probability."""
brier = Metric(_brier)
"""Mean squared error of the probabilities, halved: from 0 to 1."""
majority = Metric(_majority)
"""Accuracy of always saying the most frequent class."""

METRICS: Mapping[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "precision": precision,
    "recall": recall,
    "auc": auc,
    "mcc": mcc,
    "ece": ece,
    "brier": brier,
}
"""The figures that a report gives, each with an interval."""


def _both(
    metric: Metric, one: Floats, other: Floats, labels: Ints, weights: Weights
) -> tuple[Lines, Lines]:
    _check(one, labels)
    _check(other, labels)
    mine, theirs = replicates(
        [lambda of: metric.lines(one, labels, of), lambda of: metric.lines(other, labels, of)],
        weights,
    )
    return mine, theirs


def _check(probabilities: Floats, labels: Ints) -> None:
    shape = probabilities.shape
    if len(shape) != 2 or shape[1] < 2 or labels.shape != shape[:1] or not len(labels):
        raise DataError(
            "quality needs probabilities [n, classes] of two classes or more and labels [n], n > 0; "
            f"found {shape} and {labels.shape}"
        )
    if not np.isfinite(probabilities).all():
        raise DataError("probabilities hold values that are not finite numbers")
    if labels.min() < 0 or labels.max() >= shape[1]:
        raise DataError(
            f"labels are classes from 0 to {shape[1] - 1}, found {labels.min()} to {labels.max()}; "
            "rows without a label are to be left out"
        )


def _counts(probabilities: Floats, labels: Ints, weights: Lines) -> tuple[Lines, Lines, Lines]:
    """Weight of each class, [resamples, classes]: decided rightly, labelled so, decided so."""
    decided, each = probabilities.argmax(1), np.eye(probabilities.shape[1])
    mine = each[labels]
    # no table of label by decision: of a hundred labels it would have ten thousand cells a row
    right = weights @ (mine * (decided == labels)[:, None])
    return right, weights @ mine, weights @ each[decided]


def _binned(probabilities: Floats, labels: Ints, weights: Lines) -> tuple[Lines, Lines, Lines]:
    """Summed over each bin of confidence, [resamples, bins]: weight, confidence, right decisions."""
    confidence = probabilities.max(axis=1)
    numbers = np.clip(np.ceil(confidence * _BINS).astype(np.int64) - 1, 0, _BINS - 1)
    member, right = np.eye(_BINS)[numbers], probabilities.argmax(1) == labels
    return (
        weights @ member,
        weights @ (member * confidence[:, None]),
        weights @ (member * right[:, None]),
    )


def _area(scores: Floats, positive: npt.NDArray[np.bool_], weights: Lines) -> Lines:
    """Weighted Mann-Whitney: the share of (positive, other) pairs in the right order."""
    order = np.argsort(scores, kind="stable")
    ordered, up = scores[order], positive[order]
    below = np.zeros((len(weights), len(order) + 1))
    np.cumsum(weights[:, order] * ~up, axis=1, out=below[:, 1:])
    # of those with the same score, half
    first = np.searchsorted(ordered, ordered[up], "left")
    last = np.searchsorted(ordered, ordered[up], "right")
    of = weights[:, order[up]]
    ahead = (of * (below[:, first] + below[:, last])).sum(axis=1) / 2
    return _over(ahead, of.sum(axis=1) * below[:, -1])


def _of_positive(classes: Lines) -> Lines:
    """Of [resamples, classes] the last column of two, or the mean of those that are defined."""
    if classes.shape[1] == 2:
        return np.asarray(classes[:, 1])
    defined = ~np.isnan(classes)
    return _over(np.where(defined, classes, 0.0).sum(axis=1), defined.sum(axis=1).astype(float))


def _over(top: Lines, bottom: Lines) -> Lines:
    """top / bottom, NaN where that is x/0 or either is undefined."""
    found = np.full(top.shape, np.nan)
    np.divide(top, bottom, out=found, where=bottom > 0)
    return found
