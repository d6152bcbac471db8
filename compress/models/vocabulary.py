"""A student's tokens at any vocabulary size: the teacher's most used ones, or a byte-level BPE of its own.

A BPE reads each run of white space as one space, as WordPiece does: how code is laid out costs no tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

import numpy as np

from codemill.compress.models import bpe, unigram, wordpiece
from codemill.compress.models.wordpiece import PrunedVocabulary, count_tokens
from codemill.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Pruned", "Trained", "Vocabulary"]

_SPECIAL = {
    "[PAD]": ("[PAD]", "<pad>"),
    "[UNK]": ("[UNK]", "<unk>"),
    "[CLS]": ("[CLS]", "<s>"),
    "[SEP]": ("[SEP]", "</s>"),
}
"""Special token -> what teachers call it."""
_BYTES = 256
_COUNTED = 2000
"""Texts that tell how often each token is used: what a factorised table is weighted by."""
_HALF = "\ufffd"
"""What a part of a character's bytes is decoded to."""


class Vocabulary(Protocol):
    """Tokenizers of one kind, by size."""

    @property
    def most(self) -> int:
        """The largest size there is."""

    def at(self, size: int) -> PrunedVocabulary:
        """The tokenizer with `size` tokens, and of which of the teacher's a student's table is made."""


class Pruned:
    """The first `size` of the teacher's tokens, by their `counts` [highest id + 1] (`count_tokens`).

    marks: of a decoder, whose tokens are a BPE without padding, the tokens that are kept in any case.
    """

    def __init__(
        self, tokenizer_json: str, counts: np.ndarray, marks: Sequence[str] | None = None
    ) -> None:
        self._json, self._counts = tokenizer_json, counts
        kind = json.loads(tokenizer_json)["model"].get("type")
        # a WordPiece, or the error that says it is none
        if marks is not None and kind != "BPE":
            raise ModelError(f"a decoder's tokenizer is expected to be a BPE, found a {kind}")
        self._pruning: ModuleType = {"BPE": bpe, "Unigram": unigram}.get(kind, wordpiece)
        self._marks = () if marks is None else (list(marks),)
        self._order: list[int] = self._pruning.keep_order(tokenizer_json, counts, *self._marks)

    @property
    def most(self) -> int:
        """As many as the teacher has."""
        return len(self._order)

    def at(self, size: int) -> PrunedVocabulary:
        """Raises ModelError where the vocabulary does not even hold the single characters or bytes."""
        found: PrunedVocabulary = self._pruning.prune_tokenizer(
            self._json, self._counts, self._order, size, *self._marks
        )
        return found


class Trained:
    """A byte-level BPE trained on `texts`; ids 0 to 3 are [PAD], [UNK], [CLS], [SEP].

    teacher_json: the tokenizer of the model that a student is cut out of, for `parts` and `counts`; None for a
    fresh one, which needs neither.
    """

    most = 50_000

    def __init__(self, texts: Sequence[str], teacher_json: str | None = None) -> None:
        self._texts, self._teacher_json = texts, teacher_json
        self._made: dict[int, PrunedVocabulary] = {}
        self._tokenizers: dict[int, Tokenizer] = {}

    def at(self, size: int) -> PrunedVocabulary:
        """Raises ModelError where the texts do not give so many tokens, or the bytes do not fit."""
        if size not in self._made:
            self._made[size] = self._train(size)
        return self._made[size]

    def there_are(self, size: int) -> int:
        """How many tokens the texts give, where `size` are asked for: fewer, where they repeat themselves."""
        return int(self._tokenizer(size).get_vocab_size())

    def _train(self, size: int) -> PrunedVocabulary:
        tokenizer = self._tokenizer(size)
        if tokenizer.get_vocab_size() != size:
            raise ModelError(
                f"the training texts give {tokenizer.get_vocab_size():,} byte-pair tokens, not {size:,}; "
                "let search.vocab_sizes ask for fewer"
            )
        made = tokenizer.to_str()
        if self._teacher_json is None:
            return PrunedVocabulary(made, [], [])
        counts = count_tokens(made, self._texts[:_COUNTED])
        return PrunedVocabulary(made, [], counts.tolist(), _parts(made, self._teacher_json))

    def _tokenizer(self, size: int) -> Tokenizer:
        if size not in self._tokenizers:
            self._tokenizers[size] = self._trained(size)
        return self._tokenizers[size]

    def _trained(self, size: int) -> Tokenizer:
        from tokenizers import (
            Regex,
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
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " ")]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(_SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(self._texts, trainer)
        cls, sep = (list(_SPECIAL).index(name) for name in ("[CLS]", "[SEP]"))
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
        )
        return tokenizer


def _parts(tokenizer_json: str, teacher_json: str) -> list[list[int]]:
    """The teacher's ids for what each token stands for; none for half a character or white space it skips."""
    from tokenizers import Tokenizer

    tokenizer, teacher = Tokenizer.from_str(tokenizer_json), Tokenizer.from_str(teacher_json)
    teacher.no_truncation()
    teacher.no_padding()
    roles = [
        [found for name in names if (found := teacher.token_to_id(name)) is not None][:1]
        for names in _SPECIAL.values()
    ]
    texts = [
        tokenizer.decode([number], skip_special_tokens=False)
        for number in range(len(roles), tokenizer.get_vocab_size())
    ]
    whole = ["" if _HALF in text else text for text in texts]
    found = teacher.encode_batch(whole, add_special_tokens=False)
    return roles + [list(encoding.ids) for encoding in found]
