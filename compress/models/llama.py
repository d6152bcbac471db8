"""Llama-style decoders of a given shape: RMS norms, gated feed-forward, rotary positions, grouped heads.

A decoder is a `transformers.LlamaForCausalLM`, so optimum exports it and any Llama can be its
teacher. Where its embedding is factorised, two modules are replaced: the embedding, and the head,
which shares both factors: logits are x @ up @ table.T.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from codemill.compress.architecture import Architecture
from codemill.compress.models.bert import FactorizedEmbedding
from codemill.compress.models.cutting import strongest
from codemill.errors import ModelError

__all__ = ["FactorizedHead", "cut_decoder", "decoder_architecture", "fresh_decoder"]


class FactorizedHead(nn.Module):
    """hidden [batch, tokens, hidden] -> logits [batch, tokens, vocab], tied to a factorised embedding."""

    def __init__(self, embedding: FactorizedEmbedding) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, hidden: Tensor) -> Tensor:
        """Narrow to the table's rank, then compare with each token's row."""
        return nn.functional.linear(hidden @ self.embedding.up.weight, self.embedding.table.weight)


def fresh_decoder(architecture: Architecture, seed: int, tied: bool = True) -> LlamaForCausalLM:
    """A decoder of that shape with random weights, the same for one seed; the caller's generator is kept.

    tied: the head is the embedding's table, factorised or not; otherwise it is a full table of its
    own. Raises ModelError for another family's architecture, or an odd head size, which rotary
    positions cannot turn.
    """
    if architecture.family != "llama":
        raise ModelError(f"an architecture of family {architecture.family!r} is not a decoder's")
    if architecture.head_size % 2:
        raise ModelError(
            f"head size {architecture.head_size} is odd; rotary positions turn pairs of columns"
        )
    rank = architecture.embedding_rank
    config = LlamaConfig(
        vocab_size=architecture.vocab_size,
        hidden_size=architecture.hidden_size,
        intermediate_size=architecture.intermediate_size,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.kv_heads or architecture.heads,
        head_dim=architecture.head_size,
        max_position_embeddings=architecture.max_tokens,
        # transformers ties one weight to one weight; a factorised head shares by itself
        tie_word_embeddings=tied and rank is None,
        embedding_rank=rank,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = LlamaForCausalLM(config)
        if rank is not None:
            embedding = FactorizedEmbedding(architecture.vocab_size, rank, architecture.hidden_size)
            # each factor so wide that their product spreads as a full table would
            for weight in embedding.parameters():
                nn.init.normal_(weight, std=(config.initializer_range / rank**0.5) ** 0.5)
            decoder.model.embed_tokens = embedding
            if tied:
                decoder.lm_head = FactorizedHead(embedding)
                decoder._tied_weights_keys = [
                    f"lm_head.embedding.{name}" for name, _ in embedding.named_parameters()
                ]
    return decoder.eval()


def cut_decoder(
    teacher: LlamaForCausalLM, architecture: Architecture, kept_tokens: Sequence[int]
) -> LlamaForCausalLM:
    """A decoder of `architecture` that starts from the teacher's weights: some of its layers, tokens and neurons.

    Width and heads are the teacher's; of a layer's neurons the strongest stay, by the product of the norms of what
    leads to them and away from them. kept_tokens: the teacher's id of each token. The head stays tied, or its own.
    Raises ModelError for a teacher that is no plain Llama, or a shape that cannot be cut out of it.
    """
    config = teacher.config
    whole = decoder_architecture(config)
    for name in ("hidden_size", "heads", "head_size", "kv_heads", "embedding_rank"):
        if getattr(whole, name) != getattr(architecture, name):
            raise ModelError(
                f"a student of {name} {getattr(architecture, name)} cannot be cut out of a decoder of {name} "
                f"{getattr(whole, name)}: only layers, tokens and neurons are left out"
            )
    copied = architecture.copied_layers
    fits = len(copied) == architecture.layers and all(0 <= at < whole.layers for at in copied)
    if not fits or architecture.intermediate_size > whole.intermediate_size:
        raise ModelError(
            f"layers {list(copied)} of intermediate size {architecture.intermediate_size} cannot be copied from "
            f"{whole.layers} layers of {whole.intermediate_size}"
        )
    values = {
        **config.to_dict(),
        "vocab_size": len(kept_tokens),
        "num_hidden_layers": len(copied),
        "intermediate_size": architecture.intermediate_size,
        "max_position_embeddings": min(architecture.max_tokens, config.max_position_embeddings),
    }
    # ids of another vocabulary
    values |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    student = LlamaForCausalLM(LlamaConfig(**values)).float()
    rows = torch.tensor(list(kept_tokens))
    with torch.no_grad():
        student.model.embed_tokens.weight.copy_(teacher.model.embed_tokens.weight[rows])
        if not config.tie_word_embeddings:
            student.lm_head.weight.copy_(teacher.lm_head.weight[rows])
        student.model.norm.load_state_dict(teacher.model.norm.state_dict())
        for layer, source in zip(student.model.layers, copied, strict=True):
            state = teacher.model.layers[source].state_dict()
            gate, up, down = (state[f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
            strength = gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0)
            neurons = strongest(strength, architecture.intermediate_size)
            state["mlp.gate_proj.weight"] = gate[neurons]
            state["mlp.up_proj.weight"] = up[neurons]
            state["mlp.down_proj.weight"] = down[:, neurons]
            layer.load_state_dict(state)
    return student.eval()


def decoder_architecture(config: LlamaConfig, bits: int = 8) -> Architecture:
    """The architecture of a Llama's config; `embedding_rank` is there where `fresh_decoder` wrote it.

    Raises ModelError for another family, or for biases, which the cost formulas do not know.
    """
    if config.model_type != "llama":
        raise ModelError(f"a model of type {config.model_type!r} is not a Llama-style decoder")
    if config.attention_bias or config.mlp_bias:
        raise ModelError(
            "this decoder has biases in its attention or feed-forward; expected none, as in Llama"
        )
    return Architecture(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        head_size=config.head_dim,
        intermediate_size=config.intermediate_size,
        max_tokens=config.max_position_embeddings,
        embedding_rank=getattr(config, "embedding_rank", None),
        family="llama",
        kv_heads=config.num_key_value_heads,
        bits=bits,
    )
