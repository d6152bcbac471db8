"""Layers that stand for blocks of a teacher's: what they learn by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from codemill.compress.architecture import Architecture
from codemill.compress.distill.blocks import BlockLessons, block_error
from codemill.compress.distill.token_labels import Labelled, TokenLabels, label_pieces
from codemill.compress.models.llama import cut_decoder
from codemill.compress.models.passing import watched
from codemill.compress.search.blocks import blocks_of


def test_an_error_is_relative_to_its_aim_and_heard_by_the_next_norm() -> None:
    aim = torch.tensor([[1.0, 1.0], [1000.0, 1000.0]])
    found = aim * torch.tensor([[1.1, 1.0]])
    even = float(block_error(found, aim, torch.ones(2)))
    assert even == pytest.approx(0.01 / 2)
    assert float(block_error(found, aim, torch.tensor([5.0, 5.0]))) == pytest.approx(even)
    assert float(block_error(found, aim, torch.tensor([0.0, 1.0]))) == 0.0


def states_of(teacher: LlamaForCausalLM, pieces: Sequence[np.ndarray]) -> np.ndarray:
    """What is there behind its first layer and behind its last, float16 [tokens, 2, width]."""
    rows = []
    with torch.inference_mode(), watched(teacher.model.layers, (1, 4)) as seen:
        for piece in pieces:
            teacher.model(torch.tensor(piece)[None])
            rows.append(torch.stack([seen[1][0], seen[4][0]], 1))
    return torch.cat(rows).half().numpy()


@pytest.fixture
def taught() -> tuple[LlamaForCausalLM, BlockLessons, Labelled]:
    """A teacher of four layers, the lessons of a student of its first and last, and its states at their ends."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=50,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=2,
                initializer_range=0.2,
                tie_word_embeddings=True,
            )
        ).eval()
    shape = Architecture(
        vocab_size=50,
        hidden_size=32,
        layers=2,
        heads=4,
        head_size=8,
        intermediate_size=48,
        max_tokens=64,
        embedding_rank=None,
        family="llama",
        kv_heads=2,
        copied_layers=(0, 3),
    )
    student = cut_decoder(teacher, shape, range(50))
    blocks = blocks_of((0, 3), 4)
    heard = [
        teacher.model.layers[1].input_layernorm.weight.detach(),
        teacher.model.norm.weight.detach(),
    ]
    lessons = BlockLessons(student, blocks, heard)
    assert lessons.places == (1, 4)
    generator = np.random.default_rng(0)
    pieces = [generator.integers(0, 50, size) for size in (12, 20, 7, 20)]
    hidden = states_of(teacher, pieces)
    nothing = np.zeros((len(hidden), 1))
    return teacher, lessons, Labelled(pieces, TokenLabels(hidden, nothing, nothing, nothing[:, 0]))


def test_a_layer_that_is_the_whole_block_has_nothing_left_to_learn(
    taught: tuple[LlamaForCausalLM, BlockLessons, Labelled],
) -> None:
    teacher, lessons, given = taught
    assert float(lessons.error(given, [0, 1, 3]).detach()) > 0.05
    # a teacher whose other layers do nothing is its last layer
    for layer in teacher.model.layers[1:3]:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    given.labels.hidden[:, 1] = states_of(teacher, given.pieces)[:, 1]
    assert lessons.learned(given, 2) == pytest.approx(1.0, abs=1e-5)
    assert float(lessons.error(given, [2]).detach()) == pytest.approx(0.0, abs=1e-5)


