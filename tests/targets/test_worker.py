"""A real bundle, a few hundred bytes, served by the worker's own command line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from codemill.errors import BundleError
from codemill.targets import EngineProcess, bundle_engine


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from tokenizers import Tokenizer, models, pre_tokenizers

    from codemill.runtime import Variant, write_bundle

    folder = tmp_path_factory.mktemp("bundle")
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3, "c": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    table = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    node = helper.make_node
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            node("Gather", ["table", "input_ids"], ["rows"]),
            node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            node("Unsqueeze", ["mask", "last"], ["wide"]),
            node("Mul", ["rows", "wide"], ["kept"]),
            node("ReduceSum", ["kept", "tokens"], ["sum"], keepdims=0),
            node("LpNormalization", ["sum"], ["embedding"], axis=-1, p=2),
        ],
        "encoder",
        [info(name, TensorProto.INT64, ["batch", "n"]) for name in ("input_ids", "attention_mask")],
        [info("embedding", TensorProto.FLOAT, ["batch", 4])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([-1], dtype=np.int64), "last"),
            numpy_helper.from_array(np.array([1], dtype=np.int64), "tokens"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = "variants/cpu-fp32/encoder.onnx"
    (folder / path).parent.mkdir(parents=True)
    onnx.save(model, folder / path)
    write_bundle(
        folder,
        name="tiny",
        task="retrieval",
        input={"max_tokens": 16},
        output={"kind": "embedding", "dim": 4},
        variants={
            "cpu-fp32": Variant(
                provider="CPUExecutionProvider", precision="fp32", segments=(path,), files=(path,)
            )
        },
    )
    return folder


def test_the_worker_serves_a_bundle_and_counts_what_it_takes(bundle: Path, tmp_path: Path) -> None:
    engine = bundle_engine(bundle, threads=1, name="tiny")
    files = ("manifest.json", "tokenizer.json", "variants/cpu-fp32/encoder.onnx")
    assert engine.size_bytes == sum((bundle / file).stat().st_size for file in files)
    with EngineProcess(engine) as process:
        ready = process.ready
        out = str(tmp_path / "out.npy")
        assert process.ask({"op": "encode", "texts": ["a b", "c"], "out": out})["rows"] == 2
        assert process.ask({"op": "count", "texts": ["a " * 40]}) == {"tokens": [40]}
        packages = process.ask({"op": "info"})["packages"]
    assert (ready["provider"], ready["precision"], ready["threads"]) == (
        *("CPUExecutionProvider", "fp32"),
        1,
    )
    assert "torch" not in packages
    np.testing.assert_allclose(np.linalg.norm(np.load(out), axis=1), 1, rtol=1e-6)


def test_a_folder_that_is_no_bundle_is_a_bundle_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        bundle_engine(tmp_path)


def test_a_bundle_that_breaks_later_is_a_bundle_error_from_the_worker(
    bundle: Path, tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    engine = bundle_engine(copy)
    with (copy / "tokenizer.json").open("a") as file:
        file.write(" ")
    with pytest.raises(BundleError, match="tokenizer"):
        EngineProcess(engine)


def test_a_counter_that_needs_longer_has_calls_that_are_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from codemill.targets import energy, worker
    from codemill.targets.energy import Meter

    asked: list[str | None] = []
    calls: list[float] = [0.0]

    def meter_of(provider: str | None) -> Meter:
        asked.append(provider)
        return Meter("made up", lambda: lambda: 0.5 * (len(calls) - 1), least_s=0.09)

    def encode(texts: object) -> Any:
        calls.append(calls[-1] + 0.02)

    # each call takes 20 ms
    clock = SimpleNamespace(perf_counter=lambda: calls[-1], process_time=lambda: 0.0)
    monkeypatch.setattr(worker, "time", clock)
    monkeypatch.setattr(energy, "meter_of", meter_of)
    engine = worker.Loaded(encode, details={"provider": "CUDAExecutionProvider"})
    request = {"texts": ["a"], "batch": 1, "repeats": 3, "warmup": 0}
    found = worker._time(engine, {**request, "energy": True})
    assert asked == ["CUDAExecutionProvider"]
    assert found["ms"] == pytest.approx([20.0] * 3)
    assert found["energy"] == {"joules": 2.5, "calls": 5, "how": "made up"}
    # nothing is counted that is not asked for, and what fails is no figure
    assert worker._time(engine, request)["energy"] is None
    monkeypatch.setattr(energy, "meter_of", lambda _: Meter("made up", lambda: lambda: None))
    assert worker._time(engine, {**request, "energy": True})["energy"] is None


def test_what_is_compiled_is_kept_where_the_worker_is_told(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from codemill import runtime
    from codemill.runtime.cache import compiled_folder
    from codemill.targets.worker import _load_bundle

    monkeypatch.setenv("CODEMILL_CACHE", str(tmp_path / "cache"))
    seen = []
    real = runtime.load

    def load(*given: Any, **named: Any) -> Any:
        seen.append(compiled_folder("openvino"))
        return real(*given, **named)

    monkeypatch.setattr(runtime, "load", load)
    for compiled in (None, tmp_path / "elsewhere"):
        _load_bundle(str(bundle), None, 1, compiled)
    assert seen == [tmp_path / "cache/openvino", tmp_path / "elsewhere/openvino"]
    argv = bundle_engine(bundle, compiled=tmp_path / "elsewhere").argv
    assert argv[-2:] == ("--compiled", str(tmp_path / "elsewhere"))
