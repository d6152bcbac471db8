"""Retrieval: a query should find its code among all others. The metric is MRR over the whole set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from codemill.compress.data.pairs import Pair
from codemill.compress.models.pooling import Tokenized, embed_all
from codemill.compress.models.tokenize import tokenize
from codemill.targets.metrics import mrr

__all__ = ["TokenizedPairs", "tokenize_pairs", "validator"]


@dataclass(frozen=True)
class TokenizedPairs:
    """Token ids of queries and codes, index by index."""

    queries: Tokenized
    codes: Tokenized


def tokenize_pairs(pairs: Sequence[Pair], tokenizer_json: str, max_tokens: int) -> TokenizedPairs:
    """Both sides of every pair, cut to `max_tokens`."""
    return TokenizedPairs(
        tokenize(tokenizer_json, [pair.query for pair in pairs], max_tokens),
        tokenize(tokenizer_json, [pair.code for pair in pairs], max_tokens),
    )


def validator(
    model: nn.Module, held_out: TokenizedPairs, bf16: bool = False
) -> Callable[[], float]:
    """A function that gives the model's MRR on the held-out pairs as it stands."""

    def validate() -> float:
        queries = embed_all(model, held_out.queries, bf16=bf16)
        return mrr(queries, embed_all(model, held_out.codes, bf16=bf16))

    return validate
