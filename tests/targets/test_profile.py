from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import yaml
from jsonschema import Draft202012Validator
from tests.runtime.fake_nvml import FakeNvml, install

from codemill.errors import RecipeError
from codemill.runtime import this_machine
from codemill.runtime.engines import NVIDIA, PROVIDERS, TENSORRT_PROVIDERS
from codemill.targets import (
    Precision,
    Shape,
    TargetSpec,
    all_targets,
    availability,
    buildable,
    target_named,
)
from codemill.targets.codec import to_json
from codemill.targets.profile import profile_of, read_target, target_schema

ROOT = Path(__file__).resolve().parents[2]

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
    with pytest.raises(RecipeError, match=r"'cpu-int9'; there are: laptop-arm, laptop-cpu, .*yaml"):
        target_named("cpu-int9")
    with pytest.raises(RecipeError, match=r"'laptop-cpus', did you mean 'laptop-cpu'\?"):
        target_named("laptop-cpus")


def test_a_profile_of_ones_own_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    with pytest.raises(RecipeError, match=r"own.yaml: No such file"):
        target_named(str(path))
    path.write_bytes(b"name: \xff")
    with pytest.raises(RecipeError, match=r"own.yaml: it is not UTF-8 text"):
        target_named(str(path))
    path.write_text(GOOD)
    assert target_named(str(path)).name == "laptop-cpu"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("threads: 0", r"office.yaml: threads: .* found 0"),
        ("threads: true", "threads"),
        ("precision: int7", r"precision: expected one of .*'int8'.*found 'int7'"),
        ("memory_bytes: much", "memory_bytes"),
        ("shapes: [{batch: 8}]", "shapes"),
        ("shapes: [{tokens: 32, words: 8}]", "shapes"),
        ("shapes: [{tokens: 0}]", "shapes"),
        ("shapes: []", "shapes"),
        ("shapes: 32", "shapes"),
        ("install: ' '", "install"),
        ("description: 7", "description"),
        ("provider: 'Foo ExecutionProvider'", "provider"),
        ("provider: TensorRT-rtx", "provider"),
        ("cores: 2", "unknown key 'cores'; a profile has: name, description, provider"),
        ("thread: 2", "unknown key 'thread', did you mean 'threads'?"),
        ("7: 2", "unknown key '7'"),
        ("name: ''", "name"),
        (
            "systems: [linux, beos]",
            r"systems: expected a list of linux, windows, macos, each once, found",
        ),
        ("architectures: arm64", r"architectures: expected a list of x86_64, arm64"),
        ("instruction_sets: [avx9]", r"instruction_sets: expected a list of sse4_1, avx"),
        ("compute_capabilities: [8.6]", r"compute_capabilities: .* in quotes.*, found \[8.6\]"),
        ("compute_capabilities: ['86']", r"compute_capabilities: .* in quotes"),
        ("provider: Foo", r"provider: expected an execution .* \(CPUExec.*found 'Foo'$"),
        ("provider: FooExecutionProvider", r"office.yaml: provider: .*'FooExecutionProvider'$"),
        ("provider: DMLExecutionProvider", r"'DMLExec\w+', did you mean 'DmlExecutionProvider'\?"),
        ("provider: cuda", "did you mean 'CUDAExecutionProvider'?"),
        ("provider: openvino", "did you mean 'OpenVINO'?"),
        ("provider: OpenVinoExecutionProvider", "did you mean 'OpenVINOExecutionProvider'?"),
        ("provider: [CPUExecutionProvider]", r"provider: .*found \['CPUExecutionProvider'\]$"),
        (
            "compute_capabilities: ['8.6', '8.6']",
            r"compute_capabilities: .* each once, found \['8.6'",
        ),
        ("systems: [linux, linux]", r"systems: .* each once, found \['linux', 'linux'\]"),
        ("name: a b/../c", r"name: expected a name of letters"),
        ("reduced_range: maybe", r"reduced_range: expected true or false"),
    ],
)
def test_a_bad_value_is_named_with_its_key_and_file(line: str, message: str) -> None:
    key = line.split(":")[0]
    text = "\n".join(x for x in GOOD.splitlines() if not x.startswith(f"{key}:")) + f"\n{line}\n"
    with pytest.raises(RecipeError, match=message):
        read_target(text, "office.yaml")
    # the schema that is published says so too
    assert not fits(text)


def test_every_provider_that_onnx_runtime_knows_is_one_and_no_other() -> None:
    known = set(onnxruntime.get_all_providers())
    assert known <= set(PROVIDERS)
    # a plugin of NVIDIA's, and what releases before this one knew
    assert set(PROVIDERS) - known <= {
        *("NvTensorRTRTXExecutionProvider", "ROCMExecutionProvider"),
        *("ArmNNExecutionProvider", "ACLExecutionProvider"),
    }
    for provider in (*PROVIDERS, "OpenVINO", "TensorRT-RTX", "TensorRT", "onnxruntime-web"):
        text = GOOD.replace("CPUExecutionProvider", provider)
        assert read_target(text, "own.yaml").provider == provider
        assert fits(text)


