"""The NVIDIA GPUs of this machine, as their driver's management library (NVML) tells of them.

It starts nothing on a GPU, and may be asked before a process forks; CUDA may not, and is asked by `first_gpu` alone.
Not nvidia-ml-py, which would be a dependency of every bundle's user for a handful of calls: they are made here through
ctypes.
"""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import byref
from dataclasses import dataclass
from functools import cache
from typing import Any
from uuid import UUID

__all__ = ["Gpu", "energy_j", "first_gpu", "gpus", "power_w", "used_bytes"]

_TEXT_BYTES = 96
_NVML, _CUDA = (
    ("nvml.dll", "nvcuda.dll") if sys.platform == "win32" else ("libnvidia-ml.so.1", "libcuda.so.1")
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU and its driver's version. uuid: what CUDA calls it too; compute_capability: such as 8.6; memory_bytes: None
    where it has none of its own.
    """

    name: str
    uuid: str
    compute_capability: str
    memory_bytes: int | None
    driver: str

    def __str__(self) -> str:
        return f"{self.name}, compute capability {self.compute_capability}, driver {self.driver}"


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


def _opened(name: str) -> Any:
    return ctypes.CDLL(name)


@cache
def _library() -> Any:
    """NVML, started; None where there is no driver, or no GPU that it knows."""
    try:
        library = _opened(_NVML)
        return library if library.nvmlInit_v2() == 0 else None
    except (OSError, AttributeError):
        return None


def gpus() -> tuple[Gpu, ...]:
    """The GPUs, as NVML orders them; none where CUDA_VISIBLE_DEVICES hides them all. Which of several it hides is not
    looked at.
    """
    library, count = _library(), ctypes.c_uint()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip()
    if library is None or hidden in ("", "-1") or library.nvmlDeviceGetCount_v2(byref(count)):
        return ()
    found = []
    for number in range(count.value):
        handle = ctypes.c_void_p()
        if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(number), byref(handle)) == 0:
            found.append(_described(library, handle))
    return tuple(found)


def first_gpu() -> Gpu | None:
    """The GPU that CUDA calls the first, which sessions run on; None where there is none. Starts CUDA where there are
    several.
    """
    found = gpus()
    if len(found) < 2:
        return found[0] if found else None
    device, uuid = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    try:
        cuda = _opened(_CUDA)
        failed = cuda.cuInit(0) or cuda.cuDeviceGet(byref(device), 0)
        failed = failed or cuda.cuDeviceGetUuid(byref(uuid), device)
    except (OSError, AttributeError):
        return None
    said = f"GPU-{UUID(bytes=bytes(uuid))}"
    return next((gpu for gpu in found if gpu.uuid == said and not failed), None)


def energy_j(gpu: Gpu) -> float | None:
    """Joules that the GPU has taken since its driver was loaded; None of one that does not count them."""
    millijoules = ctypes.c_ulonglong()
    read = _asked(gpu, "nvmlDeviceGetTotalEnergyConsumption", millijoules)
    return millijoules.value / 1e3 if read else None


def power_w(gpu: Gpu) -> float | None:
    """Watts that the GPU takes now; None where it does not tell."""
    milliwatts = ctypes.c_uint()
    return milliwatts.value / 1e3 if _asked(gpu, "nvmlDeviceGetPowerUsage", milliwatts) else None


def used_bytes(gpu: Gpu) -> int | None:
    """Memory of the GPU that all processes hold now; None where it does not tell."""
    memory = _Memory()
    return int(memory.used) if _asked(gpu, "nvmlDeviceGetMemoryInfo", memory) else None


def _asked(gpu: Gpu, call: str, answer: Any) -> bool:
    """Whether the library gave an answer to a call about this GPU."""
    library, handle = _library(), ctypes.c_void_p()
    if library is None or library.nvmlDeviceGetHandleByUUID(gpu.uuid.encode(), byref(handle)):
        return False
    return bool(getattr(library, call)(handle, byref(answer)) == 0)


def _described(library: Any, handle: Any) -> Gpu:
    name, uuid, driver = (ctypes.create_string_buffer(_TEXT_BYTES) for _ in range(3))
    size = ctypes.c_uint(_TEXT_BYTES)
    library.nvmlDeviceGetName(handle, name, size)
    library.nvmlDeviceGetUUID(handle, uuid, size)
    library.nvmlSystemGetDriverVersion(driver, size)
    major, minor, memory = ctypes.c_int(), ctypes.c_int(), _Memory()
    library.nvmlDeviceGetCudaComputeCapability(handle, byref(major), byref(minor))
    told = library.nvmlDeviceGetMemoryInfo(handle, byref(memory)) == 0
    return Gpu(
        name=name.value.decode(errors="replace"),
        uuid=uuid.value.decode(errors="replace"),
        compute_capability=f"{major.value}.{minor.value}",
        memory_bytes=int(memory.total) if told else None,
        driver=driver.value.decode(errors="replace"),
    )
