"""Decoder costs against torch and against files that were really exported; the space of decoders."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LlamaForCausalLM

from codemill.compress.architecture import Architecture
from codemill.compress.models.llama import fresh_decoder
from codemill.compress.search.decoder import (
    DecoderSpace,
    gflops,
    gflops_last,
    gflops_per_token,
    graph_bytes,
    kv_bytes_per_token,
    parameters,
)
from codemill.errors import RecipeError
from codemill.export.decoder.families import of_module
from codemill.export.decoder.rounding import Rounding
from codemill.export.decoder.write import write_decoder

SHAPES = [
    # vocabulary, hidden, layers, heads, head size, intermediate, rank, kv heads
    Architecture(300, 64, 2, 4, 16, 96, 64, None, family="llama", kv_heads=2),
    Architecture(300, 64, 1, 4, 16, 96, 64, 24, family="llama", kv_heads=4),
    Architecture(200, 48, 3, 6, 24, 32, 64, None, family="llama", kv_heads=1),
    Architecture(250, 64, 2, 2, 16, 256, 64, 40, family="llama", kv_heads=None),
]
CASES = list(product(SHAPES, (True, False)))


def eager(architecture: Architecture, tied: bool) -> LlamaForCausalLM:
    model = fresh_decoder(architecture, 0, tied)
    model.set_attn_implementation("eager")
    return model


def counted(model: LlamaForCausalLM, tokens: int, **inputs: Any) -> tuple[int, DynamicCache]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        past = model(torch.ones(1, tokens, dtype=torch.long), **inputs).past_key_values
    return counter.get_total_flops(), past


@pytest.mark.parametrize(("architecture", "tied"), CASES)
def test_parameters_are_those_of_the_decoder(architecture: Architecture, tied: bool) -> None:
    decoder = fresh_decoder(architecture, 0, tied)
    assert parameters(architecture, tied) == sum(v.numel() for v in decoder.parameters())


@pytest.mark.parametrize(("architecture", "tied"), CASES)
def test_gflops_equal_what_torch_counts_with_eager_attention(
    architecture: Architecture, tied: bool
) -> None:
    model = eager(architecture, tied)
    for tokens in (1, 7, 33):
        flops, past = counted(model, tokens)
        assert round(gflops(architecture, tokens, tied) * 1e9) == flops > 0
        last, _ = counted(model, tokens, logits_to_keep=1)
        assert round(gflops_last(architecture, tokens, tied) * 1e9) == last
        one, _ = counted(model, 1, past_key_values=past)
        assert round(gflops_per_token(architecture, tokens, tied) * 1e9) == one


@pytest.mark.parametrize("architecture", SHAPES)
def test_keys_and_values_take_what_torch_keeps(architecture: Architecture) -> None:
    _, past = counted(eager(architecture, True), 9)
    values = sum(layer.keys.numel() + layer.values.numel() for layer in past.layers)
    assert kv_bytes_per_token(architecture) == 4 * values / 9
    assert kv_bytes_per_token(architecture, bytes_per_value=2) == 2 * values / 9


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "tied"), CASES[:5])
def test_predicted_sizes_are_within_two_percent_of_exported_files(
    architecture: Architecture, tied: bool, tmp_path: Path
) -> None:
    weights = of_module(fresh_decoder(architecture, 0, tied))
    for bits, symmetric in ((4, False), (4, True), (8, False), (32, False)):
        folder = tmp_path / f"{bits}{symmetric}"
        write_decoder(weights, folder, Rounding(bits, symmetric=symmetric))
        size = sum(file.stat().st_size for file in folder.iterdir())
        predicted = graph_bytes(replace(architecture, bits=bits), tied, symmetric=symmetric)
        assert predicted == pytest.approx(size, rel=0.02)


def test_arrays_cost_what_their_numbers_cost() -> None:
    hidden, layers = np.array([[32], [64]]), np.array([[1, 2, 5]])
    for rank, bits, kv_heads in ((None, 8, np.array([[1], [2]])), (16, 32, None)):
        many = SimpleNamespace(
            **{**vars(SHAPES[0]), "hidden_size": hidden, "layers": layers},
        )
        many.embedding_rank, many.bits, many.kv_heads = rank, bits, kv_heads
        for cost in (
            parameters,
            lambda a: gflops(a, 20),
            lambda a: gflops_per_token(a, 20),
            kv_bytes_per_token,
            graph_bytes,
        ):
            found = np.broadcast_to(cast(Any, cost)(many), (2, 3))
            for row, column in product(range(2), range(3)):
                one = replace(
                    SHAPES[0],
                    hidden_size=int(hidden[row, 0]),
                    layers=int(layers[0, column]),
                    embedding_rank=rank,
                    bits=bits,
                    kv_heads=None if kv_heads is None else int(kv_heads[row, 0]),
                )
                assert found[row, column] == cast(Any, cost)(one)


def space(**changed: Any) -> DecoderSpace:
    genes: dict[str, Any] = {
        "vocab_sizes": (100, 200),
        "embedding_ranks": (8, None),
        "hidden_sizes": (16, 96, 200),
        "layers": (1, 3),
        "head_sizes": (16, 24),
        "group_sizes": (1, 2, 3),
        "intermediate_sizes": (32, 64),
        "max_tokens": 40,
        "bits": (8, 32),
    }
    return DecoderSpace(**{**genes, **changed})


def test_every_combination_is_a_decoder() -> None:
    every = space()
    assert every.size == 576
    seen = set()
    for genes in product(*(range(len(choices)) for choices in every.choices)):
        one = every.architecture(genes)
        picked = dict(
            zip(
                every.gene_names,
                (choices[gene] for choices, gene in zip(every.choices, genes, strict=True)),
                strict=True,
            )
        )
        assert one.family == "llama"
        assert one.kv_heads is not None
        assert one.heads == one.kv_heads * picked["group_sizes"]
        # as many as the width holds
        width = picked["group_sizes"] * one.head_size
        assert one.kv_heads == max(1, one.hidden_size // width)
        assert type(one.heads) is int
        seen.add(tuple(picked.values()))
        assert one.to_json()["bits"] == picked["bits"]
    assert len(seen) == every.size
    narrow = every.architecture((0, 0, 0, 0, 1, 2, 0, 0))
    assert fresh_decoder(narrow, 0)(torch.ones(1, 4, dtype=torch.long)).logits.shape == (1, 4, 100)


def test_a_grid_costs_what_its_architectures_cost() -> None:
    every = space()
    for genes, block in every.grids():
        found = np.broadcast_to(graph_bytes(block), (2, 3, 2))
        at = list(genes)
        for index in product(range(2), range(3), range(2)):
            for place, value in zip(every.spread, index, strict=True):
                at[place] = value
            assert found[index] == graph_bytes(every.architecture(at))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"group_sizes": ()}, "group_sizes has no choices"),
        ({"layers": (2, 2)}, "layers lists a choice twice"),
        ({"group_sizes": (0, 1)}, "group_sizes must be at least 1"),
        ({"head_sizes": (16, 8)}, r"head size of 8 "),
        ({"head_sizes": (20,)}, r"head size of 20 "),
        ({"bits": (3,)}, "bits"),
    ],
)
def test_a_space_that_cannot_be_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        space(**changed)
