"""Training a large encoder in little memory: what backward needs of a run is computed again when it is needed.

The activations of a batch of 64 texts of 256 tokens take an estimated 6 GB in the upper eight layers of a model of
CodeBERT's shape. Where those of a run would be many, only its ids are kept, and it is run once more, in smaller runs,
for its gradients: a third more work (gradient checkpointing, 1604.06174).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from codemill.compress.models.classifier import Classifier
from codemill.compress.models.surgery import layers_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["ACTIVATION_BYTES", "FrugalClassifier", "texts_at_once"]

ACTIVATION_BYTES = 1_000_000_000
"""About so much is kept for backward at a time."""
_RUNS = 2
"""Of a batch of 64 texts: a run that needs less than such a share is kept as it is."""
_BYTES_PER_UNIT = 64
"""Kept for each token, trained layer and hidden unit: 16 floats."""


class FrugalClassifier(Classifier):
    """A classifier with the same results, whose training needs memory for a few texts only."""

    def embed(self, ids: Tensor, mask: Tensor, bf16: bool = False) -> Tensor:
        """As a classifier's."""
        texts, tokens = ids.shape
        size = texts_at_once(self.encoder, tokens)
        whole = super().embed
        if not torch.is_grad_enabled() or texts * _RUNS <= size:
            return whole(ids, mask, bf16)
        parts = [
            (ids[start : start + size], mask[start : start + size])
            for start in range(0, texts, size)
        ]
        return torch.cat([checkpoint(whole, *part, bf16, use_reentrant=False) for part in parts])


def texts_at_once(encoder: PreTrainedModel, tokens: int) -> int:
    """So many texts of so many tokens keep about `ACTIVATION_BYTES` for backward; one at least."""
    layers = layers_of(encoder)
    trained = sum(any(value.requires_grad for value in layer.parameters()) for layer in layers)
    kept: int = tokens * max(1, trained) * encoder.config.hidden_size * _BYTES_PER_UNIT
    return max(1, ACTIVATION_BYTES // kept)
