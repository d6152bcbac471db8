from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import onnxruntime
import pytest

from codemill.runtime import Machine, machine, this_machine
from codemill.runtime.machine import logical_cores, physical_cores

GIB = 2**30


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """The files of an invented Linux machine: what is not among them is not there."""
    content: dict[str, str] = {}
    monkeypatch.setattr(machine, "_read", lambda path: content.get(path, "").strip())
    monkeypatch.setattr(Path, "is_dir", lambda self: any(k.startswith(f"{self}/") for k in content))
    monkeypatch.setattr(sys, "platform", "linux")
    return content


def cores(files: dict[str, str], monkeypatch: pytest.MonkeyPatch, *siblings: str) -> None:
    allowed = set(range(len(siblings)))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: allowed, raising=False)
    for cpu, text in enumerate(siblings):
        files[f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"] = text


def test_this_machine_is_told_truly() -> None:
    found = this_machine()
    assert 1 <= found.physical_cores <= found.logical_cores <= (os.cpu_count() or 1)
    assert found.providers == tuple(onnxruntime.get_available_providers())
    assert found.cpu
    if sys.platform == "linux":
        assert found.memory_bytes is not None
        assert found.memory_available_bytes is not None
        assert 0 < found.memory_available_bytes <= found.memory_bytes
    assert json.loads(json.dumps(found.to_json()))["physical_cores"] == found.physical_cores


def test_a_core_with_two_hardware_threads_counts_once(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cores(files, monkeypatch, "0,2", "1,3", "0,2", "1,3")
    assert (physical_cores(), logical_cores()) == (2, 4)


def test_where_nothing_tells_the_cores_the_threads_count(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cores(files, monkeypatch, "", "", "")
    assert (physical_cores(), logical_cores()) == (3, 3)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("200000 100000", 2), ("150000 100000", 1), ("10000 100000", 1), ("max 100000", 4)],
)
def test_the_quota_of_a_container_limits_the_cores(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    cores(files, monkeypatch, "0", "1", "2", "3")
    files["/proc/self/cgroup"] = "0::/box/inner\n"
    files["/sys/fs/cgroup/box/cpu.max"] = quota
    files["/sys/fs/cgroup/box/inner/cpu.max"] = "max 100000"
    assert physical_cores() == expected


def test_the_quota_of_version_one_limits_the_cores(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cores(files, monkeypatch, "0", "1", "2", "3")
    files["/proc/self/cgroup"] = "4:memory:/other\n3:cpu,cpuacct:/box\n"
    # the path of the host, which a container does not see
    files["/sys/fs/cgroup/cpu/cpu.cfs_quota_us"] = "200000"
    files["/sys/fs/cgroup/cpu/cpu.cfs_period_us"] = "100000"
    assert physical_cores() == 2


def test_memory_is_what_the_container_allows(files: dict[str, str]) -> None:
    files["/proc/meminfo"] = "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n"
    assert machine._memory_bytes() == (16 * GIB, 8 * GIB)
    files["/proc/self/cgroup"] = "0::/box\n"
    files["/sys/fs/cgroup/box/memory.max"] = str(2 * GIB)
    files["/sys/fs/cgroup/box/memory.current"] = str(GIB // 2)
    assert machine._memory_bytes() == (2 * GIB, 2 * GIB - GIB // 2)
    files["/sys/fs/cgroup/box/memory.max"] = "max"
    assert machine._memory_bytes() == (16 * GIB, 8 * GIB)


def test_memory_that_cannot_be_told_is_none(files: dict[str, str]) -> None:
    assert machine._memory_bytes() == (None, None)


@pytest.mark.parametrize(
    ("cpuinfo", "expected", "has_int8_products"),
    [
        (
            "flags\t\t: fpu sse4_1 avx avx2 fma f16c",
            ("sse4_1", "avx", "avx2", "fma", "f16c"),
            False,
        ),
        ("flags: avx2 avx512f avx512_vnni", ("avx2", "avx512f", "avx512_vnni"), True),
        ("flags: avx2 avx_vnni\nflags: avx2 avx_vnni", ("avx2", "avx_vnni"), True),
        ("flags: amx_tile amx_int8", ("amx", "amx_int8"), True),
        ("Features\t: fp asimd asimdhp asimddp", ("neon", "dotprod", "fp16"), True),
        ("", (), False),
    ],
)
def test_instruction_sets_are_those_the_kernel_names(
    cpuinfo: str, expected: tuple[str, ...], has_int8_products: bool
) -> None:
    assert machine._instruction_sets(cpuinfo) == expected
    found = dataclasses.replace(this_machine(), instruction_sets=expected)
    assert isinstance(found, Machine)
    assert found.has_int8_products is has_int8_products
