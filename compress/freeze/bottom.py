"""How the frozen layers are run once over all texts: in torch, or as a fused ONNX graph where that is faster here.

Making the graph takes some seconds, so it is tried only where there is much to run, and taken only where it is measured
to be faster. The graph computes in float32 what torch may compute in bfloat16: never less exactly.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from codemill.compress.models.pooling import pad, positions
from codemill.errors import CodemillError
from codemill.export.encoder import export_part, inputs_of
from codemill.export.fuse import fuse_encoder
from codemill.export.layers import HIDDEN, part_of
from codemill.runtime.session import OnnxSession

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["By", "Run", "fastest", "in_torch"]

By = Literal["torch", "onnx"]
Run = Callable[[Tensor, Tensor], Tensor]
"""ids, mask int64 [batch, tokens] -> what the last frozen layer gives, float [batch, tokens, width]."""

_WORTH_S = 60.0
"""Of torch, for all texts: what takes less is over before the graph is made."""
_LEAST_TOKENS = 100_000
"""What is less is not even timed."""
_SAMPLE_TOKENS = 4096
_ROUNDS = 3
_FASTER = 1.1
_ALIKE = 1e-3
"""Largest difference between graph and torch, as a share of the largest number."""
_DIVIDED = ("bert", "modernbert", "t5")
"""Families whose layers are exported by themselves."""


def in_torch(encoder: PreTrainedModel, layers: int, bf16: bool) -> Run:
    """The layers as they are, in bfloat16 where training is."""
    bottom = part_of(encoder, 0, layers)

    def run(ids: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            states: Tensor = bottom(ids, mask)[HIDDEN]
        return states

    return run


@torch.no_grad()
def fastest(
    encoder: PreTrainedModel, layers: int, bf16: bool, texts: Sequence[np.ndarray]
) -> tuple[Run, By]:
    """The faster way to run the lowest `layers` layers over `texts` (token ids), by a sample of them."""
    plain = in_torch(encoder, layers, bf16)
    tokens = sum(map(len, texts))
    divided = encoder.config.model_type in _DIVIDED and encoder.device.type == "cpu"
    if tokens < _LEAST_TOKENS or not divided:
        return plain, "torch"
    ids, mask = pad(_sample(texts), positions(encoder))
    share = tokens / int(mask.sum())
    # the first run allocates
    _seconds(plain, ids, mask)
    if _seconds(plain, ids, mask) * share < _WORTH_S:
        return plain, "torch"
    try:
        graph = _as_graph(encoder, layers)
        found = graph(ids, mask)
    except CodemillError:
        return plain, "torch"
    exact = in_torch(encoder, layers, False)(ids, mask)[mask.bool()]
    # what is no number is not alike
    if not float((found[mask.bool()] - exact).abs().max()) <= _ALIKE * float(exact.abs().max()):
        return plain, "torch"
    ratios = [_seconds(plain, ids, mask) / _seconds(graph, ids, mask) for _ in range(_ROUNDS)]
    return (graph, "onnx") if np.median(ratios) > _FASTER else (plain, "torch")


def _sample(texts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Some texts of middling length."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    middle = len(order) // 2
    count = max(1, min(len(order) - middle, _SAMPLE_TOKENS // len(texts[order[middle]])))
    return [texts[index] for index in order[middle : middle + count]]


def _seconds(run: Run, ids: Tensor, mask: Tensor) -> float:
    started = time.perf_counter()
    run(ids, mask)
    return time.perf_counter() - started


def _as_graph(encoder: PreTrainedModel, layers: int) -> Run:
    with tempfile.TemporaryDirectory() as scratch:
        plain, fused = Path(scratch, "plain.onnx"), Path(scratch, "fused.onnx")
        with torch.inference_mode(False), torch.no_grad():
            export_part(encoder, plain, 0, layers)
        fuse_encoder(plain, fused, encoder.config.num_attention_heads, encoder.config.hidden_size)
        session = OnnxSession(fused, threads=torch.get_num_threads())
    names = inputs_of(0)

    def run(ids: Tensor, mask: Tensor) -> Tensor:
        inputs = dict(zip(names, (ids.numpy(), mask.numpy()), strict=True))
        (states,) = session.outputs_for(inputs, (HIDDEN,))
        return torch.from_numpy(states)

    return run
