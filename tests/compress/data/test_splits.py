"""A user's own pairs in three splits."""

from __future__ import annotations

import pytest

from codemill.compress.data.leakage import remove_overlap
from codemill.compress.data.pairs import Pair
from codemill.compress.data.splits import split_pairs
from codemill.errors import DataError


def test_splits_are_disjoint_in_code_in_query_and_in_near_duplicates(pairs: list[Pair]) -> None:
    # each code twice, the second time under another name of its argument
    again = [Pair(p.query + " again", p.code.replace("return", "yield"), p.origin) for p in pairs]
    splits = split_pairs([*pairs, *again, *pairs[:20]], 1000, 1000, 0, "pairs.jsonl")
    assert splits.duplicates_removed == 20
    assert len(splits.test) == 60
    assert splits.removed_from_train.similar_code > 0
    for these, others in (
        (splits.train, splits.test),
        (splits.train, splits.validation),
        (splits.validation, splits.test),
    ):
        assert remove_overlap(these, others)[0] == these
    for side in ("query", "code"):
        sets = [
            {getattr(p, side) for p in split}
            for split in (splits.train, splits.validation, splits.test)
        ]
        assert sum(map(len, sets)) == len(set.union(*sets))


def test_held_out_splits_are_a_tenth_each_and_no_more_than_asked_for(pairs: list[Pair]) -> None:
    splits = split_pairs(pairs, 1000, 1000, 0, "here")
    assert (len(splits.validation), len(splits.test)) == (30, 30)
    assert len(splits.train) == 240
    splits = split_pairs(pairs, 12, 10, 0, "here")
    assert (len(splits.validation), len(splits.test)) == (12, 10)


def test_the_seed_draws_the_splits(pairs: list[Pair]) -> None:
    one, again, other = (split_pairs(pairs, 100, 100, seed, "here") for seed in (1, 1, 2))
    assert one == again
    assert one.test != other.test


def test_too_few_distinct_pairs_are_a_data_error_with_both_counts(pairs: list[Pair]) -> None:
    with pytest.raises(DataError, match="here has too few distinct pairs: 60 of 180; at least 100"):
        split_pairs(pairs[:60] * 3, 10, 10, 0, "here")


def test_pairs_that_are_all_alike_are_a_data_error(pairs: list[Pair]) -> None:
    alike = [Pair("the same query", pair.code) for pair in pairs]
    with pytest.raises(DataError, match="nothing is left to train or validate on"):
        split_pairs(alike, 10, 10, 0, "here")
