"""What a classifier learns from: the labels of the data, a teacher's probabilities, or both; the loss of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from codemill.compress.distill.losses import label_divergence
from codemill.compress.models.classifier import Classifier
from codemill.compress.models.pooling import Tokenized
from codemill.compress.recipe import Distill

__all__ = ["LabelTargets", "label_loss", "taught_rows"]


@dataclass(frozen=True)
class LabelTargets:
    """tokens: of each distinct text. rows: int [n, 1 | 2], indices into them. gold: int [n], -1 where unknown.

    teacher: float32 [n, labels], probabilities, NaN in the rows that no teacher has labelled; None: no teacher.
    """

    tokens: Tokenized
    rows: np.ndarray
    gold: np.ndarray
    teacher: np.ndarray | None = None
    hidden_id: int = 0
    """the token that stands for those that `token_dropout` hides: the unknown one"""
    longest: int = 10**9
    """of a text with more tokens a step sees a window of so many, between its first and its last, which are special"""


def label_loss(
    classifier: Classifier, targets: LabelTargets, settings: Distill, bf16: bool, seed: int = 0
) -> Callable[[np.ndarray], Tensor]:
    """The loss of a batch of rows: KL to the teacher and cross-entropy with gold labels, as `settings.losses` weigh.

    A row that has only one of the two learns from that one alone, at full weight, so that a batch of gold and of
    teacher-labelled rows teaches evenly. What `settings.token_dropout` hides is a function of seed and batch, so that
    a run that is continued sees the same.
    """
    weights = settings.losses

    def loss_of(batch: np.ndarray) -> Tensor:
        rows = targets.rows[batch]
        tokens = _seen(targets, rows, settings.token_dropout, seed)
        logits = classifier.logits(tokens, rows, bf16)
        of_class = _class_weights(targets, settings, logits.shape[1])
        gold = torch.from_numpy(targets.gold[batch].astype(np.int64))
        has_gold = gold >= 0
        taught = torch.zeros(len(batch), dtype=torch.bool)
        total = torch.zeros(())
        if targets.teacher is not None and weights.teacher:
            teacher = torch.from_numpy(targets.teacher[batch])
            taught = ~teacher.isnan().any(1)
            if taught.any():
                share = taught.float().mean()
                divergence = label_divergence(
                    logits[taught], teacher[taught], settings.label_temperature
                )
                total = total + weights.teacher * share * divergence
        for rows, weight in ((has_gold & taught, weights.gold), (has_gold & ~taught, 1.0)):
            if rows.any() and weight:
                entropy = functional.cross_entropy(logits[rows], gold[rows], weight=of_class)
                total = total + weight * rows.float().mean() * entropy
        return total

    return loss_of


def taught_rows(targets: LabelTargets, settings: Distill) -> np.ndarray:
    """bool [n]: the rows that have something to learn from under these weights."""
    taught = np.zeros(len(targets.gold), dtype=bool)
    if targets.teacher is not None and settings.losses.teacher:
        taught = ~np.isnan(targets.teacher).any(1)
    found: np.ndarray = taught & bool(settings.losses.teacher) | (targets.gold >= 0) & (
        ~taught | bool(settings.losses.gold)
    )
    return found


def _seen(
    targets: LabelTargets, rows: np.ndarray, share: float, seed: int
) -> Tokenized | dict[int, np.ndarray]:
    """What a step sees of the texts of these rows: windows of long ones, some tokens hidden; special ones stay."""
    texts = np.unique(rows).tolist()
    if not share and all(len(targets.tokens[index]) <= targets.longest for index in texts):
        return targets.tokens
    generator = np.random.default_rng([seed, *rows.ravel().tolist()[:64], len(rows)])
    found = {}
    for index in texts:
        ids = _window(targets.tokens[index], targets.longest, generator)
        # some texts are nearly whole, of others twice the share is hidden
        hidden = generator.random(len(ids)) < 2 * share * generator.random()
        hidden[[0, -1]] = False
        ids[hidden] = targets.hidden_id
        found[index] = ids
    return found


def _window(ids: np.ndarray, longest: int, generator: np.random.Generator) -> np.ndarray:
    """A copy of the text, or of a window: each second time its beginning, which says most, else from anywhere."""
    if len(ids) <= longest:
        return ids.copy()
    inner = longest - 2
    start = 0 if generator.random() < 0.5 else int(generator.integers(0, len(ids) - 1 - inner))
    return np.concatenate([ids[:1], ids[1 + start : 1 + start + inner], ids[-1:]])


def _class_weights(targets: LabelTargets, settings: Distill, labels: int) -> Tensor | None:
    if settings.class_weights == "none":
        return None
    counts = np.bincount(targets.gold[targets.gold >= 0], minlength=labels)
    rare = counts.sum() / (np.maximum(counts, 1) * max(1, (counts > 0).sum()))
    return torch.from_numpy(rare.astype(np.float32))
