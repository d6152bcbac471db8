"""Freezing the bottom of a teacher."""

from __future__ import annotations

import pytest
import torch

from codemill.compress.architecture import Architecture
from codemill.compress.freeze.freeze import freeze_bottom
from codemill.compress.models.llama import fresh_decoder
from codemill.compress.models.load import TeacherModel
from codemill.compress.models.pooling import embed
from codemill.errors import RecipeError


def one_step(teacher: TeacherModel) -> set[str]:
    """The names of the parameters that a step of AdamW moves."""
    model = teacher.model
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    ids = torch.arange(24).view(2, 12)
    embed(model, ids, torch.ones_like(ids))[0].sum().backward()
    optimizer.step()
    return {n for n, value in model.named_parameters() if not torch.equal(value, before[n])}


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_frozen_parameters_do_not_move_and_all_others_do(
    teacher: TeacherModel, layers: int
) -> None:
    freeze_bottom(teacher.model, layers)
    above = tuple(f"encoder.layer.{number}." for number in range(layers, 3))
    names = {name for name, _ in teacher.model.named_parameters() if name.startswith(above)}
    # the mean over a softmax's inputs does not depend on a key's bias
    keys = {name for name in names if name.endswith("key.bias")}
    moved = one_step(teacher)
    assert names - keys <= moved <= names


def test_the_trainable_parameters_are_counted(teacher: TeacherModel) -> None:
    trainable, total = freeze_bottom(teacher.model, 2)
    layer = 4 * (32 * 32 + 32) + 2 * 32 * 64 + 64 + 32 + 4 * 32
    assert trainable == layer
    assert total == sum(value.numel() for value in teacher.model.parameters())
    assert freeze_bottom(teacher.model, 0)[0] == layer, "what was frozen stays so"


@pytest.mark.parametrize("layers", [3, 4])
def test_freezing_all_layers_is_a_recipe_error_that_says_how_many_can_be(
    teacher: TeacherModel, layers: int
) -> None:
    message = f"freeze_layers is {layers}, but the teacher has 3 layers; freeze at most 2"
    with pytest.raises(RecipeError, match=message):
        freeze_bottom(teacher.model, layers)
    assert all(value.requires_grad for value in teacher.model.parameters())


def test_none_freezes_nothing_not_even_the_embeddings(teacher: TeacherModel) -> None:
    trainable, total = freeze_bottom(teacher.model, None)
    assert trainable == total
    moved = one_step(teacher)
    assert any(name.startswith("embeddings.word") for name in moved)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_is_tied_to_the_embeddings_is_frozen_with_them(tied: bool) -> None:
    architecture = Architecture(
        vocab_size=60,
        hidden_size=32,
        layers=3,
        heads=4,
        head_size=8,
        intermediate_size=48,
        max_tokens=16,
        family="llama",
    )
    decoder = fresh_decoder(architecture, 0, tied)
    freeze_bottom(decoder, 2)
    frozen = {name for name, value in decoder.named_parameters() if not value.requires_grad}
    assert "model.embed_tokens.weight" in frozen
    assert decoder.lm_head.weight.requires_grad is not tied
    layers = {name.split(".")[2] for name in frozen if name.startswith("model.layers.")}
    assert layers == {"0", "1"}
