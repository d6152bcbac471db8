"""Two texts in one sequence: tokens as transformers has them, and BERT's token types out of ids alone."""

from __future__ import annotations

import random

import pytest
import torch
from tests.compress.conftest import FILLERS, tiny_bert
from tokenizers import Tokenizer, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, RobertaModel

from codemill.compress.models.classifier import Classifier
from codemill.compress.models.frugal import FrugalClassifier, texts_at_once
from codemill.compress.models.joined import as_joined, tokenize_pairs
from codemill.compress.models.roberta import as_bert
from codemill.errors import ModelError

from .families import SHAPE, noisy, roberta_config


def with_pairs(tokenizer_json: str) -> Tokenizer:
    """A BERT's tokenizer, which gives a pair two token types."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    special = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    return tokenizer


def pairs_of_texts(count: int, seed: int = 0) -> list[tuple[str, str]]:
    chance = random.Random(seed)
    lengths = (1, 4, 30, 120)
    return [
        (
            " ".join(chance.choices(FILLERS, k=chance.choice(lengths))),
            " ".join(chance.choices(FILLERS, k=chance.choice(lengths))),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_pairs_are_cut_as_transformers_cuts_them(
    kind: str, tokenizer_json: str, byte_pairs: Tokenizer
) -> None:
    tokenizer = with_pairs(tokenizer_json) if kind == "bert" else byte_pairs
    pairs = [*pairs_of_texts(40), ("", "x"), ("x" * 500, "y")]
    own = tokenize_pairs(tokenizer.to_str(), pairs, 48)
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.to_str()))
    for (first, second), ids in zip(pairs, own, strict=True):
        expected = theirs(first, second, truncation=True, max_length=48)["input_ids"]
        assert ids.tolist() == expected


def test_a_bert_knows_the_second_text_without_being_told(tokenizer_json: str) -> None:
    tokenizer = with_pairs(tokenizer_json)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=64,
        type_vocab_size=2,
        **SHAPE,
    )
    model = noisy(BertModel(config, add_pooling_layer=False))
    found = tokenizer.encode("file open", "close matrix")
    ids = torch.tensor([[*found.ids, 0, 0]])
    types = torch.tensor([[*found.type_ids, 0, 0]])
    mask = torch.tensor([[1] * len(found.ids) + [0, 0]])
    real = len(found.ids)
    with torch.inference_mode():
        expected = model(ids, mask, token_type_ids=types).last_hidden_state[:, :real]
        plain = model(ids, mask).last_hidden_state[:, :real]
        joined = as_joined(model, tokenizer.to_str())
        own = joined(ids, mask).last_hidden_state[:, :real]
    assert torch.allclose(own, expected, atol=1e-5)
    assert not torch.allclose(plain, expected, atol=1e-2)


def test_a_roberta_with_token_types_reads_both_texts_as_the_first(byte_pairs: Tokenizer) -> None:
    # UniXcoder has ten of them, and its tokenizer names but one
    config = roberta_config(byte_pairs.get_vocab_size())
    config.type_vocab_size = 10
    model = noisy(RobertaModel(config))
    ids = torch.tensor([byte_pairs.encode("open file", "close matrix").ids])
    with torch.inference_mode():
        expected = model(ids).last_hidden_state
        own = as_joined(as_bert(model), byte_pairs.to_str())(ids).last_hidden_state
    assert torch.allclose(own, expected, atol=1e-5)


def test_a_tokenizer_that_joins_texts_with_nothing_is_a_model_error(tokenizer_json: str) -> None:
    # the template of the small teacher is of single texts only
    with pytest.raises(ModelError, match="nothing between them"):
        tokenize_pairs(tokenizer_json, [("a", "b")], 16)


def test_a_large_run_is_trained_in_parts_with_the_same_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_bert(50)
    classes = (Classifier, FrugalClassifier)
    ids = torch.randint(5, 50, (7, 16), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[3, 5:] = 0
    # 3 layers x 32 units x 16 tokens x 64 bytes: two texts at a time
    monkeypatch.setattr("codemill.compress.models.frugal.ACTIVATION_BYTES", 2 * 3 * 32 * 16 * 64)
    assert texts_at_once(model, 16) == 2
    runs: list[int] = []
    model.register_forward_hook(lambda _, __, out: runs.append(len(out[0])))
    found = []
    for kind in classes:
        model.zero_grad()
        runs.clear()
        loss = kind(model, torch.nn.Identity(), 1).embed(ids, mask).square().sum()
        loss.backward()
        gradients = [value.grad.clone() for value in model.parameters() if value.grad is not None]
        found.append((loss.item(), gradients, list(runs)))
    (plain, expected, whole), (frugal, gradients, parts) = found
    assert whole == [7]
    assert max(parts) == 2
    assert frugal == pytest.approx(plain, rel=1e-5)
    assert len(gradients) == len(expected)
    for own, other in zip(gradients, expected, strict=True):
        assert torch.allclose(own, other, rtol=1e-3, atol=1e-4)


def test_fewer_trained_layers_leave_room_for_more_texts() -> None:
    model = tiny_bert(50)
    before = texts_at_once(model, 64)
    for layer in model.encoder.layer[:2]:
        layer.requires_grad_(False)
    assert texts_at_once(model, 64) == pytest.approx(3 * before, rel=0.01)
