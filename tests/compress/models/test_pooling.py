"""Padding and pooling in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codemill.compress.models.load import TeacherModel
from codemill.compress.models.pooling import embed, embed_all, pad, positions


def texts(*lengths: int) -> list[np.ndarray]:
    chance = np.random.default_rng(0)
    return [chance.integers(5, 100, length).astype(np.uint16) for length in lengths]


def test_batches_are_padded_to_multiples_of_sixteen() -> None:
    given = texts(5, 17)
    ids, mask = pad(given)
    assert ids.shape == mask.shape == (2, 32)
    assert ids.dtype == mask.dtype == torch.int64
    assert mask.sum(1).tolist() == [5, 17]
    assert ids[0, :5].tolist() == given[0].tolist()
    assert ids[0, 5:].abs().sum() == 0


def test_padding_stops_at_the_models_positions(teacher: TeacherModel) -> None:
    assert positions(teacher.model) == 60
    ids, _ = pad(texts(59), 60)
    assert ids.shape == (1, 60)
    with pytest.raises(ValueError):
        pad(texts(61), 60)


def test_the_longest_text_a_model_takes_is_embedded(teacher: TeacherModel) -> None:
    assert embed_all(teacher.model, texts(60, 3)).shape == (2, 32)


def test_padding_changes_no_embedding(teacher: TeacherModel) -> None:
    short, long = texts(7, 40)
    with torch.inference_mode():
        alone = embed(
            teacher.model, torch.from_numpy(short.astype(np.int64))[None], torch.ones(1, 7)
        )
        beside = embed(teacher.model, *pad([short, long]))
    assert torch.allclose(alone[0], beside[0], atol=1e-6)


def test_embeddings_are_unit_vectors_in_the_order_of_the_texts(teacher: TeacherModel) -> None:
    given = texts(30, 4, 50, 12, 9)
    rows = embed_all(teacher.model, given, batch_size=2)
    assert rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    for row, text in zip(rows, given, strict=True):
        assert np.allclose(row, embed_all(teacher.model, [text])[0], atol=1e-6)


def test_bf16_rounds_but_pools_in_float32(teacher: TeacherModel) -> None:
    given = texts(30, 4)
    exact, rounded = (embed_all(teacher.model, given, bf16=bf16) for bf16 in (False, True))
    assert rounded.dtype == np.float32
    assert np.allclose(np.linalg.norm(rounded, axis=1), 1, atol=1e-5)
    assert 0 < np.abs(exact - rounded).max() < 0.1
