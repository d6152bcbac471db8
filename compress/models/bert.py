"""Cutting a BERT student out of a BERT teacher.

Kept: the teacher's width, its most used tokens, chosen layers, whole attention heads, the
strongest feed-forward neurons. The word embedding is factorised by a frequency-weighted SVD, its
mean moved into the token type embedding (which every token of one segment shares) so that no rank
is spent on it. At full size the cut equals the teacher; a test holds it to 1e-5.

The student is a `transformers.BertModel` with one module replaced, so optimum exports it and ONNX
Runtime's optimizer fuses it like any BERT.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from codemill.compress.architecture import Architecture
from codemill.errors import ModelError

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

_ARCHITECTURE_FILE = "architecture.json"
_CONFIG_FILE = "config.json"
_WEIGHTS_FILE = "model.safetensors"


class FactorizedEmbedding(nn.Module):
    """token_ids [batch, tokens] -> [batch, tokens, hidden] through a table of `rank` columns (ALBERT, 1909.11942)."""

    def __init__(self, vocab_size: int, rank: int, hidden_size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, rank)
        self.up = nn.Linear(rank, hidden_size, bias=False)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Look up and widen."""
        widened: Tensor = self.up(self.table(token_ids))
        return widened


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


def _factorize(
    student: BertModel, rows: Tensor, weights: Tensor, rank: int, shared_bias: Tensor
) -> None:
    """Fill the student's factorised embedding with the best rank-`rank` form of rows [vocab, hidden].

    weights [vocab]: how often each token is used. Minimises the usage-weighted squared error.
    """
    rows = rows.double()
    share = (weights.double() + 1.0) / (weights.double() + 1.0).sum()
    full_rank = rank >= rows.shape[1]
    # a full-size factorisation is exact without the shift, and stays equal to the teacher
    mean = torch.zeros_like(rows[0]) if full_rank else (share[:, None] * rows).sum(0)
    scale = share.sqrt()[:, None]
    _, _, basis = torch.linalg.svd(scale * (rows - mean), full_matrices=False)
    basis = basis[:rank]
    embedding = student.embeddings.word_embeddings
    assert isinstance(embedding, FactorizedEmbedding)
    coordinates = (rows - mean) @ basis.T
    # balance the two factors so that one learning rate suits both
    spread = coordinates.std(0).clamp_min(1e-6).sqrt()
    embedding.table.weight.copy_((coordinates / spread).float())
    embedding.up.weight.copy_((basis.T * spread).float())
    shared_bias += mean.float()


def neuron_strength(teacher: BertModel, layer: int) -> Tensor:
    """[intermediate]: how much each feed-forward neuron can move the output (product of its two norms)."""
    block = teacher.encoder.layer[layer]
    into: Tensor = block.intermediate.dense.weight.norm(dim=1)
    out: Tensor = block.output.dense.weight.norm(dim=0)
    return into * out


def _head_strength(teacher: BertModel, layer: int, head_size: int) -> Tensor:
    """[heads]: norm of what each head can write into the residual stream (value times output)."""
    attention = teacher.encoder.layer[layer].attention
    value = attention.self.value.weight.view(-1, head_size, teacher.config.hidden_size)
    output = attention.output.dense.weight.view(teacher.config.hidden_size, -1, head_size)
    return torch.stack(
        [torch.linalg.matrix_norm(output[:, h] @ value[h]) for h in range(value.shape[0])]
    )


def _copy_layer(
    teacher: BertModel, student: BertModel, source: int, target: int, architecture: Architecture
) -> None:
    old, new = teacher.encoder.layer[source], student.encoder.layer[target]
    size = architecture.head_size
    strongest = _head_strength(teacher, source, size).topk(architecture.heads).indices.sort().values
    rows = (strongest[:, None] * size + torch.arange(size)).flatten()
    for name in ("query", "key", "value"):
        before, after = getattr(old.attention.self, name), getattr(new.attention.self, name)
        after.weight.copy_(before.weight[rows])
        after.bias.copy_(before.bias[rows])
    new.attention.output.dense.weight.copy_(old.attention.output.dense.weight[:, rows])
    new.attention.output.dense.bias.copy_(old.attention.output.dense.bias)
    new.attention.output.LayerNorm.load_state_dict(old.attention.output.LayerNorm.state_dict())
    neurons = (
        neuron_strength(teacher, source).topk(architecture.intermediate_size).indices.sort().values
    )
    new.intermediate.dense.weight.copy_(old.intermediate.dense.weight[neurons])
    new.intermediate.dense.bias.copy_(old.intermediate.dense.bias[neurons])
    new.output.dense.weight.copy_(old.output.dense.weight[:, neurons])
    new.output.dense.bias.copy_(old.output.dense.bias)
    new.output.LayerNorm.load_state_dict(old.output.LayerNorm.state_dict())


