"""Pruning a WordPiece tokenizer."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, processors

from codemill.compress.data.pairs import Pair
from codemill.compress.models.tokenize import tokenize
from codemill.compress.models.wordpiece import (
    PrunedVocabulary,
    count_tokens,
    keep_order,
    prune_tokenizer,
)
from codemill.errors import ModelError

SIZE = 220


@pytest.fixture(scope="module")
def texts(pairs: list[Pair]) -> list[str]:
    return [text for pair in pairs for text in (pair.query, pair.code)]


@pytest.fixture(scope="module")
def counts(tokenizer_json: str, texts: list[str]) -> np.ndarray:
    return count_tokens(tokenizer_json, texts)


@pytest.fixture(scope="module")
def pruned(tokenizer_json: str, counts: np.ndarray) -> PrunedVocabulary:
    return prune_tokenizer(tokenizer_json, counts, keep_order(tokenizer_json, counts), SIZE)


def changed(tokenizer_json: str, **changes: Any) -> str:
    return json.dumps({**json.loads(tokenizer_json), **changes})


def test_counts_are_those_of_the_texts_without_truncation_or_special_tokens(
    tokenizer_json: str, texts: list[str], counts: np.ndarray
) -> None:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    expected = Counter(
        index for text in texts for index in tokenizer.encode(text, add_special_tokens=False).ids
    )
    assert counts.dtype == np.int64
    assert {i: int(n) for i, n in enumerate(counts) if n} == dict(expected)
    assert counts[tokenizer.token_to_id("[CLS]")] == 0
    assert count_tokens(tokenizer_json, []).sum() == 0


def test_special_tokens_come_first_then_characters_then_the_most_used(
    tokenizer_json: str, counts: np.ndarray
) -> None:
    order = keep_order(tokenizer_json, counts)
    vocab = Tokenizer.from_str(tokenizer_json).get_vocab()
    names = {index: token for token, index in vocab.items()}
    assert sorted(order) == sorted(vocab.values())
    assert [names[i] for i in order[:5]] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = [i for t, i in vocab.items() if len(t.removeprefix("##")) == 1 and t.isascii()]
    end = 5 + len(characters)
    assert set(order[5:end]) == set(characters)
    used = [int(counts[i]) for i in order[end:]]
    assert used == sorted(used, reverse=True)


def test_a_pruned_tokenizer_has_the_first_tokens_renumbered(
    tokenizer_json: str, counts: np.ndarray, pruned: PrunedVocabulary
) -> None:
    assert pruned.kept == keep_order(tokenizer_json, counts)[:SIZE]
    assert pruned.counts == [int(counts[index]) for index in pruned.kept]
    old, new = (Tokenizer.from_str(text) for text in (tokenizer_json, pruned.tokenizer_json))
    assert new.get_vocab_size() == SIZE
    assert [new.id_to_token(i) for i in range(SIZE)] == [old.id_to_token(i) for i in pruned.kept]


def test_special_tokens_are_added_under_their_new_ids(
    tokenizer_json: str, counts: np.ndarray, pruned: PrunedVocabulary
) -> None:
    # an order of the test's own, so that no special token keeps its id
    order = keep_order(tokenizer_json, counts)
    order[:5] = [order[at] for at in (4, 3, 2, 1, 0)]
    other = prune_tokenizer(tokenizer_json, counts, order, SIZE)
    for text, expected in ((pruned.tokenizer_json, [2, 3]), (other.tokenizer_json, [2, 1])):
        tokenizer = Tokenizer.from_str(text)
        encoding = tokenizer.encode("open a file")
        assert [encoding.ids[0], encoding.ids[-1]] == expected
        assert [encoding.tokens[0], encoding.tokens[-1]] == ["[CLS]", "[SEP]"]
        assert tokenizer.encode("a [MASK]").tokens[-2] == "[MASK]"
        assert tokenizer.decode(encoding.ids) == "open a file"


def test_a_bert_processing_template_is_renumbered_too(
    tokenizer_json: str, counts: np.ndarray
) -> None:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    sep, cls = ((name, tokenizer.token_to_id(name)) for name in ("[SEP]", "[CLS]"))
    tokenizer.post_processor = processors.BertProcessing(sep, cls)
    order = keep_order(tokenizer_json, counts)
    order[:5] = [order[at] for at in (4, 3, 2, 1, 0)]
    other = prune_tokenizer(tokenizer.to_str(), counts, order, SIZE)
    ids = Tokenizer.from_str(other.tokenizer_json).encode("open").ids
    assert (ids[0], ids[-1]) == (2, 1)


def test_words_that_are_gone_fall_back_to_characters(pruned: PrunedVocabulary) -> None:
    tokenizer = Tokenizer.from_str(pruned.tokenizer_json)
    for word in ("zqxjv", "unheard_of", "x0y9"):
        encoding = tokenizer.encode(word, add_special_tokens=False)
        assert "[UNK]" not in encoding.tokens
        assert "".join(token.removeprefix("##") for token in encoding.tokens) == word
    assert tokenizer.encode("字", add_special_tokens=False).tokens == ["[UNK]"]


def test_what_the_kept_tokens_can_say_is_said_as_before(
    tokenizer_json: str, pruned: PrunedVocabulary, texts: list[str]
) -> None:
    old, new = (Tokenizer.from_str(text) for text in (tokenizer_json, pruned.tokenizer_json))
    old.no_truncation()
    old.no_padding()
    kept, same = set(pruned.kept), 0
    for text in texts:
        before = old.encode(text)
        if set(before.ids) <= kept:
            assert new.encode(text).tokens == before.tokens
            same += 1
        else:
            assert len(new.encode(text).ids) > len(before.ids)
    assert 0 < same < len(texts)


def test_the_full_vocabulary_says_everything_as_before(
    tokenizer_json: str, counts: np.ndarray, texts: list[str]
) -> None:
    order = keep_order(tokenizer_json, counts)
    whole = prune_tokenizer(tokenizer_json, counts, order, len(order))
    back = np.array(whole.kept)
    for old, new in zip(
        tokenize(tokenizer_json, texts, 60), tokenize(whole.tokenizer_json, texts, 60), strict=True
    ):
        assert old.tolist() == back[new].tolist()


def test_truncation_and_padding_of_the_original_are_not_carried_over(
    pruned: PrunedVocabulary,
) -> None:
    tokenizer = Tokenizer.from_str(pruned.tokenizer_json)
    assert tokenizer.truncation is None
    assert tokenizer.padding is None
    assert len(tokenizer.encode("open").ids) == 3
    assert len(tokenizer.encode("open " * 40).ids) == 42
    assert ", " not in pruned.tokenizer_json[:2000], "compact: it ships"


def test_tokens_added_beside_the_vocabulary_are_left_out(
    tokenizer_json: str, texts: list[str]
) -> None:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    size = tokenizer.get_vocab_size()
    tokenizer.add_tokens(["returnitnow"])
    text = tokenizer.to_str()
    counts = count_tokens(text, [*texts, "returnitnow " * 1000])
    assert counts[size] == 1000
    order = keep_order(text, counts)
    assert len(order) == size
    new = Tokenizer.from_str(prune_tokenizer(text, counts, order, size).tokenizer_json)
    assert new.get_vocab_size() == size
    assert "[UNK]" not in new.encode("returnitnow").tokens


def test_ids_with_gaps_are_counted_and_closed(tokenizer_json: str, texts: list[str]) -> None:
    value = json.loads(tokenizer_json)
    vocab = value["model"]["vocab"]
    last = max(vocab, key=lambda token: vocab[token])
    vocab[last] += 50
    text = json.dumps(value)
    counts = count_tokens(text, [*texts, last.removeprefix("##")])
    order = keep_order(text, counts)
    assert len(order) == len(vocab)
    new = Tokenizer.from_str(prune_tokenizer(text, counts, order, len(vocab)).tokenizer_json)
    assert sorted(new.get_vocab().values()) == list(range(len(vocab)))


def test_a_vocabulary_without_room_for_the_characters_is_a_model_error(
    tokenizer_json: str, counts: np.ndarray
) -> None:
    order = keep_order(tokenizer_json, counts)
    with pytest.raises(ModelError, match="vocabulary of 40 has no room for the special tokens"):
        prune_tokenizer(tokenizer_json, counts, order, 40)


def test_more_tokens_than_there_are_is_a_model_error(
    tokenizer_json: str, counts: np.ndarray
) -> None:
    order = keep_order(tokenizer_json, counts)
    with pytest.raises(ModelError, match=f"the teacher has {len(order)} tokens"):
        prune_tokenizer(tokenizer_json, counts, order, len(order) + 1)


def test_other_tokenizers_are_a_model_error(tokenizer_json: str, counts: np.ndarray) -> None:
    with pytest.raises(ModelError, match=r"only WordPiece.*'BPE'"):
        keep_order(changed(tokenizer_json, model={"type": "BPE", "vocab": {}}), counts)
    order = keep_order(tokenizer_json, counts)
    strange = changed(tokenizer_json, post_processor={"type": "ByteLevel"})
    with pytest.raises(ModelError, match="post-processor 'ByteLevel'"):
        prune_tokenizer(strange, counts, order, SIZE)
    value = json.loads(tokenizer_json)
    value["post_processor"]["special_tokens"]["[Q]"] = {
        "id": "[Q]",
        "ids": [900],
        "tokens": ["[Q]"],
    }
    with pytest.raises(ModelError, match=r"template adds \[Q\]"):
        prune_tokenizer(json.dumps(value), counts, order, SIZE)
    value = json.loads(tokenizer_json)
    value["model"]["vocab"]["<pad>"] = value["model"]["vocab"].pop("[PAD]")
    with pytest.raises(ModelError, match=r"tokenizer has no \[PAD\]"):
        prune_tokenizer(json.dumps(value), counts, order, SIZE)


def test_ids_are_cut_to_the_length_with_the_special_tokens_in_it(tokenizer_json: str) -> None:
    (ids,) = tokenize(tokenizer_json, ["open the file " * 30], 11)
    assert len(ids) == 11
    assert ids.dtype == np.uint16
    assert (ids[0], ids[-1]) == (2, 3)
    assert tokenize(tokenizer_json, [], 11) == []
