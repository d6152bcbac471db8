"""Encoders of each family in parts: what each gives is what torch gives after its layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from tests.compress.models.families import FAMILIES, HEADS, noisy

from codemill.compress.models.pooling import pool
from codemill.compress.models.roberta import as_bert
from codemill.errors import ModelError
from codemill.export.encoder import OUTPUT, export_part, handed_on, inputs_of
from codemill.export.fuse import fuse_encoder, fused_operators
from codemill.export.layers import layers_in, part_of, states_after
from codemill.export.quantize.half import to_half

from .conftest import tiny_bert

CUTS = {"bert": (1,), "roberta": (1, 3), "modernbert": (2, 3), "t5": (1, 2), "gated-t5": (3,)}
SHAPES = [(9,), (40, 3, 17)]


def encoder_of(name: str) -> Any:
    if name == "bert":
        return tiny_bert()
    model: Any = noisy(FAMILIES[name](300))
    if name == "roberta":
        return as_bert(model).eval()
    return model.encoder.eval() if name.endswith("t5") else model


def sample(lengths: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(lengths))
    ids = torch.randint(3, 290, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


def outputs(path: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


@pytest.mark.parametrize("name", sorted(CUTS))
def test_parts_give_what_torch_gives_after_their_layers(name: str, tmp_path: Path) -> None:
    model, cuts = encoder_of(name), CUTS[name]
    starts, ends = (0, *cuts), (*cuts, layers_in(model))
    for start, end in zip(starts, ends, strict=True):
        plain = tmp_path / f"plain-{start}.onnx"
        export_part(model, plain, start, end)
        fuse_encoder(plain, tmp_path / f"fused-{start}.onnx", HEADS, model.config.hidden_size)
    for lengths in SHAPES:
        ids, mask = sample(lengths)
        with torch.inference_mode():
            expected = states_after(model, ids, mask, cuts)
            raw = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        for form in ("plain", "fused"):
            taken = ids.numpy()
            for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
                inputs = dict(zip(inputs_of(start), (taken, mask.numpy()), strict=True))
                found = outputs(tmp_path / f"{form}-{start}.onnx", inputs)
                aim = pool(expected[number], mask).numpy()
                assert np.abs(found[OUTPUT] - aim).max() < 1e-4
                if end == ends[-1]:
                    assert set(found) == {OUTPUT}
                    continue
                assert set(found) == {OUTPUT, handed_on(start)}
                taken = found[handed_on(start)]
                apart = np.abs(taken - raw[end].numpy())[mask.numpy() > 0]
                assert apart.max() < 1e-4 * max(1.0, float(raw[end].abs().max()))


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_attention_is_fused_in_a_part_that_begins_with_hidden_states(
    name: str, tmp_path: Path
) -> None:
    model = encoder_of(name)
    export_part(model, tmp_path / "plain.onnx", 1, layers_in(model))
    fuse_encoder(tmp_path / "plain.onnx", tmp_path / "fused.onnx", HEADS, model.config.hidden_size)
    assert fused_operators(tmp_path / "fused.onnx")["Attention"] == layers_in(model) - 1


@pytest.mark.parametrize("name", sorted(CUTS))
def test_a_part_is_a_view_and_leaves_the_encoder_as_it_was(name: str) -> None:
    model = encoder_of(name)
    ids, mask = sample((9, 4))
    with torch.inference_mode():
        before = model(input_ids=ids, attention_mask=mask).last_hidden_state
        part = part_of(model, 1, layers_in(model))
        after = model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.equal(before, after)
    own = {value.data_ptr() for value in model.parameters()}
    assert {value.data_ptr() for value in part.parameters()} < own


def test_a_family_without_parts_is_refused_by_its_name() -> None:
    model = tiny_bert()
    model.config.model_type = "gpt2"
    with pytest.raises(ModelError, match="'gpt2' cannot be divided at exits"):
        part_of(model, 0, 1)


@pytest.mark.parametrize("name", ["t5", "gated-t5"])
def test_half_precision_keeps_norms_that_are_written_out(name: str, tmp_path: Path) -> None:
    from onnx.reference import ReferenceEvaluator

    model = encoder_of(name)
    with torch.no_grad():
        # whose squares are beyond half precision, and which a norm makes the same numbers of
        for weight in {id(item): item for item in model.parameters() if item.ndim == 2}.values():
            if len(weight) == 300:
                weight.mul_(300 / weight.abs().max())
    plain, half = tmp_path / "plain.onnx", tmp_path / "half.onnx"
    export_part(model, plain, 0, layers_in(model))
    to_half(plain, half)
    ids, mask = (item.numpy() for item in sample((9, 5)))
    inputs = dict(zip(inputs_of(0), (ids, mask), strict=True))
    expected = outputs(plain, inputs)[OUTPUT]
    # ONNX Runtime's kernels for processors fold the casts away, and would hide it; a distance of 0 has no logarithm
    with np.errstate(divide="ignore", invalid="ignore"):
        (found,) = ReferenceEvaluator(str(half)).run([OUTPUT], inputs)
    assert (found * expected).sum(1).min() > 0.999
