"""A decoder's graph against torch: a prompt, then cached steps; float and int8; tied tables stored once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaForCausalLM

from codemill.compress.architecture import Architecture
from codemill.compress.models.llama import fresh_decoder
from codemill.compress.search.decoder import kv_bytes_per_token
from codemill.errors import ModelError
from codemill.export.decoder import export_decoder, quantize_decoder_int8

GROUPED = Architecture(300, 64, 2, 4, 16, 96, 64, family="llama", kv_heads=2)
FACTORIZED = Architecture(300, 64, 1, 2, 24, 96, 64, 24, family="llama", kv_heads=2)
CASES = {"grouped": (GROUPED, True), "factorised": (FACTORIZED, True), "untied": (GROUPED, False)}
STEPS = 8


@dataclass(frozen=True)
class Exported:
    architecture: Architecture
    model: LlamaForCausalLM
    plain: Path
    int8: Path


@pytest.fixture(scope="module", params=CASES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    architecture, tied = CASES[request.param]
    model = fresh_decoder(architecture, 0, tied)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    folder = tmp_path_factory.mktemp(request.param)
    found = Exported(architecture, model, folder / "plain.onnx", folder / "int8.onnx")
    export_decoder(model, found.plain)
    quantize_decoder_int8(found.plain, found.int8, reduce_range=True)
    return found


def ids(batch: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 300, (batch, 20))


def generate(
    path: Path, wanted: Architecture, tokens: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits for a prompt of all but the last tokens and those one by one; keys and values left."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    batch, count = tokens.shape
    shape = (batch, wanted.kv_heads or wanted.heads, 0, wanted.head_size)
    names = [f"{n}.{kind}" for n in range(wanted.layers) for kind in ("key", "value")]
    past = {f"past_key_values.{name}": np.zeros(shape, np.float32) for name in names}
    bounds = [0, *range(count - STEPS, count + 1)]
    logits = []
    for start, end in pairwise(bounds):
        found = session.run(
            ["logits", *(f"present.{name}" for name in names)],
            {
                "input_ids": tokens[:, start:end],
                "attention_mask": np.ones((batch, end), np.int64),
                "position_ids": np.arange(start, end)[None].repeat(batch, 0),
                **past,
            },
        )
        logits.append(found[0])
        past = dict(zip(past, found[1:], strict=True))
    return np.concatenate(logits, axis=1), past


def in_torch(model: LlamaForCausalLM, tokens: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        found: np.ndarray = model(torch.from_numpy(tokens)).logits.numpy()
    return found


def test_the_plain_graph_equals_torch_over_a_prompt_and_cached_steps(exported: Exported) -> None:
    tokens = ids(2)
    found, past = generate(exported.plain, exported.architecture, tokens)
    np.testing.assert_allclose(found, in_torch(exported.model, tokens), atol=2e-5)
    left = sum(value.nbytes for value in past.values())
    assert left == kv_bytes_per_token(exported.architecture) * tokens.size


def test_the_int8_graph_stays_close_to_torch(exported: Exported) -> None:
    tokens = ids()
    expected = in_torch(exported.model, tokens)
    found, _ = generate(exported.int8, exported.architecture, tokens)
    assert 0 < (found - expected).std() / expected.std() < 0.1


def test_padding_on_the_left_changes_nothing(exported: Exported) -> None:
    wanted, tokens = exported.architecture, ids()[:, :6]
    session = onnxruntime.InferenceSession(str(exported.plain), providers=["CPUExecutionProvider"])
    padded = np.concatenate([np.zeros((1, 3), np.int64), tokens], axis=1)
    empty = np.zeros((1, wanted.kv_heads or wanted.heads, 0, wanted.head_size), np.float32)
    feeds = {
        "input_ids": padded,
        "attention_mask": (np.arange(9) >= 3).astype(np.int64)[None],
        "position_ids": np.maximum(np.arange(9) - 3, 0)[None],
        **{
            name.name: empty
            for name in session.get_inputs()
            if name.name.startswith("past_key_values")
        },
    }
    (found,) = session.run(["logits"], feeds)
    np.testing.assert_allclose(found[:, 3:], in_torch(exported.model, tokens), atol=2e-5)


def test_a_tied_table_is_stored_once(exported: Exported) -> None:
    tied = not hasattr(exported.model.lm_head, "weight") or (
        exported.model.lm_head.weight is exported.model.model.embed_tokens.weight
    )
    wanted = exported.architecture
    elements = wanted.vocab_size * (wanted.embedding_rank or wanted.hidden_size)
    for path in (exported.plain, exported.int8):
        tables = [
            value
            for value in onnx.load(str(path)).graph.initializer
            if np.prod(value.dims) == elements
        ]
        assert len(tables) == (1 if tied else 2)


def test_the_plain_graph_is_plain_and_weights_of_int8_are_int8(exported: Exported) -> None:
    assert {node.domain for node in onnx.load(str(exported.plain)).graph.node} <= {"", "ai.onnx"}
    floats = [
        value
        for value in onnx.load(str(exported.int8)).graph.initializer
        if value.data_type == onnx.TensorProto.FLOAT
    ]
    assert max(np.prod(value.dims) for value in floats) <= exported.architecture.vocab_size


def test_the_model_keeps_its_attention(exported: Exported) -> None:
    assert exported.model.config._attn_implementation == "sdpa"


def test_a_family_without_an_exporter_is_refused(tmp_path: Path) -> None:
    config = GPTNeoXConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    model = GPTNeoXForCausalLM(config)
    model.config.model_type = "made-up"
    with pytest.raises(ModelError, match="made-up"):
        export_decoder(model, tmp_path / "none.onnx")
