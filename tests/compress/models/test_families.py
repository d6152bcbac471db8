"""Each family from a checkpoint of its true class: loaded, cut, trained, saved and exported, held to the original."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from codemill.compress.architecture import Architecture
from codemill.compress.freeze.freeze import freeze_bottom
from codemill.compress.models.cutting import FactorizedEmbedding
from codemill.compress.models.export import export_bundle
from codemill.compress.models.load import TeacherModel, load_teacher
from codemill.compress.models.pooling import embed, pool
from codemill.compress.models.surgery import (
    architecture_of,
    cut_student,
    fresh_student,
    layers_of,
    load_student,
    save_student,
    word_embedding_of,
)
from codemill.errors import ModelError

from .families import FAMILIES, HEADED, LAYERS, LONGEST, batch, noisy, save

ALL = pytest.mark.parametrize("family", list(FAMILIES))
ONE_OF_EACH = pytest.mark.parametrize("family", ["roberta", "modernbert", "gated-t5"])


@pytest.fixture(scope="module")
def made(
    byte_pairs: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Any, TeacherModel]]:
    """Family -> the model that was saved, and what is loaded of its folder."""
    rows = byte_pairs.get_vocab_size() + 3
    found = {}
    for family, make in FAMILIES.items():
        model: Any = noisy(make(rows))
        folder = tmp_path_factory.mktemp("families") / family
        save(model, byte_pairs, folder, old_files=family == "roberta")
        encoder = model.encoder if family == "whole-t5" else model
        found[family] = encoder, load_teacher(folder)
    return found


@torch.no_grad()
def states(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """What the real tokens become."""
    hidden: Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return hidden[mask.bool()]


def smaller(teacher: TeacherModel, **changes: Any) -> Architecture:
    full = architecture_of(teacher, LONGEST)
    changes = {
        "vocab_size": 300,
        "layers": 2,
        "copied_layers": (1, 3),
        "heads": 2,
        "intermediate_size": 16,
        **changes,
    }
    return replace(full, **changes)


def cut(teacher: TeacherModel, wanted: Architecture) -> Any:
    return cut_student(teacher, wanted, range(wanted.vocab_size), [1] * wanted.vocab_size)


@ALL
def test_a_folder_is_loaded_as_what_was_saved_there(family: str, made: dict[str, Any]) -> None:
    original, teacher = made[family]
    ids, mask = batch(500)
    expected, found = states(original, ids, mask), states(teacher.model, ids, mask)
    assert (found - expected).abs().max() < 1e-5
    # a test of nothing, where all texts were alike
    assert expected.std() > 0.1
    assert not teacher.model.training
    assert (teacher.head, teacher.pooling, teacher.pad_token_id) == (None, "mean", 1)


@ALL
@pytest.mark.parametrize("factorised", [False, True])
def test_the_full_size_cut_equals_the_teacher(
    family: str, factorised: bool, made: dict[str, Any]
) -> None:
    original, teacher = made[family]
    full = architecture_of(teacher, LONGEST)
    rank = full.hidden_size if factorised else None
    # in another order, as a pruned vocabulary has it
    order = torch.randperm(full.vocab_size, generator=torch.Generator().manual_seed(1))
    student = cut_student(
        teacher, replace(full, embedding_rank=rank), order.tolist(), [1] * len(order)
    )
    assert isinstance(word_embedding_of(student), FactorizedEmbedding) == factorised
    ids, mask = batch(500)
    # in double precision, whose rounding is not the processor's to say
    found = states(student.double(), order.argsort()[ids], mask)
    assert (found - states(deepcopy(original).double(), ids, mask)).abs().max() < 1e-5


@ALL
def test_the_longest_text_equals_the_teachers(family: str, made: dict[str, Any]) -> None:
    """All positions are there, counted from where the teacher counts."""
    original, teacher = made[family]
    ids = torch.randint(5, 500, (1, LONGEST), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    student = cut(teacher, architecture_of(teacher, LONGEST))
    assert (states(student, ids, mask) - states(original, ids, mask)).abs().max() < 1e-5


@ONE_OF_EACH
@pytest.mark.parametrize("rank", [None, 8])
def test_a_smaller_cut_learns_in_all_of_its_weights(
    family: str, rank: int | None, made: dict[str, Any]
) -> None:
    _, teacher = made[family]
    student = cut(teacher, smaller(teacher, embedding_rank=rank))
    assert len(layers_of(student)) == 2
    embedded = embed(student, *batch(300))
    assert embedded.shape == (3, 32)
    embedded[:, 0].sum().backward()
    still = [
        name
        for name, value in student.named_parameters()
        # every text is of one type, and a key's bias cancels out in the softmax
        if (value.grad is None or not value.grad.abs().max()) and not name.endswith("key.bias")
    ]
    assert still == []


@ONE_OF_EACH
def test_a_cut_keeps_layers_as_they_were(family: str, made: dict[str, Any]) -> None:
    """Dropping layers only is the teacher without them."""
    original, teacher = made[family]
    full = architecture_of(teacher, LONGEST)
    student = cut(teacher, replace(full, layers=3, copied_layers=(0, 2, 3)))
    shorter: Any = load_teacher(teacher.folder).model
    stack = layers_of(shorter)
    del stack[1]
    ids, mask = batch(500)
    expected = states(shorter, ids, mask)
    assert (states(student, ids, mask) - expected).abs().max() < 1e-5
    assert (states(original, ids, mask) - expected).abs().max() > 0.01


def test_a_t5_without_its_first_block_keeps_the_bias_that_lay_there(made: dict[str, Any]) -> None:
    _, teacher = made["t5"]
    full = architecture_of(teacher, LONGEST)
    student = cut(teacher, replace(full, layers=1, copied_layers=(2,)))
    old, new = (
        model.block[0].layer[0].SelfAttention.relative_attention_bias.weight
        for model in (teacher.model, student)
    )
    assert torch.equal(old, new)


def test_a_modernbert_layer_keeps_its_window_and_its_norm(made: dict[str, Any]) -> None:
    _, teacher = made["modernbert"]
    full = architecture_of(teacher, LONGEST)
    student = cut(teacher, replace(full, layers=2, copied_layers=(1, 3)))
    kinds = [layer.attn.local_attention for layer in student.layers]
    assert kinds == [(4, 4), (-1, -1)]
    assert torch.equal(student.layers[0].attn_norm.weight, teacher.model.layers[1].attn_norm.weight)


@ONE_OF_EACH
@pytest.mark.parametrize("rank", [None, 8])
def test_a_student_is_read_back_as_it_was_saved(
    family: str, rank: int | None, made: dict[str, Any], tmp_path: Path
) -> None:
    _, teacher = made[family]
    wanted = smaller(teacher, embedding_rank=rank)
    student = cut(teacher, wanted)
    save_student(student, wanted, tmp_path / "student")
    again, architecture = load_student(tmp_path / "student")
    assert architecture == wanted
    ids, mask = batch(300)
    assert torch.equal(states(again, ids, mask), states(student, ids, mask))


@ONE_OF_EACH
def test_a_fresh_student_is_drawn_by_its_seed(family: str, made: dict[str, Any]) -> None:
    _, teacher = made[family]
    wanted = Architecture(300, 24, 2, 3, 8, 32, 40)
    ids, mask = batch(300)
    ids, mask = ids[:, :40], mask[:, :40]
    before = torch.random.get_rng_state()
    one, same, other = (
        states(fresh_student(wanted, teacher.model.config, seed), ids, mask) for seed in (1, 1, 2)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@ONE_OF_EACH
def test_freezing_stops_the_embeddings_and_the_lower_layers(
    family: str, made: dict[str, Any]
) -> None:
    _, teacher = made[family]
    model = load_teacher(teacher.folder).model
    trained, total = freeze_bottom(model, LAYERS - 1)
    assert 0 < trained < total
    assert not word_embedding_of(model).weight.requires_grad
    flags = [{value.requires_grad for value in layer.parameters()} for layer in layers_of(model)]
    assert flags == [{False}] * (LAYERS - 1) + [{True}]


@ONE_OF_EACH
def test_a_smaller_students_graph_gives_what_torch_gives(
    family: str, made: dict[str, Any], tmp_path: Path
) -> None:
    _, teacher = made[family]
    # as many rows as the tokenizer has tokens
    student = cut(teacher, smaller(teacher, vocab_size=600, embedding_rank=8))
    export_bundle(
        student,
        tmp_path / "bundle",
        heads=2,
        tokenizer_json=teacher.tokenizer_json,
        max_tokens=LONGEST,
        precisions=("fp32",),
        name="student",
    )
    session = onnxruntime.InferenceSession(
        str(tmp_path / "bundle/variants/cpu-fp32/encoder.onnx"), providers=["CPUExecutionProvider"]
    )
    # of another number and length than the sample it was traced with
    ids, mask = batch(500)
    with torch.no_grad():
        expected = embed(student, ids, mask).numpy()
    inputs = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    (found,) = session.run(["embedding"], inputs)
    assert abs(found - expected).max() < 1e-4


@pytest.mark.parametrize("family", list(HEADED))
def test_a_head_over_the_pooled_encoder_is_the_saved_classifier(
    family: str, byte_pairs: Tokenizer, tmp_path: Path
) -> None:
    model: Any = noisy(HEADED[family](byte_pairs.get_vocab_size()))
    teacher = load_teacher(save(model, byte_pairs, tmp_path / family, old_files=False))
    assert teacher.head is not None
    assert teacher.head.labels == ("safe", "vulnerable")
    assert teacher.pooling == ("mean" if family == "modernbert" else "cls")
    ids, mask = batch(500)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
        hidden = teacher.model(input_ids=ids, attention_mask=mask).last_hidden_state
        found = teacher.head(pool(hidden, mask, teacher.pooling))
    assert expected.std() > 0.01
    assert (found - expected).abs().max() < 1e-5


def test_an_encoder_of_another_family_is_not_cut(made: dict[str, Any]) -> None:
    _, teacher = made["roberta"]
    with pytest.raises(ModelError, match="of no family that students are made of"):
        cut_student(torch.nn.Linear(2, 2), smaller(teacher), [0], [1])  # type: ignore[arg-type]
