"""Texts to padded batches of token ids: the tokenizer of a bundle, bounded, and what shares a batch.

What every kind of model here needs before a graph runs. Which graphs run, and what their outputs
mean, is `encoder.py`'s and `classifier.py`'s; where a long text is divided is `split.py`'s.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codemill.errors import BundleError
from codemill.runtime.bundle import TOKENIZER, plain

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

__all__ = [
    "Cut",
    "Texts",
    "batches",
    "check_batch_size",
    "check_texts",
    "check_tokenizer",
    "encode_whole",
    "open_tokenizer",
]

# padded tokens of one run: beyond it a token costs no less, and memory and padding only grow
_TOKENS_PER_RUN = 1024
# padding of one text that takes as long as starting another run, about
_PADDED = 32
# of a text by normalizing it: real tokenizers stay below a hundred
_LARGEST_GROWTH = 4096


@dataclass(frozen=True, slots=True)
class Cut:
    """A text as a model reads it: its ids, and whether something had to be cut off."""

    ids: Sequence[int]
    truncated: bool


class Texts:
    """The tokenizer of a bundle, cutting at `max_tokens`. May be used from several threads at once."""

    def __init__(
        self, tokenizer: Tokenizer, tokenizer_json: bytes, name: str, max_tokens: int
    ) -> None:
        self.max_tokens = max_tokens
        self._name = name
        self._tokenizer = tokenizer
        self._json = tokenizer_json
        self._pad_id = _pad_id(tokenizer)
        self._whole: Tokenizer | None = None
        self._lock = Lock()
        # of the longest first, where two texts share a sequence
        tokenizer.enable_truncation(max_tokens)
        tokenizer.no_padding()

    def cut(self, text: str) -> Cut:
        """Ids of `text`, `max_tokens` at most."""
        return self._cut(self._encode(self._tokenizer, text))

    def cut_pair(self, first: str, second: str) -> Cut:
        """Ids of two texts in one sequence, as the tokenizer joins them; the longer is cut first."""
        (first, a_cut), (second, b_cut) = self._shortened(first), self._shortened(second)
        found = self._cut(self._encode(self._tokenizer, first, second))
        return Cut(found.ids, found.truncated or a_cut or b_cut)

    def count(self, text: str) -> int:
        """Tokens of `text`, the special ones included, before anything is cut off."""
        return len(self._encode(self._whole_tokenizer(), text).ids)

    def token_starts(self, text: str) -> tuple[list[int], int]:
        """Where each token of the whole text starts in it, and how many special ones join them."""
        found = self._encode(self._whole_tokenizer(), text)
        starts = [
            start
            for (start, _), special in zip(found.offsets, found.special_tokens_mask, strict=True)
            if not special
        ]
        # in order and inside, whatever a tokenizer says
        return sorted(min(start, len(text)) for start in starts), len(found.ids) - len(starts)

    def padded(self, ids: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """`input_ids` and `attention_mask` of a batch, as long as its longest: [batch, tokens]."""
        # a text without a single token still needs something to pool over
        tokens = max(1, max(len(row) for row in ids))
        input_ids = np.full((len(ids), tokens), self._pad_id, dtype=np.int64)
        attention_mask = np.zeros((len(ids), tokens), dtype=np.int64)
        for i, row in enumerate(ids):
            input_ids[i, : len(row)] = row
            attention_mask[i, : max(1, len(row))] = 1
        return input_ids, attention_mask

    def _cut(self, found: Encoding) -> Cut:
        ids: list[int] = found.ids
        if len(ids) > self.max_tokens:
            raise BundleError(
                f"{TOKENIZER} of {self._name!r} gave {len(ids)} tokens, "
                f"the manifest says {self.max_tokens} at most"
            )
        # asking for what is left over copies it
        return Cut(ids, len(ids) == self.max_tokens and len(found.overflowing) > 0)

    def _shortened(self, text: str) -> tuple[str, bool]:
        """`text` without what is beyond `max_tokens` of it alone.

        What is cut off one of two texts is combined with each piece that is cut off the other:
        for two long ones that has no end.
        """
        found = self._encode(self._tokenizer, text)
        if not found.overflowing:
            return text, False
        end = max((end for _, end in found.offsets), default=0)
        return text[:end], True

    def _whole_tokenizer(self) -> Tokenizer:
        # a second one, made when first asked for: switching truncation off and on in the other
        # would show in another thread's `cut`
        with self._lock:
            if self._whole is None:
                self._whole = open_tokenizer(self._json, self._name)
                self._whole.no_truncation()
                self._whole.no_padding()
            return self._whole

    def _encode(self, tokenizer: Tokenizer, *texts: str) -> Encoding:
        # one by one: `encode_batch` starts a thread for every core of the machine, whatever
        # `threads` says, and they make a later fork of the process print warnings
        with _translated(f"{TOKENIZER} of {self._name!r} cannot be used"):
            return tokenizer.encode(*map(_without_surrogates, texts))


def batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices into `lengths`, like lengths together: a run of its own costs less than much padding.

    The longest first: the memory a call needs is needed at once, not at its end.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    first = 0
    while first < len(order):
        longest = lengths[order[first]]
        most = first + max(1, min(batch_size, _TOKENS_PER_RUN // max(1, longest)))
        end = first + 1
        while end < min(most, len(order)) and longest - lengths[order[end]] <= _PADDED:
            end += 1
        yield order[first:end]
        first = end


def check_texts(texts: object, call: str = "encode") -> None:
    """Raise TypeError for anything but a sequence of str, naming the index."""
    if isinstance(texts, str | bytes):
        raise TypeError(f"pass a list of texts, not one {type(texts).__name__}: {call}([text])")
    if not isinstance(texts, Sequence):
        raise TypeError(f"pass a list of texts, not {type(texts).__name__}")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{index}] should be str, found {type(text).__name__}")


def check_batch_size(batch_size: object) -> None:
    """Raise ValueError for anything but a whole number from 1."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size should be a whole number from 1, found {batch_size!r}")


