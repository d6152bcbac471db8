"""What is said of an engine that does not run here: why, what it was built for, what is here, what to do."""

from __future__ import annotations

from typing import Any

import pytest

from codemill.errors import BundleError, CodemillError, MachineError, ProviderError
from codemill.runtime.engine_check import Here, check_built_for, refused_header
from codemill.runtime.gpus import Gpu

GPU = Gpu("Made-up 1", "GPU-1", "8.6", None, "999.1")
HERE = Here("TensorRT", "10.13.2", GPU)
MADE = {"library": "10.13.2", "compute_capabilities": ["8.6", "8.9"]}


@pytest.mark.parametrize(
    ("reasons", "kind", "why", "remedy"),
    [
        (0x01, ProviderError, "another version of the library", "build it again"),
        (0x02, ProviderError, "no code for this GPU's compute capability", "build it again"),
        (0x04, ProviderError, "NVIDIA driver is too old", "update the driver"),
        (0x08, ProviderError, "CUDA runtime is too old", "update CUDA"),
        (0x10, MachineError, "too little memory", "close what else uses the GPU"),
        (0x40, ProviderError, "CUDA does not work here", "install the NVIDIA driver again"),
        (0x00, ProviderError, r"does not say why (diagnostics 0x0)", "nvidia-smi"),
        (0x80, ProviderError, r"does not say why (diagnostics 0x80)", "nvidia-smi"),
    ],
)
def test_each_reason_is_said_with_what_to_do(
    reasons: int, kind: type[CodemillError], why: str, remedy: str
) -> None:
    found = refused_header("x.engine", reasons, MADE, HERE)
    assert type(found) is kind
    said = str(found)
    assert said.startswith("x.engine does not run here: ")
    assert why in said
    assert remedy in said.split("To run it, ")[1]
    assert ("build it again" in said) == (reasons in (0x01, 0x02))
    assert "built for TensorRT 10.13.2, compute capability 8.6, 8.9; " in said
    assert "here is TensorRT 10.13.2 on Made-up 1, compute capability 8.6, driver 999.1." in said


def test_a_damaged_engine_is_the_bundles_fault_whatever_else_is_wrong() -> None:
    for reasons in (0x20, 0x20 | 0x01 | 0x40):
        found = refused_header("x.engine", reasons, MADE, HERE)
        assert type(found) is BundleError
        assert "x.engine is damaged, or was never an engine of TensorRT" in str(found)


def test_several_reasons_are_all_said_and_one_remedy_once() -> None:
    found = refused_header("x.engine", 0x01 | 0x02 | 0x04 | 0x10, {}, HERE)
    assert type(found) is ProviderError
    said = str(found)
    for why in (
        "another version",
        "no code for this GPU",
        "driver is too old",
        "too little memory",
    ):
        assert why in said
    assert said.count("build it again") == 1
    # of what it was built for nothing is known
    assert "Here is TensorRT 10.13.2 on Made-up 1" in said


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (
            {"library": "10.9.0"},
            "another version of the library. It was built for TensorRT 10.9.0, ",
        ),
        ({"compute_capabilities": ["9.0"]}, "built for TensorRT 10.13.2, compute capability 9.0;"),
        ({"library": "10.9.0", "compute_capabilities": ["9.0"]}, "of the library and it holds no"),
    ],
)
def test_built_for_another_gpu_or_version_is_refused_and_both_are_named(
    made: dict[str, Any], why: str
) -> None:
    with pytest.raises(ProviderError) as caught:
        check_built_for("x.engine", {**MADE, **made}, HERE)
    said = str(caught.value)
    assert why in said
    assert "; here is TensorRT 10.13.2 on Made-up 1, compute capability 8.6, driver 999.1" in said
    assert "build it again with `compress export BUNDLE --target` on this machine; or" in said


@pytest.mark.parametrize(
    "made", [MADE, {}, {"library": 7, "compute_capabilities": "9.0"}, {"compute_capabilities": [9]}]
)
def test_what_fits_or_is_not_said_is_let_be(made: dict[str, Any]) -> None:
    check_built_for("x.engine", made, HERE)


def test_a_gpu_that_cuda_does_not_name_is_not_compared() -> None:
    made = {**MADE, "compute_capabilities": ["9.0"]}
    check_built_for("x.engine", made, Here("TensorRT", "10.13.2", None))


def test_what_a_manifest_says_is_shown_plainly() -> None:
    with pytest.raises(ProviderError) as caught:
        check_built_for("x.engine", {"library": "1\x1b[2J"}, HERE)
    assert "\x1b" not in str(caught.value)
