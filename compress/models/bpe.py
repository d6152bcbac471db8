"""Pruning a byte-level BPE (RoBERTa's, CodeT5's, ModernBERT's) to the tokens that shorten the data most.

A BPE does not fall back by itself: a token is only ever made by merging two others, so one whose
parts are gone is never reached. Tokens are taken away one by one, each time the one that no other
is made of and whose loss makes the data the least longer; its uses become uses of its two parts.
The reverse of that order is one in which every token comes after its parts. All bytes are kept, so
that every text can be written.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from codemill.compress.models.wordpiece import PrunedVocabulary
from codemill.errors import ModelError

__all__ = ["keep_order", "length_growth", "prune_tokenizer", "renumber"]

_PADDING = ("<pad>", "[PAD]")


def keep_order(
    tokenizer_json: str, counts: np.ndarray, marks: Sequence[str] | None = None
) -> list[int]:
    """All token ids, those to keep first: special tokens (padding is 0), bytes, then by what they save.

    A vocabulary of n tokens is its first n, and each of them can be reached if the teacher's can. marks: of a decoder,
    which has no padding, the tokens that stay first in its place.
    """
    value = _byte_level(tokenizer_json)
    ids = _all_tokens(value)
    parts = _parts(value, ids)
    needed = _indispensable(value, ids, marks)
    uses = np.zeros(max(ids.values()) + 1, dtype=np.int64)
    for left, right in parts.values():
        uses[left] += 1
        uses[right] += 1
    kept = set(needed)
    loss = {index: int(counts[index]) for index in ids.values()}
    # of those that save alike the later one goes: merges are learned in the order of their use
    leaves = [(loss[i], -i) for i in loss if i not in kept and not uses[i]]
    heapq.heapify(leaves)
    removed: list[int] = []
    while leaves:
        saved, negative = heapq.heappop(leaves)
        removed.append(-negative)
        for part in parts.get(-negative, ()):
            loss[part] += saved
            uses[part] -= 1
            if not uses[part] and part not in kept:
                heapq.heappush(leaves, (loss[part], -part))
    return [*needed, *reversed(removed)]


def prune_tokenizer(
    tokenizer_json: str,
    counts: np.ndarray,
    order: Sequence[int],
    vocab_size: int,
    marks: Sequence[str] | None = None,
) -> PrunedVocabulary:
    """The tokenizer with the first `vocab_size` tokens of `order` and the merges among them, compact JSON.

    Raises ModelError where the vocabulary does not even hold the special tokens and the bytes.
    """
    value = _byte_level(tokenizer_json)
    ids = _all_tokens(value)
    needed = len(_indispensable(value, ids, marks))
    if vocab_size > len(ids):
        raise ModelError(
            f"a vocabulary of {vocab_size} was asked for; the teacher has {len(ids)} tokens"
        )
    if vocab_size < needed:
        raise ModelError(
            f"a vocabulary of {vocab_size} has no room for the special tokens and the bytes, "
            f"which words fall back to; it takes {needed} at least"
        )
    names = {index: token for token, index in ids.items()}
    kept = [int(index) for index in order[:vocab_size]]
    new = {names[index]: number for number, index in enumerate(kept)}
    # tokens beside the model's own vocabulary go into it, where their numbers are said
    value["model"]["vocab"] = new
    value["model"]["merges"] = [
        pair
        for pair, left, right in _merges(value)
        if left in new and right in new and left + right in new
    ]
    value["added_tokens"] = [
        {**token, "id": new[token["content"]]}
        for token in value.get("added_tokens", [])
        if token["content"] in new
    ]
    renumber(value.get("post_processor"), new)
    value["truncation"] = value["padding"] = None
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return PrunedVocabulary(text, kept, [int(counts[index]) for index in kept])


def length_growth(tokenizer_json: str, pruned_json: str, texts: Sequence[str]) -> float:
    """How many tokens the pruned tokenizer gives for each of the teacher's, special tokens left out."""
    from tokenizers import Tokenizer

    lengths = []
    for text in (tokenizer_json, pruned_json):
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        found = tokenizer.encode_batch(list(texts), add_special_tokens=False)
        lengths.append(sum(len(encoding.ids) for encoding in found))
    return lengths[1] / max(lengths[0], 1)


def _byte_level(tokenizer_json: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(tokenizer_json)
    found = value["model"].get("type")
    if found != "BPE" or not any(
        part.get("type") == "ByteLevel" for part in _sequence(value.get("pre_tokenizer"))
    ):
        kind = "BPE over characters" if found == "BPE" else repr(found)
        raise ModelError(f"this teacher's tokenizer is {kind}; expected a byte-level BPE")
    return value


def _sequence(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """A tokenizer's part and, where it is a sequence, those in it."""
    if part is None:
        return
    yield part
    for key in ("pretokenizers", "processors"):
        for inner in part.get(key, []):
            yield from _sequence(inner)


def _all_tokens(value: dict[str, Any]) -> dict[str, int]:
    """Token -> id, of the model's vocabulary and beside it."""
    ids: dict[str, int] = dict(value["model"]["vocab"])
    ids.update((token["content"], token["id"]) for token in value.get("added_tokens", []))
    return ids


def _merges(value: dict[str, Any]) -> Iterator[tuple[Any, str, str]]:
    """Each merge as it is written, and its two parts."""
    for pair in value["model"]["merges"]:
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        yield pair, left, right


def _parts(value: dict[str, Any], ids: dict[str, int]) -> dict[int, tuple[int, int]]:
    """Token id -> the ids of the two that it is first merged from."""
    parts: dict[int, tuple[int, int]] = {}
    for _, left, right in _merges(value):
        made = ids.get(left + right)
        if made is not None and made not in parts and left in ids and right in ids:
            parts[made] = ids[left], ids[right]
    return parts


def _indispensable(
    value: dict[str, Any], ids: dict[str, int], marks: Sequence[str] | None
) -> list[int]:
    """Ids of padding, or of `marks`, unknown and what frames a text, then of the bytes."""
    from tokenizers import pre_tokenizers

    padding = [token for token in _PADDING if token in ids][:1] if marks is None else list(marks)
    if not padding and marks is None:
        raise ModelError(f"the teacher's tokenizer has no padding token ({' or '.join(_PADDING)})")
    roles = [*padding]
    unknown = value["model"].get("unk_token")
    if unknown in ids:
        roles.append(unknown)
    for part in _sequence(value.get("post_processor")):
        roles += [part[key][0] for key in ("cls", "sep") if key in part]
        for token in part.get("special_tokens", {}).values():
            roles += token["tokens"]
    lost = [token for token in roles if token not in ids]
    if lost:
        raise ModelError(
            f"the tokenizer adds {', '.join(lost)}, which is not in its vocabulary; "
            "such a tokenizer cannot be pruned"
        )
    alphabet = sorted(ids[token] for token in pre_tokenizers.ByteLevel.alphabet() if token in ids)
    return list(dict.fromkeys([*(ids[token] for token in roles), *alphabet]))


def renumber(post_processor: dict[str, Any] | None, ids: dict[str, int]) -> None:
    """Put the new ids of the special tokens into what adds them."""
    for part in _sequence(post_processor):
        for key in ("cls", "sep"):
            if key in part:
                part[key][1] = ids[part[key][0]]
        for token in part.get("special_tokens", {}).values():
            token["ids"] = [ids[name] for name in token["tokens"]]
