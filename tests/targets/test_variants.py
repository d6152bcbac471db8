"""What a report says of the variants that it has no figures of."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from tests.export.bundles import embedding_bundle
from tests.export.conftest import tiny_bert

from codemill.export.derive import derive
from codemill.export.quantize.settings import Method, Quantization
from codemill.runtime import read_manifest
from codemill.runtime.bundle import update_bundle
from codemill.runtime.graph import graph_operators
from codemill.runtime.machine import INT8_PRODUCTS, unlike
from codemill.targets.report import bundle_summary
from codemill.targets.variants import variant_rows

DIRECTML = "DmlExecutionProvider"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = embedding_bundle(tmp_path_factory.mktemp("several"), tiny_bert(), 4, ("plain", "fp32"))
    derive(folder, Quantization(Method.FP16), name="windows", provider=DIRECTML)
    variants = dict(read_manifest(folder).variants)
    engine = replace(
        variants["plain-fp32"],
        provider="TensorRT-RTX",
        built_for={"compute_capabilities": ["8.6"], "layers": [{"MATRIX_MULTIPLY": 12, "CAST": 3}]},
    )
    update_bundle(folder, variants={**variants, "laptop-rtx": engine})
    return folder


def test_operators_are_those_that_onnx_finds(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    for variant in manifest.variants.values():
        (path,) = (bundle / name for name in variant.segments)
        nodes = onnx.load(str(path)).graph.node
        expected = Counter((node.domain.removeprefix("ai.onnx"), node.op_type) for node in nodes)
        assert graph_operators(path) == expected


def test_what_cannot_run_here_says_why_and_what_its_provider_covers(bundle: Path) -> None:
    summary = bundle_summary(bundle, "cpu-fp32")
    found = {item.name: item for item in summary.variants}
    assert found["cpu-fp32"].not_run is None
    assert DIRECTML in (found["windows"].not_run or "")
    assert found["windows"].covered is not None
    assert found["windows"].covered > 0.9
    assert found["laptop-rtx"].not_run is not None
    rows = {row[0]: row for row in variant_rows(summary.variants, ["cpu-fp32"])}
    assert rows["cpu-fp32"][4] == "measured"
    assert rows["plain-fp32"][4] == "not measured in this report"
    assert rows["windows"][4].startswith("not run: ")
    assert "of nodes have an operator there" in rows["windows"][5]
    assert "network of 15 layers: MATRIX_MULTIPLY x12, CAST x3" in rows["laptop-rtx"][5]


def test_what_a_manifest_says_oddly_is_no_failure(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(bundle, folder)
    made = dict(read_manifest(folder).variants)
    made["odd"] = replace(
        made["cpu-fp32"],
        precision="int3",
        provider="Foo",
        built_for={
            "compute_capabilities": "8.6",
            "layers": [{"CAST": "many", "GEMM": 10**30, "ADD": True, "MUL": -5, "A" * 99: 1}, 3],
        },
    )
    made["wide"] = replace(made["cpu-fp32"], built_for={INT8_PRODUCTS: True, "layers": 7})
    update_bundle(folder, variants=made)
    found = {item.name: item for item in bundle_summary(folder, "cpu-fp32").variants}
    assert "Foo" in (found["odd"].not_run or "")
    assert found["odd"].layers == {"A" * 64: 1}
    assert found["wide"].not_run == unlike({INT8_PRODUCTS: True})


def test_a_graph_that_nobody_can_read_is_not_covered(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(bundle, folder)
    (path,) = read_manifest(folder).variants["windows"].segments
    (folder / path).write_bytes(b"\xff" * 40)
    update_bundle(folder)
    found = {item.name: item for item in bundle_summary(folder, "cpu-fp32").variants}
    assert found["windows"].covered is None


def test_a_bundle_of_one_variant_has_no_table(tmp_path: Path) -> None:
    folder = embedding_bundle(tmp_path, tiny_bert(), 4, ("plain",))
    assert variant_rows(bundle_summary(folder, "plain-fp32").variants, ["plain-fp32"]) == []
