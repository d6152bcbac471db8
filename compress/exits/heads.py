"""Heads after some of a classifier's layers, in torch: what is trained, saved and exported.

The embedding at an exit is what the encoder would give if it ended there: its hidden states after that layer,
normalised as the last ones are where the family does so, and pooled as at the end.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from codemill.compress.models.classifier import Classifier, Head, Texts, load_head, save_head
from codemill.compress.models.pooling import pad, pool, positions
from codemill.errors import RecipeError
from codemill.export.layers import states_after

__all__ = ["Exiting", "exit_layers", "read_heads", "write_heads"]

_MOST_EXITS = 3


class Exiting(nn.Module):
    """A classifier, and heads after `layers` (counted from 1, the lowest first) that start as copies of its own."""

    def __init__(
        self, whole: Classifier, layers: Sequence[int], heads: Sequence[Head] | None = None
    ) -> None:
        super().__init__()
        self.whole, self.layers = whole, tuple(layers)
        if heads is None:
            heads = [_copy_of(whole.head) for _ in layers]
        self.heads = nn.ModuleList(heads)

    def embed(self, ids: Tensor, mask: Tensor, bf16: bool = False) -> Tensor:
        """ids, mask [batch, tokens] -> float32 [exits + 1, batch, dim]: pooled at each exit, and at the end."""
        device = self.whole.device
        ids, mask = ids.to(device), mask.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            states = states_after(self.whole.encoder, ids, mask, self.layers)
        return torch.stack([pool(state, mask, self.whole.pooling) for state in states])

    def embed_distinct(
        self, tokens: Texts, indices: Sequence[int], bf16: bool = False
    ) -> tuple[Tensor, dict[int, int]]:
        """Embeddings of the texts of these indices, [exits + 1, n, dim], and the column of each index."""
        runs = Classifier.runs(tokens, indices)
        most = positions(self.whole.encoder)
        rows = [self.embed(*pad([tokens[index] for index in run], most), bf16) for run in runs]
        order = (index for run in runs for index in run)
        return torch.cat(rows, 1), {index: row for row, index in enumerate(order)}

    def judge(self, sides: Sequence[Tensor]) -> list[Tensor]:
        """Logits [n, labels] of each exit's head, and of the last one; sides: [exits + 1, n, dim] for each text."""
        every = [*self.heads, self.whole.head]
        return [head(*(side[number] for side in sides)) for number, head in enumerate(every)]


def _copy_of(head: nn.Module) -> Head:
    if not isinstance(head, Head):
        raise TypeError(f"exits are of a student's own head, not of a {type(head).__name__}")
    return copy.deepcopy(head)


def exit_layers(after: str | tuple[int, ...], layers: int) -> tuple[int, ...]:
    """After which layers a recipe's `exits.after` puts heads in a student of so many; () for none.

    `auto`: evenly spaced, one of two layers, two of up to eight, three of more: each costs a head's bytes, and a
    boundary over which hidden states are copied. Raises RecipeError for a layer that is not below the last.
    """
    if after == "none" or (after == "auto" and layers < 2):
        return ()
    if isinstance(after, str):
        count = min(layers - 1, 2 if layers <= 8 else _MOST_EXITS)
        return tuple(round(layers * number / (count + 1)) for number in range(1, count + 1))
    if after[-1] >= layers:
        raise RecipeError(
            f"exits.after lists layer {after[-1]}, and the student has {layers}: an exit is below the last layer; "
            "list lower ones, or `auto`"
        )
    return after


def write_heads(exiting: Exiting, folder: Path) -> None:
    """Write the weights of each exit's head (safetensors)."""
    for layer, head in zip(exiting.layers, exiting.heads, strict=True):
        assert isinstance(head, Head)
        save_head(head, _file(folder, layer))


def read_heads(folder: Path, layers: Sequence[int], texts: int, ordered: bool) -> list[Head]:
    """Read what `write_heads` wrote."""
    return [load_head(_file(folder, layer), texts, ordered) for layer in layers]


def _file(folder: Path, layer: int) -> Path:
    return folder / f"exit-{layer}.safetensors"
