"""A BERT-like encoder in torch -> one plain ONNX graph that pools and normalises its own output.

The graph itself comes out of optimum's exporter; added here is only what turns hidden states into an
embedding, so that any ONNX Runtime, in any language, gets the embedding and not a tensor to pool.
Plain means standard operators only: every variant is derived from this file.
"""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx
from onnx import TensorProto, helper

from codemill.errors import ModelError
from codemill.export.layers import HIDDEN, LAST, NEXT_HIDDEN, layers_in, part_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["INPUTS", "OPSET", "OUTPUT", "export_encoder", "export_part", "handed_on", "inputs_of"]

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "embedding"
OPSET = 17
_HIDDEN = "last_hidden_state"
_EXPORTERS = {"t5": ("t5-encoder", "diffusers")}


def export_encoder(
    model: PreTrainedModel,
    path: Path,
    *,
    pooling: Literal["mean", "cls"] = "mean",
    normalised: bool = True,
) -> None:
    """Write `model` to `path` as ONNX.

    Inputs input_ids, attention_mask int64 [batch, tokens]; output embedding float32 [batch, hidden]:
    the mean of the last hidden states over real tokens, or the first token's, L2-normalised where asked for
    (as sentence-transformers does). Raises ModelError for a family optimum's exporters do not know.
    """
    _export(model, path, _without_token_types(_config_of(model)))
    graph = onnx.load(str(path))
    pooled = (_append_mean if pooling == "mean" else _append_first)(graph.graph)
    _append_output(graph.graph, pooled, normalised, model.config.hidden_size)
    onnx.checker.check_model(graph)
    onnx.save(graph, str(path))


def inputs_of(start: int) -> tuple[str, str]:
    """What a part from this layer takes: ids, or hidden states float32 [batch, tokens, hidden], and the mask."""
    return (HIDDEN, INPUTS[1]) if start else INPUTS


def handed_on(start: int) -> str:
    """Under which name a part from this layer gives its hidden states to the next one."""
    return NEXT_HIDDEN if start else HIDDEN


def export_part(
    model: PreTrainedModel,
    path: Path,
    start: int,
    end: int,
    *,
    pooling: Literal["mean", "cls"] = "mean",
) -> None:
    """Write the layers [start, end) of `model` to `path` as ONNX, the embeddings before them where start is 0.

    Inputs `inputs_of(start)`. Outputs: embedding float32 [batch, hidden], pooled and not normalised; where layers
    follow, `handed_on(start)` float32 [batch, tokens, hidden]. Raises ModelError as `export_encoder` does.
    """
    last = end == layers_in(model)
    _export(part_of(model, start, end), path, _for_part(_config_of(model), model, start, last))
    graph = onnx.load(str(path))
    following = [item for item in graph.graph.output if item.name != LAST]
    pooled = (_append_mean if pooling == "mean" else _append_first)(graph.graph)
    _append_output(graph.graph, pooled, False, model.config.hidden_size)
    graph.graph.output.extend(following)
    onnx.checker.check_model(graph)
    onnx.save(graph, str(path))


def _config_of(model: PreTrainedModel) -> Any:
    """Optimum's export configuration of the model; ModelError for a family it does not know."""
    # which tells the manager of the families
    import optimum.exporters.onnx.model_configs  # noqa: F401
    from optimum.exporters.tasks import TasksManager

    family = model.config.model_type
    # the encoder alone is known to optimum under another name, and another library's
    exporter, library = _EXPORTERS.get(family, (family, "transformers"))
    try:
        make_config = TasksManager.get_exporter_config_constructor(
            exporter="onnx",
            model_type=exporter,
            task="feature-extraction",
            library_name=library,
        )
    except KeyError as error:
        raise ModelError(
            f"models of type {family!r} cannot be exported to ONNX: {error}"
        ) from error
    return make_config(model.config)


