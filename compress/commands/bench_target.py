"""`compress bench --target`: what a kind of machine sets of a measurement, and what it allows the process.

A profile says with what to measure, at which lengths, and how much memory a process may hold; whether this machine can
stand for it is `targets/profile.py`'s to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from codemill.errors import MachineError

if TYPE_CHECKING:
    from codemill.runtime import Manifest
    from codemill.targets.profile import Shape, TargetSpec
    from codemill.targets.report import Limit

__all__ = [
    "AskedTarget",
    "asked_target",
    "memory_limits",
    "memory_line",
    "shapes_for",
    "threads_for",
    "variant_for",
]


@dataclass(frozen=True)
class AskedTarget:
    """A target that this machine stands for; said: what `--target` takes, of a profile's file without its folder."""

    said: str
    spec: TargetSpec


def asked_target(name: str) -> AskedTarget:
    """The target called so, or of that .yaml; MachineError with the reason where it cannot run on this machine.

    RecipeError where there is none, or its profile is wrong.
    """
    from codemill.runtime.engines import WEB
    from codemill.targets import availability, target_named

    spec = target_named(name)
    why = availability(spec)
    if why is not None:
        instead = "; give --browser PAGES in its place" if spec.provider == WEB else ""
        raise MachineError(f"--target {name} cannot be measured on this machine: {why}{instead}")
    return AskedTarget(Path(name).name, spec)


def threads_for(target: AskedTarget | None) -> int:
    """Threads of each engine: the target's; the physical cores where it says none, or there is none."""
    from codemill.runtime.machine import physical_cores

    return (target.spec.threads if target else None) or physical_cores()


def shapes_for(target: AskedTarget | None) -> tuple[Shape, ...]:
    """The latencies to measure, each once."""
    from codemill.targets.profile import DEFAULT_SHAPES

    return tuple(dict.fromkeys(target.spec.shapes if target else DEFAULT_SHAPES))


def variant_for(target: AskedTarget | None, manifest: Manifest) -> str | None:
    """The variant that was made for the target; None where the bundle has none."""
    if target is None:
        return None
    found = manifest.variants.get(target.spec.name)
    # of another provider it only has the name: an engine, code for a GPU, is not run because it is called laptop-cpu
    if found is None or found.provider != target.spec.provider:
        return None
    return target.spec.name


def memory_limits(target: AskedTarget | None, peak_rss_bytes: float) -> tuple[Limit, ...]:
    """What a process that held so much is allowed; nothing where no target says."""
    from codemill.targets.report import limit

    if target is None or target.spec.memory_bytes is None:
        return ()
    allowed, note = target.spec.memory_bytes, f"of {target.spec.name}"
    return (limit("peak_rss_bytes", "at most", allowed, peak_rss_bytes, note),)


def memory_line(target: AskedTarget, peak_rss_bytes: float) -> str:
    """Whether a process that held so much stays within what the target allows, with both figures."""
    from codemill.targets.tables import in_bytes

    name = target.spec.name
    peak = in_bytes(peak_rss_bytes)
    found = memory_limits(target, peak_rss_bytes)
    if not found:
        return f"peak memory {peak}: {name} sets no limit"
    allowed = in_bytes(found[0].limit)
    if peak == allowed:
        # megabytes do not show which is more
        peak, allowed = f"{peak_rss_bytes:,.0f} bytes", f"{found[0].limit:,.0f} bytes"
    return f"peak memory {peak}: {'within' if found[0].met else 'more than'} {name}'s {allowed}"
