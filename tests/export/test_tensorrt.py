"""Engines that are built without a GPU: what they hold, for which GPUs, and what is said where they cannot run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import codemill
from codemill.errors import BundleError, CodemillError, InputError, MachineError, ProviderError
from codemill.export.candidates import PLAIN
from codemill.export.derive import derive
from codemill.export.quantize.settings import Method, Quantization
from codemill.export.tensorrt import build_engine, profiles_of, said_of_engines
from codemill.runtime import engine_check, read_manifest, verify_bundle
from codemill.runtime import tensorrt as module
from codemill.runtime.bundle import update_bundle
from codemill.runtime.engines import TENSORRT, TENSORRT_RTX
from codemill.runtime.gpus import Gpu
from codemill.runtime.session import available_providers, choose_variant
from codemill.runtime.tensorrt import gpus

from .bundles import embedding_bundle, labelling_bundle
from .conftest import tiny_bert
from .fake_tensorrt import FakeCuda, FakeLibrary, FakeRtxLibrary

pytest.importorskip("tensorrt_rtx")
GPUS = ("8.6", "8.9", "12.0")
ROWS = [("open file",), ("close the file open",), ("file",)]
HERE = Gpu("made up", "GPU-1", "8.6", None, "999.1")
without_gpu = pytest.mark.skipif(bool(gpus()), reason="a GPU is here")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedding_bundle(tmp_path_factory.mktemp("tensorrt"), tiny_bert(), 4)


@pytest.mark.parametrize("method", [Method.FP16, Method.BF16, Method.STATIC, Method.FP32])
def test_an_engine_is_built_for_several_gpus_at_once(bundle: Path, method: Method) -> None:
    name = f"rtx-{method.precision}"
    derive(
        bundle,
        Quantization(method, reduced_range=False),
        name=name,
        provider=TENSORRT_RTX,
        capabilities=GPUS,
        calibration=ROWS,
    )
    verify_bundle(bundle)
    variant = read_manifest(bundle).variants[name]
    assert variant.provider == TENSORRT_RTX
    assert variant.files == (f"variants/{name}/encoder.engine",)
    assert variant.built_for["compute_capabilities"] == list(GPUS)
    assert variant.built_for["library"].count(".") >= 2
    assert variant.built_for["profiles"][0]["most"] == [32, 40]
    (layers,) = variant.built_for["layers"]
    assert layers["MATRIX_MULTIPLY"] > 10
    assert ("QUANTIZE" in layers) == (method is Method.STATIC)


def test_names_types_and_shapes_of_what_goes_in_and_out(bundle: Path, tmp_path: Path) -> None:
    source = bundle / read_manifest(bundle).variants[PLAIN].segments[0]
    found = build_engine(source, tmp_path / "x.engine", profiles_of([8], 40), ["8.6"])
    assert found.inputs == {
        "input_ids": "int64 [any, any]",
        "attention_mask": "int64 [any, any]",
    }
    assert found.outputs == {"embedding": "float [any, 64]"}
    assert found.size_bytes == (tmp_path / "x.engine").stat().st_size


@pytest.mark.parametrize(
    ("texts", "method"), [(1, Method.BF16), (1, Method.FP16), (2, Method.FP16)]
)
def test_parts_with_exits_are_engines_each(texts: int, method: Method, tmp_path: Path) -> None:
    folder = labelling_bundle(tmp_path, texts)
    how = Quantization(method)
    derive(folder, how, name="rtx", provider=TENSORRT_RTX, capabilities=GPUS, calibration=ROWS)
    variant = read_manifest(folder).variants["rtx"]
    assert [Path(path).name for path in variant.segments] == [
        *("encoder-0.engine", "head-0.engine", "encoder-1.engine", "head-1.engine"),
        *("encoder-2.engine", "head-2.engine"),
    ]
    assert all((folder / path).stat().st_size > 1000 for path in variant.files)


def test_profiles_are_tuned_for_the_lengths_there_are() -> None:
    one, many = profiles_of([20, 30, 40], 128)
    assert (one.least, one.usual, one.most) == ((1, 1), (1, 30), (1, 128))
    assert (many.usual, many.most) == ((16, 30), (32, 128))
    assert profiles_of([500], 128)[0].usual == (1, 128)
    assert profiles_of([], 128)[0].usual == (1, 64)
    (both,) = profiles_of([10, 30, 200], 128, TENSORRT_RTX)
    assert (both.least, both.usual, both.most) == ((1, 1), (1, 30), (32, 128))


def test_short_and_long_texts_have_profiles_of_their_own_where_they_lie_apart() -> None:
    queries, functions = [6, 8, 10], [80, 90, 400]
    found = profiles_of([*functions, *queries], 128)
    assert [item.usual for item in found] == [(1, 8), (1, 90), (16, 8), (16, 90)]
    # a text as long as the square root of 8 x 90 is as far from both
    assert [item.most for item in found] == [(1, 26), (1, 128), (32, 26), (32, 128)]
    assert {item.least for item in found} == {(1, 1)}
    assert len(profiles_of([10, 20], 128)) == 2
    assert len(profiles_of([10, 21], 128)) == 4
    assert len(profiles_of([100, 500], 128)) == 2


@pytest.mark.parametrize("asked", [(), ("8.6", "3.5")])
def test_gpus_that_it_does_not_build_for_are_named(
    bundle: Path, tmp_path: Path, asked: tuple[str, ...]
) -> None:
    source = bundle / read_manifest(bundle).variants[PLAIN].segments[0]
    with pytest.raises(InputError, match=r"found (none|3\.5); .* builds for 7\.5, .*12\.0"):
        build_engine(source, tmp_path / "x.engine", profiles_of([8], 40), asked)


def test_a_file_that_is_no_graph_is_an_error_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"nonsense")
    with pytest.raises(CodemillError, match=r"TensorRT-RTX .* cannot read x.onnx"):
        build_engine(tmp_path / "x.onnx", tmp_path / "x.engine", profiles_of([8], 40), ["8.6"])
    assert not (tmp_path / "x.engine").exists()


@without_gpu
def test_without_a_gpu_an_engine_says_so_and_is_never_chosen(bundle: Path) -> None:
    derive(
        bundle,
        Quantization(Method.FP16),
        name="laptop-rtx",
        provider=TENSORRT_RTX,
        capabilities=GPUS,
        calibration=ROWS,
    )
    manifest = read_manifest(bundle)
    assert choose_variant(manifest, available_providers()) == PLAIN
    # nor is it where one is: it holds code
    assert choose_variant(manifest, (*available_providers(), TENSORRT_RTX)) == PLAIN
    with pytest.raises(ProviderError, match="needs an NVIDIA GPU and its driver"):
        codemill.load(bundle, variant="laptop-rtx")


def test_without_the_package_it_is_an_error_that_says_what_to_install(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    source = bundle / read_manifest(bundle).variants[PLAIN].segments[0]
    with pytest.raises(ProviderError, match="TensorRT is not installed: pip install tensorrt"):
        build_engine(source, tmp_path / "x.engine", profiles_of([8], 40), provider=TENSORRT)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    """NVIDIA's `tensorrt` of version 0.0 and a GPU, which are not here."""
    found = FakeLibrary(FakeCuda())
    put_in_place(monkeypatch, found)
    return found


