"""Exact and near duplicates between splits, found and removed.

Near means: Jaccard similarity of the sets of 5-token shingles at or above a threshold (the measure of
Allamanis, 'The adverse effects of code duplication', 1812.06469, with ordered shingles). The held-out
side is small, so an inverted index gives exact similarities; no MinHash is needed.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from codemill.compress.data.pairs import Pair

__all__ = ["Overlap", "remove_duplicates", "remove_overlap"]

_TOKEN = re.compile(r"\w+|[^\w\s]")
_SHINGLE = 5


@dataclass(frozen=True)
class Overlap:
    """What was removed from a split because a held-out split has it too."""

    same_code: int
    similar_code: int
    same_query: int
    examples: tuple[tuple[str, str], ...]
    """(removed origin, held-out origin) of the first few."""


def _normal(text: str) -> str:
    return " ".join(_TOKEN.findall(text.lower()))


def _shingles(code: str) -> set[int]:
    tokens = _TOKEN.findall(code)
    if len(tokens) <= _SHINGLE:
        return {zlib.crc32(" ".join(tokens).encode())}
    hashes = [zlib.crc32(token.encode()) for token in tokens]
    # a polynomial over token hashes: much cheaper than joining and hashing every window
    return {
        ((((a * 31 + b) * 31 + c) * 31 + d) * 31 + e) & 0xFFFFFFFFFFFF
        for a, b, c, d, e in zip(
            hashes, hashes[1:], hashes[2:], hashes[3:], hashes[4:], strict=False
        )
    }


def remove_duplicates(pairs: Sequence[Pair]) -> tuple[list[Pair], int]:
    """The pairs whose code is not, up to white space and case, that of an earlier one; and how many were dropped."""
    seen: set[int] = set()
    kept = []
    for pair in pairs:
        key = hash_of(pair.code)
        if key not in seen:
            seen.add(key)
            kept.append(pair)
    return kept, len(pairs) - len(kept)


def hash_of(code: str) -> int:
    """A hash that ignores white space and case."""
    normal = _normal(code).encode()
    return zlib.crc32(normal) << 32 | zlib.adler32(normal)


def remove_overlap(
    pairs: Sequence[Pair], held_out: Sequence[Pair], threshold: float = 0.7
) -> tuple[list[Pair], Overlap]:
    """The pairs whose code is not near, and whose query is not equal to, any held-out pair's."""
    codes = {_normal(pair.code): index for index, pair in enumerate(held_out)}
    queries = {_normal(pair.query): index for index, pair in enumerate(held_out)}
    sets = [_shingles(pair.code) for pair in held_out]
    index: defaultdict[int, list[int]] = defaultdict(list)
    for number, shingles in enumerate(sets):
        for shingle in shingles:
            index[shingle].append(number)

    kept: list[Pair] = []
    counts: Counter[str] = Counter()
    examples: list[tuple[str, str]] = []
    for pair in pairs:
        reason, match = "same_code", codes.get(_normal(pair.code))
        if match is None:
            reason, match = "same_query", queries.get(_normal(pair.query))
        if match is None:
            reason, match = "similar_code", _similar(_shingles(pair.code), index, sets, threshold)
        if match is None:
            kept.append(pair)
            continue
        counts[reason] += 1
        if len(examples) < 10:
            examples.append((pair.origin, held_out[match].origin))
    return kept, Overlap(
        counts["same_code"], counts["similar_code"], counts["same_query"], tuple(examples)
    )


def _similar(
    shingles: set[int], index: dict[int, list[int]], sets: list[set[int]], threshold: float
) -> int | None:
    shared: Counter[int] = Counter()
    for shingle in shingles:
        shared.update(index.get(shingle, ()))
    for number, common in shared.most_common():
        if common / (len(shingles) + len(sets[number]) - common) >= threshold:
            return number
    return None
