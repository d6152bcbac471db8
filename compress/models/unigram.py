"""Pruning a Unigram (SentencePiece) tokenizer, as T5 has, to its most used tokens.

A Unigram falls back by itself, to the best split into pieces that are left; single characters that
the data show are kept, because a character that is no piece is unknown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from codemill.compress.models.bpe import renumber
from codemill.compress.models.wordpiece import PrunedVocabulary
from codemill.errors import ModelError

__all__ = ["keep_order", "prune_tokenizer"]

_SPECIAL = ("<pad>", "<unk>", "</s>", "<s>")


def keep_order(tokenizer_json: str, counts: np.ndarray) -> list[int]:
    """All token ids, those to keep first: special tokens, single characters, then by use."""
    pieces = _pieces(json.loads(tokenizer_json))
    first = dict.fromkeys(_indispensable(pieces, counts))
    rest = [
        int(index)
        for index in np.argsort(-counts, kind="stable")
        if index < len(pieces) and int(index) not in first
    ]
    return [*first, *rest]


def prune_tokenizer(
    tokenizer_json: str, counts: np.ndarray, order: Sequence[int], vocab_size: int
) -> PrunedVocabulary:
    """The tokenizer with the first `vocab_size` tokens of `order`. Raises ModelError where they are too few."""
    value = json.loads(tokenizer_json)
    pieces = _pieces(value)
    needed = len(_indispensable(pieces, counts))
    if not needed <= vocab_size <= len(pieces):
        raise ModelError(
            f"a vocabulary of {vocab_size} was asked for; this teacher's tokens give {needed} "
            f"(special tokens and single characters) to {len(pieces)}"
        )
    kept = [int(index) for index in order[:vocab_size]]
    value["model"]["vocab"] = [pieces[index] for index in kept]
    ids = {pieces[index][0]: number for number, index in enumerate(kept)}
    unknown = value["model"].get("unk_id")
    value["model"]["unk_id"] = None if unknown is None else kept.index(unknown)
    value["added_tokens"] = [
        {**token, "id": ids[token["content"]]}
        for token in value.get("added_tokens", [])
        if token["content"] in ids
    ]
    renumber(value.get("post_processor"), ids)
    value["truncation"] = value["padding"] = None
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return PrunedVocabulary(text, kept, [int(counts[index]) for index in kept])


def _pieces(value: dict[str, Any]) -> list[list[Any]]:
    """[piece, score] by id."""
    if value["model"].get("type") != "Unigram":
        raise ModelError(
            f"this teacher's tokenizer is {value['model'].get('type')!r}; expected a Unigram"
        )
    pieces: list[list[Any]] = value["model"]["vocab"]
    return pieces


def _indispensable(pieces: list[list[Any]], counts: np.ndarray) -> list[int]:
    """Ids of the special tokens, then of single characters: those of ASCII, and those the data show."""
    ids = {piece: index for index, (piece, _) in enumerate(pieces)}
    special = [ids[token] for token in _SPECIAL if token in ids]
    single = [
        index
        for piece, index in ids.items()
        if len(piece) == 1 and (piece.isascii() or piece == "▁" or counts[index])
    ]
    return list(dict.fromkeys([*special, *single]))
