"""Two texts as one sequence of tokens: what a cross-encoder reads.

The tokenizer's own template joins them (RoBERTa: <s> a </s></s> b </s>, BERT: [CLS] a [SEP] b [SEP]), and the longer
of the two is cut first, as the runtime does (`runtime/texts.py`).

A BERT adds a vector to every token of the second text, by a third input that graphs here do not have. Which tokens
these are can be told from the ids: all that come after the first separator. `as_joined` puts that into the word
embedding, so that a cross-encoder trains, exports and labels like any BERT. A separator spelled out in the first
text would be taken for the real one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Encoding, Tokenizer
from torch import Tensor, nn

from codemill.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["SegmentedEmbedding", "as_joined", "encode_pair", "pair_tokenizer", "tokenize_pairs"]

_SEPARATORS = ("[SEP]", "</s>")


class SegmentedEmbedding(nn.Module):
    """token_ids [batch, tokens] -> [batch, tokens, hidden]: words, and `second` added after the first separator."""

    def __init__(self, words: nn.Embedding, second: Tensor, separator: int) -> None:
        super().__init__()
        self.words, self.separator = words, separator
        self.second = nn.Parameter(second.clone())

    def forward(self, token_ids: Tensor) -> Tensor:
        """Look up, and tell the texts apart."""
        ends = (token_ids == self.separator).long()
        after = (ends.cumsum(1) - ends).clamp(0, 1)
        found: Tensor = (
            self.words(token_ids) + after.unsqueeze(-1).to(self.second.dtype) * self.second
        )
        return found


def as_joined(encoder: PreTrainedModel, tokenizer_json: str) -> PreTrainedModel:
    """The encoder, changed where it has to know which of two texts a token is of: a BERT with two token types.

    Not a RoBERTa, which may have several, and whose tokenizer gives both texts the first. Raises ModelError for a
    tokenizer that does not set two texts apart.
    """
    tokenizer = pair_tokenizer(tokenizer_json)
    if encoder.config.model_type != "bert" or encoder.config.type_vocab_size < 2:
        return encoder
    found = tokenizer.encode("a", "b")
    if not any(found.type_ids):
        return encoder
    separator = next((i for i in map(tokenizer.token_to_id, _SEPARATORS) if i is not None), None)
    last_of_first = [i for i, kind in zip(found.ids, found.type_ids, strict=True) if kind == 0][-1:]
    if separator is None or last_of_first != [separator]:
        raise ModelError(
            f"this BERT tells two texts apart by their token types, and its tokenizer gives a pair the types "
            f"{found.type_ids} with no separator ({' or '.join(_SEPARATORS)}) at the end of the first: save the "
            "model's own tokenizer beside it, or set teacher.pairs: separate"
        )
    embeddings = encoder.embeddings
    types = embeddings.token_type_embeddings.weight.detach()
    # the type of the first text is what every token gets where none is named
    embeddings.word_embeddings = SegmentedEmbedding(
        embeddings.word_embeddings, types[1] - types[0], separator
    )
    return encoder


def pair_tokenizer(tokenizer_json: str) -> Tokenizer:
    """The tokenizer, without padding and truncation. Raises ModelError where it has no template for two texts."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if tokenizer.num_special_tokens_to_add(True) <= tokenizer.num_special_tokens_to_add(False):
        raise ModelError(
            "the teacher's tokenizer joins two texts with nothing between them, so no model was trained on that: save "
            "the model's own tokenizer beside it, or set teacher.pairs: separate"
        )
    return tokenizer


def tokenize_pairs(
    tokenizer_json: str, pairs: Sequence[tuple[str, str]], max_tokens: int
) -> list[np.ndarray]:
    """Ids of each pair in one sequence, special tokens included, cut to `max_tokens`: uint16 or int32 [tokens]."""
    tokenizer = pair_tokenizer(tokenizer_json)
    tokenizer.enable_truncation(max_tokens)
    kind = np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.int32
    return [
        np.asarray(encode_pair(tokenizer, first, second, max_tokens).ids, dtype=kind)
        for first, second in pairs
    ]


def encode_pair(tokenizer: Tokenizer, first: str, second: str, max_tokens: int) -> Encoding:
    """Two texts by a tokenizer that truncates to `max_tokens`."""
    return tokenizer.encode(*(_shortened(tokenizer, text, max_tokens) for text in (first, second)))


def _shortened(tokenizer: Tokenizer, text: str, max_tokens: int) -> str:
    """`text` without what is beyond `max_tokens` of it alone.

    Of two long texts each piece that is cut off is combined with each of the other's.
    """
    # a token is a character at least
    if len(text) <= max_tokens:
        return text
    found = tokenizer.encode(text)
    if len(found.ids) < max_tokens:
        return text
    return text[: max((end for _, end in found.offsets), default=0)]
