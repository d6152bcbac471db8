"""Splits that are not given, drawn by the seed: by group, else stratified by label; and pairs made of labels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from codemill.compress.data.gather import Table
from codemill.compress.data.spill import Hashes, drawn_order, mixed
from codemill.errors import DataError

__all__ = ["Drawn", "draw_splits", "pairs_of_labels"]

_SHARE = 0.1
_MOST = 10_000
_FEWEST_GROUPS = 10


@dataclass(frozen=True)
class Drawn:
    """The split of every row, how it was drawn, and what to warn of."""

    split: NDArray[np.int8]
    how: str
    warnings: list[str]


def draw_splits(
    table: Table,
    keys: Hashes,
    wanted: dict[int, int | None],
    seed: int,
    group_asked: bool,
    functions: Hashes | None = None,
) -> Drawn:
    """Draw the splits that are `wanted` (number of the split -> most rows, None: a tenth) out of train's rows.

    A tenth each, at most: whole groups where rows have one, else rows, as many of each label as their
    share. `group_asked`: the field of groups was named, so that too few of them is an error.

    functions [n, 2]: hashes of the two texts of pairs that have no groups. Then functions are drawn, and
    with each the rows that hold it, so that every held-out pair has a function that train has not.
    """
    split = np.where(table.split < 0, 0, table.split).astype(np.int8)
    free = np.flatnonzero(split == 0)
    # what is held out should have a label to be judged by, where there are any
    has_label = table.labels[free] >= 0
    labelled = free[has_label] if has_label.any() else free
    sizes = {
        number: min(int(len(labelled) * _SHARE), _MOST if most is None else most)
        for number, most in wanted.items()
    }
    if not wanted:
        return Drawn(split, "given", [])
    warnings = []
    groups = table.groups[labelled]
    grouped = bool((groups >= 0).any())
    if grouped:
        largest = int(np.bincount(groups[groups >= 0]).max())
        count = len(np.unique(groups))
        if count < _FEWEST_GROUPS or largest > 0.7 * len(labelled):
            why = f"{count} groups, the largest with {largest:,} of {len(labelled):,} rows"
            if group_asked:
                raise DataError(
                    f"the rows cannot be split by group: {why}; at least {_FEWEST_GROUPS} are needed, and none "
                    "with more than 70 % of the rows; give the splits, or leave group_field out"
                )
            warnings.append(f"not split by group: {why}")
            grouped = False
    if grouped:
        for number, size in sorted(sizes.items(), reverse=True):
            rest = labelled[split[labelled] == 0]
            split[_whole_groups(rest, table.groups[rest], keys, size, seed)] = number
        # unlabelled rows go with their group
        for number in sizes:
            held = np.unique(table.groups[split == number])
            split[free[np.isin(table.groups[free], held[held >= 0])]] = number
        return Drawn(split, "by group", warnings)
    if functions is not None:
        for number, size in sorted(sizes.items(), reverse=True):
            rest = labelled[split[labelled] == 0]
            held = _held_out(functions[rest], size, seed + number)
            touched = free[np.isin(functions[free], held).any(1) & (split[free] == 0)]
            split[touched] = number
        return Drawn(
            split, "by function: each of their pairs holds one that train has not", warnings
        )
    for number, size in sorted(sizes.items(), reverse=True):
        rest = labelled[split[labelled] == 0]
        split[_stratified(rest, table.labels[rest], keys, size, seed)] = number
    return Drawn(split, "by label", warnings)


def _whole_groups(
    rows: NDArray[np.int64], groups: NDArray[np.int32], keys: Hashes, size: int, seed: int
) -> NDArray[np.int64]:
    """The rows of groups that the seed draws, about `size` of them, never a fifth more if it can be helped."""
    # a row without a group is a group of its own
    named = np.where(groups >= 0, groups.astype(np.int64), -2 - np.arange(len(groups)))
    values, inverse, counts = np.unique(named, return_inverse=True, return_counts=True)
    # by what a group holds, so that its number, which depends on the other groups, has no say
    content = np.zeros(len(values), np.uint64)
    np.bitwise_xor.at(content, inverse, mixed(keys[rows], 3))
    taken, held = np.zeros(len(values), bool), 0
    for group in drawn_order(content, seed):
        if held >= size:
            break
        if held + counts[group] <= 1.2 * size:
            taken[group] = True
            held += int(counts[group])
    if not held and size:
        taken[np.argmin(counts)] = True
    return rows[taken[inverse]]


def _held_out(functions: Hashes, size: int, seed: int) -> Hashes:
    """Functions that the seed draws, until they are in `size` rows of functions [n, 2]."""
    names, inverse = np.unique(functions, return_inverse=True)
    inverse = inverse.reshape(functions.shape)
    order = drawn_order(names, seed)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    # a row is held out with the first of its two functions that is drawn
    first = np.sort(rank[inverse].min(1))
    last = first[min(size, len(first)) - 1] if size else -1
    held: Hashes = names[order[: last + 1]]
    return held


def _stratified(
    rows: NDArray[np.int64], labels: NDArray[np.int32], keys: Hashes, size: int, seed: int
) -> NDArray[np.int64]:
    """`size` rows that the seed draws, of each label its share."""
    order = rows[drawn_order(keys[rows], seed)]
    by_label = labels[drawn_order(keys[rows], seed)]
    # the place of a row among those of its label, as a share: the smallest shares have every label
    place = np.empty(len(order))
    for label in np.unique(by_label):
        mine = by_label == label
        place[mine] = (np.arange(mine.sum()) + 0.5) / mine.sum()
    return order[np.argsort(place, kind="stable")[:size]]


def pairs_of_labels(table: Table, keys: Hashes, most: dict[int, int | None], seed: int) -> Table:
    """Pairs of two rows of one split, as many with the same label (1) as with different ones (0).

    Each row gets one partner of each kind, two pairs a row, up to `most` of a split; a row whose label stands
    alone has no partner. Pairs have no group: the label of one of their two functions would say nothing of the
    other, and what they share, functions, is seen in the pairs.
    """
    parts = []
    for split in np.unique(table.split):
        rows = np.flatnonzero(table.split == split)
        rows = rows[drawn_order(keys[rows], seed)]
        pairs = _partners(rows, table.labels, keys, seed)
        limit = most.get(int(split))
        half = min(len(pairs[0]), len(pairs[1]), len(rows) if limit is None else limit // 2)
        for label, chosen in enumerate(pairs):
            first = chosen[:half]
            part = table.take(first[:, 0])
            texts = np.stack([table.texts[first[:, 0], 0], table.texts[first[:, 1], 0]], axis=1)
            parts.append(
                replace(
                    part,
                    texts=texts,
                    labels=np.full(half, label, np.int32),
                    groups=np.full(half, -1, np.int32),
                    teacher=None,
                )
            )
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in vars(parts[0])
        if name != "teacher"
    }
    return Table(teacher=None, **joined)


def _partners(
    rows: NDArray[np.int64], labels: NDArray[np.int32], keys: Hashes, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[n, 2] pairs of different and of the same label, each pair once."""
    by_label = {int(label): rows[labels[rows] == label] for label in np.unique(labels[rows])}
    draws = [mixed(keys[rows], seed + kind) for kind in (1, 2)]
    seen: set[tuple[int, int]] = set()
    different: list[tuple[int, int]] = []
    same: list[tuple[int, int]] = []
    for at, row in enumerate(rows.tolist()):
        mates = by_label[int(labels[row])]
        for kind, pool in ((different, rows), (same, mates)):
            start = int(draws[kind is same][at]) % len(pool)
            # the first that fits from a drawn place on; a few tries are enough, or there is none
            for step in range(min(len(pool), 200)):
                other = int(pool[(start + step) % len(pool)])
                pair = (min(row, other), max(row, other))
                alike = labels[other] == labels[row]
                if other != row and bool(alike) == (kind is same) and pair not in seen:
                    seen.add(pair)
                    kind.append((row, other))
                    break
    shape = (-1, 2)
    return np.array(different, np.int64).reshape(shape), np.array(same, np.int64).reshape(shape)