@pytest.fixture
def rtx_library(monkeypatch: pytest.MonkeyPatch) -> FakeRtxLibrary:
    """TensorRT for RTX of version 0.0 and a GPU, which are not here."""
    found = FakeRtxLibrary(FakeCuda())
    put_in_place(monkeypatch, found)
    return found


def put_in_place(monkeypatch: pytest.MonkeyPatch, library: FakeLibrary) -> None:
    monkeypatch.setattr(module, "tensorrt", lambda _: library)
    monkeypatch.setattr(module, "logger", lambda _: None)
    monkeypatch.setattr(module, "_cuda", lambda: library.cuda)
    monkeypatch.setattr(module, "gpus", lambda: ["8.6"])
    monkeypatch.setattr(module, "first_gpu", lambda: HERE)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "x.engine"
    path.write_bytes(b"vtrt" * 64)
    return path


def test_a_session_copies_in_runs_and_copies_out(library: FakeLibrary, engine: Path) -> None:
    session = module.TensorRtSession(engine, provider=TENSORRT)
    assert session.inputs == {"first": "tensor(float)"}
    assert session.outputs == {"doubled": ("tensor(float)", (None, 3))}
    for rows in (2, 4, 1):
        given = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
        (found,) = session.outputs_for({"first": given}, ("doubled",))
        assert np.array_equal(found, 2 * given)
    assert library.profiles == [0, 1, 0]
    # more rows than any profile takes are run in parts
    given = np.arange(60, dtype=np.float32).reshape(20, 3)
    (found,) = session.outputs_for({"first": given}, ("doubled",))
    assert np.array_equal(found, 2 * given)
    with pytest.raises(BundleError, match="built for smaller inputs"):
        session.outputs_for({"first": np.zeros((2, 4), np.float32)}, ("doubled",))
    session.close()
    session.close()
    assert not library.cuda.memory
    with pytest.raises(RuntimeError, match="closed"):
        session.outputs_for({"first": given}, ("doubled",))
    assert library.runtime.engine_host_code_allowed is False


