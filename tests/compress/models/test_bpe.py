"""Pruning a byte-level BPE: every kept token can be reached, every text written, and real code stays short."""

from __future__ import annotations

import json
import string
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, pre_tokenizers

from codemill.compress.models.bpe import keep_order, length_growth, prune_tokenizer
from codemill.compress.models.vocabulary import Pruned
from codemill.compress.models.wordpiece import count_tokens
from codemill.errors import ModelError

from .families import ROBERTA_SPECIAL, train_bpe

SIZE = 1_000
SOURCES = [
    "def f(x):\n\treturn x  # twice\r\n",
    "s = 'naïve café, ß, 日本語, 🙂, \u0000\u200b'",
    "a" * 300,
    "",
    string.printable,
]


@pytest.fixture(scope="module")
def code() -> list[str]:
    """Modules of the standard library."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("[a-e]*.py"))]


@pytest.fixture(scope="module")
def teacher(code: list[str]) -> str:
    return str(train_bpe(code, 6_000).to_str())


@pytest.fixture(scope="module")
def counts(teacher: str, code: list[str]) -> np.ndarray:
    return count_tokens(teacher, code[::2])


def reached(tokenizer: Tokenizer) -> set[int]:
    """Tokens that their own text becomes."""
    value = json.loads(tokenizer.to_str())
    special = {token["id"] for token in value["added_tokens"]}
    bare = Tokenizer.from_str(json.dumps({**value, "pre_tokenizer": None, "post_processor": None}))
    return special | {
        index for token, index in bare.get_vocab().items() if bare.encode(token).ids == [index]
    }


def naive(teacher: str, counts: np.ndarray, size: int) -> str:
    """The bytes, and the tokens used most, whatever they are made of."""
    value = json.loads(teacher)
    vocab: dict[str, int] = value["model"]["vocab"]
    first = [*ROBERTA_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    ranked = sorted(
        (token for token in vocab if token not in first), key=lambda t: -counts[vocab[t]]
    )
    ids = {token: number for number, token in enumerate([*first, *ranked][:size])}
    value["model"]["vocab"] = ids
    value["model"]["merges"] = [
        [left, right]
        for left, right in value["model"]["merges"]
        if left in ids and right in ids and left + right in ids
    ]
    return json.dumps(value)


@pytest.mark.parametrize("size", [300, SIZE, 5_000])
def test_every_kept_token_can_be_reached(teacher: str, counts: np.ndarray, size: int) -> None:
    assert len(reached(Tokenizer.from_str(teacher))) == 6_000, "of the teacher's too"
    found = Pruned(teacher, counts).at(size)
    tokenizer = Tokenizer.from_str(found.tokenizer_json)
    assert sorted(tokenizer.get_vocab().values()) == list(range(size))
    assert reached(tokenizer) == set(range(size))


def test_naive_pruning_leaves_tokens_that_cannot_be_reached_and_longer_text(
    teacher: str, counts: np.ndarray, code: list[str]
) -> None:
    plain = naive(teacher, counts, SIZE)
    unreached = SIZE - len(reached(Tokenizer.from_str(plain)))
    assert unreached > SIZE // 20
    # on modules that were not counted
    held_out = code[1::2]
    ours = length_growth(teacher, Pruned(teacher, counts).at(SIZE).tokenizer_json, held_out)
    assert 1 < ours < 0.95 * length_growth(teacher, plain, held_out)


@pytest.mark.parametrize("size", [300, SIZE])
def test_every_text_comes_back_as_it_was(
    teacher: str, counts: np.ndarray, code: list[str], size: int
) -> None:
    tokenizer = Tokenizer.from_str(Pruned(teacher, counts).at(size).tokenizer_json)
    for text in [*SOURCES, *code[:5]]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_kept_ids_name_the_teachers_tokens_and_padding_is_0(
    teacher: str, counts: np.ndarray
) -> None:
    found = Pruned(teacher, counts).at(SIZE)
    old, new = Tokenizer.from_str(teacher), Tokenizer.from_str(found.tokenizer_json)
    assert [old.id_to_token(index) for index in found.kept] == [
        new.id_to_token(index) for index in range(SIZE)
    ]
    assert found.counts == [counts[index] for index in found.kept]
    assert new.token_to_id("<pad>") == 0
    encoding = new.encode("return x", "return y")
    assert encoding.tokens[0] == "<s>"
    assert [token for token in encoding.tokens if token.startswith("<")] == ["<s>", *["</s>"] * 3]


def test_a_full_vocabulary_splits_as_the_teachers(
    teacher: str, counts: np.ndarray, code: list[str]
) -> None:
    vocabulary = Pruned(teacher, counts)
    assert vocabulary.most == 6_000
    full = vocabulary.at(vocabulary.most)
    old, new = Tokenizer.from_str(teacher), Tokenizer.from_str(full.tokenizer_json)
    for text in [*SOURCES, *code[:3]]:
        assert new.encode(text).tokens == old.encode(text).tokens
    assert length_growth(teacher, full.tokenizer_json, code[:3]) == 1


def test_smaller_vocabularies_are_the_beginnings_of_larger_ones(
    teacher: str, counts: np.ndarray
) -> None:
    vocabulary = Pruned(teacher, counts)
    assert vocabulary.at(SIZE).kept[:500] == vocabulary.at(500).kept
    assert keep_order(teacher, counts) == keep_order(teacher, counts)


def test_tokens_beside_the_vocabulary_are_kept_by_their_use(code: list[str]) -> None:
    """ModernBERT's runs of spaces, and special tokens that the model itself does not list."""
    tokenizer = train_bpe(code[:10], 600)
    tokenizer.add_tokens([AddedToken(" " * 8, normalized=False), AddedToken("@@never@@")])
    text = str(tokenizer.to_str())
    counts = count_tokens(text, code[:10])
    found = Tokenizer.from_str(Pruned(text, counts).at(500).tokenizer_json)
    assert found.token_to_id(" " * 8) is not None
    assert found.token_to_id("@@never@@") is None
    assert sorted(found.get_vocab().values()) == list(range(500))
    assert found.decode(found.encode("if x:\n" + " " * 9 + "y").ids) == "if x:\n" + " " * 9 + "y"


def test_what_cannot_be_pruned_is_said(teacher: str, counts: np.ndarray) -> None:
    vocabulary = Pruned(teacher, counts)
    with pytest.raises(ModelError, match="no room for the special tokens and the bytes"):
        vocabulary.at(100)
    with pytest.raises(ModelError, match="the teacher has 6000 tokens"):
        vocabulary.at(6_001)
    value = json.loads(teacher)
    with pytest.raises(ModelError, match="BPE over characters; expected a byte-level BPE"):
        keep_order(json.dumps({**value, "pre_tokenizer": None}), counts)
    lost = teacher.replace("<pad>", "<gone>")
    with pytest.raises(ModelError, match="has no padding token"):
        prune_tokenizer(lost, counts, range(6_000), 500)
