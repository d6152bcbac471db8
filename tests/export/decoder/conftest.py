"""Small decoders of every family, with random weights that are far from their initial ones."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CodeGenConfig,
    GPT2Config,
    GPTBigCodeConfig,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
    Starcoder2Config,
)

LLAMA: dict[str, Any] = {
    **{"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128},
}
GPT2: dict[str, Any] = {
    **{"vocab_size": 300, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128}
}
SCALED = {
    **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 64,
}
CONFIGS = {
    "llama": LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "llama-untied-scaled": LlamaConfig(**LLAMA, head_dim=32, rope_scaling=SCALED),
    "llama-biased": LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True),
    "qwen2": Qwen2Config(**LLAMA),
    "starcoder2": Starcoder2Config(**LLAMA, sliding_window=16),
    "gpt2": GPT2Config(**GPT2),
    "gpt_bigcode": GPTBigCodeConfig(**GPT2, multi_query=True),
    "gpt_bigcode-heads": GPTBigCodeConfig(**GPT2, multi_query=False),
    "codegen": CodeGenConfig(**{**GPT2, "n_embd": 128}, n_ctx=128, rotary_dim=16),
}


def small_decoder(name: str) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # of transformers' own, as it imports GPT-BigCode
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
        with torch.no_grad():
            for value in model.parameters():
                value.add_(0.1 * torch.randn(value.shape))
    return model


@pytest.fixture(scope="module", params=CONFIGS)
def decoder(request: pytest.FixtureRequest) -> PreTrainedModel:
    return small_decoder(request.param)
