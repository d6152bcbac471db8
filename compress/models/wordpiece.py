"""Pruning a WordPiece tokenizer to its most used tokens.

WordPiece falls back by itself: a word whose token is gone is split into shorter pieces that are still
there, down to single characters, which are all kept. (A BPE does not: `bpe`.)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from codemill.errors import ModelError

__all__ = ["PrunedVocabulary", "count_tokens", "keep_order", "prune_tokenizer"]

_NEEDED = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_SPECIAL = (*_NEEDED, "[MASK]")


@dataclass(frozen=True)
class PrunedVocabulary:
    """A pruned tokenizer and where each of its tokens was in the original.

    `kept` holds original token ids in the pruned order; `counts` how often each occurs in the data.
    `parts`, of tokens that are new: the original ids that each is written with, whose mean it starts from.
    """

    tokenizer_json: str
    kept: list[int]
    counts: list[int]
    parts: list[list[int]] = field(default_factory=list)


def count_tokens(tokenizer_json: str, texts: Sequence[str]) -> np.ndarray:
    """How often each token of the full vocabulary occurs in `texts`: int64 [highest id + 1]."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # ids may have gaps
    counts = np.zeros(max(tokenizer.get_vocab().values()) + 1, dtype=np.int64)
    for start in range(0, len(texts), 1024):
        batch = tokenizer.encode_batch(list(texts[start : start + 1024]), add_special_tokens=False)
        ids = np.concatenate(
            [np.asarray(encoding.ids, dtype=np.int64) for encoding in batch] or [counts[:0]]
        )
        counts += np.bincount(ids, minlength=len(counts))
    return counts


def keep_order(tokenizer_json: str, counts: np.ndarray) -> list[int]:
    """All token ids, those to keep first: special tokens, single ASCII characters, then by use.

    Characters of a script that the data never show are not kept first. The order depends on the
    counts only; a vocabulary of n tokens is its first n. Tokens that were added beside WordPiece's
    own vocabulary are left out: their texts are split like any other.
    """
    vocab: dict[str, int] = _wordpiece(tokenizer_json)["vocab"]
    first = dict.fromkeys(_indispensable(vocab))
    known = set(vocab.values()) - set(first)
    rest = (int(index) for index in np.argsort(-counts, kind="stable") if int(index) in known)
    return [*first, *rest]


def _indispensable(vocab: dict[str, int]) -> list[int]:
    """Ids of the special tokens, then of the single ASCII characters that words fall back to."""
    special = [vocab[token] for token in _SPECIAL if token in vocab]
    ascii_pieces = [
        index
        for token, index in vocab.items()
        if len(token.removeprefix("##")) == 1 and token.isascii() and token.isprintable()
    ]
    return [*special, *sorted(ascii_pieces)]


def prune_tokenizer(
    tokenizer_json: str, counts: np.ndarray, order: Sequence[int], vocab_size: int
) -> PrunedVocabulary:
    """The tokenizer with the first `vocab_size` tokens of `order`, compact JSON.

    Raises ModelError where the vocabulary does not even hold the single characters, and for a
    tokenizer that cannot be pruned.
    """
    value = json.loads(tokenizer_json)
    model = _wordpiece(tokenizer_json)
    tokens = {index: token for token, index in model["vocab"].items()}
    if vocab_size > len(tokens):
        raise ModelError(
            f"a vocabulary of {vocab_size} was asked for; the teacher has {len(tokens)} tokens"
        )
    kept = [int(index) for index in order[:vocab_size]]
    value["model"]["vocab"] = {tokens[index]: new for new, index in enumerate(kept)}
    ids = value["model"]["vocab"]
    absent = [token for token in _NEEDED if token not in model["vocab"]]
    if absent:
        raise ModelError(f"the teacher's tokenizer has no {', '.join(absent)}")
    needed = len(set(_indispensable(model["vocab"])))
    if vocab_size < needed:
        raise ModelError(
            f"a vocabulary of {vocab_size} has no room for the special tokens and single characters, "
            f"which words fall back to; it takes {needed} at least"
        )
    value["added_tokens"] = [
        {**token, "id": ids[token["content"]]}
        for token in value.get("added_tokens", [])
        if token["content"] in ids
    ]
    _renumber(value.get("post_processor"), ids)
    value["truncation"] = value["padding"] = None
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return PrunedVocabulary(text, kept, [int(counts[index]) for index in kept])


def _wordpiece(tokenizer_json: str) -> dict[str, Any]:
    model: dict[str, Any] = json.loads(tokenizer_json)["model"]
    if model.get("type") != "WordPiece":
        raise ModelError(
            f"only WordPiece tokenizers can be pruned so far; this teacher's is {model.get('type')!r}"
        )
    return model


def _renumber(post_processor: dict[str, Any] | None, ids: dict[str, int]) -> None:
    """Put the new ids of [CLS] and [SEP] into the template that adds them."""
    if post_processor is None:
        return
    if post_processor["type"] == "TemplateProcessing":
        for token in post_processor["special_tokens"].values():
            lost = [name for name in token["tokens"] if name not in ids]
            if lost:
                raise ModelError(
                    f"the tokenizer's template adds {', '.join(lost)}, which is not in its vocabulary; "
                    "such a tokenizer cannot be pruned"
                )
            token["ids"] = [ids[name] for name in token["tokens"]]
    elif post_processor["type"] == "BertProcessing":
        for key in ("sep", "cls"):
            post_processor[key][1] = ids[post_processor[key][0]]
    else:
        raise ModelError(
            f"tokenizer post-processor {post_processor['type']!r} is not known for WordPiece"
        )
