"""Which operators of a graph an execution provider has, by the lists that ONNX Runtime publishes; nothing is run.

Of CoreML: tools/ci_build/github/apple/coreml_supported_mlprogram_ops.md; of DirectML: docs/OperatorKernels.md; both
of its repository, read in November 2026. What a provider lacks runs on the processor, with copies between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from codemill.runtime.graph import graph_operators

__all__ = ["PUBLISHED", "Coverage", "counted", "coverage", "covered_said"]

_COREML: Final = frozenset(
    (
        *("Add", "ArgMax", "AveragePool", "Cast", "Ceil", "Clip", "Concat", "Conv", "Cos"),
        *("ConvTranspose", "DepthToSpace", "Div", "Elu", "Erf", "Exp", "GatherND", "Gelu", "Gemm"),
        *("GlobalAveragePool", "GlobalMaxPool", "GridSample", "GroupNormalization"),
        *("HardSigmoid", "Identity", "InstanceNormalization", "LayerNormalization", "LeakyRelu"),
        *("MatMul", "Max", "MaxPool", "Mul", "PRelu", "Pow", "Range", "Reciprocal", "ReduceMax"),
        *("ReduceMean", "ReduceSum", "Relu", "Reshape", "Resize", "Round", "Shape", "Sigmoid"),
        *("Sin", "Slice", "Softmax", "Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Tanh"),
        *("Tile", "Transpose", "Unsqueeze"),
    )
)
_DIRECTML: Final = frozenset(
    (
        *("Abs", "Add", "And", "ArgMax", "ArgMin", "Cast", "CastLike", "Ceil", "Clip", "Concat"),
        *("ConstantOfShape", "Cos", "CumSum", "DequantizeLinear", "Div", "DynamicQuantizeLinear"),
        *("Elu", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "Gather", "GatherElements"),
        *("GatherND", "Gemm", "Greater", "GreaterOrEqual", "HardSigmoid", "Identity", "IsInf"),
        *("IsNaN", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax"),
        *("LpNormalization", "MatMul", "MatMulInteger", "Max", "Mean", "Min", "Mod", "Mul", "Neg"),
        *("Not", "Or", "PRelu", "Pad", "Pow", "QLinearMatMul", "QuantizeLinear", "Range"),
        *("Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax"),
        *("ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu"),
        *("Reshape", "Round", "Shape", "Sigmoid", "Sign", "SimplifiedLayerNormalization", "Sin"),
        *("Size", "Slice", "Softmax", "Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Sum"),
        *("Tan", "Tanh", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor"),
    )
)
PUBLISHED: Final = {"CoreMLExecutionProvider": _COREML, "DmlExecutionProvider": _DIRECTML}
"""By provider, the standard operators that it has."""
_FOLDED = ("Constant",)
"""What a session makes part of the graph before a provider sees it."""


@dataclass(frozen=True)
class Coverage:
    """Of `nodes` in all graphs, how many an execution provider has no operator for, by operator."""

    nodes: int
    missing: dict[str, int]

    @property
    def share(self) -> float:
        """Of nodes that it has."""
        return 1 - sum(self.missing.values()) / self.nodes if self.nodes else 1.0


def covered_said(share: float, missing: Mapping[str, int], most: int | None = None) -> str:
    """In words: the share of nodes that a provider has an operator for; the others by operator, the first `most`."""
    lacking = f"; on the processor: {counted(missing, most)}" if missing else ""
    return f"{share:.0%} of nodes have an operator there{lacking}"


def counted(counts: Mapping[str, int], most: int | None = None) -> str:
    """As "Gather x11, Where x3, ...": the first `most` kinds, or all."""
    said = ", ".join(f"{name} x{count}" for name, count in list(counts.items())[:most])
    return said + (", ..." if most is not None and len(counts) > most else "")


def coverage(graphs: list[Path], provider: str) -> Coverage | None:
    """How far a provider covers these graphs, files of ONNX; None of one that publishes no list."""
    known = PUBLISHED.get(provider)
    if known is None:
        return None
    missing: Counter[str] = Counter()
    nodes = 0
    for path in graphs:
        for (domain, operator), count in graph_operators(path).items():
            if operator in _FOLDED:
                continue
            nodes += count
            if domain or operator not in known:
                missing[f"{domain}:{operator}" if domain else operator] += count
    return Coverage(nodes, dict(missing.most_common()))
