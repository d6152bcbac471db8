"""Energy of a stretch of work: the machine's own counter where there is one, else an estimate.

Of a processor the counter is Intel's and AMD's RAPL through Linux powercap: whole CPU packages. Since 2020 kernels let
only root read it, so most laptops get the estimate: CPU seconds times a stated wattage. An estimate compares two
engines on one machine; it does not say what a battery loses. Of an NVIDIA GPU it is NVML's: the whole card, from Volta
on counted by itself, before that summed from its power. Idle draw and other processes are in all of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from codemill.runtime.engines import ENGINES, NVIDIA, OPENVINO

if TYPE_CHECKING:
    from codemill.runtime.gpus import Gpu

__all__ = ["WATTS_PER_CORE", "Meter", "RaplCounter", "meter_of", "on_processor", "rapl_counter"]

# A busy core of a 15-28 W laptop chip. An assumption, printed wherever a figure rests on it.
WATTS_PER_CORE = 10.0
POWERCAP = Path("/sys/class/powercap")
_SAMPLED_EVERY_S = 0.02
_GPU_S = 1.0
"""That a stretch on a GPU lasts at least: its counter, and its power, change some ten times a second."""


@dataclass(frozen=True)
class Meter:
    """A counter of energy: `begin()` gives a function that ends the stretch and gives its joules, None where it fails.

    how: what it counts, for people. least_s: that a stretch should last for its own steps not to matter.
    """

    how: str
    begin: Callable[[], Callable[[], float | None]]
    least_s: float = 0.0


def on_processor(provider: str | None) -> bool:
    """Whether an engine that names this provider, or none, runs on the processor alone."""
    return provider is None or "CPU" in provider or provider == OPENVINO


def meter_of(provider: str | None) -> Meter | None:
    """What counts the energy of an engine that runs on `provider`; None where nothing does."""
    if on_processor(provider):
        counter = rapl_counter()
        return None if counter is None else _processor(counter)
    if provider in (*NVIDIA, *ENGINES):
        from codemill.runtime.gpus import first_gpu

        gpu = first_gpu()
        return None if gpu is None else _gpu(gpu)
    return None


def _processor(counter: RaplCounter) -> Meter:
    def begin() -> Callable[[], float]:
        before = counter.read_uj()
        return lambda: counter.spent_j(before, counter.read_uj())

    return Meter("RAPL counter of the CPU packages, idle draw and other processes included", begin)


def _gpu(gpu: Gpu) -> Meter | None:
    from codemill.runtime.gpus import energy_j, power_w

    whole = f"of the whole {gpu.name}, idle draw and other processes included, the processor's not"
    if energy_j(gpu) is not None:

        def begin() -> Callable[[], float | None]:
            before = energy_j(gpu)

            def end() -> float | None:
                after = energy_j(gpu)
                # it begins at 0 again where the driver does
                known = before is not None and after is not None and after >= before
                return after - before if known else None  # type: ignore[operator]

            return end

        return Meter(f"NVML's energy counter {whole}", begin, _GPU_S)
    if power_w(gpu) is not None:
        how = f"NVML's power {whole}, read every {_SAMPLED_EVERY_S * 1e3:.0f} ms and summed"
        return Meter(how, lambda: _sampled(lambda: power_w(gpu)), _GPU_S)
    return None


def _sampled(power: Callable[[], float | None]) -> Callable[[], float | None]:
    """Begin to sum a power, in watts, over time, in a thread of its own; None where a reading of it failed."""
    seen: list[tuple[float, float | None]] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_SAMPLED_EVERY_S):
            seen.append((time.perf_counter(), power()))

    seen.append((time.perf_counter(), power()))
    thread = threading.Thread(target=look, daemon=True)
    thread.start()

    def end() -> float | None:
        ended.set()
        thread.join()
        seen.append((time.perf_counter(), power()))
        total = 0.0
        for (start, first), (stop, last) in pairwise(seen):
            if first is None or last is None:
                return None
            total += (stop - start) * (first + last) / 2
        return total

    return end


@dataclass(frozen=True)
class RaplCounter:
    """The energy counters of this machine's CPU packages, in microjoules, and where each wraps."""

    files: tuple[Path, ...]
    wraps_uj: tuple[int, ...]

    def read_uj(self) -> tuple[int, ...]:
        """The counters now."""
        return tuple(int(file.read_text()) for file in self.files)

    def spent_j(self, before: tuple[int, ...], after: tuple[int, ...]) -> float:
        """Joules between two readings at most one wrap apart."""
        pairs = zip(before, after, self.wraps_uj, strict=True)
        return sum((b - a) if b >= a else (b - a + wrap) for a, b, wrap in pairs) / 1e6


def rapl_counter(root: Path = POWERCAP) -> RaplCounter | None:
    """The counter, or None where there is none or this user may not read it.

    Takes whole packages only (`intel-rapl:0`): their parts (`intel-rapl:0:0`) are already in them,
    and the memory-mapped twins (`intel-rapl-mmio:0`) count the same joules again.
    """
    try:
        zones = [
            zone
            for zone in sorted(root.glob("intel-rapl:*"))
            if zone.name.count(":") == 1 and (zone / "name").read_text().startswith("package")
        ]
        counter = RaplCounter(
            files=tuple(zone / "energy_uj" for zone in zones),
            wraps_uj=tuple(int((zone / "max_energy_range_uj").read_text()) for zone in zones),
        )
        counter.read_uj()
    except (OSError, ValueError):
        return None
    return counter if zones else None
