"""Whether an engine runs on the GPU here, before it is loaded, and what to do where it does not.

TensorRT for RTX says it of an engine's header; NVIDIA's `tensorrt` says nothing, and there the manifest has to. Asking
is `tensorrt.py`'s: this takes answers, and no library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from codemill.errors import BundleError, CodemillError, MachineError, ProviderError
from codemill.runtime.bundle import plain
from codemill.runtime.gpus import Gpu

__all__ = ["Here", "check_built_for", "refused_header"]

_BUILD_AGAIN: Final = "build it again with `compress export BUNDLE --target`"
_ANOTHER_VERSION: Final = "it was built with another version of the library"
_ANOTHER_GPU: Final = "it holds no code for this GPU's compute capability"

_MEMORY, _MALFORMED = 0x10, 0x20
_REASONS: Final = {
    0x01: (_ANOTHER_VERSION, _BUILD_AGAIN),
    0x02: (_ANOTHER_GPU, _BUILD_AGAIN),
    0x04: ("the NVIDIA driver is too old for it", "update the driver"),
    0x08: ("the CUDA runtime is too old for it", "update CUDA"),
    _MEMORY: ("the GPU has too little memory for it", "close what else uses the GPU"),
    0x40: (
        "CUDA does not work here",
        "install the NVIDIA driver again (nvidia-smi says whether it works)",
    ),
}
"""Bits of TensorRT for RTX's EngineInvalidityDiagnostics, but for _MALFORMED: what each says, and what to do."""


@dataclass(frozen=True, slots=True)
class Here:
    """What would run an engine; gpu: None where CUDA does not tell which of several it is."""

    library: str
    version: str
    gpu: Gpu | None

    def __str__(self) -> str:
        return f"{self.library} {self.version} on {self.gpu or 'a GPU that CUDA does not name'}"


def refused_header(
    path: str, reasons: int, built_for: Mapping[str, Any], here: Here
) -> CodemillError:
    """The error for an engine whose header TensorRT for RTX calls invalid; reasons: its diagnostics, as bits.

    BundleError where it is no whole engine, MachineError where only memory lacks, else ProviderError.
    """
    if reasons & _MALFORMED:
        return BundleError(
            f"{path} is damaged, or was never an engine of {here.library}: its header is not one that "
            f"{here.version} reads. Get the bundle again, or {_BUILD_AGAIN}"
        )
    found = [said for bit, said in _REASONS.items() if reasons & bit] or [
        (
            f"{here.library} does not say why (diagnostics {reasons:#x})",
            "see what it printed, and whether nvidia-smi finds the GPU",
        )
    ]
    kind = MachineError if reasons == _MEMORY else ProviderError
    return kind(_refusal(path, found, built_for, here))


def check_built_for(path: str, built_for: Mapping[str, Any], here: Here) -> None:
    """Raise ProviderError where a variant's `built_for` names another version or other GPUs than those here.

    What it does not say, or says in another form than `said_of_engines` writes, is not checked.
    """
    version, capabilities = _version_of(built_for), _capabilities_of(built_for)
    found = []
    # an engine of TensorRT is for the very version that built it
    if version and version != here.version:
        found.append((_ANOTHER_VERSION, f"{_BUILD_AGAIN} on this machine"))
    if capabilities and here.gpu and here.gpu.compute_capability not in capabilities:
        found.append((_ANOTHER_GPU, f"{_BUILD_AGAIN} on this machine"))
    if found:
        raise ProviderError(_refusal(path, found, built_for, here))


def _refusal(
    path: str, found: list[tuple[str, str]], built_for: Mapping[str, Any], here: Here
) -> str:
    why = " and ".join(said for said, _ in found)
    # one remedy may be that of several reasons
    remedy = " and ".join(dict.fromkeys(remedy for _, remedy in found))
    version, capabilities = _version_of(built_for), _capabilities_of(built_for)
    known = [f"{here.library} {plain(version)}"] if version else []
    if capabilities:
        known.append(f"compute capability {plain(', '.join(capabilities))}")
    made = f"It was built for {', '.join(known)}; here" if known else "Here"
    return f"{path} does not run here: {why}. {made} is {here}. To run it, {remedy}; or choose another variant"


def _version_of(built_for: Mapping[str, Any]) -> str | None:
    said = built_for.get("library")
    return said if isinstance(said, str) else None


def _capabilities_of(built_for: Mapping[str, Any]) -> list[str]:
    said = built_for.get("compute_capabilities")
    return [item for item in said if isinstance(item, str)] if isinstance(said, list) else []
