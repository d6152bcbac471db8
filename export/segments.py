"""An encoder with heads after some of its layers -> fused graphs: a part, its head, the next part, its head, ...

Each part is exported plainly, as an encoder of its own (`layers.py`), and then fused, so that attention is fused in
a part that begins with hidden states too. What runs them is `runtime/passes.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from codemill.export.candidates import PROVIDER, check_parity
from codemill.export.encoder import OUTPUT, export_part, handed_on, inputs_of
from codemill.export.fuse import fuse_encoder
from codemill.export.layers import layers_in

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

__all__ = ["ExitHead", "export_parts", "part_file", "part_head_file"]


@dataclass(frozen=True)
class ExitHead:
    """A head after `layer` layers, counted from 1: a module as the last head is.

    What torch makes there of the sample that the graphs are held to: embeddings `pooled` [2, dim], `logits` [labels].
    """

    layer: int
    module: nn.Module
    pooled: np.ndarray
    logits: np.ndarray


def part_file(variant: str, number: int) -> str:
    """Where a variant's encoder part lies in a bundle with exits."""
    return f"variants/{variant}/encoder-{number}.onnx"


def part_head_file(variant: str, number: int) -> str:
    """Where the head behind it lies."""
    return f"variants/{variant}/head-{number}.onnx"


def export_parts(
    encoder: PreTrainedModel,
    scratch: Path,
    exits: Sequence[ExitHead],
    *,
    heads: int,
    pooling: Literal["mean", "cls"],
    sample: tuple[np.ndarray, np.ndarray],
    pooled: np.ndarray,
) -> list[tuple[Path, Path]]:
    """Plain and fused graphs in `scratch` of the layers up to each exit, and of those behind the last one.

    sample: ids, mask int64 [2, tokens]; pooled: what torch makes of it at the end, [2, dim]. Each part is given what
    the graph before it gave. Raises CodemillError where one does not reproduce what torch gives.
    """
    ends = [*(item.layer for item in exits), layers_in(encoder)]
    expected = [*(item.pooled for item in exits), pooled]
    made: list[tuple[Path, Path]] = []
    start, taken = 0, sample[0]
    for number, (end, found) in enumerate(zip(ends, expected, strict=True)):
        plain, fused = scratch / f"plain-{number}.onnx", scratch / f"fused-{number}.onnx"
        export_part(encoder, plain, start, end, pooling=pooling)
        inputs = dict(zip(inputs_of(start), (taken, sample[1]), strict=True))
        what = f"ONNX graph of layers {start + 1} to {end}"
        check_parity(plain, inputs, OUTPUT, found, f"the plain {what}")
        fuse_encoder(plain, fused, heads, encoder.config.hidden_size)
        check_parity(fused, inputs, OUTPUT, found, f"the fused {what}")
        made.append((plain, fused))
        if end < ends[-1]:
            taken = _given(fused, inputs, handed_on(start))
        start = end
    return made


def _given(path: Path, inputs: dict[str, np.ndarray], output: str) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=[PROVIDER])
    (found,) = session.run([output], inputs)
    return np.asarray(found)
