"""Plain ONNX -> the same graph with ONNX Runtime's fused operators (attention, layer norm, GELU).

One fusion is taken back: SkipLayerNormalization, whose kernel for processors takes several times as long as the sum
and the norm by themselves (docs/LOG.md). For ONNX Runtime only: TensorRT and NNCF do not know these operators and
start from the plain graph.
"""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from codemill.errors import CodemillError

if TYPE_CHECKING:
    import onnx

__all__ = ["fuse_encoder", "fused_operators", "keep_sums_apart"]

_LARGE_BYTES = 1_000_000
_ROWS_LEFT = 2048
"""Of a table: more than there are positions in most models."""
_NORMS = {
    "SkipLayerNormalization": "LayerNormalization",
    "SkipSimplifiedLayerNormalization": "SimplifiedLayerNormalization",
}


def fuse_encoder(
    plain: Path, fused: Path, heads: int, hidden_size: int, *, apart: bool = False
) -> None:
    """Write the fused form of a BERT-like encoder. `heads` x head size may be below `hidden_size`.

    apart: products of weights, and tables of embeddings, stay nodes of their own, to be quantized one by one.
    """
    import onnx
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    options = FusionOptions("bert")
    options.use_multi_head_attention = apart
    options.enable_embed_layer_norm = not apart
    # its passes warn, on loggers of many names, of every pattern they look at and leave
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        model = onnx.load(str(plain))
        aside = _set_aside(model.graph, hidden_size)
        optimized = optimize_model(
            model,
            model_type="bert",
            num_heads=heads,
            hidden_size=hidden_size,
            optimization_options=options,
            opt_level=0,
        )
    except Exception as error:  # the optimizer raises whatever its passes raise
        raise CodemillError(f"ONNX Runtime's optimizer failed on {plain.name}: {error}") from error
    finally:
        logging.disable(disabled)
    _split_skip_norms(optimized.model.graph)
    for tensor in optimized.model.graph.initializer:
        if tensor.name in aside:
            rows, tensor.raw_data = aside.pop(tensor.name)
            tensor.dims[0] = rows
    if aside:
        raise CodemillError(
            f"ONNX Runtime's optimizer lost {', '.join(sorted(aside))} of {plain.name}; this is an exporter's fault: "
            "report it with the model's config.json"
        )
    optimized.save_model_to_file(str(fused))
    # what it is made of refers to itself: a large model would stay for long
    del model, optimized
    gc.collect()


def _set_aside(graph: onnx.GraphProto, hidden_size: int) -> dict[str, tuple[int, bytes]]:
    """Take the large contents out that no fusion looks at; name -> rows and contents.

    Shapes are inferred on several copies of the whole model. Of feed-forward matrices the shape is all that is
    looked at; of a table of words that it has many rows. Attention's matrices are merged, and stay.
    """
    multiplied = {node.input[1] for node in graph.node if node.op_type == "MatMul"}
    tables = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    aside: dict[str, tuple[int, bytes]] = {}
    for tensor in graph.initializer:
        if len(tensor.raw_data) <= _LARGE_BYTES:
            continue
        whole = tensor.dims[0], tensor.raw_data
        if tensor.name in multiplied and max(tensor.dims) > hidden_size:
            aside[tensor.name] = whole
            tensor.ClearField("raw_data")
        elif tensor.name in tables and tensor.dims[0] > _ROWS_LEFT:
            aside[tensor.name] = whole
            tensor.raw_data = tensor.raw_data[: len(tensor.raw_data) // tensor.dims[0] * _ROWS_LEFT]
            tensor.dims[0] = _ROWS_LEFT
    return aside


def _split_skip_norms(graph: onnx.GraphProto) -> None:
    """Residual sum and norm as two operators again: 160 -> 25 us for 205 tokens of width 384 in ONNX Runtime 1.32.

    A `Sum`, because a session would fuse an `Add` once more.
    """
    from onnx import helper

    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        norm = _NORMS.get(node.op_type)
        # the sum itself is wanted further on
        if norm is None or len([name for name in node.output if name]) > 1:
            graph.node.append(node)
            continue
        scales = 2 if norm == "LayerNormalization" else 1
        inputs = list(node.input)
        terms = [*inputs[:2], *(name for name in inputs[2 + scales : 3 + scales] if name)]
        scale = [name for name in inputs[2 : 2 + scales] if name]
        total = f"{node.output[0]}/sum"
        epsilon = next(item.f for item in node.attribute if item.name == "epsilon")
        graph.node.append(helper.make_node("Sum", terms, [total], f"{node.name}/sum"))
        graph.node.append(
            helper.make_node(
                norm, [total, *scale], [node.output[0]], node.name, axis=-1, epsilon=epsilon
            )
        )


def keep_sums_apart(graph: onnx.GraphProto) -> None:
    """Make a `Sum` of each `Add` before a norm, so that a session does not fuse the two (`_split_skip_norms`)."""
    normed = {node.input[0] for node in graph.node if node.op_type in _NORMS.values()}
    for node in graph.node:
        if node.op_type == "Add" and node.output[0] in normed:
            node.op_type = "Sum"


def fused_operators(path: Path) -> dict[str, int]:
    """How often each com.microsoft operator occurs in the graph: what was fused."""
    import onnx

    counts: dict[str, int] = {}
    for node in onnx.load(str(path)).graph.node:
        if node.domain == "com.microsoft":
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts
