"""A student's tokenizers by size: cut out of the teacher's, or a byte-level BPE of its own."""

from __future__ import annotations

import hashlib
import json
import re
import string
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

import codemill
from codemill.compress.data.pairs import Pair
from codemill.compress.models.vocabulary import Pruned, Trained
from codemill.compress.models.wordpiece import count_tokens, keep_order, prune_tokenizer
from codemill.errors import ModelError
from codemill.runtime import Variant, write_bundle

SIZE = 400
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
SOURCES = [
    "def f(x):\n\treturn x  # twice\r\n",
    "    if a<=b and not c:\n        pass\n\n\n",
    "s = 'naïve café, ß, 日本語, 🙂, \u0000\u200b'",
    "e\u0301 is two code points, \u00e9 one",
    "a" * 300,
    "",
    " ",
    "[PADDING] <s> ## Ġ Ċ",
    string.printable,
]


@pytest.fixture(scope="module")
def texts(pairs: list[Pair]) -> list[str]:
    return [text for pair in pairs for text in (pair.query, pair.code)]


@pytest.fixture(scope="module")
def trained(texts: list[str]) -> Trained:
    return Trained(texts)


def test_pruned_vocabularies_are_those_of_prune_tokenizer(
    tokenizer_json: str, texts: list[str]
) -> None:
    counts = count_tokens(tokenizer_json, texts)
    vocabulary = Pruned(tokenizer_json, counts)
    order = keep_order(tokenizer_json, counts)
    assert vocabulary.most == len(order) == Tokenizer.from_str(tokenizer_json).get_vocab_size()
    for size in (150, vocabulary.most):
        assert vocabulary.at(size) == prune_tokenizer(tokenizer_json, counts, order, size)
    with pytest.raises(ModelError, match="has no room"):
        vocabulary.at(20)
    with pytest.raises(ModelError, match="was asked for"):
        vocabulary.at(vocabulary.most + 1)


def test_a_trained_vocabulary_has_the_size_asked_for_and_nothing_of_the_teacher(
    trained: Trained,
) -> None:
    for size in (260, SIZE):
        found = trained.at(size)
        tokenizer = Tokenizer.from_str(found.tokenizer_json)
        assert tokenizer.get_vocab_size() == size
        assert sorted(tokenizer.get_vocab().values()) == list(range(size))
        assert [tokenizer.id_to_token(number) for number in range(4)] == SPECIAL
        assert (found.kept, found.counts) == ([], [])
    assert trained.at(SIZE) is trained.at(SIZE), "trained once"


def test_cls_and_sep_frame_every_input(trained: Trained) -> None:
    tokenizer = Tokenizer.from_str(trained.at(SIZE).tokenizer_json)
    assert tokenizer.encode("").ids == [2, 3]
    ids = tokenizer.encode("return x").ids
    assert (ids[0], ids[-1]) == (2, 3)
    assert not set(ids[1:-1]) & {0, 1, 2, 3}


@pytest.mark.parametrize("text", SOURCES)
@pytest.mark.parametrize("size", [260, SIZE])
def test_source_text_survives_a_round_trip(trained: Trained, size: int, text: str) -> None:
    tokenizer = Tokenizer.from_str(trained.at(size).tokenizer_json)
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == re.sub(r"\s+", " ", unicodedata.normalize("NFC", text))
    assert 1 not in ids, "no byte is unknown"


def test_how_code_is_laid_out_costs_no_tokens(trained: Trained) -> None:
    tokenizer = Tokenizer.from_str(trained.at(SIZE).tokenizer_json)
    plain = tokenizer.encode("if a: return b").ids
    assert tokenizer.encode("if  a:\n\t\t    return\r\n b").ids == plain


