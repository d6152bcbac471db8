"""A student's tokens at any vocabulary size: the teacher's most used ones, or a byte-level BPE of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import ModuleType
from typing import Protocol

import numpy as np

from codemill.compress.models import bpe, unigram, wordpiece
from codemill.compress.models.wordpiece import PrunedVocabulary
from codemill.errors import ModelError

__all__ = ["Pruned", "Trained", "Vocabulary"]

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_BYTES = 256


class Vocabulary(Protocol):
    """Tokenizers of one kind, by size."""

    @property
    def most(self) -> int:
        """The largest size there is."""

    def at(self, size: int) -> PrunedVocabulary:
        """The tokenizer with `size` tokens; for one that is cut, the ids and counts of those kept."""


class Pruned:
    """The first `size` of the teacher's tokens, by their `counts` [highest id + 1] (`count_tokens`)."""

    def __init__(self, tokenizer_json: str, counts: np.ndarray) -> None:
        self._json, self._counts = tokenizer_json, counts
        kind = json.loads(tokenizer_json)["model"].get("type")
        # a WordPiece, or the error that says it is none
        self._pruning: ModuleType = {"BPE": bpe, "Unigram": unigram}.get(kind, wordpiece)
        self._order: list[int] = self._pruning.keep_order(tokenizer_json, self._counts)

    @property
    def most(self) -> int:
        """As many as the teacher has."""
        return len(self._order)

    def at(self, size: int) -> PrunedVocabulary:
        """Raises ModelError where the vocabulary does not even hold the single characters or bytes."""
        found: PrunedVocabulary = self._pruning.prune_tokenizer(
            self._json, self._counts, self._order, size
        )
        return found


class Trained:
    """A byte-level BPE trained on `texts`; ids 0 to 3 are [PAD], [UNK], [CLS], [SEP]."""

    most = 50_000

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._made: dict[int, PrunedVocabulary] = {}

    def at(self, size: int) -> PrunedVocabulary:
        """Raises ModelError where the texts do not give so many tokens, or the bytes do not fit."""
        if size not in self._made:
            self._made[size] = self._train(size)
        return self._made[size]

    def _train(self, size: int) -> PrunedVocabulary:
        from tokenizers import (
            Tokenizer,
            decoders,
            models,
            normalizers,
            pre_tokenizers,
            processors,
            trainers,
        )

        fewest = _BYTES + len(_SPECIAL)
        if size < fewest:
            raise ModelError(
                f"a byte-level vocabulary of {size} does not hold the {_BYTES} bytes; give {fewest} or more"
            )
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(_SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(self._texts, trainer)
        if tokenizer.get_vocab_size() != size:
            raise ModelError(
                f"the training texts give {tokenizer.get_vocab_size():,} byte-pair tokens, not {size:,}; "
                "let search.vocab_sizes ask for fewer"
            )
        cls, sep = _SPECIAL.index("[CLS]"), _SPECIAL.index("[SEP]")
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
        )
        return PrunedVocabulary(tokenizer.to_str(), [], [])
