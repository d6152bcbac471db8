"""Metrics against scikit-learn, and what they say where they are undefined."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from codemill.errors import DataError
from codemill.targets.classification import (
    METRICS,
    Interval,
    bins,
    confusion,
    ece,
    majority,
    margin,
    mcc,
    resampled,
)

N = 300
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def made_up(classes: int, coarse: bool = False) -> tuple[Floats, Ints]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, N)
    logits = rng.normal(size=(N, classes)) + 1.2 * np.eye(classes)[labels]
    odds = np.exp(np.round(logits) if coarse else logits)
    return odds / odds.sum(axis=1, keepdims=True), labels


def one(name: str, probabilities: Floats, labels: Ints) -> float | None:
    return METRICS[name](probabilities, labels, np.ones(len(labels)))


def some(values: list[list[float]], labels: list[int]) -> tuple[Floats, Ints]:
    return np.array(values), np.array(labels)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [2, 4])
def test_metrics_are_scikit_learns_with_weights_and_ties(
    classes: int, weighted: bool, coarse: bool
) -> None:
    from sklearn import metrics

    p, labels = made_up(classes, coarse)
    weights = np.random.default_rng(1).integers(0, 4, N).astype(float) if weighted else np.ones(N)
    decided, told = p.argmax(1), {"sample_weight": weights}
    average = "binary" if classes == 2 else "macro"
    # of two, the positive one: rounding parts ties of the other column
    sides = [1] if classes == 2 else range(classes)
    areas = [metrics.roc_auc_score(labels == c, p[:, c], **told) for c in sides]
    squares = ((p - np.eye(classes)[labels]) ** 2).sum(axis=1) / 2
    expected = {
        "accuracy": metrics.accuracy_score(labels, decided, **told),
        "precision": metrics.precision_score(labels, decided, average=average, **told),
        "recall": metrics.recall_score(labels, decided, average=average, **told),
        "f1": metrics.f1_score(labels, decided, average=average, **told),
        "auc": np.mean(areas),
        "mcc": metrics.matthews_corrcoef(labels, decided, **told),
        "brier": np.average(squares, weights=weights),
    }
    found = {name: METRICS[name](p, labels, weights) for name in expected}
    assert found == pytest.approx(expected)
    if classes == 2:
        assert found["brier"] == pytest.approx(metrics.brier_score_loss(labels, p[:, 1], **told))


@pytest.mark.parametrize("name", METRICS)
def test_a_weight_is_worth_as_many_rows_and_a_line_of_weights_is_a_resample(name: str) -> None:
    p, labels = made_up(3)
    lines = np.random.default_rng(2).integers(0, 3, (4, N))
    repeated = [one(name, np.repeat(p, line, axis=0), np.repeat(labels, line)) for line in lines]
    assert METRICS[name].lines(p, labels, lines.astype(float)) == pytest.approx(repeated)


def test_what_is_undefined_is_none_and_the_rest_is_not() -> None:
    only_negative = some([[0.9, 0.1], [0.8, 0.2]], [0, 0])
    for name in ("auc", "recall", "precision", "f1", "mcc"):
        assert one(name, *only_negative) is None
    assert one("accuracy", *only_negative) == 1
    assert one("brier", *only_negative) == pytest.approx((0.01 + 0.04) / 2)


def test_a_collapsed_classifier_has_f1_and_mcc_0_and_auc_one_half() -> None:
    rows = some([[0.6, 0.4]] * 4, [0, 1, 0, 0])
    for name, value in {"precision": 0, "recall": 0, "f1": 0, "mcc": 0, "auc": 0.5}.items():
        assert one(name, *rows) == value
    assert one("accuracy", *rows) == majority(*rows, np.ones(4)) == 0.75


def test_the_positive_class_is_the_last() -> None:
    rows = some([[0.1, 0.9], [0.2, 0.8], [0.9, 0.1]], [1, 0, 0])
    assert one("precision", *rows) == 0.5
    assert one("recall", *rows) == 1
    assert confusion(*rows) == ((1, 1), (0, 1))


def test_calibration_error_is_the_gap_of_each_bin_by_its_rows() -> None:
    # confidence .95, half right; confidence .65, all right
    rows = some([[0.95, 0.05]] * 2 + [[0.35, 0.65]] * 2, [0, 1, 1, 1])
    assert ece(*rows, np.ones(4)) == pytest.approx(0.5 * 0.45 + 0.5 * 0.35)
    low, high = bins(*rows)
    assert (low.rows, low.accuracy, low.confidence) == (2, 1, pytest.approx(0.65))
    assert (high.rows, high.accuracy, high.confidence) == (2, 0.5, pytest.approx(0.95))


def test_a_class_that_does_not_occur_leaves_the_mean_to_the_others() -> None:
    p, labels = made_up(2)
    wide = np.concatenate([p, np.zeros((N, 1))], axis=1)
    for name in METRICS:
        if name not in ("f1", "precision", "recall"):
            assert one(name, wide, labels) == pytest.approx(one(name, p, labels)), name
    assert mcc(wide, labels, np.ones(N)) is not None


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        ([[0.5, 0.5]], [0, 1], r"found \(1, 2\) and \(2,\)"),
        ([[1.0]], [0], "two classes or more"),
        ([[float("nan"), 0.5]], [0], "not finite"),
        ([[0.5, 0.5]], [2], "from 0 to 1, found 2 to 2"),
        ([[0.5, 0.5]], [-1], "rows without a label are to be left out"),
        (np.empty((0, 2)), [], "n > 0"),
    ],
)
def test_rows_that_make_no_sense_are_errors(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        ece(np.array(probabilities), np.array(labels), np.ones(1))


def test_figures_of_a_hundred_labels_take_no_table_of_label_by_decision() -> None:
    """Ten thousand cells a row would be gigabytes."""
    rng, labels = np.random.default_rng(0), np.arange(3000) % 104
    probabilities = rng.random((3000, 104)) + 0.5 * np.eye(104)[labels]
    whole = np.ones(3000)
    right = (probabilities.argmax(1) == labels).mean()
    assert METRICS["recall"](probabilities, labels, whole) == pytest.approx(right, abs=0.01)
    table = np.array(confusion(probabilities, labels))
    assert (table.shape, table.sum()) == ((104, 104), 3000)
    assert np.trace(table) == pytest.approx(right * 3000)


def test_the_margin_is_over_always_saying_one_label_whatever_is_drawn() -> None:
    labels = np.array([0] * 60 + [1] * 40)
    always = np.stack([np.ones(100), np.zeros(100)], 1)
    weights = resampled([(i,) for i in range(100)])
    assert margin(always, labels, weights) == Interval(0.0, 0.0, 0.0)
    right = np.eye(2)[labels]
    found = margin(right, labels, weights)
    assert found is not None
    assert found.value == pytest.approx(0.4)
    assert found.low is not None
    assert 0.25 < found.low < 0.4
