"""A user's own pairs -> train, validation and test, drawn by the seed, near duplicates across them removed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from codemill.compress.data.leakage import Overlap, remove_duplicates, remove_overlap
from codemill.compress.data.pairs import Pair
from codemill.errors import DataError

__all__ = ["Splits", "make_splits", "split_pairs"]

_HELD_OUT_SHARE = 0.1
_FEWEST = 100


@dataclass(frozen=True)
class Splits:
    """The three splits and what was removed on the way."""

    train: list[Pair]
    validation: list[Pair]
    test: list[Pair]
    duplicates_removed: int
    removed_from_train: Overlap
    """what validation or test has too"""
    removed_from_validation: Overlap
    """what the test has too"""


def make_splits(
    train: Sequence[Pair], validation: Sequence[Pair], test: Sequence[Pair], duplicates_removed: int
) -> Splits:
    """The splits with near duplicates across them removed: the test stays whole."""
    kept_validation, from_validation = remove_overlap(validation, test)
    kept_train, from_train = remove_overlap(train, [*test, *kept_validation])
    return Splits(
        kept_train, kept_validation, list(test), duplicates_removed, from_train, from_validation
    )


def split_pairs(
    pairs: Sequence[Pair], validation_pairs: int, test_pairs: int, seed: int, where: str
) -> Splits:
    """A tenth each, at most, for validation and test. Raises DataError where too few distinct pairs are left."""
    distinct, dropped = remove_duplicates(pairs)
    if len(distinct) < _FEWEST:
        raise DataError(
            f"{where} has too few distinct pairs: {len(distinct)} of {len(pairs)}; at least {_FEWEST} are needed"
        )
    random.Random(seed).shuffle(distinct)
    share = int(len(distinct) * _HELD_OUT_SHARE)
    tested, validated = min(test_pairs, share), min(validation_pairs, share)
    test, rest = distinct[:tested], distinct[tested:]
    splits = make_splits(rest[validated:], rest[:validated], test, dropped)
    if not splits.train or not splits.validation:
        raise DataError(
            f"{where}: nothing is left to train or validate on once near duplicates are removed"
        )
    return splits
