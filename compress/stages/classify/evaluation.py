"""A split of labelled data as the runtime and the benchmark take it."""

from __future__ import annotations

import numpy as np

from codemill.compress.data.labelled import Labelled
from codemill.targets.evaluation import LabelledEvaluation

__all__ = ["evaluation_of", "items_of", "truth_of"]


def items_of(rows: Labelled) -> list[str] | list[tuple[str, str]]:
    """What a classifier takes: the text of each row, or its two."""
    texts = rows.texts
    if rows.rows.shape[1] == 1:
        return [texts[index] for index in rows.rows[:, 0].tolist()]
    return [(texts[first], texts[second]) for first, second in rows.rows.tolist()]


def truth_of(rows: Labelled, teacher: np.ndarray | None = None) -> np.ndarray:
    """int [n]: the label of each row; where it has none, what a teacher decided; -1 where neither is known.

    teacher: float [n, labels], a model's probabilities; None: those that the data hold, where they hold any.
    """
    said = rows.soft if teacher is None else teacher
    truth = rows.labels.copy()
    if said is not None:
        only = (truth < 0) & ~np.isnan(said).any(1)
        truth[only] = said[only].argmax(1)
    return truth


def evaluation_of(
    rows: Labelled, labels: tuple[str, ...], name: str, truth: np.ndarray | None = None
) -> LabelledEvaluation:
    """The rows, their `truth` (their own labels, where it is None), and the group of each where rows have one."""
    groups = None
    if (rows.groups >= 0).any():
        # a row without a group stands alone
        groups = tuple(
            str(group) if group >= 0 else f"row {number}"
            for number, group in enumerate(rows.groups.tolist())
        )
    return LabelledEvaluation(
        name,
        labels,
        tuple(rows.texts),
        tuple(map(tuple, rows.rows.tolist())),
        tuple((rows.labels if truth is None else truth).tolist()),
        groups,
    )
