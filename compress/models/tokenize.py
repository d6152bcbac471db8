"""Texts -> token ids, cut to a length: one way for training, labelling and counting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

__all__ = ["tokenize", "unknown_id"]


def tokenize(tokenizer_json: str, texts: Sequence[str], max_tokens: int) -> list[np.ndarray]:
    """Ids of each text, special tokens included, cut to `max_tokens`: uint16 or int32 [tokens]."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    kind = np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.int32
    return [
        np.asarray(encoding.ids, dtype=kind)
        for start in range(0, len(texts), 1024)
        for encoding in tokenizer.encode_batch(list(texts[start : start + 1024]))
    ]


def unknown_id(tokenizer_json: str) -> int:
    """The token that stands for what the vocabulary has no token for; 0 where there is none."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    found = (tokenizer.token_to_id(name) for name in ("[UNK]", "<unk>"))
    return next((index for index in found if index is not None), 0)
