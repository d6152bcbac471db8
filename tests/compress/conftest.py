"""A tiny teacher in a user's model folder, and pairs that it and its students can learn."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from codemill.compress.data.pairs import Pair
from codemill.compress.models.load import TeacherModel, load_teacher

HIDDEN, LAYERS, HEADS, INNER, POSITIONS = 32, 3, 4, 64, 60
VERBS = ["open", "close", "read", "write", "parse", "merge", "sort", "count", "delete", "encode"]
THINGS = ["file", "socket", "matrix", "table", "stream", "branch", "cookie", "window", "vector"]
KINDS = ["empty", "remote", "sorted", "hidden", "nested", "cached", "broken", "signed", "packed"]
FILLERS = [f"{first}{second}" for first in "bdfgklmnprst" for second in ("ax", "em", "io", "ul")]


def make_pairs(count: int, seed: int = 0) -> list[Pair]:
    """Distinct pairs: the query names what the function's name and body name, among other words."""
    chance = random.Random(seed)
    combinations = [(v, k, t) for v in VERBS for k in KINDS for t in THINGS]
    chance.shuffle(combinations)
    found = []
    for number, (verb, kind, thing) in enumerate(combinations[:count]):
        one, two, three, four = chance.sample(FILLERS, 4)
        lines = [
            f"def {verb}_{kind}_{thing}({one}, {two}):",
            f"    {three} = {verb}({two}, {kind}={one})",
            f"    for {four} in {thing}s({three}):",
            f"        {one}.append({four} + {chance.randrange(100)})",
            f"    return {one}",
        ]
        query = f"{verb.capitalize()} the {kind} {thing} and return it"
        found.append(Pair(query, "\n".join(lines), f"made_up:{number}"))
    return found


def write_jsonl(path: Path, pairs: list[Pair]) -> Path:
    rows = [json.dumps({"query": pair.query, "code": pair.code}) for pair in pairs]
    path.write_text("\n".join(rows) + "\n")
    return path


def train_tokenizer(texts: list[str], vocab_size: int = 320) -> Tokenizer:
    """WordPiece as BERT has it: all letters, alone and inside a word, then the words used most.

    The library's trainer breaks ties at random: each process would have another model.
    """
    splitter, cleaner = (
        pre_tokenizers.BertPreTokenizer(),
        normalizers.BertNormalizer(lowercase=True),
    )
    words = Counter(
        word for text in texts for word, _ in splitter.pre_tokenize_str(cleaner.normalize_str(text))
    )
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *"()[]{}.,:=+-*/_'\"#<>!", *letters]
    tokens += [f"##{letter}" for letter in letters]
    ranked = sorted(words, key=lambda word: (-words[word], word))
    tokens += [word for word in ranked if len(word) > 1][: vocab_size - len(tokens)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = cleaner, splitter
    tokenizer.add_special_tokens(special)
    ids = {token: tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]")}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=list(ids.items())
    )
    # as a saved model has it: what must not leak into a student
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    return tokenizer


def tiny_bert(vocab_size: int, seed: int = 0) -> BertModel:
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        max_position_embeddings=POSITIONS,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            # biases and norms too: what is forgotten in a cut must show
            if name.endswith("LayerNorm.weight"):
                value.copy_(1 + 0.1 * noise)
            else:
                value.copy_((1.0 if "word_embeddings" in name else 0.15) * noise)
    return model


@pytest.fixture(scope="session")
def pairs() -> list[Pair]:
    return make_pairs(300)


@pytest.fixture
def pairs_file(pairs: list[Pair], tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "pairs.jsonl", pairs)


@pytest.fixture(scope="session")
def tokenizer_json(pairs: list[Pair]) -> str:
    return str(train_tokenizer([text for p in pairs for text in (p.query, p.code)]).to_str())


@pytest.fixture(scope="session")
def made_model(tokenizer_json: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder, made once; not to be written to."""
    folder = tmp_path_factory.mktemp("model") / "tiny-bert"
    # a table padded beyond the tokenizer, as many published ones are
    model = tiny_bert(Tokenizer.from_str(tokenizer_json).get_vocab_size() + 8)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    return folder


@pytest.fixture
def model_folder(made_model: Path, tmp_path: Path) -> Path:
    """A copy of the model folder, to do with as a test likes."""
    return Path(shutil.copytree(made_model, tmp_path / "tiny-bert"))


@pytest.fixture
def teacher(made_model: Path) -> TeacherModel:
    return load_teacher(made_model)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CODEMILL_CACHE", str(folder))
    return folder
