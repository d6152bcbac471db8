"""What every family's surgery shares: the checks before a cut, the factorised embedding, what is strongest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from codemill.compress.architecture import Architecture
from codemill.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = [
    "FactorizedEmbedding",
    "Origins",
    "TeacherLimits",
    "check_cut",
    "check_fresh",
    "factorize",
    "fill_words",
    "head_columns",
    "head_strength",
    "strongest",
]

Origins = Sequence[int] | Sequence[Sequence[int]]
"""Of each of a student's tokens: the teacher's token it is; or, where it is none of them, those it is written with."""


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


@dataclass(frozen=True)
class TeacherLimits:
    """The most that a student cut out of a teacher may have; max_tokens None: positions without a table."""

    hidden_size: int
    head_size: int
    heads: int
    intermediate_size: int
    vocab_size: int
    layers: int
    max_tokens: int | None

    @classmethod
    def of_bert(cls, config: PretrainedConfig) -> TeacherLimits:
        """Of a configuration whose keys are BERT's, as ModernBERT's are."""
        return cls(
            hidden_size=config.hidden_size,
            head_size=config.hidden_size // config.num_attention_heads,
            heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            vocab_size=config.vocab_size,
            layers=config.num_hidden_layers,
            max_tokens=config.max_position_embeddings,
        )


def check_cut(architecture: Architecture, limits: TeacherLimits, kept_tokens: Origins) -> None:
    """Raises ModelError where the shape cannot be cut out of such a teacher."""
    own_tokens = bool(kept_tokens) and not isinstance(kept_tokens[0], int)
    wanted = (architecture.hidden_size, architecture.head_size)
    if wanted != (limits.hidden_size, limits.head_size):
        raise ModelError(
            f"a student of width {wanted[0]} and head size {wanted[1]} cannot be cut out of a teacher of "
            f"width {limits.hidden_size} and head size {limits.head_size}; keep the teacher's"
        )
    if not architecture.copied_layers:
        raise ModelError("the architecture names no layers of the teacher to copy")
    for name, have, most in (
        ("heads", architecture.heads, limits.heads),
        ("intermediate_size", architecture.intermediate_size, limits.intermediate_size),
        ("max_tokens", architecture.max_tokens, limits.max_tokens),
        ("vocab_size", architecture.vocab_size, None if own_tokens else limits.vocab_size),
        ("copied_layers", max(architecture.copied_layers) + 1, limits.layers),
        ("embedding_rank", architecture.embedding_rank or 0, limits.hidden_size),
    ):
        if most is not None and have > most:
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


def check_fresh(architecture: Architecture) -> None:
    """Raises ModelError where the heads do not fill the width, which a fresh student has no reason for."""
    if architecture.heads * architecture.head_size != architecture.hidden_size:
        raise ModelError(
            f"{architecture.heads} heads of {architecture.head_size} do not make the width "
            f"{architecture.hidden_size} of a fresh student"
        )


@torch.no_grad()
def factorize(
    embedding: FactorizedEmbedding, rows: Tensor, counts: Tensor, centred: bool
) -> Tensor:
    """Fill `embedding` with the best form of rows [vocab, hidden] of its rank; the mean it leaves out [hidden].

    counts [vocab]: how often each token is used. Minimises the usage-weighted squared error.
    centred: the caller adds the mean to something that every token shares; else the mean is zero.
    """
    rows = rows.double()
    rank = embedding.table.weight.shape[1]
    share = (counts.double() + 1.0) / (counts.double() + 1.0).sum()
    # a full-size factorisation is exact without the shift, and stays equal to the teacher
    shifted = centred and rank < rows.shape[1]
    mean = (share[:, None] * rows).sum(0) if shifted else torch.zeros_like(rows[0])
    scale = share.sqrt()[:, None]
    _, _, basis = torch.linalg.svd(scale * (rows - mean), full_matrices=False)
    basis = basis[:rank]
    coordinates = (rows - mean) @ basis.T
    # balance the two factors so that one learning rate suits both
    spread = coordinates.std(0).clamp_min(1e-6).sqrt()
    embedding.table.weight.copy_((coordinates / spread).float())
    embedding.up.weight.copy_((basis.T * spread).float())
    return mean.float()


@torch.no_grad()
def fill_words(
    embedding: nn.Module, table: Tensor, kept: Origins, counts: Sequence[int], centred: bool
) -> Tensor:
    """Fill a full or factorised word embedding with the kept rows of table [vocab, hidden]; the mean left out.

    A token of the student's own starts from the mean of those it is written with (fast vocabulary transfer,
    2402.09977), one that the teacher cannot write from the mean of all.
    """
    rows = _rows(table, kept, counts)
    if isinstance(embedding, FactorizedEmbedding):
        return factorize(embedding, rows, torch.tensor(counts), centred)
    assert isinstance(embedding, nn.Embedding)
    embedding.weight.copy_(rows)
    return torch.zeros_like(rows[0])


def _rows(table: Tensor, kept: Origins, counts: Sequence[int]) -> Tensor:
    written = [[item] if isinstance(item, int) else list(item) for item in kept]
    known = torch.tensor([bool(items) for items in written])
    rows = torch.stack(
        [
            table[torch.tensor(items or [0])].mean(0) if len(items) != 1 else table[items[0]]
            for items in written
        ]
    )
    if not known.all():
        uses = (torch.tensor(counts) + 1.0) * known
        rows[~known] = (uses[:, None] * rows).sum(0) / uses.sum()
    return rows


def head_strength(value: Tensor, output: Tensor, head_size: int) -> Tensor:
    """[heads]: norm of what each head can write into the residual stream (value times output).

    value [heads x size, hidden], output [hidden, heads x size].
    """
    into = value.view(-1, head_size, value.shape[1])
    out = output.view(output.shape[0], -1, head_size)
    return torch.stack([torch.linalg.matrix_norm(out[:, h] @ into[h]) for h in range(len(into))])


def strongest(strength: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest, in their old order."""
    return strength.topk(count).indices.sort().values


def head_columns(heads: Tensor, head_size: int) -> Tensor:
    """The rows of a projection that belong to `heads`: [heads x head_size]."""
    return (heads[:, None] * head_size + torch.arange(head_size)).flatten()
