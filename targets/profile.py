"""Target profiles: the kinds of machine a bundle is made for, read from the YAML beside this file.

A profile says what to run with and what to measure; it does not measure. `availability` answers whether this machine
can stand for a target, and never offers another provider in its place; `buildable` whether its variant can be made
here.
"""

from __future__ import annotations

import difflib
import enum
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from codemill.errors import MachineError, RecipeError
from codemill.runtime.engines import (
    CUDA,
    ENGINES,
    NVIDIA,
    OPENVINO,
    PROVIDERS,
    TENSORRT,
    TENSORRT_PROVIDERS,
    TENSORRT_RTX,
    WEB,
)
from codemill.runtime.machine import (
    ARCHITECTURES,
    INSTRUCTION_SETS,
    INT8_PRODUCTS,
    NEEDS,
    SYSTEMS,
    unlike,
)

if TYPE_CHECKING:
    from codemill.runtime.machine import Machine

__all__ = [
    "Precision",
    "Shape",
    "TargetSpec",
    "all_targets",
    "availability",
    "buildable",
    "profile_of",
    "read_target",
    "target_named",
    "target_schema",
]


class Precision(enum.StrEnum):
    """Type of the weights in the products of a compiled model."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    INT4 = "int4"


_CPU = "CPUExecutionProvider"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_CAPABILITY = r"[0-9]{1,2}\.[0-9]"
Count = Annotated[int, ("minimum", 1)]
Text = Annotated[str, ("pattern", r"\S")]


@dataclass(frozen=True)
class Shape:
    """One latency measurement: texts of about `tokens` teacher tokens, `batch` of them a call."""

    tokens: Count
    batch: Count = 1

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.batch < 1:
            raise RecipeError(f"a latency shape needs tokens and batch of 1 or more, found {self}")


OTHERS = {
    OPENVINO: "openvino",
    TENSORRT_RTX: "tensorrt_rtx",
    TENSORRT: "tensorrt",
    WEB: None,
}
"""Engines that are not ONNX Runtime's providers, and the Python package of each."""

_BF16_FROM = 8.0
"""Compute capability of the first GPUs that multiply bfloat16 (Ampere)."""
_MADE = {
    OPENVINO: (Precision.FP32, Precision.INT8),
    CUDA: (Precision.FP32, Precision.FP16, Precision.INT4),
    **dict.fromkeys(TENSORRT_PROVIDERS, (Precision.FP32, Precision.FP16, Precision.INT8)),
    **dict.fromkeys(ENGINES, (Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8)),
}
"""Precisions that variants are made in, of providers that do not run them all."""

_PROVIDERS = (*PROVIDERS, *OTHERS)
Provider = Annotated[str, ("enum", _PROVIDERS)]
_NAMES: dict[str, tuple[str, ...]] = {
    "systems": tuple(SYSTEMS.values()),
    "architectures": tuple(dict.fromkeys(ARCHITECTURES.values())),
    "instruction_sets": INSTRUCTION_SETS,
    "compute_capabilities": (),
}
"""Lists of names in a profile, and the names there are; none: any."""
System = Annotated[str, ("enum", _NAMES["systems"])]
Architecture = Annotated[str, ("enum", _NAMES["architectures"])]
InstructionSet = Annotated[str, ("enum", _NAMES["instruction_sets"])]
Capability = Annotated[str, ("pattern", f"^{_CAPABILITY}$")]
_ONCE = ("uniqueItems", True)

DEFAULT_SHAPES = tuple(Shape(tokens, batch) for tokens in (32, 128, 256) for batch in (1, 8))


@dataclass(frozen=True)
class TargetSpec:
    """A kind of machine to ship to. What its fields may hold is in their types, for `target_schema`.

    `provider` is ONNX Runtime's name, or that of another engine (OTHERS); `threads` is what one call may use (None: the
    physical cores); `memory_bytes` is the most a process may hold at its peak (None: no limit); `install` says how the
    provider gets onto a machine. `systems`, `architectures`, `instruction_sets`: what such a machine has; none: any.
    `reduced_range`: 7-bit weights where activations are 8-bit, for processors without 8-bit dot products.
    `compute_capabilities`: of the NVIDIA GPUs that engines are built for.
    """

    name: Annotated[str, ("pattern", f"^{_NAME}$")]
    description: Text
    provider: Provider
    precision: Precision
    threads: Count | None
    memory_bytes: Count | None
    shapes: Annotated[tuple[Shape, ...], ("minItems", 1)] = DEFAULT_SHAPES
    install: Text = ""
    systems: Annotated[tuple[System, ...], _ONCE] = ()
    architectures: Annotated[tuple[Architecture, ...], _ONCE] = ()
    instruction_sets: Annotated[tuple[InstructionSet, ...], _ONCE] = ()
    reduced_range: bool = True
    compute_capabilities: Annotated[tuple[Capability, ...], _ONCE] = ()

    def needs(self) -> dict[str, Any]:
        """What is asked of a machine's processor and system; only what is."""
        found: dict[str, Any] = {
            key: list(getattr(self, key)) for key in NEEDS if getattr(self, key)
        }
        if self.provider == _CPU and self.precision is Precision.INT8 and not self.reduced_range:
            found[INT8_PRODUCTS] = True
        return found