def test_new_tokens_name_what_the_teacher_writes_them_with(
    tokenizer_json: str, texts: list[str]
) -> None:
    found = Trained(texts, tokenizer_json).at(SIZE)
    own, teacher = Tokenizer.from_str(found.tokenizer_json), Tokenizer.from_str(tokenizer_json)
    teacher.no_padding()
    assert len(found.parts) == len(found.counts) == SIZE
    assert not found.kept
    assert [[teacher.id_to_token(i) for i in ids] for ids in found.parts[:4]] == [
        [name] for name in SPECIAL
    ]
    for number in range(4, SIZE):
        text = own.decode([number], skip_special_tokens=False)
        if "\ufffd" in text:
            assert found.parts[number] == [], "a part of a character is no text"
        else:
            assert found.parts[number] == teacher.encode(text, add_special_tokens=False).ids
    (word,) = own.encode("return", add_special_tokens=False).ids[:1]
    assert found.parts[word], "what the texts hold most the teacher can write"
    counted = sum(len(own.encode(text, add_special_tokens=False).ids) for text in texts)
    assert sum(found.counts) == counted


def test_a_larger_vocabulary_shortens_text(trained: Trained, texts: list[str]) -> None:
    def length(size: int) -> float:
        tokenizer = Tokenizer.from_str(trained.at(size).tokenizer_json)
        return float(np.mean([len(tokenizer.encode(text).ids) for text in texts]))

    assert length(260) > 1.5 * length(300) > 1.5 * length(SIZE) > 0


_IN_ANOTHER_PROCESS = """
import hashlib, json, sys
from codemill.compress.models.vocabulary import Trained
found = Trained(json.load(sys.stdin)).at(int(sys.argv[1])).tokenizer_json
print(hashlib.sha256(found.encode()).hexdigest())
"""


def test_two_processes_train_the_same_bytes(trained: Trained, texts: list[str]) -> None:
    expected = hashlib.sha256(trained.at(SIZE).tokenizer_json.encode()).hexdigest()
    for _ in range(2):
        ended = subprocess.run(
            [sys.executable, "-c", _IN_ANOTHER_PROCESS, str(SIZE)],
            input=json.dumps(texts),
            capture_output=True,
            text=True,
            check=True,
        )
        assert ended.stdout.strip() == expected


def test_sizes_that_the_bytes_or_the_texts_do_not_give_are_refused(trained: Trained) -> None:
    with pytest.raises(ModelError, match="of 259 does not hold the 256 bytes; give 260 or more"):
        trained.at(259)
    with pytest.raises(ModelError, match=r"byte-pair tokens, not 40,000; .*ask for fewer"):
        trained.at(40_000)
    with pytest.raises(ModelError, match="give 260 byte-pair tokens, not 261"):
        Trained([]).at(261)


def write_encoder(path: Path, vocab_size: int, dim: int) -> None:
    """The mean of the tokens' embeddings, normalised: [batch, dim]."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node
    table = np.random.default_rng(0).normal(size=(vocab_size, dim)).astype(np.float32)
    graph = helper.make_graph(
        [
            node("Gather", ["table", "input_ids"], ["rows"]),
            node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            node("Unsqueeze", ["mask", "last"], ["wide_mask"]),
            node("Mul", ["rows", "wide_mask"], ["kept"]),
            node("ReduceSum", ["kept", "tokens"], ["sum"], keepdims=0),
            node("LpNormalization", ["sum"], ["embedding"], axis=-1, p=2),
        ],
        "encoder",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", dim])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([-1], dtype=np.int64), "last"),
            numpy_helper.from_array(np.array([1], dtype=np.int64), "tokens"),
        ],
    )
    path.parent.mkdir(parents=True)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )


def test_the_runtime_encodes_with_it(trained: Trained, tmp_path: Path, texts: list[str]) -> None:
    folder, name = tmp_path / "bundle", "variants/cpu-fp32/encoder.onnx"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(trained.at(SIZE).tokenizer_json, encoding="utf-8")
    write_encoder(folder / name, SIZE, 16)
    variant = Variant(
        provider="CPUExecutionProvider", precision="fp32", segments=(name,), files=(name,)
    )
    write_bundle(
        folder,
        name="tiny",
        task="retrieval",
        license="Apache-2.0",
        input={"max_tokens": 24},
        output={"kind": "embedding", "dim": 16},
        variants={"cpu-fp32": variant},
        provenance={"seed": 0},
    )
    model = codemill.load(folder)
    found = model.encode([*texts[:5], "日本語 🙂"])
    assert found.shape == (6, 16)
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-5
    alone = model.encode([texts[1]])
    assert np.abs(alone - found[1:2]).max() < 1e-5
