"""Plain, fused and int8 graphs, held to torch and to each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from codemill.export.encoder import INPUTS, OPSET, OUTPUT, export_encoder
from codemill.export.fuse import fuse_encoder, fused_operators
from codemill.export.quantize.dynamic import quantize_dynamic_int8

SAMPLES = [(9,), (40, 3, 17), (1, 1)]


def run(path: Path, sample: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run([OUTPUT], dict(zip(INPUTS, sample, strict=True)))
    return np.asarray(found)


def initializers(path: Path) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load(str(path)).graph.initializer}


@pytest.mark.parametrize("lengths", SAMPLES)
def test_the_plain_and_the_fused_graph_give_what_torch_gives(
    graphs: Any, lengths: tuple[int, ...]
) -> None:
    sample = graphs.sample(*lengths)
    expected = graphs.in_torch(sample)
    for path in (graphs.plain, graphs.fused):
        found = run(path, sample)
        assert found.dtype == np.float32
        assert found.shape == (len(lengths), 64)
        assert np.abs(found - expected).max() < 1e-5


@pytest.mark.parametrize("lengths", SAMPLES)
def test_int8_points_the_same_way(graphs: Any, lengths: tuple[int, ...]) -> None:
    sample = graphs.sample(*lengths)
    found, expected = run(graphs.int8, sample), graphs.in_torch(sample)
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-5
    assert ((found * expected).sum(axis=1) > 0.99).all()
    assert np.abs(found - expected).max() > 1e-6, "it is quantized"


@pytest.mark.parametrize("form", ["plain", "fused", "int8"])
def test_the_graphs_take_ids_and_mask_and_give_one_embedding(graphs: Any, form: str) -> None:
    session = onnxruntime.InferenceSession(
        str(getattr(graphs, form)), providers=["CPUExecutionProvider"]
    )
    assert [(i.name, i.type) for i in session.get_inputs()] == [
        (name, "tensor(int64)") for name in INPUTS
    ]
    assert all(isinstance(axis, str) for i in session.get_inputs() for axis in i.shape)
    (output,) = session.get_outputs()
    assert (output.name, output.type, output.shape[1]) == (OUTPUT, "tensor(float)", 64)


def test_padding_beside_a_longer_text_changes_no_embedding(graphs: Any) -> None:
    ids, mask = graphs.sample(7, 40)
    for path in (graphs.plain, graphs.fused):
        alone = run(path, (ids[:1, :7], mask[:1, :7]))
        assert np.abs(run(path, (ids, mask))[:1] - alone).max() < 1e-5


def test_the_plain_graph_has_standard_operators_only(graphs: Any) -> None:
    assert fused_operators(graphs.plain) == {}
    model = onnx.load(str(graphs.plain))
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == OPSET


def test_attention_norms_and_gelu_are_fused(graphs: Any) -> None:
    found, layers = fused_operators(graphs.fused), len(graphs.model.encoder.layer)
    assert found["Attention"] == layers
    nodes = [node.op_type for node in onnx.load(str(graphs.fused)).graph.node]
    assert (
        nodes.count("LayerNormalization") + found.get("EmbedLayerNormalization", 0)
        == 2 * layers + 1
    )
    assert found["BiasGelu"] == layers
    heads = {
        attribute.i
        for node in onnx.load(str(graphs.fused)).graph.node
        for attribute in node.attribute
        if node.op_type == "Attention" and attribute.name == "num_heads"
    }
    assert heads == {graphs.heads}


@pytest.mark.parametrize("form", ["fused", "int8"])
def test_a_session_runs_no_slow_sum_and_norm_in_one(graphs: Any, form: str, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "as-run.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        str(getattr(graphs, form)), options, providers=["CPUExecutionProvider"]
    )
    run_as = {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}
    assert "Sum" in run_as
    assert "SkipLayerNormalization" not in run_as


def test_int8_shrinks_products_and_embedding_tables(graphs: Any) -> None:
    before, after = graphs.fused.stat().st_size, graphs.int8.stat().st_size
    assert after < 0.45 * before
    # the tables are of these sizes, all the products' matrices of none of them
    table = graphs.model.embeddings.word_embeddings
    rows = getattr(table, "table", table).weight.shape
    kinds = {
        tensor.data_type
        for tensor in initializers(graphs.int8).values()
        if tuple(tensor.dims) == tuple(rows)
    }
    assert kinds <= {TensorProto.INT8, TensorProto.UINT8}
    assert kinds
    floats = [
        np.prod(tensor.dims)
        for tensor in initializers(graphs.int8).values()
        if tensor.data_type == TensorProto.FLOAT
    ]
    assert max(floats) <= 4 * 128, "only biases, norms and scales stay in float"


def test_seven_bits_cannot_overflow_without_vnni(graphs: Any, tmp_path: Path) -> None:
    def largest(path: Path) -> int:
        return max(
            int(np.abs(numpy_helper.to_array(tensor).astype(int)).max())
            for tensor in initializers(path).values()
            if tensor.data_type == TensorProto.INT8
        )

    full = tmp_path / "full.onnx"
    quantize_dynamic_int8(graphs.fused, full, reduce_range=False)
    assert largest(graphs.int8) <= 64 < largest(full) <= 128


def test_the_same_model_gives_the_same_bytes(graphs: Any, tmp_path: Path) -> None:
    """A bundle's digest hangs on it."""
    plain, fused, int8 = (tmp_path / name for name in ("plain", "fused", "int8"))
    export_encoder(graphs.model, plain)
    fuse_encoder(plain, fused, graphs.heads, 64)
    quantize_dynamic_int8(fused, int8, reduce_range=True)
    assert fused.read_bytes() == graphs.fused.read_bytes()
    assert int8.read_bytes() == graphs.int8.read_bytes()
