"""Llama-style decoders of a given shape: RMS norms, gated feed-forward, rotary positions, grouped heads.

A decoder is a `transformers.LlamaForCausalLM`, so optimum exports it and any Llama can be its
teacher. Where its embedding is factorised, two modules are replaced: the embedding, and the head,
which shares both factors: logits are x @ up @ table.T.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from codemill.compress.architecture import Architecture
from codemill.compress.models.bert import FactorizedEmbedding
from codemill.errors import ModelError

__all__ = ["FactorizedHead", "decoder_architecture", "fresh_decoder"]


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
