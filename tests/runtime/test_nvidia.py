"""ONNX Runtime's providers for NVIDIA GPUs, without a GPU: what is asked of them, what is missing, and no other one.

ONNX Runtime is the real one, on the processor, with its list of providers and its constructor made up.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

import codemill
from codemill.errors import BundleError, ProviderError
from codemill.runtime import Variant, nvidia, read_manifest
from codemill.runtime.engines import CUDA, NVIDIA
from codemill.runtime.engines import TENSORRT_PROVIDER as TRT
from codemill.runtime.engines import TENSORRT_RTX_PROVIDER as RTX
from codemill.runtime.graph import graph_inputs
from codemill.runtime.nvidia import Tuning, options_of, usable
from codemill.runtime.session import OnnxSession, available_providers

from .conftest import DIM, write_head, write_part
from .fake_nvml import FakeNvml, install

CPU = "CPUExecutionProvider"
ENCODER = "variants/cpu-fp32/encoder.onnx"
TUNED = Tuning("fp16", usual_tokens=20, most_tokens=64, key="0" * 8)
RealSession = onnxruntime.InferenceSession


@dataclass
class World:
    """What ONNX Runtime seems to be, and what was asked of it."""

    monkeypatch: pytest.MonkeyPatch
    asked: list[tuple[str, dict[str, str]]]

    def has(self, *providers: str, gpus: int = 1, starts: bool = True, placed: Any = None) -> None:
        """ONNX Runtime with these providers, which run on the processor; `starts` False: are dropped."""
        self.monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(providers))
        install(self.monkeypatch, FakeNvml(gpus) if gpus else None)
        asked = self.asked

        class Session:
            def __init__(self, path: str, options: Any, providers: Any = None, **rest: Any) -> None:
                assert rest == {"enable_fallback": 0}
                asked.extend(providers or [])
                self._real = RealSession(path, options, providers=[CPU])
                names = [name for name, _ in providers or options.given]
                self.get_providers = lambda: [*(names if starts else ()), CPU]
                told = [part(names[0], MatMul=1)] if placed is None else placed
                self.get_provider_graph_assignment_info = lambda: told

            def __getattr__(self, name: str) -> Any:
                return getattr(self._real, name)

        self.monkeypatch.setattr(onnxruntime, "InferenceSession", Session)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    nvidia._load_libraries.cache_clear()
    nvidia._register.cache_clear()
    monkeypatch.setattr(nvidia, "_has_plugin", lambda: False)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    return World(monkeypatch, [])


def part(provider: str, **operators: int) -> SimpleNamespace:
    """Nodes of a graph as ONNX Runtime tells where they run."""
    nodes = [SimpleNamespace(op_type=name) for name, n in operators.items() for _ in range(n)]
    return SimpleNamespace(ep_name=provider, get_nodes=lambda: nodes)


def test_a_graphs_inputs_are_read_with_their_sizes(built: Path, tmp_path: Path) -> None:
    both = {"input_ids": (None, None), "attention_mask": (None, None)}
    assert graph_inputs(built / ENCODER) == both
    write_part(tmp_path / "part.onnx", first=False, last=True)
    assert graph_inputs(tmp_path / "part.onnx")["hidden"] == (None, None, DIM)
    (tmp_path / "none.onnx").write_bytes(b"\xff" * 20)
    with pytest.raises(BundleError, match=r"none.onnx is no graph"):
        graph_inputs(tmp_path / "none.onnx")


def test_cuda_keeps_float32_as_it_is(built: Path) -> None:
    assert options_of(CUDA, built / ENCODER, TUNED) == {
        "use_tf32": "0",
        "arena_extend_strategy": "kSameAsRequested",
    }


@pytest.mark.parametrize(
    ("precision", "on"),
    [
        ("fp32", set()),
        ("fp16", {"trt_fp16_enable", "trt_layer_norm_fp32_fallback"}),
        ("bf16", {"trt_bf16_enable"}),
        ("int8", {"trt_int8_enable"}),
    ],
)
def test_tensorrt_has_the_flags_of_the_variants_precision(
    built: Path, precision: str, on: set[str]
) -> None:
    options = options_of(TRT, built / ENCODER, Tuning(precision, 20, 64, "k"))
    flags = {name: value for name, value in options.items() if value in ("True", "False")}
    cached = {"trt_engine_cache_enable", "trt_timing_cache_enable"}
    assert {name for name, value in flags.items() if value == "True"} == on | cached
    assert len(flags) == 6


@pytest.mark.parametrize(("provider", "prefix"), [(TRT, "trt"), (RTX, "nv")])
def test_shapes_are_those_of_the_texts_and_what_is_compiled_is_kept_by_content(
    built: Path, cache: Path, provider: str, prefix: str
) -> None:
    options = options_of(provider, built / ENCODER, TUNED)
    for size, shape in (("min", "1x1"), ("opt", "1x20"), ("max", "32x64")):
        expected = f"input_ids:{shape},attention_mask:{shape}"
        assert options[f"{prefix}_profile_{size}_shapes"] == expected
    folder = str(cache / "onnxruntime" / TUNED.key)
    kept = "nv_runtime_cache_path" if provider == RTX else "trt_engine_cache_path"
    assert (options[kept], Path(folder).is_dir()) == (folder, True)
    assert all(isinstance(value, str) for value in options.values())


def test_a_later_part_has_its_width_and_a_head_has_rows(tmp_path: Path) -> None:
    write_part(tmp_path / "part.onnx", first=False, last=False)
    options = options_of(TRT, tmp_path / "part.onnx", TUNED)
    assert options["trt_profile_max_shapes"] == f"hidden:32x64x{DIM},attention_mask:32x64"
    write_head(tmp_path / "head.onnx", pair=True)
    options = options_of(TRT, tmp_path / "head.onnx", TUNED)
    assert options["trt_profile_opt_shapes"] == f"first:1x{DIM},second:1x{DIM}"
    assert options["trt_profile_max_shapes"] == f"first:256x{DIM},second:256x{DIM}"


def test_a_graph_that_takes_nothing_has_no_rows_either(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    given = helper.make_tensor_value_info("scalar", TensorProto.FLOAT, [])
    for inputs in ([], [given]):
        graph = helper.make_graph([], "empty", inputs, [])
        onnx.save(helper.make_model(graph), tmp_path / "empty.onnx")
        assert nvidia.most_rows(TRT, tmp_path / "empty.onnx", TUNED) == 1


def test_a_session_asks_for_the_one_provider_with_its_options(built: Path, world: World) -> None:
    world.has(TRT, CUDA, CPU)
    session = OnnxSession(built / ENCODER, provider=TRT, tuning=TUNED)
    assert session.provider == TRT
    ((name, options),) = world.asked
    assert (name, options["trt_fp16_enable"]) == (TRT, "True")
    # without a hint it compiles what it meets
    OnnxSession(built / ENCODER, provider=TRT)
    assert world.asked[-1] == (TRT, {})


def test_more_rows_than_a_graph_is_compiled_for_run_in_portions(built: Path, world: World) -> None:
    world.has(TRT, CPU)
    ids = np.arange(70, dtype=np.int64).reshape(70, 1) % 5
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    (expected,) = OnnxSession(built / ENCODER).outputs_for(given, ("embedding",))
    session = OnnxSession(built / ENCODER, provider=TRT, tuning=TUNED)
    rows: list[int] = []
    real = session._session.run

    def run(names: Any, inputs: dict[str, Any]) -> Any:
        rows.append(len(inputs["input_ids"]))
        return real(names, inputs)

    session._session.run = run
    (found,) = session.outputs_for(given, ("embedding",))
    assert rows == [32, 32, 6]
    assert np.array_equal(found, expected)


def gpu_bundle(rewrite: Callable[..., Path], provider: str = CUDA, **more: Any) -> Path:
    """A bundle with a variant for processors and one, `gpu`, for a provider."""
    return rewrite(
        variants={
            "cpu": Variant(CPU, "fp32", (ENCODER,), (ENCODER,)),
            "gpu": Variant(provider, "fp16", (ENCODER,), (ENCODER,), **more),
        }
    )


def test_a_bundles_variant_says_its_precision_and_its_usual_length(
    rewrite: Callable[..., Path], world: World
) -> None:
    world.has(TRT, CPU)
    longest = read_manifest(gpu_bundle(rewrite)).max_tokens
    seen = []
    for built_for, usual in (
        ({"profiles": [{"usual": [1, 5]}]}, 5),
        ({"profiles": [{"usual": [1, 10**9]}]}, longest),
        ({"profiles": [{"usual": [1, "5"]}]}, longest // 2),
        ({"profiles": 7}, longest // 2),
        ({}, longest // 2),
    ):
        folder = gpu_bundle(rewrite, TRT, built_for=built_for)
        codemill.load(folder, variant="gpu").close()
        options = world.asked[-1][1]
        seen.append(options["trt_engine_cache_path"])
        assert options["trt_fp16_enable"] == "True"
        shape = f"1x{usual}"
        assert options["trt_profile_opt_shapes"] == f"input_ids:{shape},attention_mask:{shape}"
    # of the same files
    assert len(set(seen)) == 1


def test_what_is_compiled_of_other_weights_is_kept_elsewhere(
    rewrite: Callable[..., Path], world: World
) -> None:
    import onnx

    world.has(RTX, CPU)
    folder = gpu_bundle(rewrite, RTX)
    codemill.load(folder, variant="gpu").close()
    model = onnx.load(str(folder / ENCODER))
    table = next(item for item in model.graph.initializer if item.name == "table")
    table.raw_data = bytes(len(table.raw_data))
    onnx.save(model, str(folder / ENCODER))
    from codemill.runtime.bundle import update_bundle

    update_bundle(folder)
    codemill.load(folder, variant="gpu").close()
    first, second = (options["nv_runtime_cache_path"] for _, options in world.asked)
    assert first != second


@pytest.mark.parametrize(
    ("provider", "how"),
    [
        (CUDA, r"pip install 'onnxruntime-gpu\[cuda,cudnn\]'"),
        (TRT, r"pip install 'tensorrt<11'"),
        (RTX, "pip install onnxruntime-ep-nv-tensorrt-rtx"),
    ],
)
def test_all_that_is_missing_is_said_with_how_to_get_it(
    provider: str, how: str, rewrite: Callable[..., Path], world: World
) -> None:
    world.has(CPU, gpus=0)
    folder = gpu_bundle(rewrite, provider)
    with pytest.raises(
        ProviderError, match=f"{provider} was asked for.* has no {provider}, but {CPU} .*{how}"
    ):
        codemill.load(folder, variant="gpu")
    with pytest.raises(ProviderError, match="no NVIDIA GPU with a driver is found"):
        codemill.load(folder, variant="gpu")
    world.has(CPU, gpus=1)
    with pytest.raises(ProviderError, match=f"{how}(?!.*no NVIDIA GPU)"):
        codemill.load(folder, variant="gpu")
    assert world.asked == []


def test_without_a_gpu_the_processors_variant_is_taken_and_the_gpus_refused(
    rewrite: Callable[..., Path], world: World
) -> None:
    folder = gpu_bundle(rewrite)
    world.has(CUDA, CPU, gpus=0)
    assert CUDA not in available_providers()
    with codemill.load(folder) as model:
        assert model.variant == "cpu"
    with pytest.raises(ProviderError, match=r"no NVIDIA GPU with a driver is found \(nvidia-smi"):
        codemill.load(folder, variant="gpu")
    world.has(CUDA, CPU)
    assert CUDA in available_providers()
    with codemill.load(folder) as model:
        assert model.variant == "gpu"


@pytest.mark.parametrize("provider", NVIDIA)
def test_one_that_is_dropped_is_never_taken_for_the_gpu(
    provider: str, rewrite: Callable[..., Path], world: World
) -> None:
    world.has(*NVIDIA, CPU, starts=False)
    with pytest.raises(
        ProviderError, match=f"{provider} was asked for and could not start: this session would run"
    ):
        codemill.load(gpu_bundle(rewrite, provider), variant="gpu")


def test_what_a_provider_raises_is_of_the_provider_and_what_is_no_graph_of_the_file(
    built: Path, tmp_path: Path, world: World
) -> None:
    world.has(CUDA, CPU)
    (tmp_path / "none.onnx").write_bytes(b"\x08\x09")
    with pytest.raises(BundleError, match=r"cannot load .*none.onnx"):
        OnnxSession(tmp_path / "none.onnx", provider=CUDA)

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected.")

    world.monkeypatch.setattr(onnxruntime, "InferenceSession", fails)
    with pytest.raises(
        ProviderError, match=r"failure 100.*detected\. Check its driver.*How to get it: pip"
    ):
        OnnxSession(built / ENCODER, provider=CUDA)


def test_one_that_takes_no_node_is_an_error_and_one_that_takes_some_tells(
    built: Path, world: World
) -> None:
    world.has(CUDA, CPU, placed=[part(CPU, MatMul=3, Gather=1)])
    with pytest.raises(ProviderError, match=f"takes none of the graph's nodes.* run on {CPU}"):
        OnnxSession(built / ENCODER, provider=CUDA)
    world.has(CUDA, CPU, placed=[part(CUDA, MatMul=2), part(CPU, MatMul=1), part(CUDA, Add=1)])
    session = OnnxSession(built / ENCODER, provider=CUDA)
    assert session.placed == {(CUDA, "MatMul"): 2, (CPU, "MatMul"): 1, (CUDA, "Add"): 1}


def test_where_nodes_run_is_what_onnx_runtime_says(built: Path) -> None:
    from codemill.runtime.session import _placed

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    found = _placed(RealSession(str(built / ENCODER), options, providers=[CPU]))
    assert {provider for provider, _ in found} == {CPU}
    assert found[CPU, "Gather"] == 1


def test_libraries_are_loaded_once_and_what_that_prints_is_not_on_stdout(
    built: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = []

    def preload() -> None:
        loaded.append("cuda")
        print("Failed to load libcublas")

    world.monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
    libraries = ModuleType("tensorrt_libs")
    world.monkeypatch.setitem(sys.modules, "tensorrt_libs", libraries)
    world.has(TRT, CPU)
    for _ in range(2):
        OnnxSession(built / ENCODER, provider=TRT)
    assert loaded == ["cuda"]
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "Failed to load libcublas\n")


class Plugin:
    """NVIDIA's package for TensorRT for RTX, and what ONNX Runtime knows of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, devices: int, fails: str = "") -> None:
        self.registered: list[tuple[str, str]] = []
        self.given: list[tuple[int, dict[str, str]]] = []
        device = SimpleNamespace(ep_name=RTX)

        def register(name: str, path: str) -> None:
            if fails:
                raise RuntimeError(fails)
            self.registered.append((name, path))

        def add(options: Any, found: Sequence[Any], given: dict[str, str]) -> None:
            self.given.append((len(found), given))
            options.given = [(RTX, given)]

        class Options(onnxruntime.SessionOptions):  # type: ignore[misc]
            add_provider_for_devices = add

        module = ModuleType("onnxruntime_ep_nv_tensorrt_rtx")
        module.get_library_path = lambda: "rtx.so"  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(nvidia, "_has_plugin", lambda: True)
        monkeypatch.setattr(
            onnxruntime, "register_execution_provider_library", register, raising=False
        )
        monkeypatch.setattr(
            onnxruntime,
            "get_ep_devices",
            lambda: [device] * devices if self.registered else [],
            raising=False,
        )
        monkeypatch.setattr(onnxruntime, "SessionOptions", Options)


