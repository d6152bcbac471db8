"""Half precision: a plain graph whose numbers are float16, or bfloat16, for GPUs and their like.

Of bfloat16 a network of TensorRT is made. ONNX Runtime cannot run such a graph: its kernels for processors have no
bfloat16, those for CUDA not all that an encoder has (Erf; by its docs/OperatorKernels.md, read in November 2026).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["to_half"]

_KEPT = ("ReduceL2", "ReduceSum", "Max", "Div", "Sqrt", "LayerNormalization", "Pow", "ReduceMean")
"""Sums over a text and norms: half precision overflows in them. The last two are of norms written out, as T5's."""


def to_half(plain: Path, half: Path, *, brain: bool = False) -> None:
    """Write the float16 form of a plain graph, with `brain` the bfloat16 one; inputs and outputs stay as they are."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = onnx.load(str(plain))
    model = convert_float_to_float16(
        model,
        keep_io_types=True,
        op_block_list=list(_KEPT),
        node_block_list=_epsilons(model.graph),
    )
    # it puts its casts last, and a graph's nodes come in the order in which they run
    OnnxModel(model).topological_sort()
    if brain:
        _to_brain(model.graph, onnx.load(str(plain)).graph)
    onnx.save(model, str(half))


def _epsilons(graph: onnx.GraphProto) -> list[str]:
    """Names of the sums between a mean of squares and its root: the mean is as large as what it is of, squared."""
    means = {node.output[0] for node in graph.node if node.op_type == "ReduceMean"}
    return [
        node.name for node in graph.node if node.op_type == "Add" and means.intersection(node.input)
    ]


def _to_brain(graph: onnx.GraphProto, plain: onnx.GraphProto) -> None:
    """Make bfloat16 of all that is float16; weights are rounded once, from those of the plain graph."""
    from onnx import TensorProto

    whole = {item.name: item for item in plain.initializer}
    for item in graph.initializer:
        if item.data_type == TensorProto.FLOAT16:
            item.CopyFrom(_brain_tensor(whole[item.name]))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.BFLOAT16
            if attribute.t.data_type == TensorProto.FLOAT16:
                attribute.t.CopyFrom(_brain_tensor(attribute.t))
    for value in graph.value_info:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.BFLOAT16


def _brain_tensor(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """The same numbers in bfloat16, the nearest that are finite."""
    import ml_dtypes
    import numpy as np
    from onnx import numpy_helper

    most = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)  # type: ignore[no-untyped-call]
    values = np.clip(numpy_helper.to_array(tensor).astype(np.float32), -most, most)
    return numpy_helper.from_array(values.astype(ml_dtypes.bfloat16), tensor.name)