def test_bfloat16_is_of_tensorrt_on_gpus_that_multiply_it() -> None:
    text = GOOD.replace("CPUExecutionProvider", "TensorRT-RTX").replace("int8", "bf16")
    found = read_target(f"{text}\ncompute_capabilities: ['8.6', '12.0']\n", "gpu.yaml")
    assert found.precision is Precision.BF16
    with pytest.raises(RecipeError, match=r"gpu.yaml: precision: bf16 needs .* 8.0 .* lists 7.5; "):
        read_target(f"{text}\ncompute_capabilities: ['7.5', '8.6']\n", "gpu.yaml")
    # which the schema, that knows no key of another, does not say
    for provider in ("OpenVINO", "CPUExecutionProvider", *TENSORRT_PROVIDERS):
        said = f"bf16 is of the providers TensorRT-RTX and TensorRT, .* {provider}"
        with pytest.raises(RecipeError, match=said):
            read_target(text.replace("TensorRT-RTX", provider), "other.yaml")


def test_a_missing_key_is_named() -> None:
    text = GOOD.replace("provider: CPUExecutionProvider\n", "")
    with pytest.raises(RecipeError, match="'provider' is missing"):
        read_target(text, "x.yaml")
    assert not fits(text)


def fits(text: str) -> bool:
    """Whether a profile is one by the schema that is published."""
    return bool(Draft202012Validator(target_schema()).is_valid(yaml.safe_load(text)))


def test_the_schema_is_published_and_every_target_fits_it() -> None:
    published = json.loads((ROOT / "docs/target.schema.json").read_text())
    assert published == target_schema(), "run scripts/docs"
    Draft202012Validator.check_schema(published)
    assert fits(GOOD)
    for path in sorted((ROOT / "targets").glob("*.yaml")):
        assert fits(path.read_text()), path
        # what was read is what is there
        profile = yaml.safe_load(path.read_text())
        shown = to_json(target_named(path.stem))
        assert {key: shown[key] for key in profile} == profile


def test_every_field_is_in_the_document_and_no_other() -> None:
    document = (ROOT / "docs/targets.md").read_text()
    section = document.split("## What a profile says")[1].split("\n| target |")[0]
    first = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = [name for cell in first for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(named) == sorted(target_schema()["properties"])


def test_this_machines_profile_can_be_read_again() -> None:
    from codemill.compress.commands.targets import _yaml

    text = _yaml(profile_of(this_machine()))
    assert fits(text)
    assert read_target(text, "detected.yaml") == profile_of(this_machine())


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


@pytest.mark.parametrize("provider", NVIDIA)
def test_what_nvidias_providers_lack_is_said_with_how_to_get_it(
    provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = replace(any_machine(), provider=provider, threads=1, memory_bytes=None)
    install(monkeypatch, None)
    why = availability(target) or ""
    assert "pip install" in why
    assert "no NVIDIA GPU with a driver is found" in why
    install(monkeypatch, FakeNvml())
    assert "no NVIDIA GPU" not in (availability(target) or "")
    # made anywhere
    assert buildable(replace(target, precision=Precision.FP16)) is None


def test_a_gpu_that_onnx_runtime_cannot_use_is_not_this_machines_provider(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = replace(this_machine(), providers=("CUDAExecutionProvider", "CPUExecutionProvider"))
    install(monkeypatch, None)
    assert profile_of(machine).provider == "CPUExecutionProvider"
    install(monkeypatch, FakeNvml())
    found = profile_of(machine)
    assert (found.provider, found.precision) == ("CUDAExecutionProvider", Precision.FP16)


@pytest.mark.parametrize(
    ("provider", "precision", "made"),
    [
        ("OpenVINO", "fp16", "fp32, int8"),
        ("TensorRT-RTX", "int4", "fp32, fp16, bf16, int8"),
        (TENSORRT_PROVIDERS[0], "int4", "fp32, fp16, int8"),
        ("CUDAExecutionProvider", "int8", "fp32, fp16, int4"),
    ],
)
def test_a_precision_that_is_not_made_for_a_provider_is_said(
    provider: str, precision: str, made: str
) -> None:
    target = replace(any_machine(), provider=provider, precision=Precision(precision))
    expected = f"no variant of {precision} is made for {provider}, only of {made}"
    assert buildable(target) == expected


def test_what_onnx_runtime_has_is_not_what_codemill_has_besides() -> None:
    asked = replace(target_named("browser"), provider="AbacusExecutionProvider")
    said = availability(asked)
    assert said is not None
    assert said.startswith("ONNX Runtime here has no AbacusExecutionProvider")
    assert "OpenVINO," not in said
    assert "OpenVINO)" not in said
