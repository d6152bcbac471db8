"""Energy of a stretch of work: the machine's own counter where it can be read, else an estimate.

The counter is Intel's and AMD's RAPL through Linux powercap: whole CPU packages, idle draw and
other processes included. Since 2020 kernels let only root read it, so most laptops get the
estimate: CPU seconds times a stated wattage. An estimate compares two engines on one machine; it
does not say what a battery loses.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["WATTS_PER_CORE", "RaplCounter", "rapl_counter"]

# A busy core of a 15-28 W laptop chip. An assumption, printed wherever a figure rests on it.
WATTS_PER_CORE = 10.0
POWERCAP = Path("/sys/class/powercap")


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
