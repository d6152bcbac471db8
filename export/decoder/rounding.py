"""A decoder's matrices rounded by what they are multiplied with on real text (`gptq.py`), layer by layer.

A decoder is written in float32, a layer a graph; its graphs give the inputs of their products too, and pieces of text
are run through them. Whatever the family, the inputs have the same names. One layer's moments are held at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from codemill.export.candidates import PROVIDER
from codemill.export.decoder.running import segment_inputs
from codemill.export.decoder.shape import DecoderShape, DecoderWeights
from codemill.export.decoder.weights import FULL
from codemill.export.decoder.write import Bits, same_bits, segment_file, write_decoder
from codemill.export.quantize.blocks import BLOCK, Blocks
from codemill.export.quantize.gptq import gptq_blocks
from codemill.runtime.session import OnnxSession

__all__ = ["SCRATCH", "Rounding", "read_rounding", "rounded_by_text", "write_rounding"]

_INPUTS = {"qkv": "normed", "out": "attended", "up": "mlp_normed", "down": "inner"}
_PARTS = ("values", "scales", "zero_points")
_ALL = "all"
SCRATCH = ".rounding-"
"""What the folders of graphs that are written on the way are called: of a run that was killed they may stay."""


@dataclass(frozen=True)
class Rounding:
    """How a decoder's matrices are rounded: to `bits`, but to 8 those of the kinds `eight` (`mixed.py`).

    block: weights that share a scale. blocks: those that were rounded before, by the names that `Bits` has for them;
    the others are rounded each as it is.
    """

    bits: int
    eight: tuple[str, ...] = ()
    blocks: Mapping[str, Blocks] = field(default_factory=dict)
    block: int = BLOCK

    def bits_of(self, name: str) -> int:
        """As `Bits`; an exit's matrices are of no kind."""
        kept = name.rpartition("/")[2] in self.eight and not name.startswith("exit/")
        return 8 if kept else self.bits

    def usable(self) -> dict[str, Blocks]:
        """Of the blocks, those of as many bits as are asked for now."""
        return {
            name: blocks
            for name, blocks in self.blocks.items()
            if blocks.bits == self.bits_of(name)
        }


def rounded_by_text(
    weights: DecoderWeights,
    bits: Bits,
    pieces: Sequence[NDArray[Any]],
    folder: Path | None = None,
    threads: int | None = None,
    report: Callable[[float], None] = lambda _: None,
    block: int = BLOCK,
) -> dict[str, Blocks]:
    """The matrices of all layers, and the head where it is no table of words, by the names that `Bits` has for them.

    pieces: token ids [tokens]. A table that is looked up as well is left out: its rows are inputs too. Takes disk for
    the decoder in float32 while it lasts, in `folder` or among temporary files.
    """
    shape = weights.shape
    found: dict[str, Blocks] = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix=SCRATCH) as scratch:
        graphs = Path(scratch)
        write_decoder(
            weights, graphs, same_bits(FULL), range(1, shape.layers), max(map(len, pieces))
        )
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
                if bits(key) != FULL:
                    found[key] = gptq_blocks(getattr(layer, name).weight, moment, bits(key), block)
            report((number + 1) / shape.layers)
        if not shape.tied and bits("head") != FULL:
            moment = sum(state[0].T @ state[0] for state in states)
            found["head"] = gptq_blocks(weights.head().weight, moment, bits("head"), block)
    return found


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


def write_rounding(path: Path, rounding: Rounding) -> None:
    """Keep it in a file (safetensors)."""
    from safetensors.numpy import save_file

    tensors = {
        f"{name}:{part}": getattr(blocks, part)
        for name, blocks in rounding.blocks.items()
        for part in _PARTS
    }
    facts = {name: f"{blocks.bits} {blocks.columns}" for name, blocks in rounding.blocks.items()}
    facts[_ALL] = " ".join([str(rounding.bits), str(rounding.block), *rounding.eight])
    made = path.with_name(f"{path.name}.partial")
    save_file(tensors, made, metadata=facts)
    made.replace(path)


def read_rounding(path: Path) -> Rounding:
    """What `write_rounding` wrote."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        facts = file.metadata()
        of_all, block, *eight = facts.pop(_ALL).split()
        found = {}
        for name, said in facts.items():
            bits, columns = map(int, said.split())
            parts = {part: file.get_tensor(f"{name}:{part}") for part in _PARTS}
            found[name] = Blocks(**parts, bits=bits, columns=columns)
    return Rounding(int(of_all), tuple(eight), found, int(block))