def test_a_layer_learns_by_itself(
    taught: tuple[LlamaForCausalLM, BlockLessons, Labelled],
) -> None:
    _, lessons, given = taught
    first = {
        name: value.clone() for name, value in lessons.student.model.layers[0].named_parameters()
    }
    before = lessons.learned(given, 2)
    optimizer = torch.optim.AdamW(lessons.trained().parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        lessons.error(given, [0, 1, 2, 3]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert lessons.learned(given, 2) > max(0.5, before + 0.2)
    # what stands for itself is no part of it, nor are the words
    after = dict(lessons.student.model.layers[0].named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in first.items())
    assert lessons.student.model.embed_tokens.weight.grad is None


def test_what_is_learned_is_of_tokens_and_not_of_pieces(
    taught: tuple[LlamaForCausalLM, BlockLessons, Labelled],
) -> None:
    _, lessons, given = taught
    found = [lessons.learned(given, at_once) for at_once in (1, 3, 4)]
    assert found == pytest.approx([found[0]] * 3, abs=1e-5)


def test_layers_that_were_narrowed_learn_what_they_stand_for(
    taught: tuple[LlamaForCausalLM, BlockLessons, Labelled],
) -> None:
    _, lessons, _ = taught
    whole = replace(lessons, blocks=blocks_of((0, 1, 2, 3), 4))
    assert whole.numbers == []
    assert whole.places == ()
    narrowed = replace(whole, narrowed=True)
    assert narrowed.numbers == [0, 1, 2, 3]
    assert narrowed.places == (1, 2, 3, 4)
    assert lessons.numbers == [1]


def test_a_layer_that_stands_for_a_beginning_learns_from_the_words(
    taught: tuple[LlamaForCausalLM, BlockLessons, Labelled],
) -> None:
    _, lessons, given = taught
    # the second layer stands for all four; the first too learns, so that both places that are there are asked for
    alone = replace(lessons, blocks=((0, 1), (0, 4)), narrowed=True)
    assert alone.numbers == [0, 1]
    assert alone.places == (1, 4)
    before = alone.learned(given, 2)
    optimizer = torch.optim.AdamW(alone.trained().parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        alone.error(given, [0, 1, 2, 3]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert alone.learned(given, 2) > before + 0.1
    assert lessons.student.model.embed_tokens.weight.grad is None


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_labels_whose_files_are_damaged_are_made_again(tmp_path: Path, damage: str) -> None:
    pieces = [np.arange(size) for size in (3, 4)]

    def label(some: list[np.ndarray]) -> dict[str, np.ndarray]:
        ids = np.concatenate(some)
        return {
            "hidden": np.empty((len(ids), 0, 0)),
            "likeliest": ids[:, None] + 1,
            "logits": ids[:, None] + 1.0,
        }

    def killed(some: list[np.ndarray]) -> dict[str, np.ndarray]:
        if len(some[0]) == 4:
            raise KeyboardInterrupt
        return label(some)

    folder = tmp_path / "labels"
    label_pieces(label, pieces, folder, lambda *_: None, likeliest=1)
    if damage == "missing":
        (folder / "logits.bin").unlink()
    else:
        (folder / "logits.bin").write_bytes((folder / "logits.bin").read_bytes()[:-2])
    with pytest.raises(KeyboardInterrupt):
        label_pieces(killed, pieces, folder, lambda *_: None, likeliest=1)
    found = label_pieces(label, pieces, folder, lambda *_: None, likeliest=1)
    assert found.logits[:, 0].tolist() == [1, 2, 3, 1, 2, 3, 4]


def test_states_are_kept_of_the_first_pieces_only(tmp_path: Path) -> None:
    pieces = [np.arange(size) for size in (3, 4, 5)]
    asked = []

    def label(some: list[np.ndarray]) -> dict[str, np.ndarray]:
        asked.append(len(some))
        ids = np.concatenate(some)
        return {
            "hidden": np.repeat(ids.astype(np.float32), 8).reshape(-1, 2, 4),
            "likeliest": ids[:, None].repeat(2, 1),
            "logits": ids[:, None].repeat(2, 1).astype(np.float32),
        }

    shape = {"likeliest": 2, "exits": 2, "width": 4, "with_hidden": 2}
    # two at once: the second of them is cut between
    cut = label_pieces(
        *(label, [np.arange(2), *pieces], tmp_path / "cut", lambda *_: None),  # type: ignore[arg-type]
        **(shape | {"at_once": 2, "with_hidden": 3}),
    )
    assert cut.hidden[:, 1, 3].tolist() == [0, 1, 0, 1, 2, 0, 1, 2, 3]
    asked.clear()
    for _ in range(2):
        found = label_pieces(label, pieces, tmp_path / "labels", lambda *_: None, **shape)  # type: ignore[arg-type]
        assert found.hidden.shape == (7, 2, 4)
        assert found.hidden[:, 1, 3].tolist() == [0, 1, 2, 0, 1, 2, 3]
        assert found.gold.tolist() == [1, 2, -1, 1, 2, 3, -1, 1, 2, 3, 4, -1]
        assert len(found.likeliest) == 12
    # the second time nothing is labelled
    assert asked == [1, 1, 1]