def test_a_plugin_is_registered_once_and_asked_for_by_its_device(built: Path, world: World) -> None:
    plugin = Plugin(world.monkeypatch, devices=2)
    world.has(CPU)
    assert usable([CPU]) == (RTX, CPU)
    for _ in range(2):
        session = OnnxSession(built / ENCODER, provider=RTX, tuning=TUNED)
    assert session.provider == RTX
    assert plugin.registered == [(RTX, "rtx.so")]
    assert [count for count, _ in plugin.given] == [1, 1]
    assert plugin.given[0][1]["nv_profile_opt_shapes"].startswith("input_ids:1x20")
    # not by name: ONNX Runtime does not know it so
    assert world.asked == []


@pytest.mark.parametrize(
    ("fails", "why"),
    [
        ("", "it finds no GPU that it runs on"),
        ("libcuda.so.1: no such file", "libcuda.so.1: no such file"),
    ],
)
def test_a_plugin_that_does_not_start_is_an_error(
    built: Path, world: World, fails: str, why: str
) -> None:
    Plugin(world.monkeypatch, devices=0, fails=fails)
    world.has(CPU)
    for _ in range(2):
        with pytest.raises(ProviderError, match=f"{RTX} was asked for and could not start: {why}"):
            OnnxSession(built / ENCODER, provider=RTX)


def test_a_plugin_without_a_gpu_is_not_there(world: World) -> None:
    Plugin(world.monkeypatch, devices=1)
    world.has(CPU, gpus=0)
    assert usable([CPU]) == (CPU,)
