"""Blocks of a decoder's layers, for each of which a layer of a student stands: which they are, and learning them alone.

Most of a decoder's layers change little of what passes through them, a few change much (ShortGPT, 2403.03853, keeps
those). So a student's layer is the copy of one layer, or stands for a block of several that change little together:
given what the teacher has before the block, it learns to give what the teacher has behind it (LLM-Streamline,
2403.19135). No other layer's error reaches it, and each token teaches all layers at once, in all of their width: far
fewer tokens are wanted than where a student of left-out layers learns from the last one's words alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from codemill.compress.distill.token_labels import Labelled

__all__ = [
    *(
        "Block",
        "BlockLessons",
        "block_error",
        "blocks_of",
        "choose_layers",
        "learning",
        "state_changes",
    )
]

Block = tuple[int, int]
"""A teacher's layers from the first to behind the last."""

_UNEVEN = 4
"""The power that a block's change is summed in: what a layer cannot learn is what counts, not the sum."""
_LEAST = 1e-6


def state_changes(states: Tensor) -> np.ndarray:
    """How much a decoder changes between any two of its layers: float64 [layers + 1, layers + 1].

    states [tokens, layers + 1, width]: what is there before each layer and behind the last, before its norm. At [a, b]
    the mean squared difference of a token's state at a and at b, each of mean square 1: about 2 where nothing is kept.
    """
    length = states.square().mean(-1, keepdim=True).sqrt().clamp(min=_LEAST)
    alike = states / length
    places = states.shape[1]
    found = np.zeros((places, places))
    for first in range(places):
        apart = (alike[:, first:] - alike[:, first, None]).square().mean((0, 2))
        found[first, first:] = found[first:, first] = apart.double().numpy()
    return found


def choose_layers(changes: np.ndarray, count: int) -> tuple[int, ...]:
    """The layers that `count` layers are copied of, each the last of the block that its copy stands for.

    changes: of `state_changes`. A layer that stands for itself costs nothing, one that stands for a block what
    the block changes, in a power that keeps blocks even; the least sum of these is taken.
    """
    layers = len(changes) - 1
    cost = changes**_UNEVEN
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for number in range(count):
        longer: dict[int, tuple[float, tuple[int, ...]]] = {}
        for end in range(number + 1, layers + 1):
            longer[end] = min(
                (spent + (0.0 if end - begin == 1 else float(cost[begin, end])), (*kept, end - 1))
                for begin, (spent, kept) in best.items()
                if begin < end
            )
        best = longer
    return best[layers][1]


def blocks_of(copied: Sequence[int], layers: int) -> list[Block]:
    """The blocks that copies of these layers stand for: each up to its own layer, the last one up to the end."""
    return list(pairwise((0, *(number + 1 for number in copied[:-1]), layers)))


def learning(blocks: Sequence[Block]) -> list[int]:
    """The layers of a student that stand for more than themselves, and so have something to learn."""
    return [number for number, (begin, end) in enumerate(blocks) if end - begin > 1]


def block_error(found: Tensor, aim: Tensor, heard: Tensor) -> Tensor:
    """How far a layer's states [tokens, width] are from their aims, in what the next norm makes of both: a scalar.

    heard [width]: that norm's weights. Relative to each aim's mean square: a few states are a thousand times as long
    as others.
    """
    found, aim = found.float(), aim.float()
    length = aim.square().mean(-1, keepdim=True).sqrt().clamp(min=_LEAST)
    weights = heard / heard.square().mean().sqrt()
    return ((found - aim) / length * weights).square().mean()


@dataclass(frozen=True)
class BlockLessons:
    """What each layer of a student that is a transformers Llama learns by itself.

    The labels' `hidden` are the teacher's states at `places`. heard: of each layer's block, the weights of the norm
    behind it, float [width].
    """

    student: Any
    blocks: Sequence[Block]
    heard: Sequence[Tensor]
    bf16: bool = False

    @property
    def numbers(self) -> list[int]:
        """Which layers learn."""
        return learning(self.blocks)

    @property
    def places(self) -> tuple[int, ...]:
        """Before which of the teacher's layers its states must be kept; its words are the student's."""
        found = {place for number in self.numbers for place in self.blocks[number]}
        return tuple(sorted(found - {0}))

    def trained(self) -> nn.ModuleList:
        """The layers that learn."""
        return nn.ModuleList(self.student.model.layers[number] for number in self.numbers)

    def errors(self, given: Labelled, batch: Sequence[int]) -> tuple[Tensor, float]:
        """`block_error` of these pieces, summed over layers that learn, and what it is where a block does nothing."""
        model = self.student.model
        device = model.embed_tokens.weight.device
        rows, ids, real = given.batch(batch, device)
        states = given.labels.hidden[rows]

        def at(place: int) -> Tensor:
            if place == 0:
                words: Tensor = model.embed_tokens(ids)[real].detach()
                return words.float()
            kept = states[:, self.places.index(place)].astype(np.float32)
            return torch.from_numpy(kept).to(device)

        total, nothing = torch.zeros((), device=device), 0.0
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            angles: Any = None
            for number in self.numbers:
                begin, end = self.blocks[number]
                before, aim = at(begin), at(end)
                x = torch.zeros(*ids.shape, before.shape[1], device=device)
                x[real] = before
                if angles is None:
                    angles = model.rotary_emb(x, torch.arange(ids.shape[1], device=device)[None])
                found = model.layers[number](x, position_embeddings=angles)[real]
                total = total + block_error(found, aim, self.heard[number].to(device))
                nothing += float(block_error(before, aim, self.heard[number].to(device)))
        return total, nothing

    def learned(self, given: Labelled, at_once: int) -> float:
        """The share of what its blocks change that a student has learned, over all pieces: 1 where it does the same."""
        wrong = all_ = 0.0
        with torch.inference_mode():
            for start in range(0, len(given.pieces), at_once):
                some = range(start, min(start + at_once, len(given.pieces)))
                error, nothing = self.errors(given, some)
                wrong += float(error) * len(some)
                all_ += nothing * len(some)
        return 1 - wrong / all_
