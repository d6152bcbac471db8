"""Which of several rows with one text stay."""

from __future__ import annotations

import numpy as np
import pytest

from codemill.compress.data.clean import repeats


@pytest.mark.parametrize(
    ("labels", "kept", "counts"),
    [
        ([0, 0, 0], [0], (2, 0, 0, 0)),
        ([-1, 1, 1], [1], (2, 0, 0, 0)),
        ([-1, -1, -1], [0], (2, 0, 0, 0)),
        ([0, 1, 1], [1], (1, 1, 3, 1)),
        ([0, 1], [], (0, 1, 2, 2)),
        ([0, 1, -1, 1], [1], (1, 1, 4, 2)),
        ([0, 1, 2], [], (0, 1, 3, 3)),
        ([0, 0, 1, 2], [], (0, 1, 4, 4)),
    ],
)
def test_rows_of_one_text(
    labels: list[int], kept: list[int], counts: tuple[int, int, int, int]
) -> None:
    found = repeats(np.full(len(labels), 7, np.uint64), np.array(labels, np.int32), str)
    assert np.flatnonzero(found.keep).tolist() == kept
    assert (
        found.duplicates, found.conflicting_texts, found.conflicting_rows, found.dropped_for_conflict
    ) == counts  # fmt: skip


def test_rows_of_different_texts_do_not_meet() -> None:
    keys = np.array([5, 3, 5, 9, 3, 1], np.uint64)
    found = repeats(keys, np.array([0, 1, 0, 1, 0, 0], np.int32), str)
    assert found.keep.tolist() == [True, False, False, True, False, True]
    assert found.duplicate_examples == [["0", "2"]]
    assert found.conflict_examples == [["1", "4"]]