def test_an_engine_of_tensorrt_for_another_gpu_or_version_is_never_loaded(
    library: FakeLibrary, engine: Path
) -> None:
    made = {"library": "10.9.0", "compute_capabilities": ["9.0"]}
    with pytest.raises(ProviderError) as caught:
        module.TensorRtSession(engine, provider=TENSORRT, built_for=made)
    said = str(caught.value)
    assert "built for TensorRT 10.9.0, compute capability 9.0; here is TensorRT 0.0 on" in said
    assert library.loaded == 0
    right = {"library": "0.0", "compute_capabilities": ["8.6"]}
    module.TensorRtSession(engine, provider=TENSORRT, built_for=right).close()


def test_what_the_manifest_says_of_an_engine_reaches_its_session(
    library: FakeLibrary, bundle: Path
) -> None:
    derive(
        bundle,
        Quantization(Method.FP32),
        name="elsewhere",
        provider=TENSORRT_RTX,
        capabilities=GPUS,
        calibration=ROWS,
    )
    made = read_manifest(bundle).variants["elsewhere"]
    variants = {"elsewhere": replace(made, provider=TENSORRT)}
    update_bundle(bundle, variants={**read_manifest(bundle).variants, **variants})
    version = made.built_for["library"]
    with pytest.raises(ProviderError, match=f"built for TensorRT {version}, .*; here is .* 0.0"):
        codemill.load(bundle, variant="elsewhere")


@pytest.mark.parametrize(
    ("reasons", "kind", "message"),
    [
        (
            0x01,
            ProviderError,
            "another version.* built for TensorRT-RTX 1.0; here is .*build it again",
        ),
        (0x02, ProviderError, "no code for this GPU's compute capability.*build it again"),
        (0x04, ProviderError, "driver is too old.*, update the driver; or"),
        (0x20, BundleError, "x.engine is damaged"),
    ],
)
def test_what_the_header_of_an_engine_says_is_raised_before_it_is_loaded(
    rtx_library: FakeRtxLibrary, engine: Path, reasons: int, kind: type[Exception], message: str
) -> None:
    rtx_library.reasons = reasons
    with pytest.raises(kind, match=message):
        module.TensorRtSession(engine, provider=TENSORRT_RTX, built_for={"library": "1.0"})
    assert rtx_library.loaded == 0


def test_reasons_are_those_of_the_library_that_is_installed() -> None:
    import tensorrt_rtx

    bits = {name: int(bit) for name, bit in named(tensorrt_rtx.EngineInvalidityDiagnostics)}
    assert bits.pop("MALFORMED_ENGINE") == engine_check._MALFORMED
    assert bits.pop("INSUFFICIENT_GPU_MEMORY") == engine_check._MEMORY
    assert bits.keys() == {
        *("VERSION_MISMATCH", "UNSUPPORTED_CC", "OLD_CUDA_DRIVER", "OLD_CUDA_RUNTIME"),
        "CUDA_ERROR",
    }
    assert {*bits.values(), engine_check._MEMORY} == engine_check._REASONS.keys()
    # of a header that is none it says so without a GPU
    runtime = tensorrt_rtx.Runtime(module.logger(TENSORRT_RTX))
    invalid = tensorrt_rtx.EngineValidity.INVALID
    assert runtime.get_engine_validity(bytes(64)) == (invalid, engine_check._MALFORMED)


