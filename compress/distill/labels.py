"""What a classifier learns from: the labels of the data, a teacher's probabilities, or both; the loss of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from codemill.compress.distill.losses import label_divergence
from codemill.compress.distill.origin import Origin, origin_loss, recording, relation_heads
from codemill.compress.models.classifier import Classifier, Texts
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
    variants: tuple[Tokenized, ...] = ()
    """of each distinct text, rewritten: as many as there are of `tokens`, in each of these"""


def label_loss(
    classifier: Classifier,
    targets: LabelTargets,
    settings: Distill,
    bf16: bool,
    seed: int = 0,
    origin: Origin | None = None,
) -> Callable[[np.ndarray], Tensor]:
    """The loss of a batch of rows: KL to the teacher and cross-entropy with gold labels, as `settings.losses` weigh.

    A row that has only one of the two learns from that one alone, at full weight, so that a batch of gold and of
    teacher-labelled rows teaches evenly. What `settings.token_dropout` hides, and which texts are seen rewritten, is
    a function of seed and batch, so that a run that is continued sees the same.
    origin: what the losses `embedding`, `hidden` and `relations` learn from; without one they are left out.
    """
    of_class = cache(partial(_class_weights, targets.gold, settings.class_weights))
    taught_by_origin = bool(origin and settings.losses.of_origin)
    heads = 0
    if origin is not None and settings.losses.relations:
        heads = relation_heads(classifier.encoder, origin, settings)

    def loss_of(batch: np.ndarray) -> Tensor:
        rows = targets.rows[batch]
        shown, whole = _seen(targets, rows, settings, seed)
        if origin is None or not taught_by_origin:
            logits = classifier.logits(shown, rows, bf16)
            return _labelled_loss(logits, targets, batch, settings, of_class)
        layers = range(len(origin.copied_layers)) if settings.losses.hidden else ()
        vectors_of = -1 if settings.losses.relations else None
        with recording(classifier.encoder, layers, vectors_of) as seen:
            logits = classifier.logits(shown, rows, bf16)
        total = _labelled_loss(logits, targets, batch, settings, of_class)
        indices = np.unique(rows).tolist()
        return total + origin_loss(classifier, seen, origin, whole, indices, settings, heads, bf16)

    return loss_of


def _labelled_loss(
    logits: Tensor,
    targets: LabelTargets,
    batch: np.ndarray,
    settings: Distill,
    of_class: Callable[[int], Tensor | None],
) -> Tensor:
    """logits [batch, labels]; of_class: number of labels -> the weight of each."""
    weights, device = settings.losses, logits.device
    gold = torch.from_numpy(targets.gold[batch].astype(np.int64)).to(device)
    has_gold = gold >= 0
    taught = torch.zeros(len(batch), dtype=torch.bool, device=device)
    total = torch.zeros((), device=device)
    if targets.teacher is not None and weights.teacher:
        teacher = torch.from_numpy(targets.teacher[batch]).to(device)
        taught = ~teacher.isnan().any(1)
        if taught.any():
            share = taught.float().mean()
            divergence = label_divergence(
                logits[taught], teacher[taught], settings.label_temperature
            )
            total = total + weights.teacher * share * divergence
    balance = of_class(logits.shape[1])
    if balance is not None:
        balance = balance.to(device)
    for some, weight in ((has_gold & taught, weights.gold), (has_gold & ~taught, 1.0)):
        if some.any() and weight:
            entropy = functional.cross_entropy(logits[some], gold[some], weight=balance)
            total = total + weight * some.float().mean() * entropy
    return total


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
    targets: LabelTargets, rows: np.ndarray, settings: Distill, seed: int
) -> tuple[Texts, Texts]:
    """The tokens that a step sees of the texts of these rows, and the same before any of them was hidden.

    Rewritten texts for some, windows of long ones; special tokens are never hidden.
    """
    texts = np.unique(rows).tolist()
    share = settings.token_dropout
    tokens: Texts = targets.tokens
    if settings.augment and targets.variants:
        tokens = _rewritten(targets, texts, rows, settings.augment, seed)
    if not share and all(len(tokens[index]) <= targets.longest for index in texts):
        return tokens, tokens
    generator = np.random.default_rng([seed, *_of_rows(rows)])
    found, whole = {}, {}
    for index in texts:
        ids = _window(tokens[index], targets.longest, generator)
        whole[index] = ids.copy()
        # some texts are nearly whole, of others twice the share is hidden
        hidden = generator.random(len(ids)) < 2 * share * generator.random()
        hidden[[0, -1]] = False
        ids[hidden] = targets.hidden_id
        found[index] = ids
    return found, whole


def _of_rows(rows: np.ndarray) -> list[int]:
    """What a batch is known by where something is drawn for it."""
    return [*rows.ravel().tolist()[:64], len(rows)]


def _rewritten(
    targets: LabelTargets, texts: list[int], rows: np.ndarray, share: float, seed: int
) -> dict[int, np.ndarray]:
    """Each of the texts as it is or, with the probability `share`, in one of its variants."""
    # a stream of its own: with or without it, the same tokens are hidden
    generator = np.random.default_rng([seed, 1, *_of_rows(rows)])
    chosen = generator.random(len(texts)) < share
    which = generator.integers(0, len(targets.variants), len(texts))
    return {
        index: targets.variants[variant][index] if rewritten else targets.tokens[index]
        for index, rewritten, variant in zip(texts, chosen, which, strict=True)
    }


def _window(ids: np.ndarray, longest: int, generator: np.random.Generator) -> np.ndarray:
    """A copy of the text, or of a window: each second time its beginning, which says most, else from anywhere."""
    if len(ids) <= longest:
        return ids.copy()
    inner = longest - 2
    start = 0 if generator.random() < 0.5 else int(generator.integers(0, len(ids) - 1 - inner))
    return np.concatenate([ids[:1], ids[1 + start : 1 + start + inner], ids[-1:]])


def _class_weights(
    gold: np.ndarray, kind: Literal["none", "balanced"], labels: int
) -> Tensor | None:
    """float32 [labels], by which a label that half as many rows have counts twice as much; None: all the same."""
    if kind == "none":
        return None
    counts = np.bincount(gold[gold >= 0], minlength=labels)
    rare = counts.sum() / (np.maximum(counts, 1) * max(1, (counts > 0).sum()))
    return torch.from_numpy(rare.astype(np.float32))
