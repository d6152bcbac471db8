"""The tokenizer that a GGUF file carries, as tokenizer.json: what llama.cpp makes of it.

Not what transformers does: its conversion puts a token before every text that the file says not to put there, leaves
the file's way of dividing text (`tokenizer.ggml.pre`) aside, and makes a space of every `▁`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from codemill.errors import ModelError

__all__ = ["GgufTokenizer", "read_gguf_tokenizer"]

_SPECIAL, _OWN = 3, 4
"""token_type of a mark that no text is made of, and of a piece of text that is always a token of its own."""
_BYTES: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_DIGITS = {"type": "Digits", "individual_digits": True}


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
# llama.cpp's names of ways to divide a text, and what they are
_PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [{**_BYTES, "use_regex": True}],
    **{
        name: [_DIGITS, {**_BYTES, "use_regex": True}]
        for name in ("smollm", "starcoder", "refact", "command-r", "codeshell")
    },
    "qwen2": [
        _split(rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_REST}"),
        {**_BYTES, "use_regex": False},
    ],
    "llama-bpe": [
        _split(rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"),
        {**_BYTES, "use_regex": False},
    ],
}


class GgufTokenizer:
    """The tokenizer's JSON, and what the file says of marks: `begin`, ids before every text; `end`, the last id."""

    def __init__(self, fields: dict[str, Any], where: str) -> None:
        kind, way = fields.get("model"), fields.get("pre", "gpt-2")
        if kind != "gpt2" or way not in _PRE_TOKENIZERS:
            known = ", ".join(_PRE_TOKENIZERS)
            raise ModelError(
                f"{where} has a tokenizer of type {kind!r}, dividing text as {way!r}; expected 'gpt2' with one of "
                f"{known}. Give the folder of the original model, which has a tokenizer.json"
            )
        try:
            tokens, merges = list(fields["tokens"]), list(fields["merges"])
        except (KeyError, TypeError) as error:
            raise ModelError(f"{where} carries no whole tokenizer: {error}") from error
        kinds = list(fields.get("token_type") or [1] * len(tokens))
        if len(kinds) != len(tokens) or not all(" " in merge for merge in merges):
            raise ModelError(f"{where} carries a damaged tokenizer")
        added = [number for number, kind in enumerate(kinds) if kind in (_SPECIAL, _OWN)]
        self.begin: tuple[int, ...] = ()
        if fields.get("add_bos_token") and "bos_token_id" in fields:
            self.begin = (int(fields["bos_token_id"]),)
        self.end = (int(fields["eos_token_id"]),) if "eos_token_id" in fields else ()
        value = {
            "version": "1.0",
            "added_tokens": [
                {
                    "id": number,
                    "content": tokens[number],
                    "special": kinds[number] == _SPECIAL,
                    **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
                }
                for number in added
            ],
            "normalizer": {"type": "NFC"} if way == "qwen2" else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRE_TOKENIZERS[way]},
            "post_processor": None,
            "decoder": {**_BYTES, "use_regex": True},
            "model": {
                "type": "BPE",
                "vocab": {token: number for number, token in enumerate(tokens)},
                "merges": [merge.split(" ", 1) for merge in merges],
                "ignore_merges": way == "llama-bpe",
            },
        }
        self.json = json.dumps(value, ensure_ascii=False)


def read_gguf_tokenizer(path: Path) -> GgufTokenizer:
    """The tokenizer in a GGUF file; ModelError where there is none, or one of another kind."""
    from gguf import GGUFReader

    prefix = "tokenizer.ggml."
    try:
        reader = GGUFReader(path)
        fields = {
            name.removeprefix(prefix): field.contents()
            for name, field in reader.fields.items()
            if name.startswith(prefix)
        }
    # damaged files end in errors of every kind there
    except Exception as error:
        raise ModelError(f"{path} cannot be read as GGUF: {error}") from error
    return GgufTokenizer(fields, str(path))
