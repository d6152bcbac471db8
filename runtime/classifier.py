"""Text, or two texts, to a label: what runs a bundle of task classification or pair-classification.

The model's own parts are in the bundle (`parts.py`), and how texts go through them is `passes.py`.
Here is what an application calls: items are checked, equal ones are answered once, a text that is
too long is cut, or divided and put together again, and probabilities become predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from codemill.errors import BundleError
from codemill.runtime.bundle import Manifest
from codemill.runtime.labels import LABEL_TASKS, Labelling, labelling_of
from codemill.runtime.loaded import LoadedModel
from codemill.runtime.opening import open_variant
from codemill.runtime.pages import give_back_freed
from codemill.runtime.parts import Part, open_parts
from codemill.runtime.passes import Judged, embed, judge, leave_early
from codemill.runtime.session import Graph
from codemill.runtime.split import pieces_of
from codemill.runtime.texts import Cut, Texts, check_batch_size, check_texts

__all__ = ["Answers", "Classifier", "Long", "Prediction", "classifies", "open_classifier"]

Long = Literal["truncate", "split"]
Item = str | Sequence[str]
Row = NDArray[np.float32]
T = TypeVar("T")
# an item: a text, or two
Key = str | tuple[str, str]

# texts tokenized, or items judged, at a time
_WINDOW = 4096
# a piece that is surer than this does not weigh more for it: probabilities near 1 are noise
_SUREST = 0.99


@dataclass(frozen=True, slots=True)
class Prediction:
    """The most probable label of an item; `score` is its calibrated probability.

    `truncated`: something of the item was cut off, and so not looked at.
    """

    label: str
    score: float
    layers_used: int
    truncated: bool


class Answers(NamedTuple):
    """What is found of each of n items.

    `probabilities` float32 [n, labels] in the order of the labels, `layers_used` int64 [n],
    `truncated` bool [n].
    """

    probabilities: Row
    layers_used: NDArray[np.int64]
    truncated: NDArray[np.bool_]


def classifies(manifest: Manifest) -> bool:
    """Whether a bundle is one that `Classifier` runs."""
    return manifest.task in LABEL_TASKS


def open_classifier(
    folder: Path, manifest: Manifest, *, variant: str | None = None, threads: int | None = None
) -> Classifier:
    """What `codemill.load` does for a bundle with labels, its files checked; see there."""
    labelling = labelling_of(manifest)
    segments = 2 * (len(labelling.exits) + 1)
    opened = open_variant(folder, manifest, variant, segments, labelling.joined)
    parts = open_parts(opened, labelling, threads)
    return Classifier(manifest, opened.name, opened.texts(), parts)


class Classifier(LoadedModel):
    """Labels texts, or pairs of texts, with one variant of a bundle. Made by `codemill.load`.

    May be used from several threads at once. Is a context manager that closes itself.
    """

    def __init__(
        self, manifest: Manifest, variant: str, texts: Texts, parts: Sequence[Part]
    ) -> None:
        super().__init__(manifest, variant)
        self._labelling = labelling_of(manifest)
        self._texts = texts
        self._parts: tuple[Part, ...] | None = tuple(parts)

    @property
    def graphs(self) -> Sequence[Graph]:
        """Each part's encoder and head, while they are open."""
        return [graph for part in self._parts or () for graph in (part.encoder, part.head)]

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of the columns of `probabilities`."""
        return self._labelling.labels

    @property
    def labelling(self) -> Labelling:
        """What an item is, one text or two, and where it may leave early."""
        return self._labelling

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self._labelling.dim

    def predict(
        self,
        items: Sequence[Item],
        batch_size: int = 32,
        long: Long | None = None,
        exits: bool = True,
    ) -> list[Prediction]:
        """The most probable label of each item, in their order.

        An item is a text, or a pair of two texts where the bundle's task is pair-classification.
        Each distinct text is encoded once, however many pairs it is in; where a bundle has exits,
        items that are certain early leave there, unless `exits` is False.

        `long` None is what the bundle was made for. `long="truncate"` cuts off what is beyond
        `manifest.max_tokens` tokens and says so.
        `long="split"` divides such a text between functions or statements, encodes each piece and
        averages the embeddings before the head. Where an item is one text, a piece weighs by its
        tokens times the odds (99 at most) of what the head makes of it alone: a softmax over the
        pieces' confidence, so that what shows nothing does not drown what does. In a pair a piece
        alone means nothing to the head, and it weighs by its tokens only, as in the mean over a
        text that was encoded whole. It takes no exits, and no joined pairs.

        Texts of similar length share a batch, of `batch_size` texts and 1,024 padded tokens at
        most (one longer text is a batch of its own). The same list gives the same result; an int8
        variant scales its activations over a batch, so that a score may differ in the third
        decimal between batches.

        Raises TypeError for items of another form (naming the index), ValueError for a
        `batch_size` below 1, a `long` that is none, or splitting joined pairs, and RuntimeError
        after `close`.
        """
        asked = self._ask(items, batch_size, long, exits)
        found: list[Prediction | None] = [None] * len(asked.keys)
        for judged, truncated in self._judge(asked):
            best = judged.probabilities.argmax(axis=1)
            for row, item in enumerate(judged.items.tolist()):
                found[item] = Prediction(
                    label=self.labels[best[row]],
                    score=float(judged.probabilities[row, best[row]]),
                    layers_used=int(judged.layers_used[row]),
                    truncated=bool(truncated[row]),
                )
        return [prediction for i in asked.places if (prediction := found[i]) is not None]

    def probabilities(
        self,
        items: Sequence[Item],
        batch_size: int = 32,
        long: Long | None = None,
        exits: bool = True,
    ) -> Row:
        """The calibrated probability of each label: float32 [n, labels]; otherwise as `predict`."""
        return self.run(items, batch_size, long, exits).probabilities

    def run(
        self,
        items: Sequence[Item],
        batch_size: int = 32,
        long: Long | None = None,
        exits: bool = True,
    ) -> Answers:
        """Everything `predict` knows as arrays: (probabilities, layers_used, truncated)."""
        asked = self._ask(items, batch_size, long, exits)
        count = len(asked.keys)
        probabilities = np.empty((count, len(self.labels)), dtype=np.float32)
        layers_used = np.empty(count, dtype=np.int64)
        cut = np.empty(count, dtype=bool)
        for judged, truncated in self._judge(asked):
            probabilities[judged.items] = judged.probabilities
            layers_used[judged.items] = judged.layers_used
            cut[judged.items] = truncated
        places = np.array(asked.places, dtype=np.int64)
        return Answers(probabilities[places], layers_used[places], cut[places])

    def encode(self, texts: Sequence[str], batch_size: int = 32) -> Row:
        """The last part's embeddings: float32 [n, dim], in the order of `texts`, each of length 1.

        For search among what is classified. Raises BundleError where texts are joined into pairs:
        then one alone has no embedding.
        """
        check_texts(texts)
        check_batch_size(batch_size)
        parts = self._open()
        if self._labelling.joined:
            raise BundleError(
                f"bundle {self._manifest.name!r} reads two texts together; one alone has no "
                "embedding. Use predict, with pairs"
            )
        distinct, places = _distinct(texts)
        found = np.empty((len(distinct), self.dim), dtype=np.float32)
        for start in range(0, len(distinct), _WINDOW):
            ids = [self._texts.cut(text).ids for text in distinct[start : start + _WINDOW]]
            found[start : start + _WINDOW] = embed(parts, self._texts, ids, batch_size)
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        found /= np.maximum(lengths, np.finfo(np.float32).tiny)
        return found[np.array(places, dtype=np.int64)]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, the special ones included, before anything is cut off."""
        check_texts(texts, "count_tokens")
        return [self._texts.count(text) for text in texts]

    def close(self) -> None:
        """Free the model; `predict` raises RuntimeError from now on. Calling it twice is fine."""
        parts, self._parts = self._parts, None
        for part in parts or ():
            part.close()
        give_back_freed()

    def __repr__(self) -> str:
        return (
            f"Classifier({self._manifest.name!r}, variant={self._variant!r}, "
            f"labels={len(self.labels)})"
        )

    def _open(self) -> tuple[Part, ...]:
        parts = self._parts
        if parts is None:
            raise RuntimeError("the classifier is closed; load the bundle again")
        return parts

    def _ask(
        self, items: Sequence[Item], batch_size: int, long: Long | None, exits: bool
    ) -> _Asked:
        """The checked items of a call, each distinct one once."""
        keys: Sequence[Key]
        if self._labelling.texts == 1:
            check_texts(items, "predict")
            # checked just now
            keys = [text for text in items if isinstance(text, str)]
        else:
            keys = _pairs(items)
        check_batch_size(batch_size)
        if long is None:
            long = self._labelling.long
        if long not in ("truncate", "split"):
            raise ValueError(f"long should be 'truncate' or 'split', found {long!r}")
        if long == "split" and self._labelling.joined:
            raise ValueError(
                "long='split' is not for a bundle that joins two texts into one sequence: a piece "
                "of one would need each piece of the other; use long='truncate'"
            )
        parts = self._open()
        distinct, places = _distinct(keys)
        early = exits and long == "truncate" and len(parts) > 1
        if self._labelling.texts == 2 and not self._labelling.joined:
            texts: list[Key]
            texts, ends = _distinct([text for pair in distinct for text in pair])
            sides = np.array(ends, dtype=np.int64).reshape(-1, 2)
        else:
            texts = distinct
            sides = np.arange(len(distinct), dtype=np.int64)[:, None]
        return _Asked(parts, distinct, places, texts, sides, batch_size, long == "split", early)

    def _judge(self, asked: _Asked) -> Iterator[tuple[Judged, NDArray[np.bool_]]]:
        """What is found of the distinct items, some at a time, and which of them were truncated."""
        if asked.early:
            cut_off = np.zeros(len(asked.texts), dtype=bool)
            read = self._reader(asked, cut_off)
            for judged in leave_early(
                asked.parts, self._texts, read, asked.sides, asked.batch_size
            ):
                yield judged, _any(cut_off[asked.sides[judged.items]])
            return
        last = asked.parts[-1]
        # where items share texts, all of these first
        shared = self._embed(asked, 0, len(asked.texts)) if asked.sides.shape[1] > 1 else None
        for start in range(0, len(asked.keys), _WINDOW):
            items = np.arange(start, min(start + _WINDOW, len(asked.keys)), dtype=np.int64)
            sides = asked.sides[items]
            if shared is None:
                embeddings, cut_off = self._embed(asked, start, start + len(items))
                sides = sides - start
            else:
                embeddings, cut_off = shared
            found = judge(last, [embeddings[side] for side in sides.T]).astype(np.float32)
            layers = np.full(len(items), last.layers, dtype=np.int64)
            yield Judged(items, found, layers), _any(cut_off[sides])

    def _reader(self, asked: _Asked, cut_off: NDArray[np.bool_]) -> Callable[[int], Cut]:
        """What reads a text by its number, each once, and marks those that were cut."""
        kept: dict[int, Cut] = {}
        # a text that is in one item only is needed in one place only
        again = asked.sides.shape[1] > 1

        def read(number: int) -> Cut:
            found = kept.get(number)
            if found is None:
                found = self._cut(asked.texts[number])
                cut_off[number] = found.truncated
                if again:
                    kept[number] = found
            return found

        return read

    def _cut(self, text: Key) -> Cut:
        return self._texts.cut(text) if isinstance(text, str) else self._texts.cut_pair(*text)

    def _embed(self, asked: _Asked, start: int, end: int) -> tuple[Row, NDArray[np.bool_]]:
        """The last part's embeddings of some of the texts [n, dim], and which were truncated."""
        found = np.empty((end - start, self.dim), dtype=np.float32)
        cut_off = np.empty(end - start, dtype=bool)
        for first in range(0, end - start, _WINDOW):
            window = asked.texts[start + first : min(start + first + _WINDOW, end)]
            here = slice(first, first + len(window))
            pieces = [self._pieces(text, asked.split) for text in window]
            cut_off[here] = [any(piece.truncated for piece in text) for text in pieces]
            found[here] = self._aggregate(asked, pieces)
        return found, cut_off

    def _pieces(self, text: Key, split: bool) -> list[Cut]:
        if split and isinstance(text, str):
            return pieces_of(text, self._texts)
        return [self._cut(text)]

    def _aggregate(self, asked: _Asked, pieces: Sequence[Sequence[Cut]]) -> Row:
        """One embedding for each text [n, dim], of those of its pieces; see `predict`."""
        ids = [piece.ids for text in pieces for piece in text]
        rows = embed(asked.parts, self._texts, ids, asked.batch_size)
        if len(ids) == len(pieces):
            return rows
        weights = np.array([max(1, len(row)) for row in ids], dtype=np.float64)
        if self._labelling.texts == 1:
            surest = judge(asked.parts[-1], [rows]).max(axis=1).clip(max=_SUREST)
            weights *= surest / (1 - surest)
        ends = np.cumsum([len(text) for text in pieces])
        starts = ends - [len(text) for text in pieces]
        sums = np.add.reduceat(rows * weights[:, None], starts)
        means: Row = (sums / np.add.reduceat(weights, starts)[:, None]).astype(np.float32)
        return means


