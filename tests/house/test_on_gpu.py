"""scripts/bench/on_gpu.py without a GPU: what it makes, what it measures of the processor, what it says it lacks."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest
from tests.export.bundles import embedding_bundle, labelling_bundle
from tests.export.conftest import tiny_bert
from tests.export.decoder.test_exits import exits, written
from tests.runtime.fake_nvml import FakeNvml, install

from codemill.export.quantize.settings import Method
from codemill.runtime.engines import CUDA, TENSORRT_RTX
from codemill.targets.completion import CompletionEvaluation, write_completion_evaluation
from codemill.targets.evaluation import (
    Evaluation,
    LabelledEvaluation,
    write_evaluation,
)

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/bench/on_gpu.py"
TEXTS = ("open file", "close the file", "open", "file close open open", "close", "open close")
LONG = tuple(text + " file close" * 20 for text in TEXTS)


def _script() -> Any:
    loader = SourceFileLoader("on_gpu", str(SCRIPT))
    spec = spec_from_loader("on_gpu", loader)
    assert spec is not None
    module = module_from_spec(spec)
    # dataclasses look their module up
    sys.modules["on_gpu"] = module
    loader.exec_module(module)
    return module


on_gpu = _script()


@pytest.fixture
def embedding(tmp_path: Path) -> Path:
    folder = embedding_bundle(tmp_path, tiny_bert(), 4)
    asked = Evaluation("made up", TEXTS, LONG)
    write_evaluation(folder / "validation.jsonl.gz", asked)
    return folder


def test_help_says_what_it_is_for() -> None:
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=True
    )
    for word in ("--dry-run", "--data-centre", "onnxruntime-gpu", "energy", "inspector"):
        assert word in ended.stdout


def test_a_dry_run_makes_everything_and_measures_the_processor(
    embedding: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    assert on_gpu.main([str(embedding), "--dry-run", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["dry_run"] is True
    assert set(found["lacking"]) == {
        *("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider"),
    }
    assert {"codemill", "onnxruntime", "numpy"} <= set(found["packages"])
    variants = found["variants"]
    assert list(variants) == [
        "CPU-fp32",
        "TensorRT-RTX-bf16",
        *(f"TensorRT-RTX-{kind}" for kind in ("fp16", "int8", "fp32")),
        *(f"NvTensorRTRTX-{kind}" for kind in ("fp16", "int8", "fp32")),
        *(f"Tensorrt-{kind}" for kind in ("fp16", "int8", "fp32")),
        *(f"CUDA-{kind}" for kind in ("fp16", "fp32")),
    ]
    for name, item in variants.items():
        assert item["built"].get("size_bytes", 0) > 1000, (name, item)
        assert ("measured" in item) == (name == "CPU-fp32")
        assert item.get("not_run") == (None if name == "CPU-fp32" else "a dry run")
    built_for = variants["TensorRT-RTX-fp16"]["built"]["built_for"]
    assert built_for["compute_capabilities"] == ["8.6", "8.9", "12.0"]
    measured = variants["CPU-fp32"]["measured"]
    assert measured["parity"]["largest_difference"] < 1e-5
    assert (measured["parity"]["same_decisions"], measured["parity"]["rows"]) == (1.0, 6)
    assert {(item["tokens"], item["batch"]) for item in measured["latencies"]} == {
        (32, 1),
        (32, 32),
    }
    assert measured["energy"]["source"] in ("measured", "estimate")
    assert measured["memory"]["peak_rss_bytes"] > 1e6
    assert measured["second_start_ms"] > 0
    assert measured["gpu_bytes"] is None
    said = capsys.readouterr()
    assert "CPU-fp32" in said.out
    assert said.out.count("a dry run") == len(variants) - 1


def few(monkeypatch: pytest.MonkeyPatch, *forms: Any) -> None:
    monkeypatch.setattr(on_gpu, "forms", lambda _: forms)


def test_engines_are_built_for_the_gpu_that_cuda_calls_the_first(
    embedding: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As sessions are run on it; NVML's first is another."""
    install(monkeypatch, FakeNvml(4, cudas_first=3))
    few(
        monkeypatch,
        on_gpu.Form("CPUExecutionProvider", Method.FP32),
        on_gpu.Form(TENSORRT_RTX, Method.FP32),
    )
    out = tmp_path / "found.json"
    assert on_gpu.main([str(embedding), "--dry-run", "--out", str(out)]) == 0
    engine = json.loads(out.read_text())["variants"]["TensorRT-RTX-fp32"]["built"]
    assert engine["built_for"]["compute_capabilities"] == ["8.9"]


