"""Token ids -> embeddings in torch: the reference that every exported graph is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Pooling", "Tokenized", "embed", "embed_all", "pad", "pool", "positions"]

Pooling = Literal["mean", "cls"]
"""What an embedding is made of: the mean over real tokens, or the first token alone."""

Tokenized = Sequence[np.ndarray]
"""Token ids of each text, special tokens included, cut to the model's length."""


_LENGTH_STEP = 16
"""Batches are padded to multiples of this: torch keeps compiled kernels for every shape it has seen,
and with any length allowed they grow to gigabytes and are rebuilt all the time."""


def positions(model: nn.Module) -> int | None:
    """The longest input that the model has positions for; None where its configuration does not say."""
    longest: int | None = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return longest


def pad(texts: Tokenized, most: int | None = None) -> tuple[Tensor, Tensor]:
    """ids, mask: int64 [batch, tokens], padded with 0 to the longest, rounded up to a multiple of 16.

    Rounding stops at `most`, the model's positions; a text longer than that is a ValueError.
    """
    longest = -(-max(len(text) for text in texts) // _LENGTH_STEP) * _LENGTH_STEP
    if most is not None:
        longest = min(longest, most)
    ids = np.zeros((len(texts), longest), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling = "mean") -> Tensor:
    """hidden [batch, tokens, width], mask [batch, tokens] -> float32 [batch, width], not normalised."""
    hidden = hidden.float()
    if pooling == "cls":
        return hidden[:, 0]
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    mean: Tensor = (hidden * weights).sum(1) / weights.sum(1).clamp_min(1e-9)
    return mean


def embed(model: nn.Module, ids: Tensor, mask: Tensor, bf16: bool = False) -> Tensor:
    """ids, mask [batch, tokens] -> L2-normalised mean of the last hidden states, float32 [batch, hidden].

    bf16: products in bfloat16 (autocast); weights, norms and the pooling stay in float32.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return functional.normalize(pool(hidden, mask), dim=-1)


@torch.inference_mode()
def embed_all(
    model: nn.Module, texts: Tokenized, batch_size: int = 32, bf16: bool = False
) -> np.ndarray:
    """float32 [n, hidden]; texts of like length share a batch, the order is restored."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    rows: list[np.ndarray] = []
    for start in range(0, len(order), batch_size):
        batch = [texts[index] for index in order[start : start + batch_size]]
        ids, mask = pad(batch, positions(model))
        rows.append(embed(model, ids, mask, bf16).numpy())
    result = np.empty((len(texts), rows[0].shape[1]), dtype=np.float32)
    result[order] = np.concatenate(rows)
    return result
