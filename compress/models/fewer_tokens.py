"""A decoder with fewer tokens: those that some texts use most, its marks, and all that they are made of.

The table of words and the head are read at every token, and most of a general vocabulary is never said in code.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codemill.compress.models.causal import CausalModel
from codemill.compress.models.vocabulary import Pruned
from codemill.compress.models.wordpiece import count_tokens
from codemill.export.decoder.bundle import Prompting
from codemill.export.decoder.shape import DecoderWeights, Layer, Linear, Norm

__all__ = ["DecoderTokens", "KeptTokens", "read_tokens", "with_fewer_tokens", "write_tokens"]

Floats = NDArray[np.float32]
_TOKENIZER, _KEPT = "tokenizer.json", "tokens.json"


@dataclass(frozen=True)
class KeptTokens:
    """A tokenizer of some of a decoder's tokens: ids is the decoder's own id of each; prompting is in the new ids."""

    tokenizer_json: str
    ids: tuple[int, ...]
    prompting: Prompting


class DecoderTokens:
    """A decoder's tokens in the order in which they are kept, by how much longer `texts` would be without each.

    Raises ModelError for a tokenizer that is no byte-level BPE.
    """

    def __init__(self, tokenizer_json: str, prompting: Prompting, texts: Sequence[str]) -> None:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(tokenizer_json)
        ids = (*prompting.begin, *prompting.end, *(prompting.fill or ()))
        # a padded table has ids without a token
        named = (tokenizer.id_to_token(number) for number in dict.fromkeys(ids))
        marks = [name for name in named if name is not None]
        self._prompting = prompting
        self._pruned = Pruned(tokenizer_json, count_tokens(tokenizer_json, texts), marks)

    @property
    def most(self) -> int:
        """As many as the decoder has."""
        return self._pruned.most

    def at(self, size: int) -> KeptTokens:
        """Raises ModelError where so many do not hold the bytes and the marks."""
        found = self._pruned.at(size)
        places = {number: place for place, number in enumerate(found.kept)}
        old = self._prompting
        fill = None
        if old.fill is not None:
            prefix, suffix, middle = (places[number] for number in old.fill)
            fill = prefix, suffix, middle
        prompting = Prompting(
            tuple(places[number] for number in old.begin),
            tuple(places[number] for number in old.end if number in places),
            fill,
        )
        return KeptTokens(found.tokenizer_json, tuple(found.kept), prompting)


def write_tokens(folder: Path, kept: KeptTokens) -> None:
    """Write tokenizer.json and tokens.json."""
    (folder / _TOKENIZER).write_text(kept.tokenizer_json, encoding="utf-8")
    marks = kept.prompting
    facts = {"kept": kept.ids, "begin": marks.begin, "end": marks.end, "fill": marks.fill}
    (folder / _KEPT).write_text(json.dumps(facts))


def read_tokens(folder: Path) -> KeptTokens:
    """What `write_tokens` wrote."""
    facts = json.loads((folder / _KEPT).read_text())
    fill = None
    if facts["fill"] is not None:
        prefix, suffix, middle = facts["fill"]
        fill = prefix, suffix, middle
    return KeptTokens(
        (folder / _TOKENIZER).read_text(encoding="utf-8"),
        tuple(facts["kept"]),
        Prompting(tuple(facts["begin"]), tuple(facts["end"]), fill),
    )


def with_fewer_tokens(model: CausalModel, kept: KeptTokens) -> CausalModel:
    """The same decoder with these tokens alone; it closes the files of `model`."""
    weights = _Fewer(model.weights, kept.ids)
    return replace(
        model, weights=weights, tokenizer_json=kept.tokenizer_json, prompting=kept.prompting
    )


class _Fewer:
    """`DecoderWeights` of some tokens."""

    def __init__(self, weights: DecoderWeights, ids: Sequence[int]) -> None:
        self._weights = weights
        self._ids = np.asarray(ids, dtype=np.int64)
        self.shape = replace(weights.shape, vocab_size=len(ids))
        self.rotary = weights.rotary

    def words(self) -> Floats:
        return self._weights.words()[self._ids]

    def widen(self) -> Floats:
        return self._weights.widen()

    def positions(self) -> Floats:
        return self._weights.positions()

    def layer(self, number: int) -> Layer:
        return self._weights.layer(number)

    def last_norm(self) -> Norm:
        return self._weights.last_norm()

    def head(self) -> Linear:
        head = self._weights.head()
        bias = None if head.bias is None else head.bias[self._ids]
        return Linear(head.weight[self._ids], bias)
