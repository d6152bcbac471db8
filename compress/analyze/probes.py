"""Linear probes: can a property be read off a layer by a hyperplane, and is it the layer that knows it?

A probe that learned its labels by heart would say nothing of the layer. So each has a control task (Hewitt and Liang,
1909.03368): labels drawn at random, one for each word type, which only memory can get right. What counts is the
selectivity, accuracy less control accuracy.

A probe is scikit-learn's ridge classifier on standardised columns: a linear one with a closed form, a hundred times
faster than logistic regression where a model has 30 layers.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codemill.targets.analysis import Probe

__all__ = ["control_labels", "pair_features", "probe"]

_PENALTIES = (0.01, 0.1, 1.0, 10.0)
"""Times the training items; which, a fifth of these decides."""
_HELD_OUT = 5

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]


def control_labels(types: list[str], labels: Ints, seed: int) -> NDArray[np.int64]:
    """Random labels, the same for each item of one word type, as frequent as `labels`: int64 [items]."""
    counts = np.bincount(labels)
    bounds = np.cumsum(counts) / counts.sum()

    def drawn(word: str) -> int:
        digest = hashlib.sha256(f"{seed}:{word}".encode(errors="replace")).digest()
        return int(np.searchsorted(bounds, int.from_bytes(digest[:7]) / 2**56, side="right"))

    of_type = {word: drawn(word) for word in sorted(set(types))}
    return np.asarray([of_type[word] for word in types], dtype=np.int64)


def pair_features(one: Floats, two: Floats) -> Floats:
    """[items, width] twice -> [items, 2 width]: |a - b| and a * b, by which a linear probe can compare two."""
    return np.concatenate([np.abs(one - two), one * two], axis=1)


def probe(
    name: str, features: Floats, labels: Ints, control: Ints, train: NDArray[np.bool_]
) -> Probe:
    """Train on the rows of `train`, test on the others, for the property and for its control task.

    features: float32 [items, columns]; labels, control: int [items]; train: bool [items].
    """
    accuracy = _accuracy(features, labels, train)
    chance = _accuracy(features, control, train)
    tested = int((~train).sum())
    return Probe(
        property=name,
        accuracy=accuracy,
        control=chance,
        selectivity=accuracy - chance,
        standard_error=math.sqrt(accuracy * (1 - accuracy) / tested),
    )


def _accuracy(features: Floats, labels: Ints, train: NDArray[np.bool_]) -> float:
    inner = train.copy()
    inner[np.flatnonzero(train)[::_HELD_OUT]] = False
    judged = train & ~inner
    # the least penalty of equals is no better founded: the first
    scores = [_score(features, labels, inner, judged, penalty) for penalty in _PENALTIES]
    best = _PENALTIES[int(np.argmax(scores))]
    return _score(features, labels, train, ~train, best)


def _score(
    features: Floats,
    labels: Ints,
    train: NDArray[np.bool_],
    tested: NDArray[np.bool_],
    penalty: float,
) -> float:
    from sklearn.linear_model import RidgeClassifier

    known = labels[train]
    if (known == known[0]).all():
        return float((labels[tested] == known[0]).mean())
    mean, spread = features[train].mean(0), features[train].std(0)
    scaled = (features - mean) / np.where(spread > 0, spread, 1)
    model = RidgeClassifier(alpha=penalty * len(known), solver="cholesky")
    model.fit(scaled[train], known)
    return float((model.predict(scaled[tested]) == labels[tested]).mean())
