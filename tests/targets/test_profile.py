from __future__ import annotations

from dataclasses import replace

import pytest

from codemill.errors import RecipeError
from codemill.targets import (
    Precision,
    Shape,
    TargetSpec,
    all_targets,
    availability,
    buildable,
    target_named,
)
from codemill.targets.profile import read_target

GOOD = """
name: laptop-cpu
description: A laptop
provider: CPUExecutionProvider
precision: int8
threads: 2
memory_bytes: null
"""


def test_the_targets_that_ship_are_read_with_cpu_first() -> None:
    names = [target.name for target in all_targets()]
    assert set(names) == {
        *("laptop-cpu", "laptop-cpu-lowmem", "laptop-intel", "laptop-arm", "apple-silicon"),
        *("windows", "laptop-rtx", "gpu-datacenter", "browser"),
    }
    assert names[:3] == ["laptop-arm", "laptop-cpu", "laptop-cpu-lowmem"]
    laptop = target_named("laptop-cpu")
    assert (laptop.threads, laptop.precision) == (2, Precision.INT8)
    assert Shape(128, 1) in laptop.shapes


def test_each_targets_file_bears_its_name() -> None:
    from importlib.resources import files

    stems = {f.name[:-5] for f in files("codemill.targets").iterdir() if f.name.endswith(".yaml")}
    assert stems == {target.name for target in all_targets()}


def test_an_unknown_target_is_named_with_those_there_are() -> None:
    with pytest.raises(RecipeError, match=r"'cpu-int9'.*laptop-cpu"):
        target_named("cpu-int9")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("threads: 0", r"office.yaml: threads: .* found 0"),
        ("threads: true", "threads"),
        ("precision: int7", r"precision: expected one of .*'int8'.*found 'int7'"),
        ("memory_bytes: much", "memory_bytes"),
        ("shapes: [{tokens: 32}]", "shapes"),
        ("cores: 2", "unknown keys"),
        ("name: ''", "name"),
        ("systems: [linux, beos]", r"systems: expected a list of linux, windows, macos, found"),
        ("architectures: arm64", r"architectures: expected a list of x86_64, arm64"),
        ("instruction_sets: [avx9]", r"instruction_sets: expected a list of sse4_1, avx"),
        ("compute_capabilities: [8.6]", r"compute_capabilities: .* in quotes.*, found \[8.6\]"),
        ("compute_capabilities: ['86']", r"compute_capabilities: .* in quotes"),
        ("provider: Foo", r"provider: expected an execution provider, or one of"),
        ("name: a b/../c", r"name: expected a name of letters"),
        ("precision: bf16", r"bf16 is of the providers TensorRT-RTX and TensorRT, .* CPUExecution"),
        ("reduced_range: maybe", r"reduced_range: expected true or false"),
    ],
)
def test_a_bad_value_is_named_with_its_key_and_file(line: str, message: str) -> None:
    key = line.split(":")[0]
    text = "\n".join(x for x in GOOD.splitlines() if not x.startswith(f"{key}:")) + f"\n{line}\n"
    with pytest.raises(RecipeError, match=message):
        read_target(text, "office.yaml")


def test_bfloat16_is_of_tensorrt_on_gpus_that_multiply_it() -> None:
    text = GOOD.replace("CPUExecutionProvider", "TensorRT-RTX").replace("int8", "bf16")
    found = read_target(f"{text}\ncompute_capabilities: ['8.6', '12.0']\n", "gpu.yaml")
    assert found.precision is Precision.BF16
    with pytest.raises(RecipeError, match=r"gpu.yaml: precision: bf16 needs .* 8.0 .* lists 7.5; "):
        read_target(f"{text}\ncompute_capabilities: ['7.5', '8.6']\n", "gpu.yaml")
    with pytest.raises(RecipeError, match="bf16 is of the providers"):
        read_target(text.replace("TensorRT-RTX", "OpenVINO"), "intel.yaml")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(RecipeError, match="'provider' is missing"):
        read_target(GOOD.replace("provider: CPUExecutionProvider\n", ""), "x.yaml")


def any_machine() -> TargetSpec:
    """The laptop, of whatever kind it is."""
    return replace(target_named("laptop-cpu"), architectures=(), instruction_sets=())


def test_another_kind_of_machine_is_told_from_this_one() -> None:
    from codemill.runtime import this_machine

    assert "it is for macos" in (availability(replace(any_machine(), systems=("macos",))) or "")
    other = "arm64" if this_machine().architecture == "x86_64" else "x86_64"
    wrong = replace(any_machine(), architectures=(other,))
    assert f"it is for {other}" in (availability(wrong) or "")
    lacking = replace(any_machine(), instruction_sets=("abacus",))
    assert availability(lacking) == "this processor has no abacus"


def test_what_can_be_made_here_is_told_from_what_runs_here() -> None:
    assert buildable(target_named("windows")) is None
    browser = target_named("browser")
    assert buildable(browser) is None
    assert (availability(browser) or "").startswith("it runs in a browser")
    missing = replace(target_named("laptop-rtx"), provider="TensorRT", systems=(), architectures=())
    assert availability(missing) is not None
    assert buildable(missing) is not None


def test_a_provider_that_is_not_here_is_named_with_those_that_are() -> None:
    absent = replace(
        target_named("laptop-cpu"), provider="MadeUpExecutionProvider", install="buy it"
    )
    reason = availability(absent)
    assert reason is not None
    assert "MadeUpExecutionProvider" in reason
    assert "CPUExecutionProvider" in reason
    assert reason.endswith("buy it")


def test_more_threads_or_memory_than_there_are_is_a_reason() -> None:
    laptop = replace(any_machine(), threads=1, memory_bytes=None)
    assert availability(laptop) is None
    assert "threads" in (availability(replace(laptop, threads=100_000)) or "")
    assert "memory" in (availability(replace(laptop, memory_bytes=10**18)) or "")
