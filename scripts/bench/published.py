"""The tokenizer of the published 3 MB models: a byte-level BPE of the texts as they are, white space and all."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["published_tokenizer"]

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def published_tokenizer(texts: Sequence[str], size: int) -> str:
    """tokenizer.json of `size` tokens, which frames a text with [CLS] and [SEP]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made: str = tokenizer.to_str()
    return made