def encode_whole(tokenizer: Tokenizer, text: str, name: str) -> list[int]:
    """Ids of all of `text`, without those that a tokenizer adds; BundleError where it fails."""
    with _translated(f"{TOKENIZER} of {name!r} cannot be used"):
        ids: list[int] = tokenizer.encode(_without_surrogates(text), add_special_tokens=False).ids
        return ids


def open_tokenizer(content: bytes, where: str) -> Tokenizer:
    """The tokenizer in the file tokenizer.json; BundleError where it is none."""
    from tokenizers import Tokenizer

    with _translated(f"{TOKENIZER} of {where!r} cannot be read"):
        return Tokenizer.from_buffer(content)


def check_tokenizer(
    tokenizer: Tokenizer, max_tokens: int, where: str, joined: bool = False
) -> None:
    """Check that a text takes bounded memory, and can be cut to `max_tokens`; BundleError.

    With `joined`, two texts that share a sequence too.
    """
    with _translated(f"{TOKENIZER} of {where!r} cannot be read"):
        added = tokenizer.num_special_tokens_to_add(joined)
        normalizer = _state(tokenizer.normalizer)
        pre_tokenizer = _state(tokenizer.pre_tokenizer)
        post_processor = _state(tokenizer.post_processor)
    if added >= max_tokens:
        raise BundleError(
            f"{TOKENIZER} of {where!r} adds {added} tokens to every text, which leaves none of the "
            f"{max_tokens} the manifest allows"
        )
    # what is cut off is combined once for each place the text stands in: without end for many
    if any(_repeats(item, joined) for item in _flat(post_processor)):
        raise BundleError(f"{TOKENIZER} of {where!r} repeats the text; it should stand there once")
    # each step works on what the one before it made
    growth = math.prod(_growth(item) for item in _flat(normalizer) + _flat(pre_tokenizer))
    if growth > _LARGEST_GROWTH:
        raise BundleError(
            f"{TOKENIZER} of {where!r} may replace a text by one more than {_LARGEST_GROWTH} times "
            "as long"
        )


@contextmanager
def _translated(message: str) -> Iterator[None]:
    """Raise BundleError with `message` for what the tokenizers library raises."""
    try:
        yield
    except BaseException as error:
        # plain Exception, or where its Rust code panics a class below BaseException only
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BundleError(f"{message}: {plain(error)}") from error


def _without_surrogates(text: str) -> str:
    # half a surrogate pair, as in file names and files read with surrogateescape
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def _state(component: Any) -> Any:
    """A part of a tokenizer as JSON; the whole holds the vocabulary, which takes long to parse."""
    return None if component is None else json.loads(component.__getstate__())


def _flat(component: Any) -> list[dict[str, Any]]:
    """A part of a tokenizer, or those it is a sequence of."""
    if not isinstance(component, dict):
        return []
    inner = [component.get(key) for key in ("normalizers", "pretokenizers", "processors")]
    return [component, *(flat for items in inner for item in items or () for flat in _flat(item))]


def _repeats(post_processor: dict[str, Any], joined: bool) -> bool:
    """Whether a template has a text in more than one place."""
    if sum("Sequence" in piece for piece in post_processor.get("single") or ()) > 1:
        return True
    places = [
        piece["Sequence"] for piece in post_processor.get("pair") or () if "Sequence" in piece
    ]
    return joined and len({place["id"] for place in places}) < len(places)


def _growth(component: dict[str, Any]) -> int:
    """By how much a step may lengthen a text."""
    if component.get("type") == "Replace":
        # between any two characters, where the pattern matches nothing
        return 1 + len(component["content"])
    return {"ByteLevel": 2, "Precompiled": 16}.get(component.get("type", ""), 1)


def _pad_id(tokenizer: Tokenizer) -> int:
    """What fills a batch: masked, but some models count positions by it."""
    padding: dict[str, Any] | None = tokenizer.padding
    if padding is not None:
        return int(padding["pad_id"])
    for token in ("[PAD]", "<pad>"):
        found = tokenizer.token_to_id(token)
        if found is not None:
            return int(found)
    return 0
