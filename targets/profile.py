"""Target profiles: the kinds of machine a bundle is made for, read from the YAML beside this file.

A profile says what to run with and what to measure; it does not measure. `availability` answers
whether this machine can stand for a target, and never offers another provider in its place.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from codemill.errors import MachineError, RecipeError

__all__ = ["Precision", "Shape", "TargetSpec", "all_targets", "availability", "target_named"]


class Precision(enum.StrEnum):
    """Type of the weights in the products of a compiled model."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"


@dataclass(frozen=True)
class Shape:
    """One latency measurement: texts of about `tokens` teacher tokens, `batch` of them a call."""

    tokens: int
    batch: int = 1

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.batch < 1:
            raise RecipeError(f"a latency shape needs tokens and batch of 1 or more, found {self}")


DEFAULT_SHAPES = tuple(Shape(tokens, batch) for tokens in (32, 128, 256) for batch in (1, 8))


@dataclass(frozen=True)
class TargetSpec:
    """A kind of machine to ship to.

    `provider` is ONNX Runtime's name; `threads` is what one call may use (None: the physical
    cores); `memory_bytes` is the most a process may hold at its peak (None: no limit); `install`
    says how the provider gets onto a machine.
    """

    name: str
    description: str
    provider: str
    precision: Precision
    threads: int | None
    memory_bytes: int | None
    shapes: tuple[Shape, ...] = DEFAULT_SHAPES
    install: str = ""


def all_targets() -> tuple[TargetSpec, ...]:
    """Every target that ships, CPU ones first, then by name. Raises MachineError without PyYAML."""
    return _shipped()


def target_named(name: str) -> TargetSpec:
    """The target called `name`; RecipeError naming those there are."""
    for target in all_targets():
        if target.name == name:
            return target
    known = ", ".join(target.name for target in all_targets())
    raise RecipeError(f"no target is called {name!r}; there are: {known}")


def availability(target: TargetSpec) -> str | None:
    """Why `target` cannot run on this machine, in one sentence, or None when it can.

    Looks at the installed ONNX Runtime's providers, the cores this process may use and the
    memory; whether a driver underneath works shows only when a session is made.
    """
    from codemill.runtime.machine import this_machine

    machine = this_machine()
    if target.provider not in machine.providers:
        here = ", ".join(machine.providers) or "none"
        how = f"; {target.install}" if target.install else ""
        return f"ONNX Runtime here has no {target.provider} (it has {here}){how}"
    if target.threads is not None and target.threads > machine.logical_cores:
        return f"it takes {target.threads} threads; this process may use {machine.logical_cores}"
    total = machine.memory_bytes
    if target.memory_bytes is not None and total is not None and total < target.memory_bytes:
        return f"it takes {target.memory_bytes:,} bytes of memory; this machine has {total:,}"
    return None


@cache
def _shipped() -> tuple[TargetSpec, ...]:
    found = [
        read_target(entry.read_text(encoding="utf-8"), entry.name)
        for entry in files("codemill.targets").iterdir()
        if entry.name.endswith(".yaml")
    ]
    return tuple(sorted(found, key=lambda t: (not t.provider.startswith("CPU"), t.name)))


def read_target(text: str, name: str) -> TargetSpec:
    """The target in YAML `text`; RecipeError naming `name`, the key and the bad value."""
    try:
        from codemill.targets.strict_yaml import parse_yaml
    except ImportError as error:
        raise MachineError(
            "target profiles need PyYAML, which is not installed: pip install 'codemill[bench]'"
        ) from error
    data = parse_yaml(text, name)
    if not isinstance(data, dict):
        raise RecipeError(f"{name}: expected keys and values, found {data!r:.80}")
    unknown = set(data) - set(TargetSpec.__dataclass_fields__)
    if unknown:
        raise RecipeError(f"{name}: unknown keys {sorted(map(str, unknown))}")
    key = _Keys(data, name)
    precisions = [p.value for p in Precision]
    return TargetSpec(
        name=key("name", _is_text, "a name"),
        description=key("description", _is_text, "a sentence"),
        provider=key("provider", _is_text, "an ONNX Runtime execution provider"),
        precision=Precision(key("precision", precisions.__contains__, f"one of {precisions}")),
        threads=key("threads", _is_count_or_null, "a whole number above 0, or null"),
        memory_bytes=key("memory_bytes", _is_count_or_null, "a whole number above 0, or null"),
        shapes=tuple(Shape(**s) for s in key("shapes", _are_shapes, "a list of tokens and batch"))
        if "shapes" in data
        else DEFAULT_SHAPES,
        install=key("install", _is_text, "a sentence") if "install" in data else "",
    )


@dataclass(frozen=True)
class _Keys:
    """Takes checked values out of one file's data."""

    data: dict[str, Any]
    file: str

    def __call__(self, key: str, right: Callable[[Any], bool], expected: str) -> Any:
        if key not in self.data:
            raise RecipeError(f"{self.file}: the key {key!r} is missing; expected {expected}")
        value = self.data[key]
        if not right(value):
            raise RecipeError(f"{self.file}: {key}: expected {expected}, found {value!r:.80}")
        return value


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_count_or_null(value: object) -> bool:
    return value is None or _is_count(value)


def _are_shapes(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(shape, dict)
            and set(shape) == {"tokens", "batch"}
            and all(_is_count(number) for number in shape.values())
            for shape in value
        )
    )
