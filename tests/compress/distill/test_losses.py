"""The losses against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codemill.compress.distill.losses import contrastive, cosine_distance, similarity_divergence

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
