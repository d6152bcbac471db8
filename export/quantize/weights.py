"""Weights alone, in blocks with a scale each (MatMulNBits): what rounds least, and needs no code to calibrate on.

ONNX Runtime rounds the other side of a product to 8 bits as it comes, a block at a time (accuracy_level 4).
"""

from __future__ import annotations

from pathlib import Path

from codemill.export.quantize.blocks import quantize_blocks
from codemill.export.quantize.tables import quantize_tables

__all__ = ["quantize_weights"]

_FEWEST = 2**12
"""Numbers in a matrix that is worth it."""


def quantize_weights(fused: Path, quantized: Path, bits: int, block: int) -> None:
    """Write `fused`, whose products of weights stand by themselves, with its weights at `bits`; tables at 8."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(str(fused))
    graph = model.graph
    matrices = {item.name: item for item in graph.initializer}
    used: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            used[name] = used.get(name, 0) + 1
    for number, node in enumerate(list(graph.node)):
        weight = matrices.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None or len(weight.dims) != 2 or weight.dims[0] * weight.dims[1] < _FEWEST:
            continue
        # [inputs, outputs] as ONNX has it; a scale is shared by inputs of one output
        found = quantize_blocks(numpy_helper.to_array(weight).T, bits, block)
        assert found.zero_points is not None
        name = weight.name
        if not any(item.name == f"{name}/values" for item in graph.initializer):
            graph.initializer.extend(
                [
                    numpy_helper.from_array(found.values, f"{name}/values"),
                    numpy_helper.from_array(found.scales, f"{name}/scales"),
                    numpy_helper.from_array(found.zero_points, f"{name}/zeros"),
                ]
            )
        inputs = [node.input[0], f"{name}/values", f"{name}/scales", f"{name}/zeros"]
        product = helper.make_node(
            "MatMulNBits",
            inputs,
            list(node.output),
            node.name,
            domain="com.microsoft",
            K=int(weight.dims[0]),
            N=int(weight.dims[1]),
            bits=bits,
            block_size=block,
            accuracy_level=4,
        )
        graph.node.remove(node)
        graph.node.insert(number, product)
        used[name] -= 1
        if not used[name]:
            graph.initializer.remove(weight)
    quantize_tables(model)
    onnx.save(model, str(quantized))
