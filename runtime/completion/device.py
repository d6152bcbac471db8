"""Keys and values on a GPU, and the engines that read them there: what a token costs is not copying its context.

Graphs are those of `StandardParts`; the rows that a segment gives for its own tokens are copied behind the others
within the GPU's memory. What an exit skipped, and texts that are moved, go through the host's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codemill.runtime.completion.cache import Cache, roomier, turned
from codemill.runtime.completion.decoding import AT_ONCE, Decoding
from codemill.runtime.completion.parts import PLACES, StandardParts, past_names, row_names
from codemill.runtime.tensorrt import DeviceArray

if TYPE_CHECKING:
    from codemill.runtime.tensorrt import TensorRtSession

__all__ = ["DeviceCache", "DeviceParts"]

Row = NDArray[np.float32]


class DeviceCache(Cache):
    """A text's keys and values on a GPU, in the type that engines keep them in."""

    on_device: list[tuple[DeviceArray, DeviceArray]]
    """Of each layer [1, kv_heads, capacity, head_size]."""

    def __init__(self, decoding: Decoding, dtype: type[np.floating[Any]]) -> None:
        self._dtype = dtype
        self.on_device = []
        # what a run gives for its own tokens, of any layer's shape; one text is run by one thread
        shape = (1, decoding.kv_heads, AT_ONCE, decoding.head_size)
        self.rows = [
            (DeviceArray(shape, dtype), DeviceArray(shape, dtype)) for _ in range(decoding.layers)
        ]
        super().__init__(decoding)

    @property
    def size_bytes(self) -> int:
        """Memory taken on the GPU."""
        return sum(array.nbytes for pair in (*self.on_device, *self.rows) for array in pair)

    def grow(self, tokens: int) -> None:
        """As in `Cache`; so are the others."""
        if tokens <= self.capacity:
            return
        room = roomier(self.capacity, tokens, self._decoding.max_tokens)
        shape = (1, self._decoding.kv_heads, room, self._decoding.head_size)
        for number in range(self._decoding.layers):
            pair = DeviceArray(shape, self._dtype), DeviceArray(shape, self._dtype)
            if number == len(self.on_device):
                self.on_device.append(pair)
                continue
            for new, before in zip(pair, self.on_device[number], strict=True):
                new.put(0, before, self.capacity)
            # one layer at a time, so that both are never there in full
            self.on_device[number] = pair
        self.capacity = room
        self.version += 1

    def write(self, first_layer: int, at: NDArray[np.int64], rows: list[tuple[Row, Row]]) -> None:
        """From the host's memory, each run of neighbouring places at once."""
        bounds = [0, *(np.flatnonzero(np.diff(at) != 1) + 1).tolist(), len(at)]
        layers = self.on_device[first_layer : first_layer + len(rows)]
        for pair, new in zip(layers, rows, strict=True):
            for array, row in zip(pair, new, strict=True):
                for start, end in pairwise(bounds):
                    part = np.ascontiguousarray(row[:, :, start:end], self._dtype)
                    array.put(int(at[start]), part, end - start)

    def settle(self, first_layer: int, last_layer: int, at: int, count: int) -> None:
        """Put what a run left in `rows` for these layers at the places from `at` on."""
        for number in range(first_layer, last_layer):
            for array, rows in zip(self.on_device[number], self.rows[number], strict=True):
                array.put(at, rows, count)

    def move(self, start: int, end: int, to: int) -> None:
        """Through the host's memory, where keys are turned."""
        rotary = self._decoding.rotary
        if rotary is None:
            raise ValueError("only keys with rotary positions can be moved")
        if start == to or end <= start:
            return
        for keys, values in self.on_device:
            key = turned(keys.take(start, end).astype(np.float32), to - start, rotary)
            keys.put(to, key.astype(self._dtype), end - start)
            values.put(to, values.take(start, end), end - start)


class DeviceParts(StandardParts):
    """Backend of engines; `half`: they keep keys and values in float16."""

    _segments: Sequence[TensorRtSession]

    def __init__(
        self,
        decoding: Decoding,
        segments: Sequence[TensorRtSession],
        exits: Sequence[TensorRtSession],
        projections: Sequence[TensorRtSession],
        head: TensorRtSession,
        *,
        half: bool,
    ) -> None:
        super().__init__(decoding, segments, exits, projections, head)
        self._kept = np.float16 if half else np.float32

    def cache(self) -> Cache:
        """As in `Backend`; so are the others."""
        return DeviceCache(self.decoding, self._kept)

    def _run(self, number: int, given: dict[str, Any], output: str, cache: Cache) -> Row:
        assert isinstance(cache, DeviceCache)
        session, (start, end) = self._segments[number], self._layers(number)
        into: dict[str, DeviceArray] = {}
        for layer in range(start, end):
            given.update(zip(past_names(layer), cache.on_device[layer], strict=True))
            into.update(zip(row_names([layer]), cache.rows[layer], strict=True))
        (found,) = session.outputs_into(given, [output], into)
        at = given[PLACES][0]
        cache.settle(start, end, int(at[0]), len(at))
        states: Row = found
        return states
