from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from codemill.errors import BundleError, ProviderError
from codemill.runtime import Variant, load, read_manifest
from codemill.runtime.bundle import Manifest
from codemill.runtime.machine import physical_cores, this_machine
from codemill.runtime.session import OnnxSession, available_providers, choose_variant

ENCODER = "variants/cpu-fp32/encoder.onnx"
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
ONE = np.ones((1, 1), dtype=np.int64)


def variants(**of: tuple[str, str]) -> Manifest:
    """A manifest with variants of these providers and precisions."""
    return Manifest(
        name="many",
        task="retrieval",
        codemill="0.1.0",
        input={"max_tokens": 8},
        output={"kind": "embedding", "dim": 4},
        variants={
            name: Variant(provider, precision, (f"{name}.onnx",), (f"{name}.onnx",))
            for name, (provider, precision) in of.items()
        },
        files={},
    )


def test_the_cpu_runs_int8_before_wider_types() -> None:
    manifest = variants(a=(CPU, "fp32"), b=(CPU, "int8"), c=(CPU, "fp16"))
    assert choose_variant(manifest, (CPU,)) == "b"


def test_an_accelerator_that_is_here_comes_before_the_cpu() -> None:
    manifest = variants(a=(CPU, "int8"), b=(CUDA, "int8"), c=(CUDA, "fp16"))
    assert choose_variant(manifest, (CUDA, CPU)) == "c"
    assert choose_variant(manifest, (CPU,)) == "a"


def test_tensorrt_comes_before_cuda_and_an_unknown_provider_last() -> None:
    manifest = variants(
        a=("New", "int8"), b=(CUDA, "fp16"), c=("TensorrtExecutionProvider", "int8")
    )
    assert choose_variant(manifest, ("New", CUDA, "TensorrtExecutionProvider")) == "c"
    assert choose_variant(manifest, ("New", CUDA)) == "b"
    assert choose_variant(manifest, ("New",)) == "a"


def test_what_was_made_for_another_machine_is_taken_only_where_it_is_named(
    rewrite: Callable[..., Path],
) -> None:
    of = {
        "a": {"architectures": ["abacus"]},
        "b": {"systems": ["abacus"]},
        "c": {"instruction_sets": ["beads"]},
        "d": {"architectures": [], "library": "1"},
    }
    made = {name: Variant(CPU, "fp32", (ENCODER,), (ENCODER,), needs) for name, needs in of.items()}
    folder = rewrite(variants=made)
    with load(folder) as encoder:
        # where the system tells no instruction sets, none is known to be missing
        assert encoder.variant == ("d" if this_machine().instruction_sets else "c")
    with load(folder, variant="a") as encoder:
        assert encoder.variant == "a"
    del made["d"]
    del made["c"]
    with pytest.raises(ProviderError, match=rf"a \({CPU}; it is for abacus; this machine is "):
        load(rewrite(variants=made))


@pytest.mark.parametrize("names", ["x86_64", [1], {}, None])
def test_what_a_variant_asks_of_a_machine_is_a_list_of_names(
    rewrite: Callable[..., Path], names: Any
) -> None:
    made = Variant(CPU, "fp32", (ENCODER,), (ENCODER,), {"architectures": names})
    with pytest.raises(BundleError, match=r"'variants.a.built_for.architectures' should be a list"):
        rewrite(variants={"a": made})


def test_a_variant_for_a_web_page_says_so(rewrite: Callable[..., Path]) -> None:
    made = Variant("onnxruntime-web", "fp32", (ENCODER,), (ENCODER,))
    with pytest.raises(ProviderError, match=r"runs in a web page.*bench BUNDLE --browser"):
        load(rewrite(variants={"browser": made}), variant="browser")


def test_where_nothing_runs_the_error_lists_what_is_wanted_and_what_is_here() -> None:
    with pytest.raises(ProviderError, match=rf"c \({CUDA}\).*has: {CPU}"):
        choose_variant(variants(c=(CUDA, "fp16")), (CPU,))


