"""A user's own pairs -> train, validation and test, drawn by the seed, near duplicates across them removed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from codemill.compress.data.leakage import Overlap, remove_duplicates, remove_overlap
from codemill.compress.data.pairs import Pair
from codemill.errors import DataError

__all__ = ["Splits", "split_pairs"]

_HELD_OUT_SHARE = 0.1
_FEWEST = 100


@dataclass(frozen=True)
class Splits:
    """The three splits and what was removed on the way."""

    train: list[Pair]
    validation: list[Pair]
    test: list[Pair]
    duplicates_removed: int
    overlap: Overlap


def split_pairs(
    pairs: Sequence[Pair], validation_pairs: int, test_pairs: int, seed: int, where: str
) -> Splits:
    """A tenth each, at most, for validation and test. Raises DataError where too few distinct pairs are left."""
    distinct, dropped = remove_duplicates(pairs)
    if len(distinct) < _FEWEST:
        raise DataError(
            f"{where} holds {len(distinct)} distinct pairs ({len(pairs)} rows); at least {_FEWEST} are needed"
        )
    random.Random(seed).shuffle(distinct)
    share = int(len(distinct) * _HELD_OUT_SHARE)
    tested, validated = min(test_pairs, share), min(validation_pairs, share)
    test, rest = distinct[:tested], distinct[tested:]
    validation, _ = remove_overlap(rest[:validated], test)
    train, overlap = remove_overlap(rest[validated:], [*test, *validation])
    if not train or not validation:
        raise DataError(
            f"{where}: nothing is left to train or validate on once near duplicates are removed"
        )
    return Splits(train, validation, test, dropped, overlap)
