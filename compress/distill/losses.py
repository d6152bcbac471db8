"""The losses of students, one function each; what trains one weighs and adds them.

Shapes, unless said otherwise: query, code, and the teacher's of each: [batch, dim], L2-normalised;
row i of `query` belongs to row i of `code`, all other rows are negatives.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "contrastive",
    "cosine_distance",
    "hidden_distance",
    "label_divergence",
    "relation_divergence",
    "similarity_divergence",
]


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cos between rows: the student learns the teacher's very embedding."""
    return (1 - (student * teacher).sum(dim=-1)).mean()


def similarity_divergence(
    query: Tensor, code: Tensor, teacher_query: Tensor, teacher_code: Tensor, temperature: float
) -> Tensor:
    """KL from the teacher's distribution over the batch's candidates to the student's, both directions.

    What matters for a search is the order of candidates, not the embedding's place; source of the
    idea: similarity-preserving distillation (1907.09682) with the softmax of 1503.02531.
    """
    student = query @ code.T / temperature
    teacher = teacher_query @ teacher_code.T / temperature
    rows = functional.kl_div(
        student.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True
    )
    columns = functional.kl_div(
        student.log_softmax(0).T, teacher.log_softmax(0).T, reduction="batchmean", log_target=True
    )
    return (rows + columns) / 2


def contrastive(
    query: Tensor, code: Tensor, temperature: float, same: Tensor | None = None
) -> Tensor:
    """In-batch contrastive loss in both directions (InfoNCE, 1807.03748).

    same [batch, batch], optional: True where an off-diagonal pair is known to match as well (equal
    queries or equal codes); such candidates are left out of the denominator.
    """
    scores = query @ code.T / temperature
    if same is not None:
        scores = scores.masked_fill(same, -torch.inf)
    target = torch.arange(len(query))
    return (
        functional.cross_entropy(scores, target) + functional.cross_entropy(scores.T, target)
    ) / 2


def label_divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL from a teacher's probabilities to the student's, both softened (1503.02531); mean over rows.

    logits, teacher: [n, labels], the teacher's as probabilities. Times the squared temperature, so that the
    gradients' size does not depend on it.
    """
    # of a label given for certain nothing is left but the smallest probability that counts
    soft = (teacher.clamp_min(_LEAST).log() / temperature).log_softmax(-1)
    found = functional.kl_div(
        (logits / temperature).log_softmax(-1), soft, reduction="batchmean", log_target=True
    )
    return found * temperature**2


def hidden_distance(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error between hidden states that are normalised to mean 0 and variance 1; over real tokens.

    student, teacher: [batch, tokens, width]; mask [batch, tokens], 1 where a token is real. Normalised, because
    what counts is where a state points: the next layer's norm takes the rest away. (Idea: 1908.09355, 1909.10351.)
    """
    width = student.shape[-1:]
    apart = functional.layer_norm(student.float(), width) - functional.layer_norm(
        teacher.float(), width
    )
    return (apart.square().mean(-1) * mask).sum() / mask.sum()


def relation_divergence(student: Tensor, teacher: Tensor, mask: Tensor, heads: int) -> Tensor:
    """KL from the teacher's relations between the tokens of a text to the student's (MiniLM v2, 2012.15828).

    student [batch, tokens, width], teacher [batch, tokens, its width]: all queries of a layer, or all keys, or all
    values, its heads side by side; mask [batch, tokens], 1 where a token is real. Both widths are split into as
    many `heads`, whatever the models' own; a relation is the softmax over the real tokens of the products of one
    token's vector with all, over the root of a head's width. The mean over heads and real tokens.
    """
    real = mask.bool()[:, None, None, :]
    mine, aim = (_relations(vectors.float(), real, heads) for vectors in (student, teacher))
    # what is not real has no share on either side, and its logarithm is not finite
    apart = (aim.exp() * (aim - mine)).masked_fill(~real, 0.0).sum(-1)
    return (apart.mean(1) * mask).sum() / mask.sum()


def _relations(vectors: Tensor, real: Tensor, heads: int) -> Tensor:
    """Logarithms of the relations, [batch, heads, tokens, tokens]; vectors [batch, tokens, width]."""
    batch, tokens, width = vectors.shape
    split = vectors.view(batch, tokens, heads, width // heads).transpose(1, 2)
    scores: Tensor = split @ split.transpose(-1, -2) / (width // heads) ** 0.5
    # not -inf: the difference of two would be no number, and its gradient too
    return scores.masked_fill(~real, _NEVER).log_softmax(-1)


_LEAST = 1e-6
_NEVER = -1e9
