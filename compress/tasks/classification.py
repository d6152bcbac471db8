"""Classification of one text or of two: what a batch is, and the metric, the mean recall of the labels."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from codemill.compress.models.classifier import Classifier
from codemill.compress.models.pooling import Tokenized

__all__ = ["mean_recall", "plan_row_batches", "validator"]

_POOL = 32
"""Batches drawn together and sorted by length, so that little of a batch is padding."""


def mean_recall(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the labels that occur of the share of theirs that is found: accuracy where all are as frequent.

    probabilities [n, classes]; labels int [n], -1 where none is known: left out.
    """
    known = labels >= 0
    hit = probabilities[known].argmax(1) == labels[known]
    return float(
        np.mean([hit[labels[known] == label].mean() for label in np.unique(labels[known])])
    )


def validator(
    classifier: Classifier,
    tokens: Tokenized,
    rows: np.ndarray,
    labels: np.ndarray,
    bf16: bool = False,
) -> Callable[[], float]:
    """A function that gives the classifier's `mean_recall` on held-out rows as it stands."""

    def validate() -> float:
        return mean_recall(classifier.probabilities(tokens, rows, bf16), labels)

    return validate


def plan_row_batches(
    rows: np.ndarray, lengths: Sequence[int], batch_size: int, epochs: float, seed: int
) -> list[np.ndarray]:
    """The rows of every step. rows: int [n, 1 | 2] of indices into texts with these `lengths` in tokens.

    Single texts: shuffled, sorted by length within pools, the batches shuffled again. Pairs: the pairs of
    one text follow another's in an order drawn by the seed, cut into batches of `batch_size`, so that a text
    is encoded for several pairs at once; and the pairs whose two texts are in a batch anyway join it, whether
    or not they have been seen in this epoch: they cost next to nothing. Every row is in a batch of its own
    turn once in each whole epoch.
    """
    generator = np.random.default_rng(seed)
    size = min(batch_size, len(rows))
    steps = max(1, math.ceil(len(rows) * epochs / size))
    batches: list[np.ndarray] = []
    while len(batches) < steps:
        made = (
            _by_length(rows[:, 0], lengths, size, generator)
            if rows.shape[1] == 1
            else _by_text(rows, size, generator)
        )
        batches += [made[index] for index in generator.permutation(len(made))]
    return batches[:steps]


def _by_length(
    texts: np.ndarray, lengths: Sequence[int], size: int, generator: np.random.Generator
) -> list[np.ndarray]:
    # the last pool takes in a rest that would not fill a batch
    bounds = list(range(0, len(texts) - size + 1, size * _POOL))[1:]
    batches: list[np.ndarray] = []
    for pool in np.split(generator.permutation(len(texts)), bounds):
        by_length = pool[np.argsort([lengths[texts[index]] for index in pool], kind="stable")]
        batches += np.array_split(by_length, math.ceil(len(pool) / size))
    return batches


def _by_text(rows: np.ndarray, size: int, generator: np.random.Generator) -> list[np.ndarray]:
    pairs_of: defaultdict[int, list[int]] = defaultdict(list)
    for pair, (first, second) in enumerate(rows.tolist()):
        pairs_of[first].append(pair)
        if second != first:
            pairs_of[second].append(pair)
    order: dict[int, None] = {}
    for text in generator.permutation(sorted(pairs_of)).tolist():
        order.update(dict.fromkeys(pairs_of[text]))
    turns = np.array_split(np.fromiter(order, dtype=np.int64), math.ceil(len(rows) / size))
    return [_with_inner(turn, rows, pairs_of) for turn in turns]


def _with_inner(turn: np.ndarray, rows: np.ndarray, pairs_of: dict[int, list[int]]) -> np.ndarray:
    """The pairs of a turn, and all others between the texts of these."""
    texts = set(rows[turn].ravel().tolist())
    inner = [
        pair
        for text in sorted(texts)
        for pair in pairs_of[text]
        if set(rows[pair].tolist()) <= texts
    ]
    return np.unique(np.concatenate([turn, np.asarray(inner, dtype=np.int64)]))