def test_a_missing_provider_is_an_error_that_names_those_here(built: Path) -> None:
    missing = next(p for p in (CUDA, "CoreMLExecutionProvider") if p not in available_providers())
    with pytest.raises(ProviderError, match=f"{missing}.*{CPU}"):
        OnnxSession(built / ENCODER, provider=missing)


def test_a_variant_asked_for_by_name_does_not_fall_back(rewrite: Callable[..., Path]) -> None:
    missing = next(p for p in (CUDA, "CoreMLExecutionProvider") if p not in available_providers())
    variant = Variant(missing, "fp16", (ENCODER,), (ENCODER,))
    both = {"cpu": Variant(CPU, "fp32", (ENCODER,), (ENCODER,)), "gpu": variant}
    folder = rewrite(variants=both)
    with pytest.raises(ProviderError, match=missing):
        load(folder, variant="gpu")
    with load(folder) as encoder:
        assert encoder.variant == "cpu"
    with pytest.raises(ProviderError, match="no variant of bundle 'tiny' runs here"):
        load(rewrite(variants={"gpu": variant}))


def test_a_provider_that_onnx_runtime_drops_is_an_error(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnxruntime.InferenceSession
    dml = "DmlExecutionProvider"

    def dropping(path: str, options: Any, providers: list[str], **rest: Any) -> Any:
        return real(path, options, providers=[CPU], **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", dropping)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [dml, CPU])
    with pytest.raises(ProviderError, match=f"{dml} was asked for and could not start"):
        OnnxSession(built / ENCODER, provider=dml)


def test_threads_are_those_asked_for_else_the_physical_cores(built: Path) -> None:
    assert OnnxSession(built / ENCODER, threads=1).threads == 1
    assert OnnxSession(built / ENCODER).threads == physical_cores()


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, "2"])
def test_a_number_of_threads_that_is_none_is_refused(built: Path, threads: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(threads))):
        OnnxSession(built / ENCODER, threads=threads)


def test_threads_sleep_while_nothing_runs(built: Path) -> None:
    session = OnnxSession(built / ENCODER, threads=2)
    tokens = np.ones((64, 64), dtype=np.int64)
    session.outputs_for({"input_ids": tokens, "attention_mask": tokens}, ("embedding",))
    used = time.process_time()
    time.sleep(0.2)
    # a thread that spins on after a run does so for some 50 ms
    assert time.process_time() - used < 0.02
    session.close()


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x09"])
def test_what_is_no_graph_is_a_bundle_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "encoder.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"cannot load .*encoder\.onnx"):
        OnnxSession(tmp_path / "encoder.onnx")


def test_a_graph_that_fails_while_running_is_a_bundle_error(built: Path) -> None:
    session = OnnxSession(built / ENCODER)
    out_of_range = np.full((1, 1), 10**6, dtype=np.int64)
    with pytest.raises(BundleError, match="failed while running"):
        session.outputs_for({"input_ids": out_of_range, "attention_mask": ONE}, ("embedding",))


def test_a_closed_session_does_not_run(built: Path) -> None:
    session = OnnxSession(built / ENCODER)
    session.close()
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.outputs_for({"input_ids": ONE, "attention_mask": ONE}, ("embedding",))


def test_an_unknown_variant_is_an_error_that_names_those_there(built: Path) -> None:
    assert list(read_manifest(built).variants) == ["cpu-fp32"]
    with pytest.raises(BundleError, match="no variant 'cpu-int8'; it has: cpu-fp32"):
        load(built, variant="cpu-int8")


def test_onnxruntime_keeps_its_telemetry_to_itself(bundle: Path, tmp_path: Path) -> None:
    """Version 1.32 for Linux starts it with the first session, and writes a device id into the user's cache."""
    home = tmp_path / "home"
    home.mkdir()
    hidden = ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "CODEMILL_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    code = "import sys, codemill; codemill.load(sys.argv[1]).encode(['x'])"
    subprocess.run(
        [sys.executable, "-c", code, str(bundle)],
        env={**environment, "HOME": str(home), "USERPROFILE": str(home)},
        check=True,
        timeout=60,
    )
    assert [path for path in home.rglob("*") if "codemill" not in path.parts] == []
