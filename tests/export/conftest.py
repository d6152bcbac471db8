"""Tiny BERTs with random weights, whole and cut, and their graphs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from codemill.compress.architecture import Architecture
from codemill.compress.models.bert import cut_student
from codemill.compress.models.pooling import embed
from codemill.export.encoder import export_encoder
from codemill.export.fuse import fuse_encoder
from codemill.export.quantize.dynamic import quantize_dynamic_int8

VOCABULARY = 500

Sample = tuple[np.ndarray, np.ndarray]


def tiny_bert() -> BertModel:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=48,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(1 + 0.1 * noise if name.endswith("LayerNorm.weight") else 0.15 * noise)
    return model


@dataclass(frozen=True)
class Graphs:
    """A model and the three forms of its graph."""

    model: BertModel
    heads: int
    plain: Path
    fused: Path
    int8: Path

    def in_torch(self, sample: Sample) -> np.ndarray:
        with torch.inference_mode():
            found: np.ndarray = embed(self.model, *map(torch.from_numpy, sample)).numpy()
        return found

    def sample(self, *lengths: int) -> Sample:
        """ids, mask int64 [batch, tokens], padded to the longest."""
        longest = max(lengths)
        ids = np.random.default_rng(0).integers(5, VOCABULARY // 2, (len(lengths), longest))
        mask = (np.arange(longest) < np.array(lengths)[:, None]).astype(np.int64)
        return ids * mask, mask


@pytest.fixture(scope="session", params=["teacher", "student", "student with a full table"])
def graphs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """A whole model, one with fewer heads and a factorised embedding, one with fewer heads."""
    model, heads = tiny_bert(), 4
    if request.param != "teacher":
        heads = 2
        rank = None if "full" in request.param else 16
        wanted = Architecture(VOCABULARY // 2, 64, 1, heads, 16, 96, 40, rank, (1,))
        kept = range(wanted.vocab_size)
        model = cut_student(model, wanted, kept, [1] * wanted.vocab_size)
    folder = tmp_path_factory.mktemp("graphs")
    paths = [folder / f"{name}.onnx" for name in ("plain", "fused", "int8")]
    export_encoder(model, paths[0])
    fuse_encoder(paths[0], paths[1], heads, 64)
    quantize_dynamic_int8(paths[1], paths[2], reduce_range=True)
    return Graphs(model, heads, *paths)
