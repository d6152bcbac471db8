"""Every way to quantize, of a bundle that embeds and of one that labels with exits, from their plain graphs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from codemill import load
from codemill.compress.stages.quantized import copy_variant
from codemill.errors import ModelError
from codemill.export.candidates import PLAIN, PROVIDER
from codemill.export.chain import Chain
from codemill.export.derive import derive
from codemill.export.encoder import OUTPUT
from codemill.export.quantize.half import to_half
from codemill.export.quantize.settings import Method, Quantization
from codemill.export.quantize.static import _MOST_RESTORED, quantize_static
from codemill.export.quantize.tables import quantize_tables
from codemill.runtime import load_classifier, read_manifest, verify_bundle
from codemill.runtime.engines import TENSORRT_PROVIDER, TENSORRT_PROVIDERS
from codemill.runtime.machine import INT8_PRODUCTS, this_machine, unlike
from codemill.runtime.session import OnnxSession
from codemill.targets.evaluation import Evaluation, LabelledEvaluation

from .bundles import embedding_bundle, labelling_bundle

TEXTS = ["open file", "close the file", "open", "file close open open", "close", "open close"]
EVALUATION = Evaluation("validation", tuple(TEXTS), tuple(text + " file" for text in TEXTS))
ROWS = [(text,) for text in TEXTS]
SATURATES = not this_machine().has_int8_products
"""Whether sums of 8-bit products do not fit here, as on x86 without VNNI, unless weights have 7 bits."""
ON_PROCESSORS = [method for method in Method if method not in (Method.FP16, Method.BF16)]
NEAR = {
    Method.FP32: 1e-5,
    Method.WEIGHTS_INT8: 0.03,
    Method.DYNAMIC: 0.1,
    Method.QAT: 0.1,
    Method.CONTROLLED: 0.15,
    Method.STATIC: 0.15,
    Method.WEIGHTS_INT4: 0.3,
}
"""By which a component of an embedding may differ."""


@pytest.fixture(scope="module")
def plain(graphs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedding_bundle(tmp_path_factory.mktemp("plain"), graphs.model, graphs.heads)


@pytest.mark.parametrize("method", ON_PROCESSORS)
def test_each_method_gives_nearly_what_the_plain_graph_gives(plain: Path, method: Method) -> None:
    name = derive(plain, Quantization(method), validation=EVALUATION, calibration=ROWS)
    verify_bundle(plain)
    manifest = read_manifest(plain)
    assert name == method.value
    assert manifest.variants[name].precision == method.precision
    with load(plain, variant=PLAIN, threads=1) as model:
        expected = model.encode(TEXTS)
    with load(plain, variant=name, threads=1) as model:
        found = model.encode(TEXTS)
    assert np.abs(found - expected).max() < NEAR[method]
    if method not in (Method.FP32, Method.CONTROLLED):
        # products and tables of embeddings too
        graph = onnx.load(str(plain / manifest.variants[name].segments[0])).graph
        floats = [
            item.name
            for item in graph.initializer
            if item.data_type == onnx.TensorProto.FLOAT and np.prod(item.dims) >= 2**12
        ]
        assert floats == []


def test_accuracy_control_does_not_ask_for_the_score_of_each_feed(
    plain: Path, tmp_path: Path
) -> None:
    source = plain / read_manifest(plain).variants[PLAIN].segments[0]
    chain = Chain(plain, read_manifest(plain), EVALUATION, ROWS)
    feeds = chain.feeds(0) * 10
    (expected,) = OnnxSession(source).outputs_for(feeds[0], (OUTPUT,))
    asked = 0

    def score(session: Any) -> float:
        nonlocal asked
        asked += 1
        (found,) = session.run([OUTPUT], dict(feeds[0]))
        return 1.0 - float(np.abs(found - expected).max())

    # nothing may be lost: products are given back, the most harmful first, until nothing is
    how = Quantization(Method.CONTROLLED, max_loss=1e-7)
    said: list[tuple[int, int]] = []
    quantize_static(
        source,
        tmp_path / "kept.onnx",
        how,
        feeds,
        score,
        judged=lambda done, most: said.append((done, most)),
    )
    # a bar that goes on and never passes its end
    assert len(said) > asked
    assert [done for done, _ in said] == list(range(len(said)))
    assert all(done < most for done, most in said)
    # of the graph before and after, then once for each group that is given back: never of single feeds
    assert 2 < asked <= 3 + _MOST_RESTORED < len(feeds)
    (found,) = OnnxSession(tmp_path / "kept.onnx").outputs_for(feeds[0], (OUTPUT,))
    assert np.abs(found - expected).max() < 0.05


def test_half_precision_keeps_inputs_and_outputs(plain: Path, tmp_path: Path) -> None:
    source = plain / read_manifest(plain).variants[PLAIN].segments[0]
    to_half(source, tmp_path / "half.onnx")
    made, before = onnx.load(str(tmp_path / "half.onnx")), onnx.load(str(source))
    for side in ("input", "output"):
        kinds = [
            [(item.name, item.type.tensor_type.elem_type) for item in getattr(model.graph, side)]
            for model in (before, made)
        ]
        assert kinds[0] == kinds[1]
    floats = [
        item.name
        for item in made.graph.initializer
        if item.data_type == onnx.TensorProto.FLOAT and np.prod(item.dims) > 64
    ]
    assert floats == []


def test_bfloat16_is_half_precision_of_another_kind_and_its_weights_are_rounded_once(
    plain: Path, tmp_path: Path
) -> None:
    import ml_dtypes
    from onnx import TensorProto, numpy_helper

    source = plain / read_manifest(plain).variants[PLAIN].segments[0]
    for brain, name in ((False, "half"), (True, "brain")):
        to_half(source, tmp_path / f"{name}.onnx", brain=brain)
    whole, half, made = (
        onnx.load(str(path)).graph
        for path in (source, tmp_path / "half.onnx", tmp_path / "brain.onnx")
    )
    assert [node.op_type for node in made.node] == [node.op_type for node in half.node]

    def kinds(graph: onnx.GraphProto) -> list[int]:
        casts = [item.i for node in graph.node if node.op_type == "Cast" for item in node.attribute]
        held = [item.t.data_type for node in graph.node for item in node.attribute if item.t.dims]
        weights = [item.data_type for item in graph.initializer]
        sides = (*graph.input, *graph.output, *graph.value_info)
        return [*casts, *held, *weights, *(item.type.tensor_type.elem_type for item in sides)]

    assert TensorProto.FLOAT16 in kinds(half)
    assert TensorProto.FLOAT16 not in kinds(made)
    changed = [TensorProto.BFLOAT16 if k == TensorProto.FLOAT16 else k for k in kinds(half)]
    assert kinds(made) == changed
    weights = {item.name: numpy_helper.to_array(item) for item in whole.initializer}
    for item in made.initializer:
        if item.data_type == TensorProto.BFLOAT16:
            expected = weights[item.name].astype(ml_dtypes.bfloat16)
            assert np.array_equal(numpy_helper.to_array(item), expected)
    with pytest.raises(ValueError, match="bf16 is not made for CPUExecutionProvider"):
        derive(plain, Quantization(Method.BF16))


@pytest.mark.parametrize("provider", TENSORRT_PROVIDERS)
@pytest.mark.parametrize("method", [Method.FP32, Method.FP16, Method.STATIC])
def test_for_onnx_runtimes_tensorrt_graphs_have_standard_operators(
    plain: Path, provider: str, method: Method
) -> None:
    name = f"{provider}-{method.precision}"
    how = Quantization(method, reduced_range=SATURATES)
    derive(plain, how, name=name, provider=provider, calibration=ROWS)
    verify_bundle(plain)
    made = read_manifest(plain).variants[name]
    assert (made.provider, made.precision) == (provider, method.precision)
    (profile,) = made.built_for["profiles"]
    assert profile["least"] == [1, 1]
    assert profile["most"] == [32, 40]
    assert 1 < profile["usual"][1] < 10
    assert set(made.built_for) == {"profiles"}
    graph = onnx.load(str(plain / made.segments[0])).graph
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}
    symmetric = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert bool(symmetric) == (method is Method.STATIC)
    # the same numbers on a processor
    session = OnnxSession(plain / made.segments[0], threads=1)
    with load(plain, variant=PLAIN, threads=1) as model:
        (graph_of_plain,) = model.graphs
        ids = np.array([[2, 4, 3], [3, 2, 4]])
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        (expected,) = graph_of_plain.outputs_for(given, ("embedding",))
    (found,) = session.outputs_for(given, ("embedding",))
    assert np.abs(found - expected).max() < {**NEAR, Method.FP16: 0.01}[method]


def test_parts_and_heads_are_made_for_onnx_runtimes_tensorrt_too(tmp_path: Path) -> None:
    folder = labelling_bundle(tmp_path, 2)
    derive(folder, Quantization(Method.FP16), name="half", provider=TENSORRT_PROVIDERS[1])
    verify_bundle(folder)
    made = read_manifest(folder).variants["half"]
    assert len(made.segments) == 6
    assert all(path.endswith(".onnx") for path in made.segments)
    with pytest.raises(ValueError, match=r"weights-int4 is not made for TensorrtExecutionProvider"):
        derive(folder, Quantization(Method.WEIGHTS_INT4), provider=TENSORRT_PROVIDERS[1])


def test_a_table_that_is_multiplied_by_as_well_stays(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, numpy_helper

    table = numpy_helper.from_array(np.ones((128, 64), np.float32), "table")
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["table", "x"], ["y"]),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [1])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [64, 1])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("rows", "y")
    ]
    graph = helper.make_graph(nodes, "tied", [ids, x], outputs, [table])
    assert quantize_tables(helper.make_model(graph)) == 0
    graph = helper.make_graph(nodes[:1], "tied", [ids], outputs[:1], [table])
    assert quantize_tables(helper.make_model(graph)) == 1


def test_a_bundle_without_plain_graphs_says_so(plain: Path, tmp_path: Path, graphs: Any) -> None:
    embedding_bundle(tmp_path, graphs.model, graphs.heads, ("fp32",))
    with pytest.raises(ModelError, match=r"no variant 'plain-fp32'.*it has: cpu-fp32"):
        derive(tmp_path, Quantization(Method.DYNAMIC))
    with pytest.raises(ModelError, match="needs validation data"):
        derive(plain, Quantization(Method.CONTROLLED), calibration=ROWS)


@pytest.mark.parametrize("method", [Method.STATIC, Method.CONTROLLED, Method.WEIGHTS_INT8])
@pytest.mark.parametrize("texts", [1, 2])
def test_parts_with_exits_are_quantized_one_after_another(
    method: Method, texts: int, tmp_path: Path
) -> None:
    folder = labelling_bundle(tmp_path, texts)
    asked = tuple(TEXTS)
    rows = tuple((n,) if texts == 1 else (n, (n + 1) % len(asked)) for n in range(len(asked)))
    items: Any = [asked[row[0]] if texts == 1 else (asked[row[0]], asked[row[1]]) for row in rows]
    with load_classifier(folder, variant=PLAIN, threads=1) as model:
        expected = model.probabilities(items)
    truth = tuple(int(label) for label in expected.argmax(1))
    validation = LabelledEvaluation("validation", ("a", "b", "c"), asked, rows, truth)
    how = Quantization(method, reduced_range=SATURATES)
    name = derive(folder, how, validation=validation, calibration=ROWS)
    manifest = read_manifest(folder)
    assert len(manifest.variants[name].segments) == len(manifest.variants[PLAIN].segments) == 6
    with load_classifier(folder, variant=name, threads=1) as model:
        found = model.probabilities(items)
    if method is Method.CONTROLLED:
        # what it keeps to is the share of right decisions: how sure they are may change
        assert found.argmax(1).tolist() == list(truth)
    else:
        assert np.abs(found - expected).max() < 0.25


@pytest.mark.parametrize(
    ("method", "provider", "asks"),
    [
        (Method.DYNAMIC, PROVIDER, True),
        (Method.STATIC, PROVIDER, True),
        (Method.WEIGHTS_INT8, PROVIDER, False),
        (Method.STATIC, TENSORRT_PROVIDER, False),
    ],
)
def test_eight_bits_beside_eight_bits_ask_for_a_processor_that_sums_them(
    plain: Path, tmp_path: Path, method: Method, provider: str, asks: bool
) -> None:
    folder = tmp_path / "wide"
    shutil.copytree(plain, folder)
    for reduced in (True, False):
        how = Quantization(method, reduced_range=reduced)
        derive(folder, how, name=f"made-{reduced}", provider=provider, calibration=ROWS)
    variants = read_manifest(folder).variants
    assert INT8_PRODUCTS not in variants["made-True"].built_for
    assert variants["made-False"].built_for.get(INT8_PRODUCTS, False) is asks


def test_eight_bits_are_passed_over_where_they_would_answer_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def on(flags: str) -> str | None:
        monkeypatch.setattr("codemill.runtime.machine._read", lambda _: f"flags\t: {flags}\n")
        return unlike({INT8_PRODUCTS: True})

    assert "8-bit products" in (on("avx2 fma") or "")
    assert on("avx2 fma avx_vnni") is None
    assert on("avx2 avx512_vnni") is None
    # a system that does not tell
    monkeypatch.setattr("codemill.runtime.machine._read", lambda _: "")
    assert unlike({INT8_PRODUCTS: True}) is None


def test_what_a_form_asks_of_a_processor_goes_with_it_into_the_bundle_that_ships(
    plain: Path, tmp_path: Path
) -> None:
    folder, shipped = tmp_path / "wide", tmp_path / "shipped"
    shutil.copytree(plain, folder)
    derive(folder, Quantization(Method.DYNAMIC, reduced_range=False))
    found = copy_variant(folder, Method.DYNAMIC.value, shipped, "cpu-int8")
    assert found.built_for == {INT8_PRODUCTS: True}
    assert found.files == ("variants/cpu-int8/encoder.onnx",)
    assert (shipped / found.files[0]).is_file()