@dataclass(frozen=True)
class _Asked:
    """A call: its distinct items, `places` of the items among them, and their distinct texts.

    `sides` [keys, 1 or 2] names the texts of each; a joined pair is one text here.
    """

    parts: tuple[Part, ...]
    keys: Sequence[Key]
    places: Sequence[int]
    texts: Sequence[Key]
    sides: NDArray[np.int64]
    batch_size: int
    split: bool
    early: bool


def _distinct(keys: Sequence[T]) -> tuple[list[T], list[int]]:
    """Each different one of `keys` once, and where each is among them."""
    numbers: dict[T, int] = {}
    places = [numbers.setdefault(key, len(numbers)) for key in keys]
    return list(numbers), places


def _any(sides: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[n, sides] to [n]: whether it is so of one of an item's texts."""
    return np.asarray(sides.any(axis=1), dtype=np.bool_)


def _pairs(items: object) -> list[tuple[str, str]]:
    """TypeError, naming the index, for anything but a sequence of pairs of texts."""
    if isinstance(items, str | bytes) or not isinstance(items, Sequence):
        raise TypeError(f"pass a list of pairs of texts, not {type(items).__name__}")
    found = []
    for index, item in enumerate(items):
        if not isinstance(item, tuple | list) or len(item) != 2:
            what = f"{len(item)} texts" if isinstance(item, tuple | list) else type(item).__name__
            raise TypeError(f"items[{index}] should be a pair of two texts, found {what}")
        for place, text in enumerate(item):
            if not isinstance(text, str):
                raise TypeError(
                    f"items[{index}][{place}] should be str, found {type(text).__name__}"
                )
        found.append((item[0], item[1]))
    return found
