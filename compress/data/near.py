"""Near duplicates of held-out texts, exactly and in little memory.

The measure is that of `leakage.py`: Jaccard similarity of the sets of 5-token shingles. Two sets that
reach the threshold t share one of their first n - ceil(t n) + 1 shingles in any common order (prefix
filtering, Chaudhuri et al., ICDE 2006), so only these are indexed, the rarest first; the few candidates
are then compared in full. A shingle that no held-out text has comes before all others, so that most
texts are done with after one look-up.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

__all__ = ["NearIndex", "shingles_of"]

_TOKEN = re.compile(r"\w+|[^\w\s]")
# rounding must not lose a pair at the very threshold
_ROUNDING = 1e-9


class NearIndex:
    """The held-out texts, to be asked which of them a text is near to."""

    def __init__(self, texts: Iterable[str], threshold: float = 0.7) -> None:
        self._threshold = threshold
        sets = [shingles_of(text) for text in texts]
        self._sizes = np.array([len(one) for one in sets], np.int64)
        together = np.concatenate(sets) if sets else np.zeros(0, np.int64)
        self._known, inverse, counts = np.unique(together, return_inverse=True, return_counts=True)
        self._rank = np.empty(len(counts), np.int32)
        self._rank[np.argsort(counts, kind="stable")] = np.arange(len(counts), dtype=np.int32)
        ranked = self._rank[inverse]
        ends = np.cumsum(self._sizes)
        self._sets = [np.sort(part) for part in np.split(ranked, ends[:-1])] if sets else []
        prefixes = [one[: self._prefix(len(one))] for one in self._sets]
        indexed = np.concatenate(prefixes) if prefixes else np.zeros(0, np.int32)
        owners = np.repeat(np.arange(len(prefixes)), [len(one) for one in prefixes])
        order = np.argsort(indexed, kind="stable")
        self._indexed, self._owners = indexed[order], owners[order]

    def _prefix(self, size: int) -> int:
        return size - math.ceil(self._threshold * size - _ROUNDING) + 1

    def find(self, text: str) -> int | None:
        """The number of the most similar held-out text at or above the threshold; None: there is none."""
        if not len(self._known):
            return None
        shingles = shingles_of(text)
        size = len(shingles)
        at = np.minimum(np.searchsorted(self._known, shingles), len(self._known) - 1)
        asked = np.sort(self._rank[at[self._known[at] == shingles]])
        left = self._prefix(size) - (size - len(asked))
        if left <= 0:
            return None
        starts = np.searchsorted(self._indexed, asked[:left], "left")
        ends = np.searchsorted(self._indexed, asked[:left], "right")
        hits = [self._owners[a:b] for a, b in zip(starts, ends, strict=True) if a < b]
        if not hits:
            return None
        candidates = np.unique(np.concatenate(hits))
        sizes = self._sizes[candidates]
        alike = np.minimum(sizes, size) >= self._threshold * np.maximum(sizes, size) - _ROUNDING
        best, found = 0.0, None
        for number in candidates[alike].tolist():
            other = self._sets[number]
            place = np.minimum(np.searchsorted(other, asked), len(other) - 1)
            common = int((other[place] == asked).sum())
            similarity = common / (size + len(other) - common)
            if similarity >= self._threshold and similarity > best:
                best, found = similarity, number
        return found


def shingles_of(text: str) -> NDArray[np.int64]:
    """The hashes of a text's 5-token shingles, distinct and sorted: those of `leakage.py`, many at a time."""
    tokens = _TOKEN.findall(text)
    if len(tokens) <= 5:
        return np.array([zlib.crc32(" ".join(tokens).encode())], np.int64)
    known = {token: zlib.crc32(token.encode()) for token in set(tokens)}
    a = np.array([known[token] for token in tokens], np.int64)
    hashes = (((a[:-4] * 31 + a[1:-3]) * 31 + a[2:-2]) * 31 + a[3:-1]) * 31 + a[4:]
    distinct: NDArray[np.int64] = np.unique(hashes & 0xFFFFFFFFFFFF)
    return distinct
