"""A classifier in torch: an encoder whose pooled embedding, or two of them, a small head labels.

Two texts are encoded one by one and meet in the head, so a text that is in many pairs is encoded once. What the
encoder is, and how it is cut out of a teacher, is `surgery.py`; the form that ships is `export/classifier.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from codemill.compress.models.pooling import Pooling, Tokenized, pad, pool, positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Classifier", "Head", "Texts", "load_head", "save_head"]

_TEXTS_PER_RUN = 32
_STEEPNESS = 5.0
"""Of what the cosine of two embeddings says of a pair before anything is learned."""


Texts = Tokenized | Mapping[int, np.ndarray]
"""Token ids of each text, by its index."""


class Head(nn.Module):
    """Embeddings -> logits [n, labels]: one hidden layer over what the embeddings have in common and what not.

    texts 1: of the embedding itself. texts 2: of |u - v| and u * v, and where their order matters of u and v too;
    beside them the cosine, which for two labels starts as a guess that alike means the last one. Embeddings are
    layer-normalised first, without weights. (Features of InferSent, 1705.02364.)
    """

    def __init__(
        self, dim: int, labels: int, texts: int = 1, hidden: int = 256, ordered: bool = False
    ) -> None:
        super().__init__()
        self.texts, self.ordered = texts, ordered
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.inner = nn.Linear(dim * _blocks(texts, ordered), hidden)
        self.outer = nn.Linear(hidden, labels)
        if texts == 2:
            self.alike = nn.Linear(1, labels)
            with torch.no_grad():
                self.outer.weight.zero_()
                self.outer.bias.zero_()
                self.alike.weight.zero_()
                self.alike.bias.zero_()
                if labels == 2:
                    self.alike.weight.copy_(torch.tensor([[-_STEEPNESS], [_STEEPNESS]]))
                    self.alike.bias.copy_(torch.tensor([_STEEPNESS / 2, -_STEEPNESS / 2]))

    def forward(self, first: Tensor, second: Tensor | None = None) -> Tensor:
        """first, second: pooled embeddings [n, dim]; `second` where the head is of two texts."""
        first = self.norm(first)
        if second is None:
            alone: Tensor = self.outer(functional.gelu(self.inner(first)))
            return alone
        second = self.norm(second)
        product = first * second
        features = [(first - second).abs(), product]
        if self.ordered:
            features += [first, second]
        # after the layer norm the length of each is the root of its width
        cosine = product.mean(-1, keepdim=True)
        logits: Tensor = self.outer(functional.gelu(self.inner(torch.cat(features, -1))))
        together: Tensor = logits + self.alike(cosine)
        return together


def _blocks(texts: int, ordered: bool) -> int:
    if texts == 1:
        return 1
    return 4 if ordered else 2


class Classifier(nn.Module):
    """An encoder, how its hidden states are pooled, and a head: `Head`, or one that a teacher came with."""

    def __init__(
        self, encoder: PreTrainedModel, head: nn.Module, texts: int, pooling: Pooling = "mean"
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.texts, self.pooling = encoder, head, texts, pooling

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def embed(self, ids: Tensor, mask: Tensor, bf16: bool = False) -> Tensor:
        """ids, mask [batch, tokens] -> pooled float32 [batch, dim], not normalised; where the weights are."""
        device = self.device
        ids, mask = ids.to(device), mask.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return pool(hidden, mask, self.pooling)

    def embed_distinct(
        self, tokens: Texts, indices: Sequence[int], bf16: bool = False
    ) -> tuple[Tensor, dict[int, int]]:
        """Embeddings of the texts of these indices, [n, dim], and the row of each index."""
        runs = self.runs(tokens, indices)
        rows = [
            self.embed(*pad([tokens[index] for index in run], positions(self.encoder)), bf16)
            for run in runs
        ]
        order = (index for run in runs for index in run)
        return torch.cat(rows), {index: row for row, index in enumerate(order)}

    @staticmethod
    def runs(tokens: Texts, indices: Sequence[int]) -> list[list[int]]:
        """The indices of each run of the encoder: texts of like length share one, so that little is padding."""
        order = sorted(indices, key=lambda index: (len(tokens[index]), index))
        return [
            order[start : start + _TEXTS_PER_RUN] for start in range(0, len(order), _TEXTS_PER_RUN)
        ]

    def logits(self, tokens: Texts, rows: np.ndarray, bf16: bool = False) -> Tensor:
        """rows int [n, texts] of indices into `tokens` -> [n, labels]; each distinct text is encoded once."""
        embedded, at = self.embed_distinct(tokens, np.unique(rows).tolist(), bf16)
        sides = [embedded[[at[index] for index in side]] for side in rows.T.tolist()]
        found: Tensor = self.head(*sides)
        return found

    @torch.inference_mode()
    def probabilities(self, tokens: Tokenized, rows: np.ndarray, bf16: bool = False) -> np.ndarray:
        """float32 [n, labels]; rows int [n, texts]."""
        return self.logits(tokens, rows, bf16).softmax(-1).cpu().numpy()


def save_head(head: Head, path: Path) -> None:
    """Write the head's weights (safetensors)."""
    save_file({name: value.contiguous() for name, value in head.state_dict().items()}, path)


def load_head(path: Path, texts: int, ordered: bool) -> Head:
    """Read what `save_head` wrote; its widths are the weights' own."""
    weights = load_file(path)
    hidden, wide = weights["inner.weight"].shape
    head = Head(wide // _blocks(texts, ordered), len(weights["outer.bias"]), texts, hidden, ordered)
    head.load_state_dict(weights)
    return head.eval()
