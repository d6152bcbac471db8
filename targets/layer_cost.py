"""What each part of a bundle's model costs, by formulas from the architecture that the bundle names: estimates.

For BERT-like encoders and Llama-style decoders. The search has the formulas of whole architectures, for many at once
(`codemill.compress.search.cost`, `.decoder`, with their derivation); a test holds the sums here against them.
Letters: V vocabulary, R embedding rank, H width, A heads x head size, K keys' heads x head size, I inner size,
P positions, T tokens of an input, S tokens that one attends to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

__all__ = ["Kind", "Part", "parts_of"]

Kind = Literal["embedding", "attention", "feed-forward", "head"]

_WHOLE = (
    *("vocab_size", "hidden_size", "layers", "heads", "head_size"),
    "intermediate_size",
)
_MOST, _MOST_LAYERS = 10**9, 1000


@dataclass(frozen=True)
class Part:
    """A part of the model: of `layer`, counted from 1, or of none. `gflops`: of one input, dense products only."""

    kind: Kind
    layer: int | None
    parameters: int
    gflops: float


def parts_of(architecture: Mapping[str, Any], tokens: float) -> tuple[Part, ...] | None:
    """From the bottom up; None of a family whose formulas are not here, or of an architecture that is not whole.

    Of an encoder one input has `tokens` tokens; of a decoder it is one token that attends to as many.
    """
    if not all(_is_size(architecture.get(name)) for name in _WHOLE):
        return None
    if architecture["layers"] > _MOST_LAYERS:
        return None
    family = architecture.get("family", "bert")
    if family == "bert":
        return _encoder(architecture, tokens)
    return _decoder(architecture, tokens) if family == "llama" else None


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST


def _encoder(shape: Mapping[str, Any], tokens: float) -> tuple[Part, ...]:
    """Embedding: words, P H + 2 H + 2 H; attention: 4 H A + 3 A + H + 2 H; feed-forward: 2 H I + I + H + 2 H.

    Operations: widening a factorised embedding 2 T R H; 8 T H A + 4 T T A; 4 T H I.
    """
    h, a, i = shape["hidden_size"], shape["heads"] * shape["head_size"], shape["intermediate_size"]
    positions = shape.get("max_tokens")
    around = (positions + 4 if _is_size(positions) else 4) * h
    words, widened = _words(shape)
    attention = 8 * tokens * h * a + 4 * tokens * tokens * a
    parts = [Part("embedding", None, words + around, tokens * widened / 1e9)]
    for layer in range(1, shape["layers"] + 1):
        parts += [
            Part("attention", layer, 4 * h * a + 3 * a + 3 * h, attention / 1e9),
            Part("feed-forward", layer, 2 * h * i + i + 3 * h, 4 * tokens * h * i / 1e9),
        ]
    return tuple(parts)


def _decoder(shape: Mapping[str, Any], context: float) -> tuple[Part, ...]:
    """Embedding: words; attention: 2 H A + 2 H K + H; feed-forward: 3 H I + H; head: H, its table is the embedding's.

    Operations of a token: 2 R H; 4 H A + 4 H K + 4 S A; 6 H I; 2 H V, or factorised 2 R (H + V).
    """
    h, a, i = shape["hidden_size"], shape["heads"] * shape["head_size"], shape["intermediate_size"]
    groups, rank, v = shape.get("kv_heads"), shape.get("embedding_rank"), shape["vocab_size"]
    k = (groups if _is_size(groups) else shape["heads"]) * shape["head_size"]
    words, widened = _words(shape)
    attention = 4 * h * (a + k) + 4 * context * a
    head = 2 * rank * (h + v) if _is_size(rank) else 2 * h * v
    parts = [Part("embedding", None, words, widened / 1e9)]
    for layer in range(1, shape["layers"] + 1):
        parts += [
            Part("attention", layer, 2 * h * (a + k) + h, attention / 1e9),
            Part("feed-forward", layer, 3 * h * i + h, 6 * h * i / 1e9),
        ]
    return (*parts, Part("head", None, h, head / 1e9))


def _words(shape: Mapping[str, Any]) -> tuple[int, float]:
    """Parameters of the table of words, and operations of a token there: a look-up is none."""
    v, h, rank = shape["vocab_size"], shape["hidden_size"], shape.get("embedding_rank")
    return (v * rank + rank * h, 2.0 * rank * h) if _is_size(rank) else (v * h, 0.0)
