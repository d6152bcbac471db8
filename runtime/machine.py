"""This machine: processor, instruction sets, memory, and the execution providers that are here.

Read from the operating system's own files and calls, with no library for it (psutil would be one
more binary for a desktop app to ship). What cannot be told is None or empty, never guessed. How
fast the machine is is not said here: that is measured, by `targets`.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["INT8_PRODUCTS", "Machine", "physical_cores", "this_machine", "unlike"]

# what the kernel calls it -> what this project calls it; the ones that decide how fast int8,
# fp16 and bf16 run, and no others
_INSTRUCTION_SETS = {
    "sse4_1": "sse4_1",
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "avx_vnni": "avx_vnni",
    "amx_tile": "amx",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "neon": "neon",
    "asimd": "neon",
    "asimddp": "dotprod",
    "asimdhp": "fp16",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
}
INSTRUCTION_SETS = tuple(dict.fromkeys(_INSTRUCTION_SETS.values()))
"""Those that are told, by the names that are used here."""
SYSTEMS = {"linux": "linux", "win32": "windows", "darwin": "macos"}
ARCHITECTURES = {
    **dict.fromkeys(("x86_64", "AMD64"), "x86_64"),
    **dict.fromkeys(("arm64", "aarch64", "ARM64"), "arm64"),
}
"""By what Python calls them."""
NEEDS = ("systems", "architectures", "instruction_sets")
"""What a target, or a variant that was made for one, may ask of a machine: lists of names; none: any."""
INT8_PRODUCTS = "int8_products"
"""Asked for, as true, where 8-bit weights meet 8-bit activations: what `Machine.has_int8_products` says."""
_INT8_PRODUCTS = {"avx512_vnni", "avx_vnni", "amx_int8", "dotprod", "i8mm"}


@dataclass(frozen=True, slots=True)
class Machine:
    """What is known of the machine this process runs on.

    Cores and memory are those this process may use: its affinity and its control group's limits
    are taken into account. `physical_cores` counts a core with two hardware threads once, where
    that can be told, and is otherwise `logical_cores`.
    """

    cpu: str
    architecture: str
    physical_cores: int
    logical_cores: int
    instruction_sets: tuple[str, ...]
    memory_bytes: int | None
    memory_available_bytes: int | None
    providers: tuple[str, ...]
    onnxruntime: str
    os: str
    python: str

    @property
    def has_int8_products(self) -> bool:
        """Whether 8-bit products are summed in 32 bits by one instruction (VNNI, dotprod, AMX).

        Without it, ONNX Runtime's u8s8 kernels add pairs in 16 bits, which can saturate: weights
        quantized to 7 bits (reduced range) give the intended result there.
        """
        return not _INT8_PRODUCTS.isdisjoint(self.instruction_sets)

    def to_json(self) -> dict[str, Any]:
        """The machine as plain JSON, for a report."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }


def this_machine() -> Machine:
    """Look at this machine now (`memory_available_bytes` changes from call to call)."""
    import onnxruntime

    cpuinfo = _read("/proc/cpuinfo")
    total, available = _memory_bytes()
    return Machine(
        cpu=_cpu_name(cpuinfo),
        architecture=platform.machine(),
        physical_cores=physical_cores(),
        logical_cores=logical_cores(),
        instruction_sets=_instruction_sets(cpuinfo),
        memory_bytes=total,
        memory_available_bytes=available,
        providers=tuple(onnxruntime.get_available_providers()),
        onnxruntime=onnxruntime.__version__,
        os=platform.platform(),
        python=platform.python_version(),
    )


def unlike(needs: Mapping[str, Any]) -> str | None:
    """Why this machine is not of the kind that has NEEDS, in one sentence, or None; other keys are let be."""
    system = SYSTEMS.get(sys.platform, sys.platform)
    systems: Sequence[str] = needs.get("systems", ())
    if systems and system not in systems:
        return f"it is for {' and '.join(systems)}; this is {system}"
    architecture = ARCHITECTURES.get(platform.machine(), platform.machine())
    architectures: Sequence[str] = needs.get("architectures", ())
    if architectures and architecture not in architectures:
        return f"it is for {' and '.join(architectures)}; this machine is {architecture}"
    asked: Sequence[str] = needs.get("instruction_sets", ())
    products = needs.get(INT8_PRODUCTS) is True
    # where the system does not tell, nothing is known to be missing
    here = _instruction_sets(_read("/proc/cpuinfo")) if asked or products else ()
    lacking = [name for name in asked if here and name not in here]
    if products and here and _INT8_PRODUCTS.isdisjoint(here):
        lacking.append("instruction for sums of 8-bit products (VNNI, AMX, dot products)")
    return f"this processor has no {', '.join(lacking)}" if lacking else None


def logical_cores() -> int:
    """Hardware threads this process may keep busy."""
    return min(len(_allowed()), _quota_cores())


