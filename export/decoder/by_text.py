"""A decoder's matrices rounded by what they are multiplied with on real text (`gptq.py`), layer by layer.

A decoder is written in float32, a layer a graph; its graphs give the inputs of their products too, and pieces of text
are run through them. Whatever the family, the inputs have the same names. One layer's moments are held at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from codemill.export.candidates import PROVIDER
from codemill.export.decoder.rounding import FULL, Rounding
from codemill.export.decoder.running import segment_inputs
from codemill.export.decoder.shape import DecoderShape, DecoderWeights
from codemill.export.decoder.write import segment_file, write_decoder
from codemill.export.quantize.blocks import Blocks
from codemill.export.quantize.gptq import gptq_blocks
from codemill.runtime.session import OnnxSession

__all__ = ["SCRATCH", "rounded_by_text"]

_INPUTS = {"qkv": "normed", "out": "attended", "up": "mlp_normed", "down": "inner"}
SCRATCH = ".rounding-"
"""What the folders of graphs that are written on the way are called: of a run that was killed they may stay."""


def rounded_by_text(
    weights: DecoderWeights,
    rounding: Rounding,
    pieces: Sequence[NDArray[Any]],
    folder: Path | None = None,
    threads: int | None = None,
    report: Callable[[float], None] = lambda _: None,
) -> dict[str, Blocks]:
    """The matrices of all layers, and the head where it is no table of words, rounded as `rounding` says, by name.

    pieces: token ids [tokens]. A table that is looked up as well is left out: its rows are inputs too. Takes disk for
    the decoder in float32 while it lasts, in `folder` or among temporary files.
    """
    shape = weights.shape
    found: dict[str, Blocks] = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix=SCRATCH) as scratch:
        graphs = Path(scratch)
        longest = max(map(len, pieces))
        write_decoder(weights, graphs, Rounding(FULL), range(1, shape.layers), longest)
        states: list[Any] = [piece[None].astype(np.int64) for piece in pieces]
        for number in range(shape.layers):
            names = dict(_INPUTS)
            if shape.parallel:
                names["up"] = names["qkv"]
            states, moments = _run(
                graphs / segment_file(number), number, names, states, shape, threads
            )
            layer = weights.layer(number)
            for name, moment in moments.items():
                key = f"{number}/{name}"
                if rounding.bits_of(key) != FULL:
                    found[key] = _rounded(getattr(layer, name).weight, moment, rounding, key)
            report((number + 1) / shape.layers)
        if not shape.tied and rounding.bits_of("head") != FULL:
            moment = sum(state[0].T @ state[0] for state in states)
            found["head"] = _rounded(weights.head().weight, moment, rounding, "head")
    return found


def _rounded(
    weight: NDArray[np.float32], moments: NDArray[np.float32], rounding: Rounding, name: str
) -> Blocks:
    bits = rounding.bits_of(name)
    return gptq_blocks(weight, moments, bits, rounding.block, rounding.is_symmetric(bits))


def _run(
    path: Path,
    number: int,
    names: Mapping[str, str],
    states: list[Any],
    shape: DecoderShape,
    threads: int | None,
) -> tuple[list[Any], dict[str, NDArray[np.float32]]]:
    """What a layer makes of the states, and X.T @ X of the inputs X of its products."""
    _give(path, {f"layer.{number}/{name}" for name in names.values()})
    gives = "state" if number == shape.layers - 1 else "hidden_out"
    outputs = [gives, *(f"layer.{number}/{name}" for name in names.values())]
    session = OnnxSession(path, provider=PROVIDER, threads=threads)
    after: list[Any] = []
    moments: dict[str, NDArray[np.float32]] = {}
    try:
        for state in states:
            results = session.outputs_for(segment_inputs(session, state, shape), outputs)
            after.append(results[0])
            for name, values in zip(names, results[1:], strict=True):
                square = values[0].T @ values[0]
                moments[name] = moments[name] + square if name in moments else square
    finally:
        session.close()
    return after, moments


def _give(path: Path, names: set[str]) -> None:
    """Make what is inside of a graph an output of it."""
    model = onnx.load(str(path), load_external_data=False)
    for name in sorted(names):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    path.write_bytes(model.SerializeToString())
