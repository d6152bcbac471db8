"""Cutting a BERT student out of a BERT teacher.

Kept: the teacher's width, its most used tokens, chosen layers, whole attention heads, the
strongest feed-forward neurons. The word embedding is factorised by a frequency-weighted SVD, its
mean moved into the token type embedding (which every token of one segment shares) so that no rank
is spent on it. At full size the cut equals the teacher; a test holds it to 1e-5.

The student is a `transformers.BertModel` with one module replaced, so optimum exports it and ONNX
Runtime's optimizer fuses it like any BERT.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import BertConfig, BertModel

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
from codemill.compress.models.saved import fill, read_saved, save_student

__all__ = [
    "FactorizedEmbedding",
    "cut_student",
    "empty_student",
    "fresh_student",
    "load_student",
    "neuron_strength",
    "save_student",
    "student_config",
]


def student_config(architecture: Architecture, base: BertConfig) -> BertConfig:
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
    )
    values.pop("pruned_heads", None)
    return BertConfig(**values)


def empty_student(architecture: Architecture, config: BertConfig) -> BertModel:
    """A student of the right shape with weights still to be filled."""
    student = BertModel(config, add_pooling_layer=False)
    surplus = config.num_attention_heads - architecture.heads
    if surplus:
        dropped = list(range(architecture.heads, config.num_attention_heads))
        student._prune_heads(dict.fromkeys(range(architecture.layers), dropped))
    if architecture.embedding_rank is not None:
        student.embeddings.word_embeddings = FactorizedEmbedding(
            architecture.vocab_size, architecture.embedding_rank, architecture.hidden_size
        )
    return student


def neuron_strength(teacher: BertModel, layer: int) -> Tensor:
    """[intermediate]: how much each feed-forward neuron can move the output (product of its two norms)."""
    block = teacher.encoder.layer[layer]
    into: Tensor = block.intermediate.dense.weight.norm(dim=1)
    out: Tensor = block.output.dense.weight.norm(dim=0)
    return into * out


def _copy_layer(
    teacher: BertModel, student: BertModel, source: int, target: int, architecture: Architecture
) -> None:
    old, new = teacher.encoder.layer[source], student.encoder.layer[target]
    output = old.attention.output.dense.weight
    strength = head_strength(old.attention.self.value.weight, output, architecture.head_size)
    rows = head_columns(strongest(strength, architecture.heads), architecture.head_size)
    for name in ("query", "key", "value"):
        before, after = getattr(old.attention.self, name), getattr(new.attention.self, name)
        after.weight.copy_(before.weight[rows])
        after.bias.copy_(before.bias[rows])
    new.attention.output.dense.weight.copy_(output[:, rows])
    new.attention.output.dense.bias.copy_(old.attention.output.dense.bias)
    new.attention.output.LayerNorm.load_state_dict(old.attention.output.LayerNorm.state_dict())
    neurons = strongest(neuron_strength(teacher, source), architecture.intermediate_size)
    new.intermediate.dense.weight.copy_(old.intermediate.dense.weight[neurons])
    new.intermediate.dense.bias.copy_(old.intermediate.dense.bias[neurons])
    new.output.dense.weight.copy_(old.output.dense.weight[:, neurons])
    new.output.dense.bias.copy_(old.output.dense.bias)
    new.output.LayerNorm.load_state_dict(old.output.LayerNorm.state_dict())


@torch.no_grad()
def cut_student(
    teacher: BertModel,
    architecture: Architecture,
    kept_tokens: Origins,
    token_counts: Sequence[int],
) -> BertModel:
    """A student of `architecture` that starts from the teacher's weights.

    kept_tokens: teacher token ids in the student's id order (architecture.vocab_size of them);
    token_counts: how often each of these occurs in the data. Raises ModelError where the shape
    cannot be cut out of this teacher.
    """
    config = teacher.config
    check_cut(architecture, TeacherLimits.of_bert(config), kept_tokens)

    student = empty_student(architecture, student_config(architecture, config))
    old, new = teacher.embeddings, student.embeddings
    new.position_embeddings.weight.copy_(old.position_embeddings.weight[: architecture.max_tokens])
    new.token_type_embeddings.weight.copy_(old.token_type_embeddings.weight)
    new.LayerNorm.load_state_dict(old.LayerNorm.state_dict())
    table = old.word_embeddings.weight
    mean = fill_words(new.word_embeddings, table, kept_tokens, token_counts, centred=True)
    new.token_type_embeddings.weight += mean
    for target, source in enumerate(architecture.copied_layers):
        _copy_layer(teacher, student, source, target, architecture)
    return student.eval()


def fresh_student(architecture: Architecture, base: BertConfig, seed: int) -> BertModel:
    """A student of `architecture` with random weights, drawn by `seed`; all else is as in `base`.

    Raises ModelError where the heads do not fill the width, which a fresh student has no reason for.
    """
    check_fresh(architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return empty_student(architecture, student_config(architecture, base)).eval()


def load_student(folder: Path) -> tuple[BertModel, Architecture]:
    """Read what `save_student` wrote."""
    architecture, values = read_saved(folder)
    student = empty_student(architecture, BertConfig(**values))
    fill(student, folder)
    return student.eval(), architecture
