"""The graphs in standard operators against those that ship: a prompt, cached steps, exits, and what fills them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from transformers import PreTrainedModel

from codemill.export.decoder.families import of_module
from codemill.export.decoder.standard import write_standard
from codemill.export.decoder.write import (
    HEAD,
    WEIGHTS,
    project_file,
    same_bits,
    segment_file,
    write_decoder,
)

from .test_write import EXITS, expected, ids, in_segments, session, spans

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
    write_decoder(weights, tmp_path / "ships", same_bits(32), EXITS)
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
