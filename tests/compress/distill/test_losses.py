"""The losses against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codemill.compress.distill.losses import (
    contrastive,
    cosine_distance,
    hidden_distance,
    relation_divergence,
    similarity_divergence,
)

T = 0.07


def unit_rows(seed: int, rows: int = 6, dim: int = 5) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(rows, dim))
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True))


def log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


@pytest.fixture
def rows() -> list[np.ndarray]:
    return [unit_rows(seed) for seed in range(4)]


def tensors(rows: list[np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(row) for row in rows]


def test_cosine_distance_is_the_mean_of_one_minus_cosine(rows: list[np.ndarray]) -> None:
    student, teacher, *_ = rows
    expected = np.mean([1 - s @ t for s, t in zip(student, teacher, strict=True)])
    assert float(cosine_distance(*tensors([student, teacher]))) == pytest.approx(expected)
    assert float(cosine_distance(*tensors([student, student]))) == pytest.approx(0, abs=1e-12)


def test_similarity_divergence_is_the_kl_of_both_directions(rows: list[np.ndarray]) -> None:
    query, code, teacher_query, teacher_code = rows

    def kl(student: np.ndarray, teacher: np.ndarray) -> float:
        s, t = log_softmax(student), log_softmax(teacher)
        return float((np.exp(t) * (t - s)).sum(axis=1).mean())

    student, teacher = query @ code.T / T, teacher_query @ teacher_code.T / T
    expected = (kl(student, teacher) + kl(student.T, teacher.T)) / 2
    assert expected > 0
    assert float(similarity_divergence(*tensors(rows), T)) == pytest.approx(expected)
    same = tensors([query, code, query, code])
    assert float(similarity_divergence(*same, T)) == pytest.approx(0, abs=1e-12)


def reference_contrastive(query: np.ndarray, code: np.ndarray, same: np.ndarray) -> float:
    total = 0.0
    for scores in (query @ code.T / T, code @ query.T / T):
        for row in range(len(scores)):
            others = [c for c in range(len(scores)) if c == row or not same[row, c]]
            total += np.log(np.exp(scores[row, others]).sum()) - scores[row, row]
    return total / 2 / len(query)


def test_the_contrastive_loss_is_infonce_of_both_directions(rows: list[np.ndarray]) -> None:
    query, code, *_ = rows
    expected = reference_contrastive(query, code, np.zeros((6, 6), dtype=bool))
    assert float(contrastive(*tensors([query, code]), T)) == pytest.approx(expected)


def test_known_matches_are_no_negatives(rows: list[np.ndarray]) -> None:
    query, code, *_ = rows
    same = np.zeros((6, 6), dtype=bool)
    same[0, 3] = same[3, 0] = same[2, 5] = same[5, 2] = True
    found = contrastive(*tensors([query, code]), T, torch.from_numpy(same))
    assert float(found) == pytest.approx(reference_contrastive(query, code, same))
    assert float(found) < float(contrastive(*tensors([query, code]), T))


def test_gradients_stay_finite_where_all_others_match() -> None:
    query, code = (row.requires_grad_() for row in tensors([unit_rows(0, 2), unit_rows(1, 2)]))
    same = ~torch.eye(2, dtype=torch.bool)
    loss = contrastive(query, code, T, same)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
    assert query.grad is not None
    assert torch.isfinite(query.grad).all()


LENGTHS = (5, 3)
"""Real tokens of two texts."""


def states(seed: int, width: int) -> np.ndarray:
    """[2, 5, width]"""
    return np.random.default_rng(seed).normal(size=(len(LENGTHS), max(LENGTHS), width))


def mask() -> torch.Tensor:
    return torch.tensor([[1] * length + [0] * (max(LENGTHS) - length) for length in LENGTHS])


def test_hidden_distance_is_the_squared_error_of_normalised_states_of_real_tokens() -> None:
    student, teacher = states(0, 6), states(1, 6)

    def normal(vector: np.ndarray) -> np.ndarray:
        return np.asarray((vector - vector.mean()) / np.sqrt(vector.var() + 1e-5))

    apart = [
        ((normal(student[text, token]) - normal(teacher[text, token])) ** 2).mean()
        for text, length in enumerate(LENGTHS)
        for token in range(length)
    ]
    found = hidden_distance(*tensors([student, teacher]), mask())
    assert float(found) == pytest.approx(np.mean(apart), rel=1e-5)
    assert float(hidden_distance(*tensors([student, student]), mask())) == 0
    turned = hidden_distance(*tensors([student, 3 * student + 2]), mask())
    assert float(turned) == pytest.approx(0, abs=1e-4), "length and mean do not count"


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_relation_divergence_is_the_kl_between_softmaxed_products_of_tokens(heads: int) -> None:
    student, teacher = states(0, 8), states(1, 12)

    def relations(vectors: np.ndarray, length: int, head: int) -> np.ndarray:
        width = vectors.shape[1] // heads
        part = vectors[:length, head * width : (head + 1) * width]
        return log_softmax(part @ part.T / np.sqrt(width))

    apart = []
    for text, length in enumerate(LENGTHS):
        per_head = []
        for head in range(heads):
            s, t = relations(student[text], length, head), relations(teacher[text], length, head)
            per_head.append((np.exp(t) * (t - s)).sum(1))
        apart += np.mean(per_head, 0).tolist()
    found = relation_divergence(*tensors([student, teacher]), mask(), heads)
    assert float(found) == pytest.approx(np.mean(apart), rel=1e-4)
    assert float(found) > 0
    same = relation_divergence(*tensors([teacher, teacher]), mask(), heads)
    assert float(same) == pytest.approx(0, abs=1e-6)


def test_what_is_padding_changes_neither_relations_nor_hidden_states_nor_their_gradients() -> None:
    student, other = tensors([states(0, 8), states(0, 8)])
    other[1, 3:] = 1e3
    teacher = torch.from_numpy(states(1, 8))
    for loss in (hidden_distance, lambda *given: relation_divergence(*given, 2)):
        gradients = []
        for states_ in (student, other):
            leaf = states_.clone().requires_grad_()
            value = loss(leaf, teacher, mask())
            value.backward()
            assert leaf.grad is not None
            gradients.append((float(value.detach()), leaf.grad))
        (one, of_one), (two, of_two) = gradients
        assert one == pytest.approx(two)
        assert torch.allclose(of_one[1, :3], of_two[1, :3])
        assert float(of_two[1, 3:].abs().max()) == 0
