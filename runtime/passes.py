"""How texts go through the parts of a model: all the way, or each until it is certain.

A text of a call runs through a part once, whatever pairs it is in: pairs are judged, texts are
encoded. Between two parts the texts that a judgement still needs are gathered into smaller batches.
What a judgement is called, and how long texts are divided, is `classifier.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codemill.errors import BundleError
from codemill.runtime.parts import Part
from codemill.runtime.texts import Cut, Texts, batches

__all__ = ["Judged", "embed", "judge", "leave_early", "softmax", "stacked"]

Row = NDArray[np.float32]

# rows of a head's run: with the most labels there may be they take 10 MB
_ROWS_PER_RUN = 256
# tokens whose hidden states are kept from part to part: 50 MB where they are 384 wide
_TOKENS_KEPT = 32_768
# items judged together where no hidden states are kept
_MOST_ITEMS = 4096


@dataclass(frozen=True)
class Judged:
    """Some items of a call, by their place in it, and what was found of each.

    `probabilities` are float32 [n, labels], `layers_used` int64 [n].
    """

    items: NDArray[np.int64]
    probabilities: Row
    layers_used: NDArray[np.int64]


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return result


def embed(
    parts: Sequence[Part], texts: Texts, ids: Sequence[Sequence[int]], batch_size: int
) -> Row:
    """Embeddings of the last part, [n, dim], in the order of `ids`."""
    found = np.empty((len(ids), parts[-1].dim), dtype=np.float32)
    for batch in batches([len(row) for row in ids], batch_size):
        input_ids, mask = texts.padded([ids[i] for i in batch])
        embedding, hidden = parts[0].start(input_ids, mask)
        for part in parts[1:]:
            assert hidden is not None
            embedding, hidden = part.go_on(hidden, mask)
        found[batch] = embedding
    return found


def judge(part: Part, sides: Sequence[Row]) -> NDArray[np.float64]:
    """Probabilities [n, labels] of the part's head for embeddings, one array for each text."""
    found = np.empty((len(sides[0]), part.labels))
    for start in range(0, len(found), _ROWS_PER_RUN):
        rows = slice(start, start + _ROWS_PER_RUN)
        found[rows] = softmax(part.logits([side[rows] for side in sides]))
    return found


def leave_early(
    parts: Sequence[Part],
    texts: Texts,
    read: Callable[[int], Cut],
    sides: NDArray[np.int64],
    batch_size: int,
) -> Iterator[Judged]:
    """Judge items part by part; those that are certain leave. Together they are all items, once.

    `sides` [n, 1 or 2] names the texts of each item; `read` gives a text's ids. Hidden states of
    some 32,768 tokens are held at a time: items of one text nearby come together, and a text that
    is needed again further on keeps its embeddings (not its hidden states, so that one that was
    left early and is needed further in later company starts anew).
    """
    shared = sides.shape[1] > 1
    known: list[dict[int, Row]] = [{} for _ in parts]
    for items, cuts in _windows(sides, read):
        yield _Window(parts, texts, cuts, known, batch_size).judge(items, sides[items])
        if not shared:
            known = [{} for _ in parts]


def _windows(
    sides: NDArray[np.int64], read: Callable[[int], Cut]
) -> Iterator[tuple[NDArray[np.int64], dict[int, Cut]]]:
    """Items, as many as the bound on tokens allows, and what their texts read."""
    order = np.lexsort((sides.max(axis=1), sides.min(axis=1)))
    items: list[int] = []
    cuts: dict[int, Cut] = {}
    tokens = 0
    for item in order.tolist():
        new = {int(text): read(int(text)) for text in sides[item] if int(text) not in cuts}
        more = sum(len(cut.ids) for cut in new.values())
        if items and (tokens + more > _TOKENS_KEPT or len(items) == _MOST_ITEMS):
            yield np.array(items, dtype=np.int64), cuts
            items, cuts, tokens = [], {}, 0
            new = {int(text): read(int(text)) for text in sides[item]}
            more = sum(len(cut.ids) for cut in new.values())
        items.append(item)
        cuts |= new
        tokens += more
    if items:
        yield np.array(items, dtype=np.int64), cuts


class _Window:
    """Some items on their way through the parts."""

    def __init__(
        self,
        parts: Sequence[Part],
        texts: Texts,
        cuts: Mapping[int, Cut],
        known: list[dict[int, Row]],
        batch_size: int,
    ) -> None:
        self._parts = parts
        self._texts = texts
        self._cuts = cuts
        # embeddings of texts after each part
        self._known = known
        self._batch_size = batch_size

    def judge(self, items: NDArray[np.int64], sides: NDArray[np.int64]) -> Judged:
        """All of the items, each by the part it leaves after."""
        probabilities = np.empty((len(items), self._parts[-1].labels), dtype=np.float32)
        layers_used = np.empty(len(items), dtype=np.int64)
        staying = np.arange(len(items))
        hidden: dict[int, Row] = {}
        for number, part in enumerate(self._parts):
            needed = np.unique(sides[staying]).tolist()
            known = self._known[number]
            hidden = self._advance(number, [i for i in needed if i not in known], hidden)
            rows = [np.stack([known[i] for i in side.tolist()]) for side in sides[staying].T]
            found = judge(part, rows)
            leaves = np.ones(len(staying), dtype=bool)
            if part.threshold is not None:
                leaves = found.max(axis=1) >= part.threshold
            probabilities[staying[leaves]] = found[leaves]
            layers_used[staying[leaves]] = part.layers
            staying = staying[~leaves]
            if not len(staying):
                break
        return Judged(items, probabilities, layers_used)

    def _advance(
        self, number: int, wanted: Sequence[int], hidden: Mapping[int, Row]
    ) -> dict[int, Row]:
        """Run texts through a part: their embeddings become known, their hidden states returned.

        `hidden`: what the part before gave; a text that is not there runs through that part first.
        """
        part = self._parts[number]
        behind = [i for i in wanted if number and i not in hidden]
        if behind:
            hidden = {**hidden, **self._advance(number - 1, behind, {})}
        found: dict[int, Row] = {}
        lengths = [len(self._cuts[i].ids) for i in wanted]
        for batch in batches(lengths, self._batch_size):
            names = [wanted[i] for i in batch]
            if number == 0:
                embedding, after = part.start(
                    *self._texts.padded([self._cuts[i].ids for i in names])
                )
            else:
                embedding, after = part.go_on(*stacked([hidden[i] for i in names], part.name))
            for row, i in enumerate(names):
                # as it was judged by before, where it was: a batch changes the last decimals
                self._known[number].setdefault(i, embedding[row])
                if after is not None:
                    found[i] = after[row, : max(1, len(self._cuts[i].ids))]
        return found


def stacked(rows: Sequence[Row], name: str) -> tuple[Row, NDArray[Any]]:
    """Hidden states of several texts as one batch, padded, and its mask."""
    width = rows[0].shape[1]
    if any(row.shape[1] != width for row in rows):
        raise BundleError(f"{name}: the part before it gave hidden states of several widths")
    hidden = np.zeros((len(rows), max(map(len, rows)), width), dtype=np.float32)
    mask = np.zeros(hidden.shape[:2], dtype=np.int64)
    for i, row in enumerate(rows):
        hidden[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return hidden, mask
