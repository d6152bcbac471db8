from __future__ import annotations

from dataclasses import replace

import pytest

from codemill.errors import RecipeError
from codemill.targets import Precision, Shape, all_targets, availability, target_named
from codemill.targets.profile import read_target

GOOD = """
name: cpu-int8
description: A laptop
provider: CPUExecutionProvider
precision: int8
threads: 2
memory_bytes: null
"""


def test_the_targets_that_ship_are_read_with_cpu_first() -> None:
    names = [target.name for target in all_targets()]
    assert {"cpu-int8", "cpu-fp32", "cuda-fp16", "tensorrt-fp16", "openvino-cpu"} <= set(names)
    assert names[:2] == ["cpu-fp32", "cpu-int8"]
    laptop = target_named("cpu-int8")
    assert (laptop.threads, laptop.precision) == (2, Precision.INT8)
    assert Shape(128, 1) in laptop.shapes


def test_each_targets_file_bears_its_name() -> None:
    from importlib.resources import files

    stems = {f.name[:-5] for f in files("codemill.targets").iterdir() if f.name.endswith(".yaml")}
    assert stems == {target.name for target in all_targets()}


def test_an_unknown_target_is_named_with_those_there_are() -> None:
    with pytest.raises(RecipeError, match=r"'cpu-int9'.*cpu-int8"):
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
    ],
)
def test_a_bad_value_is_named_with_its_key_and_file(line: str, message: str) -> None:
    key = line.split(":")[0]
    text = "\n".join(x for x in GOOD.splitlines() if not x.startswith(f"{key}:")) + f"\n{line}\n"
    with pytest.raises(RecipeError, match=message):
        read_target(text, "office.yaml")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(RecipeError, match="'provider' is missing"):
        read_target(GOOD.replace("provider: CPUExecutionProvider\n", ""), "x.yaml")


def test_a_provider_that_is_not_here_is_named_with_those_that_are() -> None:
    absent = replace(target_named("cpu-int8"), provider="MadeUpExecutionProvider", install="buy it")
    reason = availability(absent)
    assert reason is not None
    assert "MadeUpExecutionProvider" in reason
    assert "CPUExecutionProvider" in reason
    assert reason.endswith("buy it")


def test_more_threads_or_memory_than_there_are_is_a_reason() -> None:
    laptop = replace(target_named("cpu-int8"), threads=1, memory_bytes=None)
    assert availability(laptop) is None
    assert "threads" in (availability(replace(laptop, threads=100_000)) or "")
    assert "memory" in (availability(replace(laptop, memory_bytes=10**18)) or "")