def named(kind: Any) -> Iterable[tuple[str, Any]]:
    members: dict[str, Any] = kind.__members__
    return members.items()


def test_without_room_on_the_gpu_an_engine_says_how_much_it_takes(
    library: FakeLibrary, engine: Path
) -> None:
    library.fails = {"create_execution_context"}
    library.cuda.room = 1_000_000
    with pytest.raises(
        MachineError, match=r"takes 5,000,000 bytes .* 1,000,000 are free"
    ) as caught:
        module.TensorRtSession(engine, provider=TENSORRT)
    assert not isinstance(caught.value, ProviderError)


def test_without_room_for_a_tensor_a_run_says_that_memory_is_short(
    library: FakeLibrary, engine: Path
) -> None:
    session = module.TensorRtSession(engine, provider=TENSORRT)
    library.cuda.room = 8
    with pytest.raises(MachineError, match=r"x.engine: the GPU's memory is short"):
        session.outputs_for({"first": np.zeros((1, 3), np.float32)}, ("doubled",))
    session.close()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("set_optimization_profile_async", "x.engine failed while running"),
        ("set_input_shape", r"x.engine does not take first of shape \[1, 3\]"),
        ("set_tensor_address", "x.engine failed while running"),
        ("execute_async_v3", "x.engine failed while running"),
    ],
)
def test_a_call_that_does_not_work_ends_the_run(
    library: FakeLibrary, engine: Path, call: str, message: str
) -> None:
    library.fails = {call}
    session = module.TensorRtSession(engine, provider=TENSORRT)
    with pytest.raises(BundleError, match=message):
        session.outputs_for({"first": np.zeros((1, 3), np.float32)}, ("doubled",))
    session.close()
    assert not library.cuda.memory


def test_an_engine_of_tensorrt_is_for_the_gpu_that_built_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unittest.mock import MagicMock

    from codemill.export import tensorrt as module

    library = MagicMock(__version__="10.9")
    network = library.Builder.return_value.create_network.return_value
    network.num_inputs = network.num_outputs = network.num_layers = 0
    library.Builder.return_value.build_serialized_network.return_value = b"ftrt"
    monkeypatch.setattr(module, "tensorrt", lambda _: library)
    monkeypatch.setattr(module, "logger", lambda _: None)
    # not the first of all: the one that CUDA calls so
    gpu = Gpu("two", "GPU-2", "9.0", None, "1.0")
    monkeypatch.setattr(module, "first_gpu", lambda: gpu)
    # what TensorRT for RTX would be told is not for it
    built = build_engine(tmp_path / "x.onnx", tmp_path / "x.engine", [], ("8.9",), TENSORRT)
    assert said_of_engines([built], [])["compute_capabilities"] == ["9.0"]
    assert (tmp_path / "x.engine").read_bytes() == b"ftrt"


def test_what_the_inspector_says_is_read_and_an_engine_for_another_gpu_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from codemill.export import tensorrt as module
    from codemill.export.tensorrt import inspected

    path = tmp_path / "x.engine"
    path.write_bytes(b"ptrt")
    said = SimpleNamespace(get_engine_information=lambda kind: f'{{"Layers": ["{kind}"]}}')
    engine = SimpleNamespace(num_layers=7, create_engine_inspector=lambda: said)
    runtime = SimpleNamespace(
        engine_host_code_allowed=True, deserialize_cuda_engine=lambda _: engine
    )
    library = SimpleNamespace(
        Runtime=lambda _: runtime,
        LayerInformationFormat=SimpleNamespace(JSON="json"),
        __version__="1.0",
    )
    monkeypatch.setattr(module, "tensorrt", lambda _: library)
    monkeypatch.setattr(module, "logger", lambda _: None)
    assert inspected(path, TENSORRT) == {"layers": 7, "said": {"Layers": ["json"]}}
    assert runtime.engine_host_code_allowed is False
    runtime.deserialize_cuda_engine = lambda _: None
    with pytest.raises(ProviderError, match=r"x.engine cannot be inspected by TensorRT 1\.0 here"):
        inspected(path, TENSORRT)
