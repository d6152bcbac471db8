"""ONNX Runtime dynamic int8: weights per channel, activations quantized as they come."""

from __future__ import annotations

import logging
from pathlib import Path

__all__ = ["quantize_dynamic_int8"]


def quantize_dynamic_int8(fused: Path, quantized: Path, reduce_range: bool) -> None:
    """Write the int8 form of a fused graph: products, attention and embedding tables.

    reduce_range: 7-bit weights. Without VNNI, x86 multiplies u8 by s8 into saturating 16-bit sums, and
    full-range weights then give other answers; seven bits cannot overflow.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    # it advises to pre-process, on the root logger; the graph is already fused
    root.setLevel(logging.ERROR)
    try:
        quantize_dynamic(
            str(fused),
            str(quantized),
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": 1, "MatMulConstBOnly": True},
        )
    finally:
        root.setLevel(level)
