"""Aims for a student that is narrower than its teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertModel

from codemill.compress.architecture import Architecture
from codemill.compress.data.pairs import Pair
from codemill.compress.distill.loop import Schedule, Targets, narrowed, train
from codemill.compress.models.bert import fresh_student
from codemill.compress.models.load import TeacherModel
from codemill.compress.models.pooling import embed_all
from codemill.compress.recipe import Distill, Losses
from codemill.compress.tasks.retrieval import tokenize_pairs
from codemill.errors import TrainingError

Rows = tuple[np.ndarray, np.ndarray]


def unit(rows: np.ndarray) -> np.ndarray:
    found: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


@pytest.fixture(scope="module")
def labels() -> Rows:
    """As teachers give them: float16, L2-normalised, most of it in some directions, none of them an axis."""
    chance = np.random.default_rng(0)
    turned, _ = np.linalg.qr(chance.normal(size=(32, 32)))
    spread = 0.8 ** np.arange(32)
    queries, codes = (unit((chance.normal(size=(200, 32)) * spread) @ turned) for _ in range(2))
    return queries.astype(np.float16), codes.astype(np.float16)


def test_of_the_same_width_there_is_nothing_to_narrow(labels: Rows) -> None:
    assert narrowed(*labels, 32) is None


@pytest.mark.parametrize("dim", [1, 8, 31])
def test_rows_have_the_width_asked_for_and_length_one(labels: Rows, dim: int) -> None:
    found = narrowed(*labels, dim)
    assert found is not None
    for side in found:
        assert side.shape == (200, dim)
        assert np.abs(np.linalg.norm(side.astype(np.float64), axis=1) - 1).max() < 1e-5


@pytest.mark.parametrize("dim", [4, 8, 16])
def test_similarities_are_kept_better_than_by_cutting_columns(labels: Rows, dim: int) -> None:
    queries, codes = (side.astype(np.float32) for side in labels)
    found = narrowed(*labels, dim)
    assert found is not None

    def error(query: np.ndarray, code: np.ndarray) -> float:
        return float(((query @ code.T - queries @ codes.T) ** 2).mean())

    assert error(*found) < 0.5 * error(unit(queries[:, :dim]), unit(codes[:, :dim]))


def test_both_sides_are_turned_the_same_way(labels: Rows) -> None:
    queries, _ = labels
    found = narrowed(queries, queries, 8)
    assert found is not None
    assert np.array_equal(*found)


def test_what_lies_in_few_directions_keeps_its_similarities_exactly() -> None:
    chance = np.random.default_rng(1)
    turned, _ = np.linalg.qr(chance.normal(size=(32, 32)))
    queries, codes = (unit(chance.normal(size=(50, 6)) @ turned[:6]) for _ in range(2))
    found = narrowed(queries, codes, 6)
    assert found is not None
    assert np.abs(found[0] @ found[1].T - queries @ codes.T).max() < 1e-5


def test_a_row_of_nothing_stays_finite(labels: Rows) -> None:
    queries = labels[0].copy()
    queries[3] = 0
    found = narrowed(queries, labels[1], 8)
    assert found is not None
    assert np.isfinite(found[0]).all()


def test_a_student_wider_than_its_teacher_has_no_aim(labels: Rows) -> None:
    with pytest.raises(TrainingError, match=r"width 33 cannot .* width 32: set .*cosine to 0"):
        narrowed(*labels, 33)


def test_a_narrow_fresh_student_learns_its_aims(
    teacher: TeacherModel, pairs: list[Pair], labels: Rows, tmp_path: Path
) -> None:
    wanted = Architecture(teacher.model.config.vocab_size, 16, 1, 1, 16, 32, 48)
    student: BertModel = fresh_student(wanted, teacher.model.config, seed=0)
    texts = tokenize_pairs(pairs[:64], teacher.tokenizer_json, 48)
    sides = tuple(side[:64] for side in labels)
    aims = narrowed(sides[0], sides[1], 16)
    assert aims is not None
    targets = Targets(texts.queries, texts.codes, sides[0], sides[1], aims)

    def closeness() -> float:
        return float((embed_all(student, texts.codes) * aims[1]).sum(1).mean())

    before = closeness()
    settings: dict[str, Any] = {
        "epochs": 10,
        "batch_size": 16,
        "learning_rate": 1e-2,
        "validations": 2,
        "losses": Losses(cosine=1, similarity=1, contrastive=1),
    }
    points = train(
        student,
        targets,
        Schedule.of(Distill(**settings), False),
        0,
        closeness,
        tmp_path,
        lambda *_: None,
    )
    assert all(np.isfinite(point.loss) for point in points)
    assert max(point.metric for point in points) == pytest.approx(closeness())
    assert closeness() > before + 0.1


def test_aims_of_the_teacher_s_own_width_change_nothing(
    teacher: TeacherModel, pairs: list[Pair], labels: Rows, tmp_path: Path
) -> None:
    """Aims stand for the teacher's embeddings in the cosine loss, and are nothing else."""
    texts = tokenize_pairs(pairs[:16], teacher.tokenizer_json, 48)
    queries, codes = (side[:16] for side in labels)
    fresh = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 8, "validations": 1}
    weights = []
    for number, aims in enumerate((None, (queries, codes))):
        teacher.model.load_state_dict(fresh)
        (tmp_path / str(number)).mkdir()
        targets = Targets(texts.queries, texts.codes, queries, codes, aims)
        schedule = Schedule.of(Distill(**settings), False)
        train(
            teacher.model,
            targets,
            schedule,
            0,
            lambda: 1.0,
            tmp_path / str(number),
            lambda *_: None,
        )
        weights.append({n: value.clone() for n, value in teacher.model.state_dict().items()})
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(
        weights[0]["encoder.layer.0.output.dense.weight"],
        fresh["encoder.layer.0.output.dense.weight"],
    )
