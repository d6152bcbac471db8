"""Small random checkpoints of each family's true class, in folders as users have them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers import models as token_models
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ModernBertConfig,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from codemill.compress.models import modernbert

HIDDEN, HEADS, INNER, LAYERS, LONGEST = 32, 4, 48, 4, 60
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
LABELS = {0: "safe", 1: "vulnerable"}
SHAPE = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
}


def train_bpe(texts: list[str], vocab_size: int = 600) -> Tokenizer:
    """A byte-level BPE as RoBERTa's: <s> is 0, <pad> is 1."""
    tokenizer = Tokenizer(token_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=ROBERTA_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def noisy(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight drawn, biases and norms too: what is forgotten in a cut must show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            norm = "norm" in name.lower() and name.endswith("weight")
            value.copy_(1 + 0.1 * noise if norm else 0.2 * noise)
    return model.eval()


def roberta_config(rows: int, **more: Any) -> RobertaConfig:
    return RobertaConfig(
        vocab_size=rows,
        max_position_embeddings=LONGEST + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        **SHAPE,
        **more,
    )


def modernbert_config(rows: int, **more: Any) -> ModernBertConfig:
    return ModernBertConfig(
        vocab_size=rows,
        max_position_embeddings=LONGEST,
        # so short that a window shows, and one layer of three sees everything
        local_attention=8,
        global_attn_every_n_layers=3,
        pad_token_id=1,
        bos_token_id=0,
        cls_token_id=0,
        eos_token_id=2,
        sep_token_id=2,
        reference_compile=False,
        attn_implementation="sdpa",
        **SHAPE,
        **more,
    )


def t5_config(rows: int, **more: Any) -> T5Config:
    # heads x head size is not the width
    return T5Config(
        vocab_size=rows,
        d_model=HIDDEN,
        d_kv=6,
        d_ff=INNER,
        num_layers=LAYERS,
        num_heads=HEADS,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        pad_token_id=1,
        **more,
    )


FAMILIES: dict[str, Callable[[int], nn.Module]] = {
    "roberta": lambda rows: RobertaModel(roberta_config(rows)),
    "modernbert": lambda rows: modernbert.ModernBertModel(modernbert_config(rows)),
    "t5": lambda rows: T5EncoderModel(t5_config(rows)),
    "gated-t5": lambda rows: T5EncoderModel(t5_config(rows, feed_forward_proj="gated-gelu")),
    "whole-t5": lambda rows: T5ForConditionalGeneration(t5_config(rows)),
}
HEADED: dict[str, Callable[[int], nn.Module]] = {
    "bert": lambda rows: BertForSequenceClassification(
        BertConfig(vocab_size=rows, max_position_embeddings=LONGEST, id2label=LABELS, **SHAPE)
    ),
    "roberta": lambda rows: RobertaForSequenceClassification(roberta_config(rows, id2label=LABELS)),
    "modernbert": lambda rows: modernbert.ModernBertForSequenceClassification(
        modernbert_config(rows, id2label=LABELS, classifier_pooling="mean")
    ),
    "modernbert-cls": lambda rows: modernbert.ModernBertForSequenceClassification(
        modernbert_config(rows, id2label=LABELS, classifier_pooling="cls")
    ),
}


def save(model: Any, tokenizer: Tokenizer, folder: Path, old_files: bool) -> Path:
    """old_files: vocab.json and merges.txt, as CodeBERT is published, in place of tokenizer.json."""
    model.save_pretrained(folder)
    text = tokenizer.to_str()
    if old_files:
        value = json.loads(text)["model"]
        (folder / "vocab.json").write_text(json.dumps(value["vocab"]))
        pairs = [" ".join(pair) for pair in value["merges"]]
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n")
    else:
        (folder / "tokenizer.json").write_text(text)
    return folder


def batch(rows: int) -> tuple[Tensor, Tensor]:
    """ids, mask: three texts of unlike length, padded with 0."""
    ids = torch.randint(5, rows, (3, 41), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 19:] = mask[2, 4:] = 0
    return ids * mask, mask
