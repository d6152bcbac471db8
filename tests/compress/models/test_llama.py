"""Decoders built from an architecture: their shapes, their ties, their seeds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig

from codemill.compress.architecture import Architecture
from codemill.compress.models.llama import decoder_architecture, fresh_decoder
from codemill.errors import ModelError

GROUPED = Architecture(60, 32, 2, 4, 16, 48, 24, family="llama", kv_heads=2)
FACTORIZED = replace(GROUPED, embedding_rank=8)
IDS = torch.arange(10)[None]


@pytest.mark.parametrize("wanted", [GROUPED, FACTORIZED, replace(GROUPED, kv_heads=4, bits=32)])
def test_the_architecture_is_read_back_from_the_decoder(wanted: Architecture) -> None:
    decoder = fresh_decoder(wanted, seed=0)
    assert decoder_architecture(decoder.config, wanted.bits) == wanted
    assert decoder(IDS).logits.shape == (1, 10, 60)


def test_a_seed_decides_the_weights_and_the_callers_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (fresh_decoder(FACTORIZED, seed)(IDS).logits for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)


def test_a_factorised_head_is_the_embedding_transposed() -> None:
    decoder = fresh_decoder(FACTORIZED, seed=0)
    hidden = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        table = decoder.model.embed_tokens(torch.arange(60))
        assert torch.allclose(decoder.lm_head(hidden), hidden @ table.T, atol=1e-6)
        decoder.model.embed_tokens.table.weight[7] += 1
        table = decoder.model.embed_tokens(torch.arange(60))
        assert torch.allclose(decoder.lm_head(hidden), hidden @ table.T, atol=1e-6)


def test_an_untied_head_has_weights_of_its_own() -> None:
    for wanted in (GROUPED, FACTORIZED):
        tied, untied = (fresh_decoder(wanted, 0, tied) for tied in (True, False))
        counts = [sum(value.numel() for value in model.parameters()) for model in (tied, untied)]
        assert counts[1] - counts[0] == 60 * 32


@pytest.mark.parametrize(
    ("wanted", "message"),
    [(replace(GROUPED, family="bert"), "bert"), (replace(GROUPED, head_size=15), "15 is odd")],
)
def test_a_shape_that_is_no_decoder_is_refused(wanted: Architecture, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        fresh_decoder(wanted, seed=0)


def test_a_config_that_the_formulas_do_not_know_is_refused() -> None:
    with pytest.raises(ModelError, match="biases"):
        decoder_architecture(LlamaConfig(attention_bias=True))
    config = LlamaConfig()
    config.model_type = "gpt2"
    with pytest.raises(ModelError, match="gpt2"):
        decoder_architecture(config)