def test_a_bundle_that_labels_with_exits_is_measured_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = labelling_bundle(tmp_path, 2)
    rows = tuple((i, (i + 1) % len(TEXTS)) for i in range(len(TEXTS)))
    truth = tuple(i % 3 for i in range(len(TEXTS)))
    asked = LabelledEvaluation("made up", ("a", "b", "c"), LONG, rows, truth)
    write_evaluation(folder / "validation.jsonl.gz", asked)
    few(monkeypatch, on_gpu.Form("CPUExecutionProvider", Method.FP32))
    out = tmp_path / "found.json"
    assert on_gpu.main([str(folder), "--dry-run", "--out", str(out)]) == 0
    measured = json.loads(out.read_text())["variants"]["CPU-fp32"]["measured"]
    assert measured["parity"]["same_decisions"] == 1.0
    assert measured["parity"]["rows"] == len(TEXTS)
    assert measured["labelling"]["rows"] == len(TEXTS)


def test_without_a_gpu_it_says_so_and_writes_nothing(
    embedding: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(monkeypatch, None)
    out = tmp_path / "found.json"
    assert on_gpu.main([str(embedding), "--out", str(out)]) == 1
    assert "no NVIDIA GPU with a driver is found" in capsys.readouterr().err
    assert not out.exists()


def test_a_bundle_that_completes_is_measured_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path / "bundle", exits(0), ((0.3, None), (0.4, None)))
    command = [str(folder), "--dry-run", "--out", str(tmp_path / "found.json")]
    assert on_gpu.main(command) == 1
    assert "no evaluation.jsonl.gz, places to complete at" in capsys.readouterr().err
    places = CompletionEvaluation("made up", ("def add(a, b):", "import os"), ("return", "x"))
    write_completion_evaluation(folder / "evaluation.jsonl.gz", places)
    before = (folder / "manifest.json").read_bytes()
    assert on_gpu.main(command) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["completes"] is True
    assert list(found["variants"]) == ["CPU-shipped", "TensorRT-RTX-fp16", "TensorRT-RTX-fp32"]
    processor, *engines = found["variants"].values()
    assert processor["measured"]["parity"]["same_decisions"] == 1.0
    full, ships = processor["measured"]["completing"]
    assert full["decode_tokens_per_s"] > 0
    assert ships["speedup"] is not None
    for item in engines:
        assert item["built"]["size_bytes"] > 1000
        assert item["not_run"] == "a dry run"
    assert "tokens/s" in capsys.readouterr().out
    # what is tried is made elsewhere
    assert (folder / "manifest.json").read_bytes() == before


def test_what_fails_is_noted_and_the_rest_goes_on(
    embedding: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A GPU that this process seems to have, and the processes that variants run in do not."""
    install(monkeypatch, FakeNvml())
    monkeypatch.setattr(on_gpu, "lacking", lambda *_: None)
    few(
        monkeypatch,
        on_gpu.Form("CPUExecutionProvider", Method.FP32),
        on_gpu.Form(CUDA, Method.FP16),
        on_gpu.Form(TENSORRT_RTX, Method.WEIGHTS_INT4),
    )
    out = tmp_path / "found.json"
    assert on_gpu.main([str(embedding), "--rounds", "1", "--out", str(out)]) == 1
    found = json.loads(out.read_text())
    assert found["gpus"][0]["compute_capability"] == "8.6"
    processor, cuda, engine = found["variants"].values()
    assert "error" not in processor["measured"]
    assert cuda["measured"]["error"].startswith("ProviderError: ")
    assert "CUDAExecutionProvider was asked for and cannot run here" in cuda["measured"]["error"]
    assert "weights-int4 is not made for TensorRT-RTX" in engine["built"]["error"]
    assert "measured" not in engine
    assert "CUDAExecutionProvider was asked for" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "nowhere"),
        (("nowhere", "--out", "."), "names no file"),
    ],
)
def test_a_wrong_path_is_an_error_in_a_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert on_gpu.main([*arguments, "--dry-run"]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
