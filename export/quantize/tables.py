"""Tables of embeddings at 8 bits, a scale for each row: what most of a small encoder's bytes are.

Rows are looked up as they are kept, and only these become float32. (A DequantizeLinear before the look-up, as
quantizers write it, makes the whole table anew for every text.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

__all__ = ["quantize_tables"]

_FEWEST = 2**12
"""Numbers in a table that is worth it."""
_TOP = 127


def quantize_tables(model: onnx.ModelProto) -> int:
    """Keep the float tables that `model` looks rows up in as int8; in place. How many there were."""
    from onnx import TensorProto, numpy_helper

    graph = model.graph
    tables = {
        item.name: item
        for item in graph.initializer
        if item.data_type == TensorProto.FLOAT
        and len(item.dims) == 2
        and int(np.prod(item.dims)) >= _FEWEST
    }
    uses: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            uses.setdefault(name, []).append((node, place))
    done = 0
    for name, table in tables.items():
        looked_up = uses.get(name, [])
        # a table that is multiplied by as well (a tied head) has to stay
        if not looked_up or any(
            node.op_type != "Gather" or place or _axis(node) for node, place in looked_up
        ):
            continue
        rows = numpy_helper.to_array(table)
        scale = (np.abs(rows).max(1, keepdims=True) / _TOP).astype(np.float32)
        scale[scale == 0] = 1
        kept = np.rint(rows / scale).astype(np.int8)
        graph.initializer.remove(table)
        graph.initializer.extend(
            [
                numpy_helper.from_array(kept, f"{name}/int8"),
                numpy_helper.from_array(scale, f"{name}/scale"),
            ]
        )
        for node, _ in looked_up:
            _look_up(graph, node, name)
        done += 1
    return done


def _axis(node: onnx.NodeProto) -> int:
    return next((int(item.i) for item in node.attribute if item.name == "axis"), 0)


def _look_up(graph: onnx.GraphProto, node: onnx.NodeProto, name: str) -> None:
    """In the place of a Gather: its rows as int8, their scales, and the product of both."""
    from onnx import TensorProto, helper

    ids, out = node.input[1], node.output[0]
    at = list(graph.node).index(node)
    made = [
        helper.make_node("Gather", [f"{name}/int8", ids], [f"{out}/int8"], f"{out}/rows"),
        helper.make_node("Cast", [f"{out}/int8"], [f"{out}/float"], to=TensorProto.FLOAT),
        helper.make_node("Gather", [f"{name}/scale", ids], [f"{out}/scale"], f"{out}/scales"),
        helper.make_node("Mul", [f"{out}/float", f"{out}/scale"], [out], f"{out}/product"),
    ]
    graph.node.remove(node)
    for number, item in enumerate(made):
        graph.node.insert(at + number, item)
