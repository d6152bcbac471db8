"""Cost formulas against torch, against the paper, and against files that were really exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

from codemill.compress.architecture import Architecture
from codemill.compress.models.bert import cut_student
from codemill.compress.search.compressor import CompressorCosts, CompressorSpace
from codemill.compress.search.cost import (
    CostModel,
    Costs,
    by_tokenizer,
    gflops,
    gflops_paper,
    graph_bytes,
    interpolate,
    parameters,
    params_fp32_bytes,
    size_bytes,
)
from codemill.compress.search.space import AnySpace, FreshSpace, Space
from codemill.errors import RecipeError
from codemill.export.encoder import export_encoder
from codemill.export.fuse import fuse_encoder
from codemill.export.quantize.dynamic import quantize_dynamic_int8

SHAPES = [
    # vocabulary, rank, copied layers, heads, intermediate
    (300, None, (0,), 4, 128),
    (300, 16, (2,), 4, 96),
    (200, 64, (0, 2), 2, 64),
    (250, None, (0, 1, 2), 1, 32),
    (500, 24, (0, 1, 2), 2, 256),
]


@pytest.fixture(scope="module")
def teacher() -> BertModel:
    config = BertConfig(
        vocab_size=500,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=48,
        attn_implementation="eager",
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            # equal tensors (biases of zero, norms of one) would be stored once
            value.normal_(generator=generator)
    return model


def architecture(shape: tuple[int, int | None, tuple[int, ...], int, int]) -> Architecture:
    vocab_size, rank, copied, heads, intermediate = shape
    return Architecture(vocab_size, 64, len(copied), heads, 16, intermediate, 40, rank, copied)


def cut(teacher: BertModel, wanted: Architecture) -> BertModel:
    return cut_student(teacher, wanted, range(wanted.vocab_size), [1] * wanted.vocab_size)


def eager(student: BertModel, wanted: Architecture) -> BertModel:
    """The same student under eager attention, which has to be chosen when a BERT is built."""
    config = BertConfig(**{**student.config.to_dict(), "attn_implementation": "eager"})
    model = BertModel(config, add_pooling_layer=False).eval()
    dropped = list(range(wanted.heads, config.num_attention_heads))
    if dropped:
        model._prune_heads(dict.fromkeys(range(wanted.layers), dropped))
    model.embeddings.word_embeddings = student.embeddings.word_embeddings
    model.load_state_dict(student.state_dict())
    return model


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_are_those_of_the_cut_student(
    teacher: BertModel, shape: tuple[int, int | None, tuple[int, ...], int, int]
) -> None:
    wanted = architecture(shape)
    assert parameters(wanted) == sum(value.numel() for value in cut(teacher, wanted).parameters())
    assert params_fp32_bytes(wanted) == 4 * parameters(wanted)


@pytest.mark.parametrize(("shape", "tokens"), list(zip(SHAPES, (40, 1, 7, 33, 40), strict=True)))
def test_gflops_equal_what_torch_counts_with_eager_attention(
    teacher: BertModel, shape: tuple[int, int | None, tuple[int, ...], int, int], tokens: int
) -> None:
    wanted = architecture(shape)
    student = eager(cut(teacher, wanted), wanted)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        student(torch.ones(1, tokens, dtype=torch.long), torch.ones(1, tokens, dtype=torch.long))
    assert round(gflops(wanted, tokens) * 1e9) == counter.get_total_flops() > 0


@pytest.mark.parametrize(
    ("shape", "published"),
    [
        ((1000, 96, 12, 8, 64), 2.253),
        ((1000, 432, 6, 16, 128), 9.18),
        ((6000, 480, 6, 16, 576), 15.90),
        ((50265, 768, 12, 12, 3072), 138.4),
    ],
)
def test_the_paper_s_convention_gives_the_paper_s_figures(
    shape: tuple[int, int, int, int, int], published: float
) -> None:
    vocab_size, hidden, layers, heads, intermediate = shape
    wanted = Architecture(vocab_size, hidden, layers, heads, hidden // heads, intermediate, 514)
    assert gflops_paper(wanted, 514) == pytest.approx(published, rel=5e-4)
    assert gflops(wanted, 514) < gflops_paper(wanted, 514)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2], SHAPES[4]])
def test_predicted_sizes_are_within_two_percent_of_exported_files(
    teacher: BertModel, shape: tuple[int, int | None, tuple[int, ...], int, int], tmp_path: Path
) -> None:
    wanted = architecture(shape)
    plain, fused, quantized = (tmp_path / f"{name}.onnx" for name in ("plain", "fused", "int8"))
    export_encoder(cut(teacher, wanted), plain)
    fuse_encoder(plain, fused, wanted.heads, wanted.hidden_size)
    quantize_dynamic_int8(fused, quantized, reduce_range=False)
    # these graphs are a thirtieth of a real one: what is not weights weighs thirty times as much
    floats = replace(wanted, bits=32)
    assert graph_bytes(wanted) == pytest.approx(quantized.stat().st_size, rel=0.01)
    assert graph_bytes(floats) == pytest.approx(fused.stat().st_size, rel=0.01)
    for one, file in ((wanted, quantized), (floats, fused)):
        shipped = file.stat().st_size + 9_000 + 4_000
        assert size_bytes(one, 9_000) == pytest.approx(shipped, rel=0.02)


def test_bits_that_are_not_exported_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"bits must be one of \[8, 32\], not 4"):
        replace(architecture(SHAPES[0]), bits=4)


def test_a_quantity_is_interpolated_between_measured_sizes_and_not_guessed_beyond() -> None:
    at = interpolate({4000: 100.0, 1000: 160.0, 2000: 120.0})
    assert [at(size) for size in (1000, 1500, 2000, 3000, 4000)] == [160, 140, 120, 110, 100]
    for outside in (999, 4001):
        with pytest.raises(ValueError, match=r"1000\.\.4000"):
            at(outside)
    with pytest.raises(ValueError, match="nothing"):
        interpolate({})


def test_a_smaller_vocabulary_costs_more_gflops_a_function() -> None:
    costs = CostModel(
        by_tokenizer({"pruned": interpolate({200: 40, 300: 30})}),
        by_tokenizer({"pruned": interpolate({200: 2000, 300: 3000})}),
    )
    few, many = (architecture((size, 16, (0,), 4, 128)) for size in (200, 300))
    assert costs.gflops(few) > costs.gflops(many)
    assert costs.size_bytes(few) < costs.size_bytes(many)
    assert costs.size_bytes(many) == graph_bytes(many) + 3000 + costs.manifest_bytes


def test_each_kind_of_tokenizer_has_lengths_of_its_own() -> None:
    costs = CostModel(
        by_tokenizer({"pruned": interpolate({200: 40}), "bpe": interpolate({200: 20})}),
        by_tokenizer({"pruned": interpolate({200: 2000}), "bpe": interpolate({200: 2500})}),
    )
    cut = architecture((200, 16, (0,), 4, 128))
    own = replace(cut, tokenizer="bpe")
    assert costs.gflops(own) < costs.gflops(cut) / 1.9
    assert costs.size_bytes(own) == costs.size_bytes(cut) + 500


MEASURED = CostModel(
    by_tokenizer({"pruned": interpolate({1000: 180, 2000: 150.5, 6000: 125})}),
    by_tokenizer({"pruned": interpolate({1000: 20_000, 6000: 95_000})}),
    lambda one: 0.5 * one.layers + 1e-3 * one.intermediate_size + 1e-4 * one.heads * one.head_size,
)
CUT: dict[str, Any] = {
    "vocab_sizes": (1000, 1500, 6000),
    "layers": ((0,), (0, 2), (0, 1, 2, 5)),
    "heads": (4, 12),
    "intermediate_sizes": (128, 1024),
    "hidden_size": 384,
    "head_size": 32,
    "max_tokens": 256,
}
FRESH: dict[str, Any] = {
    "vocab_sizes": (1000, 2500),
    "hidden_sizes": (64, 96, 384),
    "layers": (1, 4),
    "head_sizes": (16, 32),
    "intermediate_sizes": (64, 640),
    "max_tokens": 256,
}
COMPRESSOR = CompressorSpace(
    vocab_sizes=(1000, 50_000),
    hidden_sizes=(16, 48, 768),
    layers=(1, 12),
    intermediate_sizes=(32, 3040),
)


@pytest.mark.parametrize(
    ("space", "costs"),
    [
        (Space(embedding_ranks=(None,), **CUT), MEASURED),
        (Space(embedding_ranks=(32, 96), bits=(32,), **CUT), MEASURED),
        (Space(embedding_ranks=(64, None), bits=(8, 32), **CUT), MEASURED),
        (FreshSpace(embedding_ranks=(None,), **FRESH), MEASURED),
        (FreshSpace(embedding_ranks=(32, None, 128), bits=(32, 8), **FRESH), MEASURED),
        (COMPRESSOR, CompressorCosts()),
    ],
)
def test_a_space_costed_as_a_whole_is_that_of_each_of_its_architectures(
    space: AnySpace, costs: Costs
) -> None:
    """Exactly: the search compares the one with the other."""
    seen = set()
    shape = tuple(len(space.choices[place]) for place in space.spread)
    for first, many in space.grids():
        whole = [np.broadcast_to(costs.gflops(many), shape)]
        whole.append(np.broadcast_to(costs.size_bytes(many), shape))
        if costs.latency_ms is not None:
            whole.append(np.broadcast_to(costs.latency_ms(many), shape))
        for at in np.ndindex(shape):
            genes = list(first)
            for place, gene in zip(space.spread, at, strict=True):
                genes[place] = gene
            one = space.architecture(genes)
            seen.add(one)
            each = [costs.gflops(one), costs.size_bytes(one)]
            each += [] if costs.latency_ms is None else [costs.latency_ms(one)]
            assert [float(values[at]) for values in whole] == [float(cost) for cost in each]
    assert len(seen) == space.size


def test_a_whole_space_outside_the_measured_vocabularies_is_not_guessed_either() -> None:
    space = Space(embedding_ranks=(None,), **{**CUT, "vocab_sizes": (1000, 6001)})
    _, many = next(space.grids())
    with pytest.raises(ValueError, match=r"1000\.\.6000"):
        MEASURED.gflops(many)
