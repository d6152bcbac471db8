"""Keys and values of a text's tokens, in memory that grows with it.

Each layer has two buffers [1, kv_heads, capacity, head_size] that a graph reads and writes in place. Which tokens they
are of is `document.py`'s to know. What is here is numpy; a backend on another device has its own of the same methods.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codemill.runtime.completion.decoding import Decoding, Rotary

__all__ = ["STEP", "Cache", "roomier", "turned"]

STEP = 256
"""Tokens by which a cache grows at least; at most by a quarter of itself."""

_PRIVATE = hasattr(mmap, "MAP_PRIVATE") and hasattr(mmap, "MAP_ANONYMOUS")
Row = NDArray[np.float32]


class Cache:
    """Keys and values of up to `capacity` tokens; `version` changes when the buffers are other ones."""

    def __init__(self, decoding: Decoding, capacity: int = 0) -> None:
        self._decoding = decoding
        self.capacity = 0
        self.version = 0
        self.layers: list[tuple[Row, Row]] = []
        # what a backend binds to the buffers
        self.bound: dict[int, Any] = {}
        self.grow(max(1, capacity))

    @property
    def size_bytes(self) -> int:
        """Memory taken."""
        return self.capacity * self._decoding.kv_bytes_per_token

    def grow(self, tokens: int) -> None:
        """Make room for `tokens` tokens; what is there stays."""
        if tokens <= self.capacity:
            return
        decoding = self._decoding
        room = roomier(self.capacity, tokens, decoding.max_tokens)
        shape = (1, decoding.kv_heads, room, decoding.head_size)
        old, self.layers = self.layers, []
        self.bound.clear()
        for number in range(decoding.layers):
            pair = _room(shape), _room(shape)
            if old:
                for new, before in zip(pair, old[number], strict=True):
                    new[:, :, : self.capacity] = before
                # one layer at a time, so that both are never there in full
                old[number] = pair
            self.layers.append(pair)
        self.capacity = room
        self.version += 1

    def write(self, first_layer: int, at: NDArray[np.int64], rows: list[tuple[Row, Row]]) -> None:
        """Put keys and values [1, kv_heads, n, head_size] of some layers, from `first_layer` on, at these n places."""
        layers = self.layers[first_layer : first_layer + len(rows)]
        for (keys, values), (key, value) in zip(layers, rows, strict=True):
            keys[:, :, at] = key
            values[:, :, at] = value

    def move(self, start: int, end: int, to: int) -> None:
        """Move the tokens [start, end) to the places from `to` on; keys are turned by as far.

        Positional integrity encoding (2407.03157): a key's place is in its angle alone. Only for rotary positions.
        """
        rotary = self._decoding.rotary
        if rotary is None:
            raise ValueError("only keys with rotary positions can be moved")
        if start == to or end <= start:
            return
        count = end - start
        for keys, values in self.layers:
            # copies: both places may overlap
            keys[:, :, to : to + count] = turned(keys[:, :, start:end], to - start, rotary)
            values[:, :, to : to + count] = values[:, :, start:end].copy()


def roomier(capacity: int, tokens: int, most: int) -> int:
    """The capacity that a cache of `capacity` grows to for `tokens` tokens: `most` at most, but for these."""
    room = max(tokens, capacity + max(STEP, capacity // 4))
    return min(-(-room // STEP) * STEP, max(most, tokens))


def _room(shape: tuple[int, ...]) -> Row:
    """Zeros in pages of their own, which go back to the system as soon as they are let go; a heap would keep them."""
    size = int(np.prod(shape))
    # of this process alone: a fork has pages of its own from the first byte it writes
    private: Any = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if _PRIVATE else {}
    pages = mmap.mmap(-1, max(1, 4 * size), **private)
    found: Row = np.frombuffer(pages, np.float32, size).reshape(shape)
    return found


def turned(keys: Row, by: int, rotary: Rotary) -> Row:
    """Keys [.., head_size] as they would be `by` places further on (back, below 0)."""
    angles = by * np.asarray(rotary.frequencies)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    pairs = len(angles)
    found = keys.copy()
    if rotary.interleaved:
        first, second = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    else:
        first, second = slice(0, pairs), slice(pairs, 2 * pairs)
    a, b = keys[..., first], keys[..., second]
    found[..., first] = a * cos - b * sin
    found[..., second] = b * cos + a * sin
    return found
