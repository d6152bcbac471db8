"""A decoder with fewer tokens says of those that are left what it said before, and still writes every text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from codemill.compress.models.causal import open_causal
from codemill.compress.models.fewer_tokens import (
    DecoderTokens,
    read_tokens,
    with_fewer_tokens,
    write_tokens,
)
from codemill.errors import ModelError
from codemill.export.decoder.bundle import Prompting

from .small import source, write_decoder_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder_folder(tmp_path_factory.mktemp("fewer") / "tiny-llama")


def test_words_and_head_are_rows_of_the_decoders_own(folder: Path) -> None:
    model = open_causal(folder)
    tokens = DecoderTokens(model.tokenizer_json, model.prompting, [source(1)])
    kept = tokens.at(300)
    fewer = with_fewer_tokens(model, kept)
    assert fewer.weights.shape.vocab_size == 300 == len(kept.ids)
    assert fewer.weights.shape.layers == model.weights.shape.layers
    np.testing.assert_array_equal(fewer.weights.words(), model.weights.words()[list(kept.ids)])
    np.testing.assert_array_equal(
        fewer.weights.layer(2).down.weight, model.weights.layer(2).down.weight
    )
    old, new = (Tokenizer.from_str(item.tokenizer_json) for item in (model, fewer))
    for number, id in enumerate(kept.ids):
        assert new.id_to_token(number) == old.id_to_token(id)
    # the end mark is the end mark still
    assert [old.id_to_token(i) for i in model.prompting.end] == [
        new.id_to_token(i) for i in fewer.prompting.end
    ]


def test_every_text_can_be_written(folder: Path) -> None:
    model = open_causal(folder)
    kept = DecoderTokens(model.tokenizer_json, model.prompting, [source(1)]).at(300)
    tokenizer = Tokenizer.from_str(kept.tokenizer_json)
    for text in (source(2), "déjà vu 漢字\t\r\n\x00", "class Ω:\n    pass"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert max(ids) < 300
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_they_are_kept_in_a_folder(folder: Path, tmp_path: Path) -> None:
    model = open_causal(folder)
    kept = DecoderTokens(model.tokenizer_json, model.prompting, [source(1)]).at(300)
    write_tokens(tmp_path, kept)
    assert read_tokens(tmp_path) == kept


def test_marks_of_filling_follow_their_tokens(folder: Path) -> None:
    model = open_causal(folder)
    text = model.tokenizer_json
    tokenizer = Tokenizer.from_str(text)
    names = ("def", "Ġreturn", "Ġif")
    prefix, suffix, middle = (tokenizer.token_to_id(name) for name in names)
    marks = Prompting((prefix,), (suffix, 10**6), (prefix, suffix, middle))
    kept = DecoderTokens(text, marks, []).at(300)
    made = Tokenizer.from_str(kept.tokenizer_json)
    assert kept.prompting.begin == (made.token_to_id("def"),)
    # an id of the padded table is no token
    assert kept.prompting.end == (made.token_to_id("Ġreturn"),)
    assert kept.prompting.fill == tuple(map(made.token_to_id, names))


def test_too_few_are_refused(folder: Path) -> None:
    model = open_causal(folder)
    with pytest.raises(ModelError, match=r"256|bytes"):
        DecoderTokens(model.tokenizer_json, model.prompting, []).at(100)
