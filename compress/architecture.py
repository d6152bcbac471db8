"""The student's shape, as data. What it costs is `search/cost.py`; how it is cut out of a teacher is `models/`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from codemill.errors import RecipeError

__all__ = ["Architecture"]


@dataclass(frozen=True)
class Architecture:
    """An encoder's shape.

    `embedding_rank` is the inner size of a factorised word embedding (vocab_size x rank, then
    rank x hidden_size); None means one full table. `heads` x `head_size` may be smaller than
    `hidden_size`: whole heads are dropped when a student is cut. `copied_layers` names the
    teacher's layers, counted from 0 at the bottom, that the student starts from; empty for a
    fresh one. `max_tokens` is the longest input, special tokens included.
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

    def __post_init__(self) -> None:
        for key in ("vocab_size", "hidden_size", "layers", "heads", "head_size", "max_tokens"):
            if getattr(self, key) < 1:
                raise RecipeError(
                    f"architecture: {key} must be at least 1, not {getattr(self, key)}"
                )
        if self.copied_layers and len(self.copied_layers) != self.layers:
            raise RecipeError(
                f"architecture: copied_layers names {len(self.copied_layers)} layers, "
                f"but the student has {self.layers}"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `from_json` reads it back."""
        return {**asdict(self), "copied_layers": list(self.copied_layers)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Architecture:
        """The architecture that `to_json` wrote."""
        return cls(**{**value, "copied_layers": tuple(value["copied_layers"])})
