"""How a variant is quantized: the one settings type of every method."""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["Method", "Quantization"]


class Method(enum.StrEnum):
    """What is done to a plain fp32 graph."""

    FP32 = "fp32"
    """nothing: it is fused only"""
    DYNAMIC = "dynamic-int8"
    """int8 weights; activations are rounded as they come (ONNX Runtime)"""
    STATIC = "static-int8"
    """int8 weights; activations have fixed ranges, from code that was run through (NNCF)"""
    CONTROLLED = "controlled-int8"
    """as static-int8; products go back to fp32, those that hurt most first, until the bound is met (NNCF)"""
    WEIGHTS_INT8 = "weights-int8"
    """int8 weights in blocks (MatMulNBits)"""
    WEIGHTS_INT4 = "weights-int4"
    """int4 weights in blocks, tables of words at int8"""
    QAT = "qat-int8"
    """as dynamic-int8, of a student that was trained further for it (compress/quantize.py)"""
    FP16 = "fp16"
    """half precision, inputs and outputs as they were; for GPUs"""
    BF16 = "bf16"
    """the same with the range of float32 and fewer digits; for TensorRT"""

    @property
    def precision(self) -> str:
        """What a manifest calls it."""
        return self.value.rsplit("-", 1)[-1]


@dataclass(frozen=True)
class Quantization:
    """One method and what bounds it.

    reduced_range: 7-bit weights where activations are 8-bit. Without VNNI, x86 multiplies u8 by s8 into saturating
    16-bit sums, and full-range weights then give other answers; seven bits cannot overflow. max_loss: share of the
    task's metric that controlled-int8 may cost. samples: texts that activations are seen on. block: weights that share
    a scale, of weights-int8 and weights-int4.
    """

    method: Method
    reduced_range: bool = True
    max_loss: float = 0.005
    samples: int = 128
    block: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.max_loss <= 1:
            raise ValueError(f"max_loss should be a share from 0 to 1, found {self.max_loss}")
        if self.samples < 1:
            raise ValueError(f"samples should be 1 or more, found {self.samples}")
