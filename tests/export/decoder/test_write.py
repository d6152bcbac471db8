"""Each family's graphs against transformers: a prompt and 32 cached steps, whole and in segments; what exits skip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import PreTrainedModel

from codemill.errors import ModelError
from codemill.export.decoder.families import of_module, weights_of
from codemill.export.decoder.rounding import Rounding
from codemill.export.decoder.shape import DecoderShape, DecoderWeights, Linear
from codemill.export.decoder.write import (
    HEAD,
    WEIGHTS,
    WHOLE,
    project_file,
    segment_file,
    write_decoder,
)
from codemill.export.quantize.blocks import quantize_blocks, restore
from codemill.runtime.bundle import Variant, check_graphs

PROMPT, STEPS = 20, 32
EXITS = (1, 2)


def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 300, (1, PROMPT + STEPS))


def spans() -> Iterator[tuple[int, int]]:
    """A prompt, cached steps, and two tokens at once in between."""
    yield from pairwise([0, PROMPT, PROMPT + 2, *range(PROMPT + 3, PROMPT + STEPS + 1)])


def expected(model: PreTrainedModel) -> np.ndarray:
    with torch.inference_mode():
        found: np.ndarray = model(torch.as_tensor(ids()), use_cache=False).logits.numpy()
    return found


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def empty(shape: DecoderShape, start: int = 0, end: int | None = None) -> dict[str, np.ndarray]:
    nothing = np.zeros((1, shape.kv_heads, 0, shape.head_size), np.float32)
    layers = range(start, shape.layers if end is None else end)
    return {f"past_key_values.{n}.{kind}": nothing for n in layers for kind in ("key", "value")}


def run(opened: Any, output: str, inputs: dict[str, Any], past: dict[str, Any]) -> np.ndarray:
    """The output; `past` becomes what is present."""
    names = [name.replace("past_key_values", "present") for name in past]
    found, *present = opened.run([output, *names], {**inputs, **past})
    past.update(zip(past, present, strict=True))
    result: np.ndarray = found
    return result


def places(opened: Any, start: int, end: int) -> dict[str, np.ndarray]:
    taken = {item.name for item in opened.get_inputs()}
    return {"position_ids": np.arange(start, end)[None]} if "position_ids" in taken else {}


def whole(folder: Path, shape: DecoderShape) -> np.ndarray:
    opened, past, logits = session(folder / WHOLE), empty(shape), []
    for start, end in spans():
        inputs = {
            "input_ids": ids()[:, start:end],
            "attention_mask": np.ones((1, end), np.int64),
            **places(opened, start, end),
        }
        logits.append(run(opened, "logits", inputs, past))
    return np.concatenate(logits, axis=1)


def in_segments(folder: Path, shape: DecoderShape) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits, and the hidden states between the segments; each segment takes what the one before it gave."""
    ends = [0, *EXITS, shape.layers]
    values: np.ndarray = ids()
    between = []
    for number, (first, last) in enumerate(pairwise(ends)):
        opened, past, found = session(folder / segment_file(number)), empty(shape, first, last), []
        output = "state" if last == shape.layers else "hidden_out"
        for start, end in spans():
            inputs = {
                "hidden" if first else "input_ids": values[:, start:end],
                "seqlens_k": np.array([end - 1], np.int32),
                "total_sequence_length": np.array([end], np.int32),
                **places(opened, start, end),
            }
            found.append(run(opened, output, inputs, past))
        values = np.concatenate(found, axis=1)
        between.append(values)
    (logits,) = session(folder / HEAD).run(["logits"], {"state": values})
    return logits, between


def test_logits_are_those_of_transformers(decoder: PreTrainedModel, tmp_path: Path) -> None:
    weights = of_module(decoder)
    write_decoder(weights, tmp_path, Rounding(32), EXITS)
    wanted = expected(decoder)
    np.testing.assert_allclose(whole(tmp_path, weights.shape), wanted, atol=2e-5)
    np.testing.assert_allclose(in_segments(tmp_path, weights.shape)[0], wanted, atol=2e-5)


def test_a_projection_gives_the_keys_and_values_of_the_layer_it_begins_with(
    decoder: PreTrainedModel, tmp_path: Path
) -> None:
    shape = of_module(decoder).shape
    write_decoder(of_module(decoder), tmp_path, Rounding(32), EXITS)
    hidden = in_segments(tmp_path, shape)[1][0]
    opened = session(tmp_path / project_file(0))
    count = hidden.shape[1]
    names = [f"{kind}.{n}" for n in range(EXITS[0], shape.layers) for kind in ("key", "value")]
    inputs = {"hidden": hidden, **places(opened, 0, count)}
    found = dict(zip(names, opened.run(names, inputs), strict=True))
    segment, past = session(tmp_path / segment_file(1)), empty(shape, *EXITS)
    run(
        segment,
        "hidden_out",
        {
            "hidden": hidden,
            "seqlens_k": np.array([count - 1], np.int32),
            "total_sequence_length": np.array([count], np.int32),
        },
        past,
    )
    for kind in ("key", "value"):
        np.testing.assert_allclose(found[f"{kind}.1"], past[f"past_key_values.1.{kind}"], atol=2e-5)
        assert found[f"{kind}.2"].shape == (1, shape.kv_heads, count, shape.head_size)


