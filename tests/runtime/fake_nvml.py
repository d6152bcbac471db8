"""NVML and CUDA's driver as ctypes calls them: a few made-up GPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import pytest

FAILED = 3
"""What NVML calls not supported."""


def uuid_of(number: int) -> str:
    return f"GPU-{UUID(int=number)}"


class FakeNvml:
    """So many GPUs; `cudas_first` is what CUDA calls the first. energy, power: what each reading gives; None: fails."""

    def __init__(
        self,
        count: int = 1,
        *,
        energy_mj: Callable[[], int | None] = lambda: 0,
        power_mw: Callable[[], int | None] = lambda: 0,
        memory: bool = True,
        cudas_first: int = 0,
        starts: bool = True,
    ) -> None:
        self.count, self.energy_mj, self.power_mw, self.memory = count, energy_mj, power_mw, memory
        self.cudas_first, self.starts = cudas_first, starts

    def nvmlInit_v2(self) -> int:
        return 0 if self.starts else FAILED

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = self.count
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:
        # a null pointer reads as None
        handle._obj.value = index.value + 1
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: Any) -> int:
        handle._obj.value = UUID(uuid.decode().removeprefix("GPU-")).int + 1
        return 0

    def nvmlDeviceGetName(self, handle: Any, text: Any, _: Any) -> int:
        text.value = f"Made-up {handle.value - 1}".encode()
        return 0

    def nvmlDeviceGetUUID(self, handle: Any, text: Any, _: Any) -> int:
        text.value = uuid_of(handle.value - 1).encode()
        return 0

    def nvmlSystemGetDriverVersion(self, text: Any, _: Any) -> int:
        text.value = b"999.1"
        return 0

    def nvmlDeviceGetCudaComputeCapability(self, handle: Any, major: Any, minor: Any) -> int:
        major._obj.value, minor._obj.value = 8, 5 + handle.value
        return 0

    def nvmlDeviceGetMemoryInfo(self, _: Any, memory: Any) -> int:
        memory._obj.total, memory._obj.used = 8_000_000_000, 1_000_000_000
        return 0 if self.memory else FAILED

    def nvmlDeviceGetTotalEnergyConsumption(self, _: Any, energy: Any) -> int:
        return _given(energy, self.energy_mj())

    def nvmlDeviceGetPowerUsage(self, _: Any, power: Any) -> int:
        return _given(power, self.power_mw())

    def cuInit(self, _: int) -> int:
        return 0

    def cuDeviceGet(self, device: Any, number: int) -> int:
        device._obj.value = number
        return 0

    def cuDeviceGetUuid(self, uuid: Any, _: Any) -> int:
        uuid._obj[:] = UUID(int=self.cudas_first).bytes
        return 0


def install(monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml | None) -> None:
    """Let codemill find these GPUs, or no driver."""
    from codemill.runtime import gpus

    def opened(name: str) -> FakeNvml:
        if nvml is None:
            raise OSError(f"{name}: cannot open shared object file")
        return nvml

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "_opened", opened)
    uncached = getattr(gpus._library, "__wrapped__", gpus._library)
    monkeypatch.setattr(gpus, "_library", uncached)


def readings(values: Sequence[int | None]) -> Callable[[], int | None]:
    """One after the other, the last for good."""
    left = list(values)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def _given(into: Any, value: int | None) -> int:
    if value is None:
        return FAILED
    into._obj.value = value
    return 0
