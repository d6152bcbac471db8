"""Bundles of OpenVINO's format: the same answers as ONNX Runtime's, and nothing else is read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import codemill
from codemill.errors import BundleError, ProviderError
from codemill.export.candidates import PLAIN
from codemill.export.derive import derive
from codemill.export.openvino import write_ir
from codemill.export.quantize.settings import Method, Quantization
from codemill.runtime import load_classifier, read_manifest, verify_bundle
from codemill.runtime.bundle import Variant, update_bundle
from codemill.runtime.engines import OPENVINO
from codemill.runtime.session import available_providers, choose_variant

from .bundles import embedding_bundle, labelling_bundle
from .conftest import tiny_bert

pytest.importorskip("openvino")
TEXTS = ["open file", "close the file", "open", "file close open open", "close", "open close"]
ROWS = [(text,) for text in TEXTS]
CPU = "CPUExecutionProvider"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = embedding_bundle(tmp_path_factory.mktemp("openvino"), tiny_bert(), 4)
    for method in (Method.FP32, Method.STATIC):
        name = f"openvino-{method.precision}"
        derive(folder, Quantization(method), name=name, provider=OPENVINO, calibration=ROWS)
    return folder


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(bundle, tmp_path / "copy")
    return tmp_path / "copy"


def spoiled(folder: Path, old: str, new: str) -> Path:
    """The bundle with a text of its graph replaced, and hashed again."""
    graph = folder / "variants/openvino-fp32/encoder.xml"
    text = graph.read_text()
    assert old in text
    graph.write_text(text.replace(old, new, 1))
    update_bundle(folder)
    return folder


def test_it_gives_what_onnx_runtime_gives(bundle: Path) -> None:
    verify_bundle(bundle)
    manifest = read_manifest(bundle)
    assert manifest.variants["openvino-int8"].provider == OPENVINO
    assert manifest.variants["openvino-int8"].files == (
        "variants/openvino-int8/encoder.xml",
        "variants/openvino-int8/encoder.bin",
    )
    with codemill.load(bundle, variant=PLAIN, threads=1) as model:
        expected = model.encode(TEXTS)
    for variant, near in (("openvino-fp32", 1e-5), ("openvino-int8", 0.15)):
        with codemill.load(bundle, variant=variant, threads=1) as model:
            assert np.abs(model.encode(TEXTS) - expected).max() < near
            model.close()
            with pytest.raises(RuntimeError):
                model.encode(TEXTS)


def test_what_was_compiled_of_other_weights_is_not_taken(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODEMILL_CACHE", str(tmp_path / "cache"))
    other = tmp_path / "other"
    shutil.copytree(bundle, other)
    weights = other / "variants/openvino-fp32/encoder.bin"
    table = tiny_bert().embeddings.word_embeddings.weight.detach().numpy()
    content = weights.read_bytes()
    assert content.count(table.tobytes()) == 1
    weights.write_bytes(content.replace(table.tobytes(), (-table).tobytes()))
    update_bundle(other)
    place = tmp_path / "app"

    def updated(to: Path) -> Any:
        """An application's new version at the same place, its files dated as packagers date them."""
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(to, place)
        for file in place.rglob("*"):
            os.utime(file, (1, 1))
        with codemill.load(place, variant="openvino-fp32", threads=1) as found:
            return found.encode(TEXTS)

    before, after = updated(bundle), updated(other)
    with codemill.load(other, variant="openvino-fp32", threads=1) as found:
        assert np.abs(found.encode(TEXTS) - after).max() < 1e-6
    assert np.abs(before - after).max() > 0.1


def test_threads_have_requests_of_their_own(bundle: Path) -> None:
    with codemill.load(bundle, variant="openvino-fp32", threads=1) as model:
        expected = [model.encode([text]) for text in TEXTS]
        with ThreadPoolExecutor(4) as pool:
            for _ in range(20):
                found = list(pool.map(lambda text: model.encode([text]), TEXTS))
                assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("texts", [1, 2])