@torch.no_grad()
def cut_student(
    teacher: BertModel,
    architecture: Architecture,
    kept_tokens: Sequence[int],
    token_counts: Sequence[int],
) -> BertModel:
    """A student of `architecture` that starts from the teacher's weights.

    kept_tokens: teacher token ids in the student's id order (architecture.vocab_size of them);
    token_counts: how often each of these occurs in the data. Raises ModelError where the shape
    cannot be cut out of this teacher.
    """
    config = teacher.config
    head_size = config.hidden_size // config.num_attention_heads
    wanted = (architecture.hidden_size, architecture.head_size)
    if wanted != (config.hidden_size, head_size):
        raise ModelError(
            f"a student of width {wanted[0]} and head size {wanted[1]} cannot be cut out of a teacher of "
            f"width {config.hidden_size} and head size {head_size}; keep the teacher's"
        )
    if not architecture.copied_layers:
        raise ModelError("the architecture names no layers of the teacher to copy")
    for name, have, most in (
        ("heads", architecture.heads, config.num_attention_heads),
        ("intermediate_size", architecture.intermediate_size, config.intermediate_size),
        ("max_tokens", architecture.max_tokens, config.max_position_embeddings),
        ("vocab_size", architecture.vocab_size, config.vocab_size),
        ("copied_layers", max(architecture.copied_layers) + 1, config.num_hidden_layers),
        ("embedding_rank", architecture.embedding_rank or 0, config.hidden_size),
    ):
        if have > most:
            raise ModelError(
                f"a student with {name} {have} cannot be cut out of a teacher with {most}"
            )
    if (architecture.embedding_rank or 0) > architecture.vocab_size:
        raise ModelError(
            f"an embedding of rank {architecture.embedding_rank} cannot be made of "
            f"{architecture.vocab_size} tokens; a rank is at most their number"
        )
    if len(kept_tokens) != architecture.vocab_size:
        raise ModelError(
            f"{len(kept_tokens)} tokens kept for a vocabulary of {architecture.vocab_size}"
        )

    student = empty_student(architecture, student_config(architecture, config))
    old, new = teacher.embeddings, student.embeddings
    new.position_embeddings.weight.copy_(old.position_embeddings.weight[: architecture.max_tokens])
    new.token_type_embeddings.weight.copy_(old.token_type_embeddings.weight)
    new.LayerNorm.load_state_dict(old.LayerNorm.state_dict())
    rows = old.word_embeddings.weight[torch.tensor(kept_tokens)]
    if architecture.embedding_rank is None:
        new.word_embeddings.weight.copy_(rows)
    else:
        counts = torch.tensor(token_counts)
        _factorize(
            student, rows, counts, architecture.embedding_rank, new.token_type_embeddings.weight
        )
    for target, source in enumerate(architecture.copied_layers):
        _copy_layer(teacher, student, source, target, architecture)
    return student.eval()


def fresh_student(architecture: Architecture, base: BertConfig, seed: int) -> BertModel:
    """A student of `architecture` with random weights, drawn by `seed`; all else is as in `base`.

    Raises ModelError where the heads do not fill the width, which a fresh student has no reason for.
    """
    if architecture.heads * architecture.head_size != architecture.hidden_size:
        raise ModelError(
            f"{architecture.heads} heads of {architecture.head_size} do not make the width "
            f"{architecture.hidden_size} of a fresh student"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return empty_student(architecture, student_config(architecture, base)).eval()


def save_student(student: BertModel, architecture: Architecture, folder: Path) -> None:
    """Write config, architecture and weights (safetensors) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _ARCHITECTURE_FILE).write_text(json.dumps(architecture.to_json(), indent=1))
    values: dict[str, Any] = student.config.to_dict()
    values.pop("pruned_heads", None)
    (folder / _CONFIG_FILE).write_text(json.dumps(values, indent=1, sort_keys=True))
    save_file(
        {name: value.contiguous() for name, value in student.state_dict().items()},
        folder / _WEIGHTS_FILE,
    )


def load_student(folder: Path) -> tuple[BertModel, Architecture]:
    """Read what `save_student` wrote."""
    architecture = Architecture.from_json(json.loads((folder / _ARCHITECTURE_FILE).read_text()))
    config = BertConfig(**json.loads((folder / _CONFIG_FILE).read_text()))
    student = empty_student(architecture, config)
    student.load_state_dict(load_file(folder / _WEIGHTS_FILE))
    return student.eval(), architecture