def physical_cores() -> int:
    """Cores this process may keep busy, and so the default number of threads.

    A second thread on a core shares its multipliers: for matrix products it only costs.
    """
    allowed = _allowed()
    cores = {
        _read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or f"cpu{cpu}"
        for cpu in allowed
    }
    count = len(cores)
    if sys.platform == "darwin":
        # of the fast kind, where there are two kinds: a product waits for its slowest part
        known = _sysctl("hw.perflevel0.physicalcpu") or _sysctl("hw.physicalcpu")
        count = min(known or count, count)
    return min(count, _quota_cores())


def one_a_core() -> list[int]:
    """Logical processors that this process may use, one of each core first, then their siblings."""
    seen: set[str] = set()
    first: list[int] = []
    rest: list[int] = []
    for cpu in sorted(_allowed()):
        core = _read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        (rest if core and core in seen else first).append(cpu)
        seen.add(core)
    return first + rest


def _allowed() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _quota_cores() -> int:
    """The tightest CPU quota of the control groups above this process, in whole cores."""
    limit = math.inf
    for folder in _groups("cpu"):
        # version 2: "max 100000" or "150000 100000"; version 1: two files
        words = _read(f"{folder}/cpu.max").split() or [
            _read(f"{folder}/cpu.cfs_quota_us"),
            _read(f"{folder}/cpu.cfs_period_us"),
        ]
        if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
            limit = min(limit, int(words[0]) / int(words[1]))
    # more threads than the quota feeds are all stopped together when it is used up
    return sys.maxsize if limit == math.inf else max(1, math.floor(limit))


def _memory_bytes() -> tuple[int | None, int | None]:
    """(total, available) memory in bytes."""
    if sys.platform == "win32":
        return _windows_memory_bytes()
    if sys.platform == "darwin":
        return _sysctl("hw.memsize"), None
    sizes = {}
    for line in _read("/proc/meminfo").splitlines():
        key, _, value = line.partition(":")
        number, _, unit = value.strip().partition(" ")
        if unit == "kB" and number.isdigit():
            sizes[key] = int(number) * 1024
    total, available = sizes.get("MemTotal"), sizes.get("MemAvailable")
    for folder in _groups("memory"):
        limit = _number(f"{folder}/memory.max", f"{folder}/memory.limit_in_bytes")
        used = _number(f"{folder}/memory.current", f"{folder}/memory.usage_in_bytes")
        # "no limit" is written as a number near 2**63 by version 1
        if limit is None or (total is not None and limit >= total):
            continue
        total = limit
        if used is not None:
            left = max(0, limit - used)
            available = left if available is None else min(available, left)
    return total, available


def _groups(controller: str) -> Iterator[str]:
    """Folders of the control groups this process is in, the innermost first."""
    for line in _read("/proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if names and controller not in names.split(","):
            continue
        root = Path("/sys/fs/cgroup") / (controller if names else "")
        inner = Path(path.lstrip("/"))
        # inside a container the path may be the host's: then only the root is there
        for part in (inner, *inner.parents):
            if (root / part).is_dir():
                yield str(root / part)


def _cpu_name(cpuinfo: str) -> str:
    for key in ("model name", "Model", "Hardware"):
        for value in _values(cpuinfo, key):
            if value:
                return value
    if sys.platform == "darwin":
        return _sysctl_text("machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def _instruction_sets(cpuinfo: str) -> tuple[str, ...]:
    flags: set[str] = set()
    for key in ("flags", "Features"):
        for value in _values(cpuinfo, key):
            flags.update(value.split())
            # one core's flags are every core's, and a server lists 256 of them
            break
    if sys.platform == "darwin" and platform.machine() == "arm64":
        flags.add("asimd")
        if _sysctl("hw.optional.arm.FEAT_DotProd"):
            flags.add("asimddp")
        if _sysctl("hw.optional.arm.FEAT_I8MM"):
            flags.add("i8mm")
    found: Iterable[str] = (name for flag, name in _INSTRUCTION_SETS.items() if flag in flags)
    return tuple(dict.fromkeys(found))


def _values(cpuinfo: str, key: str) -> Iterator[str]:
    for line in cpuinfo.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() == key:
            yield value.strip()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(*paths: str) -> int | None:
    for path in paths:
        text = _read(path)
        if text.isdigit():
            return int(text)
    return None


def _sysctl_bytes(name: str) -> bytes:
    try:
        call = ctypes.CDLL(None).sysctlbyname
    except (OSError, AttributeError):
        return b""
    size = ctypes.c_size_t(256)
    buffer = ctypes.create_string_buffer(size.value)
    if call(name.encode(), buffer, ctypes.byref(size), None, ctypes.c_size_t(0)):
        return b""
    return buffer.raw[: size.value]


def _sysctl(name: str) -> int | None:
    value = _sysctl_bytes(name)
    return int.from_bytes(value, "little") if value else None


def _sysctl_text(name: str) -> str:
    return _sysctl_bytes(name).rstrip(b"\0").decode("utf-8", "replace")


def _windows_memory_bytes() -> tuple[int | None, int | None]:
    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *(
                (name, ctypes.c_ulonglong)
                for name in ("total", "available", "a", "b", "c", "d", "e")
            ),
        )

    status = Status()
    status.length = ctypes.sizeof(Status)
    library: Any = getattr(ctypes, "windll", None)
    if library is None or not library.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None, None
    return int(status.total), int(status.available)
