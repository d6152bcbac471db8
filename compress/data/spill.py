"""Texts on disk with their hashes in memory, and orders drawn by a seed: how a corpus outgrows memory.

An order is drawn by hashing, not by a generator of random numbers: it does not depend on the order of
the file, nor on the version of a library, and rows that are added leave the others where they were.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["Hashes", "TextStore", "drawn_order", "hash_of_text", "mixed"]

Hashes = NDArray[np.uint64]


class TextStore:
    """A file of texts, each with an id; about 30 bytes of memory a text. The file is removed on leaving."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: IO[bytes] = path.open("w+b")
        self._starts = array("q")
        self._id_bytes = array("H")
        self._exact = array("Q")
        self._normal = array("Q")
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()
        self._path.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, name: str, text: str) -> int:
        """Keep a text; returns its number."""
        named, body = name.encode()[:60_000], text.encode()
        self._starts.append(self._end)
        self._id_bytes.append(len(named))
        self._exact.append(_hash(body))
        self._normal.append(hash_of_text(text))
        self._stream.write(named)
        self._stream.write(body)
        self._end += len(named) + len(body)
        return len(self._starts) - 1

    def get(self, number: int) -> tuple[str, str]:
        """The id and the text of a number."""
        start = self._starts[number]
        after = self._starts[number + 1] if number + 1 < len(self._starts) else self._end
        self._stream.seek(start)
        both, named = self._stream.read(after - start), self._id_bytes[number]
        self._stream.seek(0, 2)
        return both[:named].decode(errors="replace"), both[named:].decode()

    def distinct(self) -> NDArray[np.int32]:
        """For each number the first number that has the same text."""
        _, first, inverse = np.unique(
            np.frombuffer(self._exact, np.uint64), return_index=True, return_inverse=True
        )
        return first.astype(np.int32)[inverse]

    def normal_hashes(self) -> Hashes:
        """For each number a hash that ignores how much white space there is."""
        return np.frombuffer(self._normal, np.uint64)


def _hash(body: bytes) -> int:
    return int.from_bytes(blake2b(body, digest_size=8).digest(), "little")


def hash_of_text(text: str) -> int:
    """A hash of 64 bits that ignores how much white space there is."""
    return _hash(" ".join(text.split()).encode())


def mixed(keys: Hashes, seed: int) -> Hashes:
    """Keys of 64 bits, mixed with a seed (splitmix64): as good as drawn at random, without a generator's state."""
    start = _hash(str(seed).encode())
    x = (keys ^ np.uint64(start)) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def drawn_order(keys: Hashes, seed: int) -> NDArray[np.int64]:
    """An order of the keys that the seed draws; equal keys stay in their order."""
    return np.argsort(mixed(keys, seed), kind="stable")
