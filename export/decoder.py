"""A Llama-style decoder in torch -> one plain ONNX graph with its keys and values -> its int8 form.

The graph comes out of optimum's exporter; added here is only that a table which the embedding and the
head share is stored once. Plain means standard operators only: segments and fused attention are
derived from this file.
"""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from codemill.errors import ModelError
from codemill.export.quantize.dynamic import quantize_dynamic_int8

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["LOGITS", "export_decoder", "quantize_decoder_int8"]

LOGITS = "logits"
_OPSET = 17
_IDS = "input_ids"
_HEAD = "head/weight"
_WORDS = "words"


def export_decoder(model: PreTrainedModel, path: Path) -> None:
    """Write `model` to `path` as ONNX, with optimum's names.

    Inputs input_ids, position_ids int64 [batch, tokens]; attention_mask int64 [batch, past + tokens];
    past_key_values.N.key, .value float32 [batch, kv_heads, past, head_size], past 0 for a prompt.
    Outputs logits float32 [batch, tokens, vocab]; present.N.key, .value [batch, kv_heads, past +
    tokens, head_size]. A tied table is stored once: the head multiplies by its Transpose, which ONNX
    Runtime folds as it loads. Raises ModelError for a family optimum's exporters do not know.
    """
    from optimum.exporters.onnx import export
    from optimum.exporters.tasks import TasksManager

    family = model.config.model_type
    try:
        make_config = TasksManager.get_exporter_config_constructor(
            exporter="onnx",
            model_type=family,
            task="text-generation-with-past",
            library_name="transformers",
        )
    except KeyError as error:
        raise ModelError(
            f"models of type {family!r} cannot be exported to ONNX: {error}"
        ) from error
    implementation = model.config._attn_implementation
    # traced scaled dot product attention guards each row against NaN: nodes that nothing needs
    model.set_attn_implementation("eager")
    # the exporters log and print tracer warnings that mean nothing to a user
    logging.getLogger("optimum").setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            export(
                model,
                make_config(model.config, use_past_in_inputs=True),
                path,
                opset=_OPSET,
                disable_dynamic_axes_fix=True,
                do_constant_folding=True,
            )
    finally:
        model.set_attn_implementation(implementation)
    graph = onnx.load(str(path))
    _tie(graph.graph)
    onnx.checker.check_model(graph)
    onnx.save(graph, str(path))


def quantize_decoder_int8(plain: Path, quantized: Path, reduce_range: bool) -> None:
    """Write the int8 form of what `export_decoder` wrote: products and embedding tables.

    A tied table is stored once, with a scale for each token: the head's product has one for each of
    its columns, and the look-up takes the same. (Left alone, ONNX Runtime's quantizer stores two
    tables, the embedding's with one scale in all.) `reduce_range` as in `quantize_dynamic_int8`.
    """
    model = onnx.load(str(plain))
    words = _cut_lookup(model.graph)
    with tempfile.TemporaryDirectory() as scratch:
        untied, integer = Path(scratch, "untied.onnx"), Path(scratch, "integer.onnx")
        onnx.save(model, str(untied))
        quantize_dynamic_int8(untied, integer, reduce_range)
        model = onnx.load(str(integer))
    if words is not None:
        _look_up_in_head(model.graph, words)
    # the quantizer leaves its inferred shapes, a quarter of what is not weights
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    onnx.save(model, str(quantized))


def _tie(graph: onnx.GraphProto) -> None:
    """Where the head's weight [width, vocab] is the embedding's table [vocab, width], keep the table only."""
    head, table = _producer(graph, LOGITS), _initializer(graph, _lookup(graph).input[0])
    weight = _initializer(graph, head.input[1])
    if list(weight.dims) != list(table.dims)[::-1] or not np.array_equal(
        numpy_helper.to_array(weight), numpy_helper.to_array(table).T
    ):
        return
    graph.initializer.remove(weight)
    head.input[1] = _HEAD
    _prepend(graph, [helper.make_node("Transpose", [table.name], [_HEAD], perm=[1, 0])])


def _cut_lookup(graph: onnx.GraphProto) -> str | None:
    """Give a tied head its weight [width, vocab] back; the look-up's output becomes an input, which is returned.

    None where the head is not tied: nothing is changed.
    """
    head, lookup = _producer(graph, LOGITS), _lookup(graph)
    turned = next((node for node in graph.node if node.output[0] == head.input[1]), None)
    if turned is None:
        return None
    table = _initializer(graph, lookup.input[0])
    weight = np.ascontiguousarray(numpy_helper.to_array(table).T)
    for node in (lookup, turned):
        graph.node.remove(node)
    graph.initializer.remove(table)
    graph.initializer.append(numpy_helper.from_array(weight, _HEAD))
    words = str(lookup.output[0])
    graph.input.append(helper.make_tensor_value_info(words, TensorProto.FLOAT, None))
    return words


def _look_up_in_head(graph: onnx.GraphProto, words: str) -> None:
    """Put the look-up back: rows of the head's int8 table [vocab, width], times their scales [vocab]."""
    weight = _initializer(graph, f"{_HEAD}_quantized")
    rows = np.ascontiguousarray(numpy_helper.to_array(weight).T)
    graph.initializer.remove(weight)
    graph.initializer.append(numpy_helper.from_array(rows, f"{_WORDS}/table"))
    graph.initializer.append(helper.make_tensor(f"{_WORDS}/axis", TensorProto.INT64, [1], [-1]))
    (stand_in,) = (value for value in graph.input if value.name == words)
    graph.input.remove(stand_in)
    _prepend(
        graph,
        [
            helper.make_node("Transpose", [f"{_WORDS}/table"], [weight.name], perm=[1, 0]),
            helper.make_node("Gather", [f"{_WORDS}/table", _IDS], [f"{_WORDS}/int8"]),
            helper.make_node("Cast", [f"{_WORDS}/int8"], [f"{_WORDS}/rows"], to=TensorProto.FLOAT),
            helper.make_node("Gather", [f"{_HEAD}_scale", _IDS], [f"{_WORDS}/scale0"]),
            helper.make_node(
                "Unsqueeze", [f"{_WORDS}/scale0", f"{_WORDS}/axis"], [f"{_WORDS}/scale"]
            ),
            helper.make_node("Mul", [f"{_WORDS}/rows", f"{_WORDS}/scale"], [words]),
        ],
    )


def _producer(graph: onnx.GraphProto, output: str) -> onnx.NodeProto:
    node: onnx.NodeProto = next(node for node in graph.node if output in node.output)
    return node


def _lookup(graph: onnx.GraphProto) -> onnx.NodeProto:
    """The word embedding: the Gather that input_ids index."""
    node: onnx.NodeProto = next(
        node for node in graph.node if node.op_type == "Gather" and node.input[1] == _IDS
    )
    return node


def _initializer(graph: onnx.GraphProto, name: str) -> onnx.TensorProto:
    tensor: onnx.TensorProto = next(value for value in graph.initializer if value.name == name)
    return tensor


def _prepend(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    for node in reversed(nodes):
        graph.node.insert(0, node)