class _Restored:
    """A decoder's weights as they are after rounding."""

    def __init__(self, weights: DecoderWeights, rounding: Rounding) -> None:
        self._weights, self._rounding = weights, rounding

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._weights, name)
        if name not in ("words", "layer", "head"):
            return found
        return lambda *values: self._rounded(found(*values))

    def _rounded(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            how = self._rounding
            return restore(quantize_blocks(value, how.bits, how.block, how.symmetric))
        if isinstance(value, Linear):
            return replace(value, weight=self._rounded(value.weight))
        parts = {name: self._rounded(getattr(value, name)) for name in ("qkv", "out", "up", "down")}
        return replace(value, **parts)


@pytest.mark.parametrize(
    ("bits", "block", "symmetric"),
    [
        *((4, block, symmetric) for block in (32, 64, 128) for symmetric in (False, True)),
        *((8, block, False) for block in (32, 128)),
    ],
)
def test_rounded_weights_are_multiplied_as_they_were_rounded(
    decoder: PreTrainedModel, tmp_path: Path, bits: int, block: int, symmetric: bool
) -> None:
    weights = of_module(decoder)
    rounding = Rounding(bits, block=block, symmetric=symmetric)
    write_decoder(weights, tmp_path / "rounded", rounding, EXITS)
    restored: Any = _Restored(weights, rounding)
    write_decoder(restored, tmp_path / "restored", Rounding(32))
    wanted = whole(tmp_path / "restored", weights.shape).ravel()
    found = whole(tmp_path / "rounded", weights.shape).ravel()
    # what is left is the rounding of the other side, to 8 bits
    assert np.corrcoef(found, wanted)[0, 1] > 0.999
    # between segments a sum and its norm are two nodes, within them one: where that differs in the last bit, a number
    # may be rounded to the next one of 8 bits
    pieces = in_segments(tmp_path / "rounded", weights.shape)[0].ravel()
    assert np.corrcoef(pieces, found)[0, 1] > 0.9999


def test_every_weight_is_stored_once_and_every_graph_may_be_in_a_bundle(
    decoder: PreTrainedModel, tmp_path: Path
) -> None:
    weights = of_module(decoder)
    write_decoder(weights, tmp_path, Rounding(32), EXITS)
    stored = sum(value.nbytes for value in _distinct(decoder))
    angles = 0 if weights.rotary is None else 2 * weights.rotary.cos.nbytes
    size = (tmp_path / WEIGHTS).stat().st_size
    # each array begins at a multiple of 64
    assert stored + angles <= size < stored + angles + 64 * 60
    names = [segment_file(0), segment_file(1), segment_file(2), project_file(0), HEAD, WHOLE]
    check_graphs(tmp_path, Variant("CPUExecutionProvider", "fp32", tuple(names), (WEIGHTS, *names)))
    for name in names:
        graph = onnx.load(str(tmp_path / name), load_external_data=False).graph
        assert all(
            item.data_location == item.EXTERNAL for item in graph.initializer if item.dims[0] > 8
        )


def _distinct(model: PreTrainedModel) -> list[np.ndarray]:
    return [value.detach().numpy() for value in model.parameters()]


def test_layers_may_have_bits_of_their_own(tmp_path: Path) -> None:
    from .conftest import small_decoder

    weights = of_module(small_decoder("llama"))
    sizes = {}
    for name, rounding in (
        ("symmetric", Rounding(4, symmetric=True)),
        ("four", Rounding(4)),
        ("mixed", Rounding(4, ("down",))),
        ("eight", Rounding(8)),
    ):
        write_decoder(weights, tmp_path / name, rounding)
        sizes[name] = (tmp_path / name / WEIGHTS).stat().st_size
        assert np.isfinite(whole(tmp_path / name, weights.shape)).all()
    assert sizes["symmetric"] < sizes["four"] < sizes["mixed"] < sizes["eight"]


@pytest.mark.parametrize("exits", [(0,), (3,), (2, 1), (1, 1)])
def test_exits_out_of_place_are_refused(tmp_path: Path, exits: tuple[int, ...]) -> None:
    from .conftest import small_decoder

    with pytest.raises(ValueError, match="increasing numbers from 1 to 2"):
        write_decoder(of_module(small_decoder("llama")), tmp_path, Rounding(4), exits)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "bloom"}, "'bloom' is not supported; expected llama"),
        ({"hidden_act": "tanh"}, "'tanh' is not supported"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic' are not supported"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "attention of several kinds"),
    ],
)
def test_what_is_not_supported_is_named(change: dict[str, Any], said: str) -> None:
    from types import SimpleNamespace

    from .conftest import CONFIGS

    values = {**CONFIGS["llama"].to_dict(), "model_type": "llama", **change}
    with pytest.raises(ModelError, match=said):
        weights_of(SimpleNamespace(**values), lambda _: None)


def test_a_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    from .conftest import CONFIGS

    with pytest.raises(ModelError, match=r"lack 'model.embed_tokens.weight'"):
        write_decoder(weights_of(CONFIGS["llama"], lambda _: None), tmp_path, Rounding(4))
