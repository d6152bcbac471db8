"""Cutting a student out of a BERT, held to the teacher itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor
from transformers import BertModel

from codemill.compress.architecture import Architecture
from codemill.compress.models.bert import (
    FactorizedEmbedding,
    cut_student,
    fresh_student,
    load_student,
    neuron_strength,
    save_student,
)
from codemill.compress.models.load import TeacherModel
from codemill.compress.models.pooling import embed
from codemill.errors import ModelError
from codemill.export.encoder import INPUTS, OUTPUT, export_encoder
from codemill.export.fuse import fuse_encoder

FULL = Architecture(
    vocab_size=100,
    hidden_size=32,
    layers=3,
    heads=4,
    head_size=8,
    intermediate_size=64,
    max_tokens=60,
    copied_layers=(0, 1, 2),
)


def cut(teacher: TeacherModel, wanted: Architecture) -> BertModel:
    return cut_student(
        teacher.model, wanted, range(wanted.vocab_size), range(wanted.vocab_size, 0, -1)
    )


def batch() -> dict[str, Tensor]:
    ids = torch.randint(0, 100, (3, 21), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 9:] = mask[2, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def hidden(model: BertModel) -> Tensor:
    inputs = batch()
    states: Tensor = model(**inputs).last_hidden_state
    return states * inputs["attention_mask"][:, :, None]


@pytest.mark.parametrize("rank", [None, 32])
def test_the_full_size_cut_equals_the_teacher(teacher: TeacherModel, rank: int | None) -> None:
    full = teacher.model.config.vocab_size
    student = cut(teacher, replace(FULL, vocab_size=full, embedding_rank=rank))
    assert not student.training
    assert (hidden(student) - hidden(teacher.model)).abs().max() < 1e-5


def test_kept_tokens_keep_the_teachers_rows_in_the_students_order(teacher: TeacherModel) -> None:
    kept = [7, 3, 99, 50]
    student = cut_student(teacher.model, replace(FULL, vocab_size=4), kept, [1, 1, 1, 1])
    old = teacher.model.embeddings.word_embeddings.weight
    assert torch.equal(student.embeddings.word_embeddings.weight, old[kept])


def test_a_factorised_embedding_is_the_best_of_its_rank_where_tokens_are_used(
    teacher: TeacherModel,
) -> None:
    """Weighed by use, no error beats that of the SVD of the centred rows (Eckart and Young)."""
    wanted = replace(FULL, embedding_rank=8)
    student = cut(teacher, wanted)
    table = student.embeddings.word_embeddings
    assert isinstance(table, FactorizedEmbedding)
    assert table.table.weight.shape == (100, 8)
    assert table.up.weight.shape == (32, 8)
    old = teacher.model.embeddings
    with torch.no_grad():
        rows = old.word_embeddings.weight[:100].double()
        use = torch.arange(100, 0, -1).double() + 1
        use /= use.sum()
        mean = (use[:, None] * rows).sum(0)
        shift = student.embeddings.token_type_embeddings.weight - old.token_type_embeddings.weight
        assert torch.allclose(shift, mean.float().expand(2, -1), atol=1e-6)
        found = table(torch.arange(100)).double() + mean
        error = (use[:, None] * (found - rows) ** 2).sum()
        singular = torch.linalg.svdvals(use.sqrt()[:, None] * (rows - mean))
    assert error == pytest.approx(float((singular[8:] ** 2).sum()), rel=1e-5)


def test_dropped_heads_neurons_layers_and_positions_are_gone(teacher: TeacherModel) -> None:
    wanted = Architecture(50, 32, 2, 2, 8, 16, 40, None, (0, 2))
    student = cut(teacher, wanted)
    assert student.embeddings.word_embeddings.weight.shape == (50, 32)
    assert student.embeddings.position_embeddings.weight.shape == (40, 32)
    assert len(student.encoder.layer) == 2
    for layer in student.encoder.layer:
        assert layer.attention.self.query.weight.shape == (16, 32)
        assert layer.attention.output.dense.weight.shape == (32, 16)
        assert layer.intermediate.dense.weight.shape == (16, 32)
        assert layer.output.dense.weight.shape == (32, 16)
    ids = torch.zeros((1, 40), dtype=torch.long)
    assert student(input_ids=ids).last_hidden_state.shape == (1, 40, 32)


def test_the_strongest_neurons_are_kept_with_both_of_their_sides(teacher: TeacherModel) -> None:
    student = cut(teacher, replace(FULL, layers=1, copied_layers=(1,), intermediate_size=16))
    block = teacher.model.encoder.layer[1]
    strength = neuron_strength(teacher.model, 1)
    strongest = strength.argsort(descending=True)[:16].sort().values
    new = student.encoder.layer[0]
    assert torch.equal(new.intermediate.dense.weight, block.intermediate.dense.weight[strongest])
    assert torch.equal(new.intermediate.dense.bias, block.intermediate.dense.bias[strongest])
    assert torch.equal(new.output.dense.weight, block.output.dense.weight[:, strongest])


def test_heads_that_write_nothing_are_dropped_without_a_change(teacher: TeacherModel) -> None:
    """Two of four heads silenced in every layer: the cut to two heads is the same model."""
    with torch.no_grad():
        for number, layer in enumerate(teacher.model.encoder.layer):
            silent = (number, 3)  # other heads in other layers
            for head in silent:
                rows = slice(head * 8, head * 8 + 8)
                layer.attention.self.value.weight[rows] = 0
                layer.attention.self.value.bias[rows] = 0
    full = teacher.model.config.vocab_size
    student = cut(teacher, replace(FULL, vocab_size=full, heads=2))
    assert (hidden(student) - hidden(teacher.model)).abs().max() < 1e-5


@pytest.mark.parametrize("rank", [None, 8])
def test_a_saved_student_is_read_back_bit_by_bit(
    teacher: TeacherModel, tmp_path: Path, rank: int | None
) -> None:
    wanted = Architecture(50, 32, 2, 2, 8, 16, 40, rank, (0, 2))
    student = cut(teacher, wanted)
    save_student(student, wanted, tmp_path / "student")
    read, architecture = load_student(tmp_path / "student")
    assert architecture == wanted
    before, after = student.state_dict(), read.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    ids = {"input_ids": torch.arange(20)[None]}
    with torch.no_grad():
        assert torch.equal(student(**ids)[0], read(**ids)[0])


def test_cutting_changes_nothing_in_the_teacher(teacher: TeacherModel) -> None:
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    cut(teacher, replace(FULL, heads=2, embedding_rank=8))
    assert all(torch.equal(before[name], v) for name, v in teacher.model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 64}, "width 64"),
        ({"head_size": 16}, "head size 16"),
        ({"heads": 5}, "heads 5 cannot be cut out of a teacher with 4"),
        ({"intermediate_size": 65}, "intermediate_size 65"),
        ({"max_tokens": 61}, "max_tokens 61"),
        ({"vocab_size": 10_000}, "vocab_size 10000"),
        ({"copied_layers": (0, 1, 3)}, "copied_layers 4"),
        ({"copied_layers": ()}, "no layers"),
        ({"embedding_rank": 33}, "embedding_rank 33"),
        ({"vocab_size": 20, "embedding_rank": 24}, "rank 24 cannot be made of 20 tokens"),
    ],
)
def test_what_the_teacher_cannot_give_is_a_model_error(
    teacher: TeacherModel, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        cut(teacher, replace(FULL, **changes))  # type: ignore[arg-type]


def test_as_many_tokens_as_the_vocabulary_must_be_kept(teacher: TeacherModel) -> None:
    with pytest.raises(ModelError, match="3 tokens kept for a vocabulary of 100"):
        cut_student(teacher.model, FULL, [1, 2, 3], [1, 1, 1])


FRESH = Architecture(
    vocab_size=80,
    hidden_size=48,
    layers=2,
    heads=3,
    head_size=16,
    intermediate_size=96,
    max_tokens=40,
)


@pytest.mark.parametrize("rank", [None, 8])
def test_a_fresh_student_has_its_own_shape(teacher: TeacherModel, rank: int | None) -> None:
    student = fresh_student(replace(FRESH, embedding_rank=rank), teacher.model.config, seed=0)
    assert not student.training
    assert student.embeddings.position_embeddings.weight.shape == (40, 48)
    table = student.embeddings.word_embeddings
    if rank is None:
        assert table.weight.shape == (80, 48)
    else:
        assert isinstance(table, FactorizedEmbedding)
        assert (table.table.weight.shape, table.up.weight.shape) == ((80, 8), (48, 8))
    assert len(student.encoder.layer) == 2
    for layer in student.encoder.layer:
        assert layer.attention.self.query.weight.shape == (48, 48)
        assert layer.attention.self.num_attention_heads == 3
        assert layer.intermediate.dense.weight.shape == (96, 48)
    found = student(input_ids=torch.arange(40)[None]).last_hidden_state
    assert found.shape == (1, 40, 48)
    assert torch.isfinite(found).all()


def test_a_fresh_student_is_drawn_by_its_seed_and_by_nothing_else(teacher: TeacherModel) -> None:
    wanted = replace(FRESH, embedding_rank=8)
    torch.manual_seed(1)
    first = fresh_student(wanted, teacher.model.config, seed=5).state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again = fresh_student(wanted, teacher.model.config, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    other = fresh_student(wanted, teacher.model.config, seed=6).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "embeddings.word_embeddings.table.weight"
    assert not torch.equal(first[name], other[name])


@pytest.mark.parametrize("changes", [{"heads": 2}, {"head_size": 8}, {"heads": 4}])
def test_a_fresh_student_has_no_heads_to_drop(
    teacher: TeacherModel, changes: dict[str, int]
) -> None:
    with pytest.raises(ModelError, match="do not make the width 48 of a fresh student"):
        fresh_student(replace(FRESH, **changes), teacher.model.config, seed=0)  # type: ignore[arg-type]


def test_a_saved_fresh_student_is_read_back(teacher: TeacherModel, tmp_path: Path) -> None:
    wanted = replace(FRESH, embedding_rank=8)
    student = fresh_student(wanted, teacher.model.config, seed=0)
    save_student(student, wanted, tmp_path)
    read, architecture = load_student(tmp_path)
    assert architecture == wanted
    ids = {"input_ids": torch.arange(20)[None]}
    with torch.no_grad():
        assert torch.equal(student(**ids)[0], read(**ids)[0])


@pytest.mark.parametrize("rank", [None, 8])
def test_a_fresh_student_s_graphs_give_what_torch_gives(
    teacher: TeacherModel, tmp_path: Path, rank: int | None
) -> None:
    wanted = replace(FRESH, embedding_rank=rank)
    student = fresh_student(wanted, teacher.model.config, seed=0)
    ids = torch.randint(4, 80, (2, 30), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    with torch.no_grad():
        expected = embed(student, ids, mask).numpy()
    plain, fused = tmp_path / "plain.onnx", tmp_path / "fused.onnx"
    export_encoder(student, plain)
    fuse_encoder(plain, fused, wanted.heads, wanted.hidden_size)
    for path in (plain, fused):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        fed = dict(zip(INPUTS, (ids.numpy(), mask.numpy()), strict=True))
        (found,) = session.run([OUTPUT], fed)
        assert found.shape == (2, 48)
        assert np.abs(found - expected).max() < 1e-5
