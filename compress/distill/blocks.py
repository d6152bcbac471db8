"""A decoder's layers, each of which learns by itself what a block of its teacher's layers does (search/blocks.py).

Given what the teacher has before the block, a layer learns to give what the teacher has behind it (LLM-Streamline,
2403.19135). No other layer's error reaches it, but for the one bound that all gradients are clipped to, and each token
teaches all layers at once, in all of their width: far fewer tokens are wanted than where a student of left-out layers
learns from the last one's words alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from codemill.compress.distill.token_labels import Labelled
from codemill.compress.search.blocks import Block

__all__ = ["BlockLessons", "block_error"]

_LEAST = 1e-6


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
    behind it, float [width]. narrowed: layers have fewer neurons than what they are copies of, so that those that
    stand for themselves learn too.
    """

    student: Any
    blocks: Sequence[Block]
    heard: Sequence[Tensor]
    narrowed: bool = False
    bf16: bool = False

    @property
    def numbers(self) -> list[int]:
        """Which layers learn: those that are not already what they stand for."""
        return [
            number
            for number, (begin, end) in enumerate(self.blocks)
            if self.narrowed or end - begin > 1
        ]

    @property
    def places(self) -> tuple[int, ...]:
        """Before which of the teacher's layers its states must be kept; its words are the student's."""
        found = {place for number in self.numbers for place in self.blocks[number]}
        return tuple(sorted(found - {0}))

    def trained(self) -> nn.ModuleList:
        """The layers that learn."""
        return nn.ModuleList(self.student.model.layers[number] for number in self.numbers)

    def error(self, given: Labelled, batch: Sequence[int]) -> Tensor:
        """`block_error` of these pieces, summed over the layers that learn."""
        errors = [
            block_error(found, aim, heard) for found, _, aim, heard in self._lessons(given, batch)
        ]
        return torch.stack(errors).sum()

    @torch.inference_mode()
    def learned(self, given: Labelled, at_once: int) -> float:
        """The share of what its blocks change that a student has learned, over all tokens: 1 where it does the same."""
        wrong = nothing = 0.0
        for start in range(0, len(given.pieces), at_once):
            batch = range(start, min(start + at_once, len(given.pieces)))
            for found, before, aim, heard in self._lessons(given, batch):
                wrong += len(aim) * float(block_error(found, aim, heard))
                nothing += len(aim) * float(block_error(before, aim, heard))
        return 1 - wrong / max(nothing, _LEAST)

    def _lessons(
        self, given: Labelled, batch: Sequence[int]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Of each layer that learns: what it gives, what the teacher has before and behind its block, its `heard`."""
        model = self.student.model
        device = model.embed_tokens.weight.device
        rows, ids, real = given.batch(batch, device)
        places = torch.arange(ids.shape[1], device=device)[None]
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            for number in self.numbers:
                before, aim = (
                    self._states(given, rows, ids[real], place) for place in self.blocks[number]
                )
                x = torch.zeros(*ids.shape, before.shape[1], device=device)
                x[real] = before
                angles = model.rotary_emb(x, places)
                found = model.layers[number](x, position_embeddings=angles)[real]
                yield found, before, aim, self.heard[number].to(device)

    def _states(self, given: Labelled, rows: np.ndarray, ids: Tensor, place: int) -> Tensor:
        """The teacher's states before the layer `place`, float32 [tokens, width], of tokens int64 [tokens]."""
        if place == 0:
            words: Tensor = self.student.model.embed_tokens(ids).detach()
            return words.float()
        kept = given.labels.hidden[rows, self.places.index(place)].astype(np.float32)
        return torch.from_numpy(kept).to(ids.device)
