"""What a measurement was made on: the machine, the packages, how busy it was, and when."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from codemill.targets.ceiling import Ceiling

__all__ = ["Environment", "clock_mhz", "machine_id", "this_environment"]

PACKAGES = ("codemill", "numpy", "onnxruntime", "tokenizers")


@dataclass(frozen=True)
class Environment:
    """`machine` is `codemill.runtime.machine.Machine` as plain data; `machine_id` tells two apart.

    `cpu_busy_share` is how busy all cores were, 0 to 1, in the half second before the first engine
    was started: well above 0 says that something else was running, and that the milliseconds are
    to be doubted. (Not the load average: it remembers the training that ended a minute ago.) `ceiling`: what the
    processor can do at most, with the threads that the engines had. `gpus`: NVIDIA's, each by its name, compute
    capability and driver.
    """

    machine: dict[str, Any]
    machine_id: str
    packages: dict[str, str]
    cpu_busy_share: float | None
    measured_at: str
    ceiling: Ceiling | None = None
    gpus: tuple[str, ...] = ()


def this_environment() -> Environment:
    """This machine, now."""
    from codemill.runtime.gpus import gpus
    from codemill.runtime.machine import this_machine
    from codemill.targets.codec import to_json

    packages = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    return Environment(
        machine=to_json(this_machine()),
        machine_id=machine_id(),
        packages=packages,
        cpu_busy_share=_cpu_busy_share(),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        gpus=tuple(map(str, gpus())),
    )


def _cpu_busy_share() -> float | None:
    try:
        import psutil
    except ImportError:
        return None
    return float(psutil.cpu_percent(interval=0.5)) / 100


def clock_mhz() -> float | None:
    """The clock of this machine's cores now, their mean, where the system tells; often a constant of a virtual one."""
    try:
        import psutil

        found = psutil.cpu_freq()
    except (ImportError, OSError, NotImplementedError):
        return None
    return float(found.current) if found is not None and found.current else None


def machine_id() -> str:
    """Twelve hex digits that stay the same on one machine and do not give its name away."""
    from codemill.runtime.machine import this_machine

    machine = this_machine()
    # two containers may have one name, and processors that are nothing alike
    known = (
        *(platform.node(), platform.system(), machine.architecture, machine.cpu),
        *(str(machine.logical_cores), *sorted(machine.instruction_sets)),
    )
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:12]
