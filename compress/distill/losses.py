"""The losses of a retrieval student, one function each; the loop weighs and adds them.

Shapes: query, code, and the teacher's of each: [batch, dim], L2-normalised; row i of `query` belongs
to row i of `code`, all other rows are negatives.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["contrastive", "cosine_distance", "similarity_divergence"]


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
