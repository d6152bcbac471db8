"""The graphs in standard operators against those that ship: a prompt, cached steps, exits, and what fills them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from transformers import PreTrainedModel

from codemill.errors import ModelError
from codemill.export.decoder.families import of_module
from codemill.export.decoder.rounding import Rounding
from codemill.export.decoder.standard import write_standard
from codemill.export.decoder.write import (
    HEAD,
    WEIGHTS,
    project_file,
    segment_file,
    write_decoder,
)

from .conftest import small_decoder
from .test_write import EXITS, _Restored, expected, ids, in_segments, places, session, spans

ROOM = 64
NAMES = [
    *(name(number) for number in (0, 1) for name in (segment_file, project_file)),
    segment_file(2),
    HEAD,
]


def logits_of(folder: Path, shape: Any, kind: type = np.float32) -> np.ndarray:
    """Of the standard segments, each with a buffer of its keys and values that has more room than there are tokens."""
    values: np.ndarray = ids()
    for number, (first, last) in enumerate(pairwise([0, *EXITS, shape.layers])):
        opened = session(folder / segment_file(number))
        names = [f"{n}.{part}" for n in range(first, last) for part in ("key", "value")]
        # what stands behind the tokens that are there is not looked at
        past = {
            name: np.full((1, shape.kv_heads, ROOM, shape.head_size), 9, kind) for name in names
        }
        found = []
        for start, end in spans():
            output, *new = opened.run(
                [
                    "state" if last == shape.layers else "hidden_out",
                    *(".".join(reversed(name.split("."))) for name in names),
                ],
                {
                    "hidden" if first else "input_ids": values[:, start:end],
                    "position_ids": np.arange(start, end)[None],
                    **{f"past_key_values.{name}": past[name] for name in names},
                },
            )
            for name, rows in zip(names, new, strict=True):
                past[name][:, :, start:end] = rows
            found.append(output)
        values = np.concatenate(found, axis=1)
    (logits,) = session(folder / HEAD).run(["logits"], {"state": values})
    result: np.ndarray = logits
    return result


def test_logits_are_those_of_the_graphs_that_ship(decoder: PreTrainedModel, tmp_path: Path) -> None:
    weights = of_module(decoder)
    write_decoder(weights, tmp_path / "ships", Rounding(32), EXITS)
    paths = write_standard(tmp_path / "ships", NAMES, tmp_path / "standard")
    assert [path.name for path in paths] == NAMES
    found = logits_of(tmp_path / "standard", weights.shape)
    np.testing.assert_allclose(found, in_segments(tmp_path / "ships", weights.shape)[0], atol=2e-5)
    np.testing.assert_allclose(found, expected(decoder), atol=2e-5)
    for path in paths:
        model = onnx.load(str(path), load_external_data=False)
        assert [item.domain for item in model.opset_import] == [""]
        onnx.checker.check_model(str(path), full_check=True)
    # each weight once, with the tables of angles, as what ships
    ships = (tmp_path / "ships" / WEIGHTS).stat().st_size
    assert (tmp_path / "standard" / WEIGHTS).stat().st_size < 1.2 * ships


def test_projections_give_the_same_keys_and_values(
    decoder: PreTrainedModel, tmp_path: Path
) -> None:
    weights = of_module(decoder)
    write_decoder(weights, tmp_path / "ships", Rounding(32), EXITS)
    write_standard(tmp_path / "ships", NAMES, tmp_path / "standard")
    hidden = np.random.default_rng(0).normal(size=(1, 7, weights.shape.width)).astype(np.float32)
    for number in range(len(EXITS)):
        found = []
        for folder in ("ships", "standard"):
            opened = session(tmp_path / folder / project_file(number))
            names = sorted(item.name for item in opened.get_outputs())
            # tokens that left early are not neighbours
            at = {name: np.array([[0, 1, 5, 6, 9, 20, 90]]) for name in places(opened, 0, 7)}
            found.append(dict(zip(names, opened.run(names, {"hidden": hidden, **at}), strict=True)))
        assert found[0].keys() == found[1].keys()
        for name, wanted in found[0].items():
            np.testing.assert_allclose(found[1][name], wanted, atol=2e-5)


@pytest.mark.parametrize(
    ("bits", "block", "symmetric"),
    [(4, 64, False), (4, 32, False), (4, 64, True), (4, 32, True), (8, 32, False)],
)
@pytest.mark.parametrize("name", ["llama", "llama-untied-scaled", "gpt2"])
def test_rounded_weights_are_the_numbers_they_stand_for(
    tmp_path: Path, name: str, bits: int, block: int, symmetric: bool
) -> None:
    weights: Any = of_module(small_decoder(name))
    rounding = Rounding(bits, block=block, symmetric=symmetric)
    restored: Any = _Restored(weights, rounding)
    write_decoder(weights, tmp_path / "ships", rounding, EXITS)
    write_decoder(restored, tmp_path / "restored", Rounding(32), EXITS)
    wanted = in_segments(tmp_path / "restored", weights.shape)[0]
    sizes = []
    for folder, blocks in (("full", False), ("blocks", True)):
        write_standard(tmp_path / "ships", NAMES, tmp_path / folder, blocks=blocks)
        found = logits_of(tmp_path / folder, weights.shape)
        np.testing.assert_allclose(found, wanted, atol=2e-5)
        sizes.append((tmp_path / folder / WEIGHTS).stat().st_size)
    assert sizes[1] < 0.5 * sizes[0]


@pytest.mark.parametrize("name", ["llama", "gpt2", "codegen"])
def test_half_precision_is_near(tmp_path: Path, name: str) -> None:
    weights = of_module(small_decoder(name))
    write_decoder(weights, tmp_path / "ships", Rounding(32), EXITS)
    write_standard(tmp_path / "ships", NAMES, tmp_path / "half", half=True)
    found = logits_of(tmp_path / "half", weights.shape, np.float16)
    wanted = expected(small_decoder(name))
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.9999
    for path in (tmp_path / "half").glob("segment-*.onnx"):
        graph = onnx.load(str(path), load_external_data=False).graph
        kinds = {item.name: item.type.tensor_type.elem_type for item in graph.output}
        half = {name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT16}
        assert half == {name for name in kinds if name.startswith(("key.", "value."))}


def test_an_operator_that_no_decoder_is_written_with_is_named(tmp_path: Path) -> None:
    write_decoder(of_module(small_decoder("llama")), tmp_path, Rounding(32), EXITS)
    model = onnx.load(str(tmp_path / HEAD), load_external_data=False)
    model.graph.node[0].op_type = "Attention"
    (tmp_path / HEAD).write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"head\.onnx has the operator com\.microsoft\.Attention"):
        write_standard(tmp_path, [HEAD], tmp_path / "standard")