def target_schema() -> dict[str, Any]:
    """The JSON schema of the profiles that `read_target` takes; docs/target.schema.json is its copy."""
    from codemill.targets.schema import json_schema

    return json_schema(TargetSpec, "codemill target profile", closed=True)


def all_targets() -> tuple[TargetSpec, ...]:
    """Every target that ships, CPU ones first, then by name. Raises MachineError without PyYAML."""
    return _shipped()


def target_named(name: str) -> TargetSpec:
    """The target called `name`, or the profile in a .yaml file; RecipeError naming those there are."""
    if name.endswith((".yaml", ".yml")):
        try:
            return read_target(Path(name).read_text(encoding="utf-8"), name)
        except OSError as error:
            raise RecipeError(f"cannot read the profile {name}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise RecipeError(f"cannot read the profile {name}: it is not UTF-8 text") from error
    for target in all_targets():
        if target.name == name:
            return target
    known = [target.name for target in all_targets()]
    raise RecipeError(
        f"no target is called {name!r}{_near(name, known)}; there are: {', '.join(known)}; or give a profile of your "
        "own, a .yaml file"
    )


def _near(name: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {found[0]!r}?" if found else ""


def _near_provider(value: object) -> str:
    """As `_near`: what nearly all of them end in does not make two alike, nor does case make them differ."""
    if not isinstance(value, str):
        return ""
    asked, ending, _ = value.casefold().partition("exec")
    # TensorRT and OpenVINO are engines of their own, and providers with the ending
    known = PROVIDERS if ending else _PROVIDERS
    names = {name.casefold().partition("exec")[0]: name for name in known}
    found = difflib.get_close_matches(asked, names, n=1)
    return f", did you mean {names[found[0]]!r}?" if found else ""


def availability(target: TargetSpec) -> str | None:
    """Why `target` cannot run on this machine, in one sentence, or None when it can.

    Looks at the installed ONNX Runtime's providers, the cores this process may use and the
    memory; whether a driver underneath works shows only when a session is made.
    """
    from codemill.runtime.machine import this_machine
    from codemill.runtime.nvidia import lacking
    from codemill.runtime.session import available_providers
    from codemill.runtime.tensorrt import available

    machine = this_machine()
    why = unlike(target.needs())
    if why is not None:
        return why
    here = available() if target.provider in ENGINES else available_providers()
    if target.provider not in here:
        if target.provider in NVIDIA:
            return lacking(target.provider, machine.providers)
        if target.provider in OTHERS:
            return _absent(target)
        how = f"; {target.install}" if target.install else ""
        return f"ONNX Runtime here has no {target.provider} (it has {', '.join(machine.providers)}){how}"
    if target.compute_capabilities and target.provider in OTHERS:
        from codemill.runtime.tensorrt import gpus

        found = gpus()
        if not set(found) & set(target.compute_capabilities):
            return (
                f"its engines are for compute capability {', '.join(target.compute_capabilities)}; this machine has "
                f"{', '.join(found)}"
            )
    if target.threads is not None and target.threads > machine.logical_cores:
        return f"it takes {target.threads} threads; this process may use {machine.logical_cores}"
    total = machine.memory_bytes
    if target.memory_bytes is not None and total is not None and total < target.memory_bytes:
        return f"it takes {target.memory_bytes:,} bytes of memory; this machine has {total:,}"
    return None


def _absent(target: TargetSpec) -> str:
    """Why one of OTHERS does not run here."""
    package = OTHERS[target.provider]
    how = f"; {target.install}" if target.install else ""
    if package is None:
        return f"it runs in a browser{how}"
    if find_spec(package) is None:
        return f"{target.provider} is not installed{how}"
    if find_spec("cuda") is None:
        return f"{target.provider} is installed, and cuda-python, which it takes, is not{how}"
    return f"{target.provider} is installed and finds no NVIDIA GPU with a driver"


def buildable(target: TargetSpec, *, decoder: bool = False) -> str | None:
    """Why the variant of `target` cannot be made on this machine, in one sentence, or None when it can.

    What ONNX Runtime runs is ONNX, made anywhere; engines of TensorRT for RTX need its package, and no GPU. decoder:
    which precisions one is made in is left to who makes it (`export/decoder/derive.py`).
    """
    made = _MADE.get(target.provider, tuple(Precision))
    if target.precision not in made and not decoder:
        return f"no variant of {target.precision} is made for {target.provider}, only of {', '.join(made)}"
    package = OTHERS.get(target.provider)
    if package is not None and find_spec(package) is None:
        how = f"; {target.install}" if target.install else ""
        return f"{target.provider} is not installed{how}"
    if target.provider == TENSORRT and availability(target) is not None:
        return "its engines are built on the machine that runs them"
    return None


def profile_of(machine: Machine) -> TargetSpec:
    """A machine as a profile: its own provider, threads and instruction sets, int8 on a processor."""
    from codemill.runtime.nvidia import usable

    accelerated = [name for name in usable(machine.providers) if name in _FP16]
    provider = accelerated[0] if accelerated else _CPU
    system = SYSTEMS.get(sys.platform)
    architecture = ARCHITECTURES.get(machine.architecture)
    return TargetSpec(
        name="this-machine",
        description=f"{machine.cpu}, {machine.os}",
        provider=provider,
        precision=Precision.FP16 if accelerated else Precision.INT8,
        threads=machine.physical_cores,
        memory_bytes=None,
        systems=(system,) if system else (),
        architectures=(architecture,) if architecture else (),
        instruction_sets=machine.instruction_sets,
        reduced_range=not machine.has_int8_products,
    )


_FP16 = (*NVIDIA, "CoreMLExecutionProvider", "DmlExecutionProvider")


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
    known = list(TargetSpec.__dataclass_fields__)
    for unknown in (str(item) for item in data if item not in known):
        raise RecipeError(
            f"{name}: unknown key {unknown!r}{_near(unknown, known)}; a profile has: {', '.join(known)}"
        )
    key = _Keys(data, name)
    precisions = [p.value for p in Precision]
    found = TargetSpec(
        name=key("name", _is_name, "a name of letters, digits, dots and dashes"),
        description=key("description", _is_text, "a sentence"),
        provider=key(
            "provider",
            _PROVIDERS.__contains__,
            f"an execution provider of ONNX Runtime ({', '.join(PROVIDERS)}), or one of {list(OTHERS)}",
            _near_provider(data.get("provider")),
        ),
        precision=Precision(key("precision", precisions.__contains__, f"one of {precisions}")),
        threads=key("threads", _is_count_or_null, "a whole number above 0, or null"),
        memory_bytes=key("memory_bytes", _is_count_or_null, "a whole number above 0, or null"),
        shapes=tuple(Shape(**s) for s in key("shapes", _are_shapes, "a list of tokens and batch"))
        if "shapes" in data
        else DEFAULT_SHAPES,
        install=key("install", _is_text, "a sentence") if "install" in data else "",
        reduced_range=key("reduced_range", _is_flag, "true or false")
        if "reduced_range" in data
        else True,
        **{name: key.names(name, known) for name, known in _NAMES.items() if name in data},
    )
    _check_bf16(found, name)
    return found


def _check_bf16(target: TargetSpec, file: str) -> None:
    """Raise RecipeError where bfloat16 is asked of what does not compute with it."""
    if target.precision is not Precision.BF16:
        return
    if target.provider not in ENGINES:
        raise RecipeError(
            f"{file}: precision: bf16 is of the providers {' and '.join(ENGINES)}, and provider is "
            f"{target.provider}, which does not run such a graph; expected fp16 or fp32"
        )
    older = [item for item in target.compute_capabilities if float(item) < _BF16_FROM]
    if older:
        raise RecipeError(
            f"{file}: precision: bf16 needs GPUs of compute capability {_BF16_FROM} or above, and "
            f"compute_capabilities lists {', '.join(older)}; leave {'it' if len(older) == 1 else 'them'} out, or set "
            "fp16"
        )


@dataclass(frozen=True)
class _Keys:
    """Takes checked values out of one file's data."""

    data: dict[str, Any]
    file: str

    def __call__(
        self, key: str, right: Callable[[Any], bool], expected: str, hint: str = ""
    ) -> Any:
        if key not in self.data:
            raise RecipeError(f"{self.file}: the key {key!r} is missing; expected {expected}")
        value = self.data[key]
        if not right(value):
            raise RecipeError(f"{self.file}: {key}: expected {expected}, found {value!r:.80}{hint}")
        return value

    def names(self, key: str, known: tuple[str, ...]) -> tuple[str, ...]:
        """A list of names, none twice, of those `known` where there are any."""

        def right(value: object) -> bool:
            return (
                isinstance(value, list)
                and all(item in known if known else _is_capability(item) for item in value)
                and len(set(value)) == len(value)
            )

        said = f"a list of {', '.join(known)}" if known else "a list of numbers in quotes, as '8.6'"
        return tuple(self(key, right, f"{said}, each once"))


def _is_name(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(_NAME, value) is not None


def _is_capability(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(_CAPABILITY, value) is not None


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


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
            and {"tokens"} <= set(shape) <= {"tokens", "batch"}
            and all(_is_count(number) for number in shape.values())
            for shape in value
        )
    )
