"""Cutting a ModernBERT student out of a ModernBERT teacher (2412.13663).

A student's layer keeps what its source layer is: the first layer has no norm before its attention,
every few layers attend to the whole text and the others to a window, each kind with rotary
frequencies of its own. So a layer is built with its source's number, not its own. There is nothing
that every token shares before the first norm, so a factorised embedding is not centred.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import ModernBertConfig

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

with warnings.catch_warnings():
    # its decorators load torch's compiler, which warns of itself; nothing is compiled here
    warnings.simplefilter("ignore", DeprecationWarning)
    from transformers import ModernBertForSequenceClassification, ModernBertModel
    from transformers.models.modernbert.modeling_modernbert import ModernBertEncoderLayer

__all__ = [
    "ModernBertForSequenceClassification",
    "ModernBertModel",
    "cut_student",
    "empty_student",
    "fresh_student",
    "student_config",
]


def student_config(architecture: Architecture, base: ModernBertConfig) -> ModernBertConfig:
    """The configuration of a student; what the architecture does not say is as in `base`."""
    values = base.to_dict()
    values.update(
        vocab_size=architecture.vocab_size,
        hidden_size=architecture.hidden_size,
        num_hidden_layers=architecture.layers,
        # heads are dropped from a full-width layer, see empty_student
        num_attention_heads=architecture.hidden_size // architecture.head_size,
        intermediate_size=architecture.intermediate_size,
        max_position_embeddings=architecture.max_tokens,
        pad_token_id=0,
        reference_compile=False,
    )
    # the tokenizer's, whose numbers change with the vocabulary
    for key in ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"):
        values[key] = None
    values.pop("_attn_implementation", None)
    return ModernBertConfig(**values, attn_implementation="sdpa")


def empty_student(architecture: Architecture, config: ModernBertConfig) -> ModernBertModel:
    """A student of the right shape with weights still to be filled."""
    student = ModernBertModel(config)
    for target, source in enumerate(architecture.copied_layers):
        if source != target:
            student.layers[target] = ModernBertEncoderLayer(config, layer_id=source)
    inner = architecture.heads * architecture.head_size
    for layer in student.layers:
        attention = layer.attn
        if attention.num_heads != architecture.heads:
            attention.num_heads, attention.all_head_size = architecture.heads, inner
            biased = attention.Wo.bias is not None
            attention.Wqkv = nn.Linear(architecture.hidden_size, 3 * inner, bias=biased)
            attention.Wo = nn.Linear(inner, architecture.hidden_size, bias=biased)
    if architecture.embedding_rank is not None:
        student.embeddings.tok_embeddings = FactorizedEmbedding(
            architecture.vocab_size, architecture.embedding_rank, architecture.hidden_size
        )
    return student


def _copy(new: nn.Linear, old: nn.Linear, rows: Tensor | None, columns: Tensor | None) -> None:
    weight: Tensor = old.weight
    bias: Tensor | None = old.bias
    if rows is not None:
        weight, bias = weight[rows], None if bias is None else bias[rows]
    new.weight.copy_(weight if columns is None else weight[:, columns])
    if bias is not None:
        new.bias.copy_(bias)


def _copy_layer(
    old: ModernBertEncoderLayer, new: ModernBertEncoderLayer, architecture: Architecture
) -> None:
    size, width = architecture.head_size, old.attn.all_head_size
    value = old.attn.Wqkv.weight[2 * width :]
    strength = head_strength(value, old.attn.Wo.weight, size)
    columns = head_columns(strongest(strength, architecture.heads), size)
    # one matrix: all queries, then all keys, then all values
    _copy(new.attn.Wqkv, old.attn.Wqkv, torch.cat([columns + n * width for n in range(3)]), None)
    _copy(new.attn.Wo, old.attn.Wo, None, columns)
    half = old.mlp.Wo.weight.shape[1]
    neurons = strongest(_neuron_strength(old), architecture.intermediate_size)
    # one matrix: what is activated, then what it is multiplied with
    _copy(new.mlp.Wi, old.mlp.Wi, torch.cat([neurons, neurons + half]), None)
    _copy(new.mlp.Wo, old.mlp.Wo, None, neurons)
    new.attn_norm.load_state_dict(old.attn_norm.state_dict())
    new.mlp_norm.load_state_dict(old.mlp_norm.state_dict())


def _neuron_strength(layer: ModernBertEncoderLayer) -> Tensor:
    """[intermediate]: the product of the norms of both sides of a gated neuron's input, and its output."""
    activated, factor = layer.mlp.Wi.weight.chunk(2)
    strength: Tensor = activated.norm(dim=1) * factor.norm(dim=1) * layer.mlp.Wo.weight.norm(dim=0)
    return strength


@torch.no_grad()
def cut_student(
    teacher: ModernBertModel,
    architecture: Architecture,
    kept_tokens: Origins,
    token_counts: Sequence[int],
) -> ModernBertModel:
    """As `bert.cut_student`, of a ModernBERT."""
    config = teacher.config
    check_cut(architecture, TeacherLimits.of_bert(config), kept_tokens)
    student = empty_student(architecture, student_config(architecture, config))
    old, new = teacher.embeddings, student.embeddings
    table = old.tok_embeddings.weight
    fill_words(new.tok_embeddings, table, kept_tokens, token_counts, centred=False)
    new.norm.load_state_dict(old.norm.state_dict())
    student.final_norm.load_state_dict(teacher.final_norm.state_dict())
    for target, source in enumerate(architecture.copied_layers):
        _copy_layer(teacher.layers[source], student.layers[target], architecture)
    return student.eval()


def fresh_student(architecture: Architecture, base: ModernBertConfig, seed: int) -> ModernBertModel:
    """As `bert.fresh_student`, of a ModernBERT."""
    check_fresh(architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return empty_student(architecture, student_config(architecture, base)).eval()
