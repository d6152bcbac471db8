"""Rows with the same texts: duplicates are dropped, rows that contradict each other are decided or dropped.

The same up to white space. Of rows that agree, the first labelled one stays. Of rows that contradict
each other, those with the label of more than half of them count as right, and the first of these stays;
where there is no such label, all are dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codemill.compress.data.spill import Hashes

__all__ = ["Repeats", "repeats"]

_EXAMPLES = 5


@dataclass(frozen=True)
class Repeats:
    """What was found in one set of rows."""

    keep: NDArray[np.bool_]
    duplicates: int
    """rows that only repeat an earlier one"""
    conflicting_texts: int
    conflicting_rows: int
    """rows of these texts, all of them"""
    dropped_for_conflict: int
    duplicate_examples: list[list[str]]
    conflict_examples: list[list[str]]

    def as_json(self) -> dict[str, Any]:
        """For the report: all but the mask."""
        return {name: value for name, value in vars(self).items() if name != "keep"}


def repeats(keys: Hashes, labels: NDArray[np.int32], where: Callable[[int], str]) -> Repeats:
    """Find rows with the same key; `where` names a row for the examples."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sizes = np.diff(np.r_[starts, len(ordered)])
    keep = np.ones(len(keys), bool)
    counts: Counter[str] = Counter()
    same: list[list[str]] = []
    against: list[list[str]] = []
    groups = [order[start : start + size] for start, size in _several(starts, sizes)]
    # by first row, so that the examples are the first ones of the file
    for rows in sorted(groups, key=lambda rows: int(rows[0])):
        found = Counter(int(label) for label in labels[rows] if label >= 0)
        keep[rows] = False
        if len(found) < 2:
            first = next((row for row in rows if labels[row] >= 0), rows[0])
            keep[first] = True
            counts["duplicates"] += len(rows) - 1
            if len(same) < _EXAMPLES:
                same.append([where(int(row)) for row in rows[:2]])
            continue
        counts["texts"] += 1
        counts["rows"] += len(rows)
        if len(against) < _EXAMPLES:
            first = rows[labels[rows] >= 0][0]
            other = next(row for row in rows if labels[row] >= 0 and labels[row] != labels[first])
            against.append([where(int(first)), where(int(other))])
        label, most = found.most_common(1)[0]
        if 2 * most > sum(found.values()):
            right = rows[labels[rows] == label]
            keep[right[0]] = True
            counts["duplicates"] += len(right) - 1
            counts["dropped"] += len(rows) - len(right)
        else:
            counts["dropped"] += len(rows)
    return Repeats(
        keep,
        counts["duplicates"],
        counts["texts"],
        counts["rows"],
        counts["dropped"],
        same,
        against,
    )


def _several(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> list[tuple[int, int]]:
    several = sizes > 1
    return list(zip(starts[several].tolist(), sizes[several].tolist(), strict=True))