def test_exits_run_too(texts: int, tmp_path: Path) -> None:
    folder = labelling_bundle(tmp_path, texts)
    derive(folder, Quantization(Method.FP32), name="openvino-fp32", provider=OPENVINO)
    exits = [{**item, "threshold": 0.6} for item in read_manifest(folder).exits]
    update_bundle(folder, exits=exits)
    items: Any = TEXTS if texts == 1 else list(zip(TEXTS, TEXTS[1:] + TEXTS[:1], strict=True))
    with load_classifier(folder, variant=PLAIN, threads=1) as model:
        expected = model.run(items)
    with load_classifier(folder, variant="openvino-fp32", threads=1) as model:
        found = model.run(items)
    assert np.abs(found.probabilities - expected.probabilities).max() < 1e-4
    assert found.layers_used.tolist() == expected.layers_used.tolist()


def test_the_processor_comes_before_it_and_plain_graphs_come_last(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert OPENVINO in available_providers()
    both = (CPU, OPENVINO)
    # what is there for others to be made of is run only where nothing else can be
    assert choose_variant(manifest, both) == "openvino-int8"
    assert choose_variant(manifest, (CPU,)) == PLAIN
    fused = Variant(CPU, "fp32", ("x",), ("x",))
    more = replace(manifest, variants={**manifest.variants, "cpu-fp32": fused})
    assert choose_variant(more, both) == "cpu-fp32"


def test_what_is_not_made_for_it_is_said(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights-int4 is not made for OpenVINO"):
        write_ir(
            bundle / read_manifest(bundle).variants[PLAIN].segments[0],
            tmp_path / "x.xml",
            Quantization(Method.WEIGHTS_INT4),
        )


def test_without_openvino_it_is_an_error_that_says_what_to_install(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ProviderError, match=r"codemill\[openvino\]"):
        codemill.load(bundle, variant="openvino-fp32")


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('type="MatMul" version="opset1"', 'type="If" version="opset8"', "operator 'If'"),
        ('type="MatMul" version="opset1"', 'type="MatMul" version="extension"', "of 'extension'"),
        ("<net ", "<!DOCTYPE net []><net ", "document type"),
        ("<net ", "<ten ", "no XML"),
        ("<layers>", '<layers xmlns="x">', "a namespace"),
        ("<layers>", "<layers></layers><layers>", "expected layers, edges"),
        ("<layers>", "<layers><layer><layers></layers></layer>", "has a 'layer' that holds"),
        ('<data element_type="f32"', '<data></data><data element_type="f32"', "that holds"),
        ('offset="0"', 'offset="999999999"', "ends behind its weights"),
        ('offset="0"', 'offset="-1"', "without a place"),
    ],
)
def test_a_hostile_graph_is_refused(copy: Path, old: str, new: str, why: str) -> None:
    spoiled(copy, old, new)
    with pytest.raises(BundleError, match=why):
        codemill.load(copy, variant="openvino-fp32")
    with pytest.raises(BundleError, match=why):
        verify_bundle(copy)


def test_weights_have_to_be_among_the_files(copy: Path) -> None:
    variants = dict(read_manifest(copy).variants)
    first = variants["openvino-fp32"]
    variants["openvino-fp32"] = type(first)(
        first.provider, first.precision, first.segments, first.segments
    )
    (copy / "variants/openvino-fp32/encoder.bin").unlink()
    update_bundle(copy, variants=variants)
    with pytest.raises(BundleError, match=r"weights, .*encoder.bin, are not among"):
        codemill.load(copy, variant="openvino-fp32")


def test_a_signal_after_a_model_was_freed_in_another_thread_ends_nothing(bundle: Path) -> None:
    said = f"""
import signal, threading, codemill
model = codemill.load({str(bundle)!r}, variant="openvino-fp32")
model.encode(["open"])
thread = threading.Thread(target=model.close)
thread.start()
thread.join()
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    ended = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "interrupted\n")


def test_its_telemetry_is_never_loaded(bundle: Path) -> None:
    said = (
        "import sys, codemill\n"
        f"codemill.load({str(bundle)!r}, variant='openvino-fp32').encode(['open'])\n"
        "print(sys.modules.get('openvino_telemetry'))"
    )
    ended = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "None"
