"""A decoder's weights -> a folder of graphs: segments between exits, the head, projections, and one of the whole.

A layer is read, quantized and written before the next one is, so that memory holds the words and one layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from codemill.export.decoder.graph import (
    Stored,
    StoredExit,
    StoredLayer,
    write_exit,
    write_head,
    write_project,
    write_segment,
    write_whole,
)
from codemill.export.decoder.rounding import Rounding
from codemill.export.decoder.shape import Adapter, DecoderWeights, Exits, Linear, Norm
from codemill.export.decoder.weights import WeightFile

__all__ = [
    "HEAD",
    "WEIGHTS",
    "WHOLE",
    "exit_file",
    "project_file",
    "segment_file",
    "write_decoder",
]

WEIGHTS = "weights.bin"
HEAD = "head.onnx"
WHOLE = "model.onnx"


def segment_file(number: int) -> str:
    """The graph of a segment."""
    return f"segment-{number}.onnx"


def exit_file(number: int) -> str:
    """The graph of an exit: what the head takes, and what its controller decides."""
    return f"exit-{number}.onnx"


def project_file(number: int) -> str:
    """The graph of keys and values of the layers that an exit skips."""
    return f"project-{number}.onnx"


def write_decoder(
    weights: DecoderWeights,
    folder: Path,
    rounding: Rounding,
    exits: Sequence[int] | Exits = (),
    max_tokens: int | None = None,
) -> Stored:
    """Write all graphs and their weights into `folder`; exits: after so many layers, in increasing order.

    Exits that are only named have no graph of their own: their segments and projections are there to train them with.
    max_tokens: longest text that will be run, the model's own by default; tables of positions end there.
    """
    shape = weights.shape
    after = exits.layers if isinstance(exits, Exits) else tuple(exits)
    if list(after) != sorted({*after} & set(range(1, shape.layers))):
        raise ValueError(
            f"exits should be increasing numbers from 1 to {shape.layers - 1}, found {list(after)}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with WeightFile(folder / WEIGHTS) as file:
        stored = _stored(weights, file, rounding, max_tokens)
        heads, controller = [], None
        if isinstance(exits, Exits):
            heads = [_adapter(file, item, rounding) for item in exits.adapters]
            controller = file.matrix("controller", exits.controller)
    ends = [*after, shape.layers]
    for number, (start, end) in enumerate(zip([0, *after], ends, strict=True)):
        write_segment(stored, folder / segment_file(number), start, end)
    for number, head in enumerate(heads):
        assert controller is not None
        write_exit(stored, folder / exit_file(number), head, controller)
    for number, start in enumerate(after):
        write_project(stored, folder / project_file(number), start)
    write_head(stored, folder / HEAD)
    write_whole(stored, folder / WHOLE)
    return stored


def _stored(
    weights: DecoderWeights, file: WeightFile, rounding: Rounding, max_tokens: int | None
) -> Stored:
    shape = weights.shape
    words = file.matrix("words", Linear(weights.words()), rounding, "words")
    widen = narrow = None
    if shape.rank is not None:
        up = weights.widen()
        # small, and between the words and everything else
        widen = file.matrix("widen", Linear(up))
        if shape.tied:
            narrow = file.matrix("narrow", Linear(up.T))
    if shape.positions:
        file.array("positions/weight", weights.positions()[:max_tokens])
    rotary = weights.rotary
    if rotary is not None:
        file.array("rotary/cos", rotary.cos[:max_tokens])
        file.array("rotary/sin", rotary.sin[:max_tokens])
    layers = []
    for number in range(shape.layers):
        layer = weights.layer(number)
        key = f"layer.{number}"
        _norm(file, f"{key}/norm", layer.norm)
        if layer.mlp_norm is not None:
            _norm(file, f"{key}/mlp_norm", layer.mlp_norm)
        matrices = {
            name: file.matrix(f"{key}/{name}", getattr(layer, name), rounding, f"{number}/{name}")
            for name in ("qkv", "out", "up", "down")
        }
        layers.append(StoredLayer(key, **matrices))
    _norm(file, "last_norm", weights.last_norm())
    head = words if shape.tied else file.matrix("head", weights.head(), rounding, "head")
    return Stored(shape, file, words, widen, narrow, tuple(layers), head, rotary)


def _adapter(file: WeightFile, adapter: Adapter, rounding: Rounding) -> StoredExit:
    key = f"exit.{adapter.layer}"
    file.array(f"{key}/scale", adapter.scale)
    file.array(f"{key}/shift", adapter.shift)
    _norm(file, f"{key}/norm", adapter.norm)
    matrices = {
        name: file.matrix(
            f"{key}/{name}", getattr(adapter, name), rounding, f"exit/{adapter.layer}/{name}"
        )
        for name in ("up", "down")
    }
    return StoredExit(key, **matrices)


def _norm(file: WeightFile, key: str, norm: Norm) -> None:
    file.array(f"{key}/weight", norm.weight)
    if norm.bias is not None:
        file.array(f"{key}/bias", norm.bias)
