"""Folders of other families than BERT: old tokenizer files, heads, positions, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers import models as token_models
from transformers import BertForSequenceClassification, RobertaModel, T5EncoderModel

from codemill.compress.models.load import fingerprint, load_teacher, read_shape
from codemill.compress.models.vocabulary import Pruned
from codemill.compress.models.wordpiece import count_tokens
from codemill.errors import ModelError

from .families import HEADED, LONGEST, noisy, roberta_config, save, t5_config


@pytest.fixture
def roberta(byte_pairs: Tokenizer, tmp_path: Path) -> Path:
    model = noisy(RobertaModel(roberta_config(byte_pairs.get_vocab_size())))
    return save(model, byte_pairs, tmp_path / "roberta", old_files=True)


def rewrite_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_vocabulary_and_merges_are_read_as_the_tokenizer_they_are(
    roberta: Path, byte_pairs: Tokenizer
) -> None:
    found = Tokenizer.from_str(load_teacher(roberta).tokenizer_json)
    for text in ("def open_file(path):\n    return path", "naïve 日本", ""):
        assert found.encode(text).ids == byte_pairs.encode(text).ids
    pair = found.encode("a", "b").tokens
    assert pair == ["<s>", "a", "</s>", "</s>", "b", "</s>"]


def test_the_older_tokenizer_files_are_part_of_a_models_fingerprint(roberta: Path) -> None:
    before = fingerprint(roberta)
    merges = roberta / "merges.txt"
    merges.write_text(merges.read_text().rsplit("\n", 2)[0] + "\n")
    assert fingerprint(roberta) != before


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_vocabulary_is_a_model_error(roberta: Path, content: str) -> None:
    (roberta / "vocab.json").write_text(content)
    with pytest.raises(ModelError, match=r"vocab\.json is not a tokenizer"):
        load_teacher(roberta)


def test_a_robertas_positions_are_those_a_text_can_take(roberta: Path) -> None:
    assert read_shape(roberta).positions == LONGEST
    model = load_teacher(roberta).model
    assert model.config.max_position_embeddings == LONGEST
    ids = torch.zeros((1, LONGEST), dtype=torch.long)
    assert model(input_ids=ids).last_hidden_state.shape == (1, LONGEST, 32)


def test_a_pad_id_that_leaves_no_position_is_a_model_error(roberta: Path) -> None:
    rewrite_config(roberta, pad_token_id=100)
    with pytest.raises(ModelError, match="pad_token_id: expected a whole number from 0 to 60"):
        load_teacher(roberta)


def test_weights_of_a_bin_are_the_same_encoder(roberta: Path) -> None:
    expected = load_teacher(roberta).model.state_dict()
    weights = roberta / "model.safetensors"
    torch.save(load_file(weights), roberta / "pytorch_model.bin")
    weights.unlink()
    found = load_teacher(roberta).model.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_a_codet5p_embedding_is_its_t5_encoder_and_runs_no_code_of_its_folder(
    byte_pairs: Tokenizer, tmp_path: Path
) -> None:
    original: Any = noisy(T5EncoderModel(t5_config(byte_pairs.get_vocab_size())))
    folder = save(original, byte_pairs, tmp_path / "codet5p", old_files=True)
    weights = load_file(folder / "model.safetensors")
    weights |= {"proj.weight": torch.ones(8, 32), "proj.bias": torch.ones(8)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    code = "configuration_codet5p_embedding.py"
    (folder / code).write_text("import pathlib; pathlib.Path(__file__).with_name('ran').touch()\n")
    rewrite_config(
        folder,
        model_type="codet5p_embedding",
        architectures=["CodeT5p_Embedding"],
        auto_map={"AutoConfig": "configuration_codet5p_embedding.CodeT5pEmbeddingConfig"},
        embed_dim=8,
    )
    teacher = load_teacher(folder)
    ids = torch.tensor([[5, 9, 300]])
    with torch.no_grad():
        expected = original(input_ids=ids).last_hidden_state
        assert torch.equal(teacher.model(input_ids=ids).last_hidden_state, expected)
    assert not (folder / "ran").exists()


def test_a_head_on_t5s_decoder_is_refused(byte_pairs: Tokenizer, tmp_path: Path) -> None:
    model = noisy(T5EncoderModel(t5_config(byte_pairs.get_vocab_size())))
    folder = save(model, byte_pairs, tmp_path / "t5", old_files=False)
    rewrite_config(folder, architectures=["T5ForSequenceClassification"])
    with pytest.raises(ModelError, match=r"T5ForSequenceClassification.* reads T5's decoder"):
        load_teacher(folder)


@pytest.fixture
def headed(byte_pairs: Tokenizer, tmp_path: Path) -> Path:
    model = noisy(HEADED["bert"](byte_pairs.get_vocab_size()))
    assert isinstance(model, BertForSequenceClassification)
    return save(model, byte_pairs, tmp_path / "headed", old_files=False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"id2label": {"0": "score"}}, "has 1 output"),
        ({"problem_type": "multi_label_classification"}, "multi_label_classification"),
        ({"id2label": {"0": "a", "7": "b"}}, r"id2label names the labels \[0, 7\]"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "cannot be loaded"),
    ],
)
def test_a_head_that_does_not_choose_a_label_is_a_model_error(
    headed: Path, changes: dict[str, Any], said: str
) -> None:
    if said == "has 1 output":
        path = headed / "model.safetensors"
        weights = load_file(path)
        for name in ("classifier.weight", "classifier.bias"):
            weights[name] = weights[name][:1].clone()
        save_file(weights, path, metadata={"format": "pt"})
    rewrite_config(headed, **changes)
    with pytest.raises(ModelError, match=said):
        load_teacher(headed)


def test_a_head_without_its_weights_is_not_made_up(headed: Path) -> None:
    path = headed / "model.safetensors"
    weights = load_file(path)
    del weights["classifier.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 tensor .*classifier\.weight"):
        load_teacher(headed)


def test_a_unigram_keeps_the_characters_and_what_is_used() -> None:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(letter, -9.0) for letter in "▁abcdef日月"]
    pieces += [("▁abc", -3.0), ("def", -3.0), ("bcd", -3.0), ("fa", -4.0)]
    tokenizer = Tokenizer(token_models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    text = tokenizer.to_str()
    counts = count_tokens(text, ["abc def", "def 日"])
    vocabulary = Pruned(text, counts)
    # 月 is never shown, so it ranks with the unused
    found = vocabulary.at(13)
    cut = Tokenizer.from_str(found.tokenizer_json)
    assert cut.encode("abcdef日").tokens == ["▁abc", "def", "日", "</s>"]
    assert cut.encode("bcd").tokens == ["▁", "b", "c", "d", "</s>"]
    assert [tokenizer.id_to_token(index) for index in found.kept] == [
        cut.id_to_token(index) for index in range(13)
    ]
    assert cut.encode("z").ids[-2:] == [cut.token_to_id("<unk>"), cut.token_to_id("</s>")]
    with pytest.raises(ModelError, match="special tokens and single characters"):
        vocabulary.at(5)
