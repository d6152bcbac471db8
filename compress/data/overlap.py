"""What held-out rows share with train: removed where a row is one text, counted where it is a pair.

Published splits of pairs share functions by design, and to take out every pair of a shared function
would leave none; so each held-out pair says how much of it recurs, and figures can be given without those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codemill.compress.data.near import NearIndex
from codemill.compress.data.spill import Hashes

__all__ = ["RECURS", "Kept", "recurrence", "without_overlap"]

_EXAMPLES = 5
RECURS = ("neither text", "one text", "both texts", "the same pair")
"""what recurs in train, by the value of `recurs`"""


@dataclass(frozen=True)
class Kept:
    """The rows that stay, in their order, and what was removed before there were enough of them."""

    rows: NDArray[np.int64]
    same_text: int
    similar_text: int
    checked: int
    examples: list[list[str]]
    """(removed, held out) of the first few"""

    def as_json(self) -> dict[str, Any]:
        """For the report: all but the rows."""
        return {name: value for name, value in vars(self).items() if name != "rows"}


def without_overlap(
    rows: NDArray[np.int64],
    held_out: NDArray[np.int64],
    keys: Hashes,
    text_of: Callable[[int], str],
    where: Callable[[int], str],
    most: int | None,
) -> Kept:
    """The first `most` of `rows` whose text neither equals, up to white space, nor is near to a held-out one."""
    first = {int(key): int(row) for key, row in zip(keys[held_out], held_out, strict=True)}
    index = NearIndex(text_of(row) for row in held_out.tolist())
    counts: Counter[str] = Counter()
    kept: list[int] = []
    examples: list[list[str]] = []
    checked = 0
    for row in rows.tolist():
        if most is not None and len(kept) >= most:
            break
        checked += 1
        match, kind = first.get(int(keys[row])), "same"
        if match is None:
            near, kind = index.find(text_of(row)), "similar"
            match = None if near is None else int(held_out[near])
        if match is None:
            kept.append(row)
            continue
        counts[kind] += 1
        if len(examples) < _EXAMPLES:
            examples.append([where(row), where(match)])
    return Kept(np.array(kept, np.int64), counts["same"], counts["similar"], checked, examples)


def recurrence(
    texts: Hashes, keys: Hashes, train_texts: Hashes, train_keys: Hashes
) -> NDArray[np.int8]:
    """For each pair (`texts` [n, 2], its `keys`) an index into RECURS."""
    found: NDArray[np.int8] = np.isin(texts, train_texts).sum(axis=1).astype(np.int8)
    found[np.isin(keys, train_keys)] = 3
    return found


def counted(recurs: NDArray[np.int8], where: Sequence[str]) -> dict[str, Any]:
    """For the report: how many pairs recur, and the first few that recur whole."""
    counts = np.bincount(recurs, minlength=len(RECURS)).tolist()
    whole = np.flatnonzero(recurs == 3)[:_EXAMPLES]
    return {
        **dict(zip(("neither", "one_text", "both_texts", "same_pair"), counts, strict=True)),
        "examples": [where[at] for at in whole],
    }
