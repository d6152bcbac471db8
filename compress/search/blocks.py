"""Which layers of a decoder a student copies: each stands for itself, or for a block of its teacher's layers.

Most of a decoder's layers change little of what passes through them, a few change much (ShortGPT, 2403.03853, keeps
those). Those are copied as they are, and one layer is for each run of others, which learns what they do
(distill/blocks.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

__all__ = ["Block", "blocks_of", "choose_layers", "state_changes"]

Block = tuple[int, int]
"""A teacher's layers from the first to behind the last."""

_UNEVEN = 4
"""The power that a block's change is summed in: what a layer cannot learn is what counts, not the sum."""
_LEAST = 1e-6


def state_changes(texts: Iterable[np.ndarray]) -> np.ndarray:
    """How much a decoder changes between any two of its layers: float64 [layers + 1, layers + 1].

    Of each text the states [tokens, layers + 1, width]: what is there before each layer and behind the last, before its
    norm. At [a, b] the mean squared difference of a token's state at a and at b, each of mean square 1: about 2 where
    nothing is kept.
    """
    alike, tokens = np.zeros(()), 0
    for states in texts:
        unit = states / np.linalg.norm(states, axis=-1, keepdims=True).clip(_LEAST)
        alike = alike + np.einsum("tax,tbx->ab", unit, unit, optimize=True)
        tokens += len(states)
    changes: np.ndarray = (2 - 2 * alike.astype(np.float64) / tokens).clip(0)
    return changes


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
