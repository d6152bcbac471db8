"""Half precision: a plain graph whose numbers are float16, for GPUs and their like."""

from __future__ import annotations

from pathlib import Path

__all__ = ["to_half"]

_KEPT = ("ReduceL2", "ReduceSum", "Max", "Div", "Sqrt", "LayerNormalization")
"""Sums over a text and norms: half precision overflows in them."""


def to_half(plain: Path, half: Path) -> None:
    """Write the float16 form of a plain graph; its inputs and outputs stay as they are."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(
        onnx.load(str(plain)), keep_io_types=True, op_block_list=list(_KEPT)
    )
    onnx.save(model, str(half))
