"""The student's shape, as data. What it costs is `search/`; how it is cut out of a teacher is `models/`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from codemill.errors import RecipeError

__all__ = ["BITS", "DECODER_BITS", "TOKENIZERS", "Architecture", "Family", "Tokens"]

Family = Literal["bert", "modernbert", "t5", "llama"]

Tokens = Literal["pruned", "bpe"]
TOKENIZERS: tuple[Tokens, ...] = ("pruned", "bpe")
"""Where a student's tokens come from: the most used ones of its teacher, or a byte-level BPE of the data."""

BITS = (8, 32)
"""What a weight of an encoder may take: int8, or float."""
DECODER_BITS = (4, *BITS)
"""And of a decoder, whose weights are rounded in blocks."""


@dataclass(frozen=True)
class Architecture:
    """The shape of an encoder (`family` "bert") or of a decoder ("llama").

    `embedding_rank` is the inner size of a factorised word embedding (vocab_size x rank, then
    rank x hidden_size); None means one full table. `heads` x `head_size` may be smaller than
    `hidden_size`: whole heads are dropped when a student is cut. `copied_layers` names the
    teacher's layers, counted from 0 at the bottom, that the student starts from; empty for a
    fresh one. `max_tokens` is the longest input, special tokens included. `kv_heads`: a decoder's
    groups of heads share so many keys and values; None means one for each head. `bits` of the
    weights that ship. `tokenizer`: one of TOKENIZERS.
    """

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    head_size: int
    intermediate_size: int
    max_tokens: int
    embedding_rank: int | None = None
    copied_layers: tuple[int, ...] = ()
    family: Family = "bert"
    kv_heads: int | None = None
    bits: int = 8
    tokenizer: Tokens = "pruned"

    def __post_init__(self) -> None:
        whole = ("vocab_size", "hidden_size", "layers", "heads", "head_size", "intermediate_size")
        for key in (*whole, "max_tokens"):
            if getattr(self, key) < 1:
                raise RecipeError(
                    f"architecture: {key} must be at least 1, not {getattr(self, key)}"
                )
        if self.copied_layers and len(self.copied_layers) != self.layers:
            raise RecipeError(
                f"architecture: copied_layers names {len(self.copied_layers)} layers, "
                f"but the student has {self.layers}"
            )
        if self.embedding_rank is not None and self.embedding_rank < 1:
            raise RecipeError(
                f"architecture: embedding_rank must be at least 1, not {self.embedding_rank}"
            )
        possible = DECODER_BITS if self.family == "llama" else BITS
        if self.bits not in possible:
            raise RecipeError(
                f"architecture: bits must be one of {list(possible)}, not {self.bits}"
            )
        if self.tokenizer not in TOKENIZERS:
            raise RecipeError(
                f"architecture: tokenizer must be one of {list(TOKENIZERS)}, not {self.tokenizer!r}"
            )
        if self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            raise RecipeError(
                f"architecture: {self.heads} heads do not divide into {self.kv_heads} groups"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `from_json` reads it back."""
        return {**asdict(self), "copied_layers": list(self.copied_layers)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Architecture:
        """The architecture that `to_json` wrote."""
        return cls(**{**value, "copied_layers": tuple(value["copied_layers"])})
