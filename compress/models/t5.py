"""Cutting an encoder out of a T5 (T5, CodeT5, CodeT5+): RMS norms, no biases, relative positions.

The bias of relative positions lies in the first block and serves all of them: it stays when the
block it lies in goes, and one set of heads is kept for all blocks, because its columns are the
heads'. Nothing is shared by every token before the first norm, so a factorised embedding is not
centred.

A student is a `T5Stack`, the encoder alone, so that no tensor has two names.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Block, T5Stack

from codemill.compress.architecture import Architecture
from codemill.compress.models.cutting import (
    FactorizedEmbedding,
    Origins,
    TeacherLimits,
    check_cut,
    check_fresh,
    fill_words,
    head_columns,
    head_strength,
    strongest,
)

__all__ = ["cut_student", "empty_student", "fresh_student", "student_config"]


def student_config(architecture: Architecture, base: T5Config) -> T5Config:
    """The configuration of a student; what the architecture does not say is as in `base`."""
    values = base.to_dict()
    values.update(
        vocab_size=architecture.vocab_size,
        d_model=architecture.hidden_size,
        d_kv=architecture.head_size,
        d_ff=architecture.intermediate_size,
        num_layers=architecture.layers,
        num_heads=architecture.heads,
        pad_token_id=0,
        eos_token_id=None,
        decoder_start_token_id=None,
        is_decoder=False,
        is_encoder_decoder=False,
        use_cache=False,
    )
    values.pop("num_decoder_layers", None)
    return T5Config(**values, attn_implementation="eager")


def empty_student(architecture: Architecture, config: T5Config) -> T5Stack:
    """A student of the right shape with weights still to be filled."""
    rank, width = architecture.embedding_rank, architecture.hidden_size
    embedding: nn.Module = nn.Embedding(architecture.vocab_size, width)
    if rank is not None:
        embedding = FactorizedEmbedding(architecture.vocab_size, rank, width)
    return T5Stack(config, embedding)


def _inner(block: T5Block) -> list[nn.Linear]:
    """The matrices into a block's feed-forward neurons: one, or two where they are gated."""
    dense = block.layer[1].DenseReluDense
    return [dense.wi_0, dense.wi_1] if hasattr(dense, "wi_0") else [dense.wi]


def _neuron_strength(block: T5Block) -> Tensor:
    """[intermediate]: product of the norms of what goes in, scaled by the norm before it, and what comes out."""
    strength: Tensor = block.layer[1].DenseReluDense.wo.weight.norm(dim=0)
    for matrix in _inner(block):
        strength = strength * (matrix.weight * block.layer[1].layer_norm.weight).norm(dim=1)
    return strength


def _kept_heads(teacher: T5Stack, architecture: Architecture) -> Tensor:
    """The heads that are strongest over all layers that are copied."""
    total = torch.zeros(teacher.config.num_heads)
    for source in architecture.copied_layers:
        part = teacher.block[source].layer[0]
        value = part.SelfAttention.v.weight * part.layer_norm.weight
        total += head_strength(value, part.SelfAttention.o.weight, architecture.head_size)
    return strongest(total, architecture.heads)


def _copy_block(old: T5Block, new: T5Block, columns: Tensor, neurons: Tensor) -> None:
    before, after = old.layer[0].SelfAttention, new.layer[0].SelfAttention
    for name in ("q", "k", "v"):
        getattr(after, name).weight.copy_(getattr(before, name).weight[columns])
    after.o.weight.copy_(before.o.weight[:, columns])
    for source, target in zip(_inner(old), _inner(new), strict=True):
        target.weight.copy_(source.weight[neurons])
    wide, narrow = old.layer[1].DenseReluDense, new.layer[1].DenseReluDense
    narrow.wo.weight.copy_(wide.wo.weight[:, neurons])
    for index in (0, 1):
        new.layer[index].layer_norm.load_state_dict(old.layer[index].layer_norm.state_dict())


@torch.no_grad()
def cut_student(
    teacher: T5Stack,
    architecture: Architecture,
    kept_tokens: Origins,
    token_counts: Sequence[int],
) -> T5Stack:
    """As `bert.cut_student`, of the encoder of a T5."""
    config = teacher.config
    limits = TeacherLimits(
        hidden_size=config.d_model,
        head_size=config.d_kv,
        heads=config.num_heads,
        intermediate_size=config.d_ff,
        vocab_size=teacher.embed_tokens.weight.shape[0],
        layers=config.num_layers,
        max_tokens=None,
    )
    check_cut(architecture, limits, kept_tokens)
    student = empty_student(architecture, student_config(architecture, config))
    table = teacher.embed_tokens.weight
    fill_words(student.embed_tokens, table, kept_tokens, token_counts, centred=False)
    heads = _kept_heads(teacher, architecture)
    columns = head_columns(heads, architecture.head_size)
    bias = teacher.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    student.block[0].layer[0].SelfAttention.relative_attention_bias.weight.copy_(bias[:, heads])
    for target, source in enumerate(architecture.copied_layers):
        block = teacher.block[source]
        neurons = strongest(_neuron_strength(block), architecture.intermediate_size)
        _copy_block(block, student.block[target], columns, neurons)
    student.final_layer_norm.load_state_dict(teacher.final_layer_norm.state_dict())
    return student.eval()


def fresh_student(architecture: Architecture, base: T5Config, seed: int) -> T5Stack:
    """As `bert.fresh_student`, of a T5's encoder."""
    check_fresh(architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return empty_student(architecture, student_config(architecture, base)).eval()
