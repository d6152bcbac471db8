"""ONNX Runtime's providers for NVIDIA GPUs: what each takes beside that library, and how it is told to run a graph.

That a session runs on the one that was asked for, and on nothing else, is the session's business. NVIDIA's own
libraries, which run engines, are `tensorrt.py`'s.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from codemill.errors import ProviderError
from codemill.runtime.bundle import plain
from codemill.runtime.cache import compiled_folder
from codemill.runtime.engines import (
    CUDA,
    NVIDIA,
    TENSORRT_PROVIDER,
    TENSORRT_PROVIDERS,
    TENSORRT_RTX_PROVIDER,
)
from codemill.runtime.graph import graph_inputs

__all__ = [
    "MOST_ROWS",
    "MOST_TEXTS",
    "Tuning",
    "could_not_start",
    "lacking",
    "most_rows",
    "options_of",
    "require",
    "usable",
]

MOST_TEXTS: Final = 32
"""That a graph compiled by TensorRT takes at once."""
MOST_ROWS: Final = 256
"""Of embeddings that a head takes at once."""

# since ONNX Runtime 1.24 a package of NVIDIA's; before, part of some builds
_PLUGIN: Final = "onnxruntime_ep_nv_tensorrt_rtx"
_GPU_PACKAGE: Final = (
    "pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]' in its place"
)
_INSTALL: Final = {
    CUDA: _GPU_PACKAGE,
    TENSORRT_PROVIDER: f"{_GPU_PACKAGE}, and pip install 'tensorrt<11'",
    TENSORRT_RTX_PROVIDER: "pip install onnxruntime-ep-nv-tensorrt-rtx, beside onnxruntime 1.24 or later",
}
_TRT_LIBRARIES: Final = "tensorrt_libs"
"""The package that holds them; importing it loads them."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a provider that compiles a graph is told of it.

    precision: of the variant; usual_tokens, most_tokens: of a text; key: stands for the files' content, and what is
    compiled of them is kept under it (the engines' own names for it do not tell one model's weights from another's).
    """

    precision: str
    usual_tokens: int
    most_tokens: int
    key: str


def usable(providers: Sequence[str]) -> tuple[str, ...]:
    """`providers`, which ONNX Runtime has, less those for NVIDIA GPUs where none is here, and with NVIDIA's plugin."""
    plugin = (TENSORRT_RTX_PROVIDER,) if _has_plugin() else ()
    return tuple(
        name
        for name in dict.fromkeys((*plugin, *providers))
        if name not in NVIDIA or lacking(name, providers) is None
    )


def require(provider: str, here: Sequence[str]) -> None:
    """Make ready what one of NVIDIA takes; ProviderError, with all that is missing, where it cannot run.

    here: what ONNX Runtime has.
    """
    missing = lacking(provider, here)
    if missing is not None:
        raise ProviderError(
            f"{provider} was asked for and cannot run here: {missing}. Or choose another variant: another provider is "
            "never taken in its place"
        )
    _prepare(provider, provider in here)


def lacking(provider: str, here: Sequence[str]) -> str | None:
    """What one of NVIDIA lacks to run here, and how to get it, or None. Whether its libraries load is not asked."""
    from codemill.runtime.gpus import gpus

    found = []
    if provider not in here and not (provider == TENSORRT_RTX_PROVIDER and _has_plugin()):
        found.append(
            f"this ONNX Runtime has no {provider}, but {', '.join(here)} ({_INSTALL[provider]})"
        )
    if not gpus():
        found.append("no NVIDIA GPU with a driver is found (nvidia-smi lists those there are)")
    return "; ".join(found) or None


@cache
def _has_plugin() -> bool:
    import onnxruntime

    return find_spec(_PLUGIN) is not None and hasattr(
        onnxruntime, "register_execution_provider_library"
    )


def _prepare(provider: str, built_in: bool) -> None:
    """Load libraries that were installed as Python packages, where no loader would look for them; register a plugin."""
    if built_in:
        _load_libraries(provider)
    elif not _found(provider):
        _register(provider)
        if not _found(provider):
            raise ProviderError(could_not_start(provider, "it finds no GPU that it runs on"))


@cache
def _load_libraries(provider: str) -> None:
    import onnxruntime

    # it prints what it does not find, and a command's stdout is its result
    with contextlib.redirect_stdout(sys.stderr):
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        if provider == TENSORRT_PROVIDER:
            with contextlib.suppress(ImportError, OSError):
                importlib.import_module(_TRT_LIBRARIES)


@cache
def _register(provider: str) -> None:
    import onnxruntime

    plugin = importlib.import_module(_PLUGIN)
    try:
        onnxruntime.register_execution_provider_library(provider, plugin.get_library_path())
    # ONNX Runtime's exceptions share no base below Exception
    except Exception as error:
        raise ProviderError(could_not_start(provider, plain(error))) from error


def _found(provider: str) -> bool:
    """Whether a plugin was registered, by this application or by codemill, and found a GPU."""
    import onnxruntime

    return any(item.ep_name == provider for item in onnxruntime.get_ep_devices())


def could_not_start(provider: str, why: str) -> str:
    """The message for a provider that was asked for and is here: why, and how what it takes is installed."""
    takes = f" How to get it: {_INSTALL[provider]}." if provider in _INSTALL else ""
    return (
        f"{provider} was asked for and could not start: {why.rstrip('. ')}. Check its driver and libraries, or choose "
        f"another variant.{takes}"
    )


def options_of(provider: str, path: Path, tuning: Tuning | None) -> dict[str, str]:
    """What a provider is told for the graph at `path`; without `tuning` only what is true of all graphs."""
    if provider == CUDA:
        # what is float32 stays so, as on a processor; memory grows by what is asked for, not to twice as much
        return {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
    if tuning is None or provider not in TENSORRT_PROVIDERS:
        return {}
    folder = compiled_folder(f"onnxruntime/{tuning.key}")
    if provider == TENSORRT_RTX_PROVIDER:
        # its networks have the types that the graph says
        return {"nv_runtime_cache_path": str(folder), **_profile("nv", path, tuning)}
    flags = {
        "trt_fp16_enable": tuning.precision == "fp16",
        "trt_bf16_enable": tuning.precision == "bf16",
        "trt_int8_enable": tuning.precision == "int8",
        # half precision overflows in a norm's sums
        "trt_layer_norm_fp32_fallback": tuning.precision == "fp16",
        "trt_engine_cache_enable": True,
        "trt_timing_cache_enable": True,
    }
    return {
        # True or False, as Python writes them
        **{name: str(value) for name, value in flags.items()},
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_path": str(folder),
        **_profile("trt", path, tuning),
    }


def most_rows(provider: str, path: Path, tuning: Tuning | None) -> int | None:
    """Rows of one run that a graph is compiled for; None: any."""
    if tuning is None or provider not in TENSORRT_PROVIDERS:
        return None
    shapes = _shapes(graph_inputs(path), tuning)["max"].values()
    # whether the inputs are those of an encoder is seen once it is open
    return max((shape[0] for shape in shapes if shape), default=1)


def _profile(prefix: str, path: Path, tuning: Tuning) -> dict[str, str]:
    """The shapes a graph is compiled for, as `name:1x128,...`."""
    found = _shapes(graph_inputs(path), tuning)
    return {
        f"{prefix}_profile_{size}_shapes": ",".join(
            f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items()
        )
        for size, shapes in found.items()
    }


def _shapes(
    inputs: Mapping[str, tuple[int | None, ...]], tuning: Tuning
) -> dict[str, dict[str, tuple[int, ...]]]:
    """min, opt, max -> input -> its sizes: [texts, tokens, ..], or of a head, whose rows are embeddings, [rows, ..]."""
    usual, most = min(tuning.usual_tokens, tuning.most_tokens), tuning.most_tokens
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for size, texts, rows, tokens in (
        ("min", 1, 1, 1),
        ("opt", 1, 1, usual),
        ("max", MOST_TEXTS, MOST_ROWS, most),
    ):
        found[size] = {}
        for name, sizes in inputs.items():
            open_sizes = iter((texts, tokens) if sizes.count(None) > 1 else (rows,))
            found[size][name] = tuple(
                next(open_sizes, tokens) if known is None else known for known in sizes
            )
    return found