def _export(model: PreTrainedModel, path: Path, onnx_config: Any) -> None:
    from optimum.exporters.onnx import export

    # the exporters log and print tracer warnings that mean nothing to a user
    logging.getLogger("optimum").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        export(
            model,
            onnx_config,
            path,
            opset=OPSET,
            disable_dynamic_axes_fix=True,
            do_constant_folding=True,
        )


def _without_token_types(config: Any) -> Any:
    """The same export configuration for ids and mask only: single texts are all of type 0."""
    kind = type(config)
    inputs = {name: {0: "batch_size", 1: "sequence_length"} for name in INPUTS}
    narrowed = type(kind.__name__, (kind,), {"inputs": property(lambda _: inputs)})
    config.__class__ = narrowed
    return config


def _for_part(config: Any, model: PreTrainedModel, start: int, last: bool) -> Any:
    """The export configuration of some layers: what they take, what they give, and an example of it."""
    import torch

    kind = type(config)
    axes = {0: "batch_size", 1: "sequence_length"}
    inputs = dict.fromkeys(inputs_of(start), axes)
    outputs = dict.fromkeys((LAST,) if last else (LAST, handed_on(start)), axes)
    mask = torch.ones(2, 16, dtype=torch.int64)
    first = torch.rand(2, 16, model.config.hidden_size) if start else mask
    example = dict(zip(inputs, (first, mask), strict=True))
    own = {
        "inputs": property(lambda _: inputs),
        "outputs": property(lambda _: outputs),
        "generate_dummy_inputs": lambda *_, **__: example,
    }
    config.__class__ = type(kind.__name__, (kind,), own)
    return config


def _append_mean(graph: onnx.GraphProto) -> str:
    """hidden [batch, tokens, hidden], mask [batch, tokens] -> their mean [batch, hidden]."""
    graph.initializer.append(helper.make_tensor("pool/last_axis", TensorProto.INT64, [1], [-1]))
    graph.initializer.append(helper.make_tensor("pool/token_axis", TensorProto.INT64, [1], [1]))
    graph.initializer.append(helper.make_tensor("pool/tiny", TensorProto.FLOAT, [], [1e-9]))
    graph.node.extend(
        [
            helper.make_node("Cast", ["attention_mask"], ["pool/mask2"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["pool/mask2", "pool/last_axis"], ["pool/mask"]),
            helper.make_node("Mul", [_HIDDEN, "pool/mask"], ["pool/real"]),
            helper.make_node(
                "ReduceSum", ["pool/real", "pool/token_axis"], ["pool/sum"], keepdims=0
            ),
            helper.make_node(
                "ReduceSum", ["pool/mask", "pool/token_axis"], ["pool/count0"], keepdims=0
            ),
            helper.make_node("Max", ["pool/count0", "pool/tiny"], ["pool/count"]),
            helper.make_node("Div", ["pool/sum", "pool/count"], ["pool/mean"]),
        ]
    )
    return "pool/mean"


def _append_first(graph: onnx.GraphProto) -> str:
    """hidden [batch, tokens, hidden] -> the first token's [batch, hidden]."""
    graph.initializer.append(helper.make_tensor("pool/first", TensorProto.INT64, [], [0]))
    graph.node.append(helper.make_node("Gather", [_HIDDEN, "pool/first"], ["pool/token"], axis=1))
    return "pool/token"


def _append_output(graph: onnx.GraphProto, pooled: str, normalised: bool, hidden_size: int) -> None:
    if normalised:
        if not any(item.name == "pool/tiny" for item in graph.initializer):
            graph.initializer.append(helper.make_tensor("pool/tiny", TensorProto.FLOAT, [], [1e-9]))
        graph.node.extend(
            [
                helper.make_node("ReduceL2", [pooled], ["pool/norm0"], axes=[-1], keepdims=1),
                helper.make_node("Max", ["pool/norm0", "pool/tiny"], ["pool/norm"]),
                helper.make_node("Div", [pooled, "pool/norm"], [OUTPUT]),
            ]
        )
    else:
        graph.node.append(helper.make_node("Identity", [pooled], [OUTPUT]))
    del graph.output[:]
    graph.output.append(
        helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", hidden_size])
    )
