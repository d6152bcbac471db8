"""What this processor can do at most: products in float32 and reading memory, measured in a process of its own.

Run as a module it prints both as JSON, by numpy and its BLAS, with as many threads as its environment allows. A
latency stands beside the time that its products alone would take at that rate: how much of the machine is used.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Ceiling", "best_of", "measured_ceiling"]

_SIDE = 1024
_READ_BYTES = 2**27
_REPEATS = 8
_TIMEOUT_S = 60.0
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True)
class Ceiling:
    """1e9 operations a second of a large float32 product, and 1e9 bytes a second read, with so many threads."""

    gemm_gflops: float
    read_gb_per_s: float
    threads: int


def best_of(ceilings: Sequence[Ceiling]) -> Ceiling | None:
    """The best of each rate, with the most threads: what disturbs a measurement only makes it slower."""
    if not ceilings:
        return None
    return Ceiling(
        max(ceiling.gemm_gflops for ceiling in ceilings),
        max(ceiling.read_gb_per_s for ceiling in ceilings),
        max(ceiling.threads for ceiling in ceilings),
    )


def measured_ceiling(threads: int) -> list[Ceiling]:
    """Measure both once, in a second or so; nothing where the process does not answer."""
    environment = {**os.environ, **dict.fromkeys(_THREADS, str(threads))}
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "codemill.targets.ceiling", str(threads)],
            capture_output=True,
            text=True,
            check=True,
            timeout=_TIMEOUT_S,
            env=environment,
        )
        found = json.loads(ended.stdout)
        return [Ceiling(float(found["gemm_gflops"]), float(found["read_gb_per_s"]), threads)]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        return []


def _rates() -> dict[str, float]:
    import numpy as np

    def quickest(work: Any) -> float:
        best = float("inf")
        for _ in range(_REPEATS):
            started = time.perf_counter()
            work()
            best = min(best, time.perf_counter() - started)
        return best

    generator = np.random.default_rng(0)
    one, other = generator.random((2, _SIDE, _SIDE), dtype=np.float32)
    product_s = quickest(lambda: one @ other)
    row = np.ones(_READ_BYTES // 4, np.float32)
    read_s = quickest(lambda: row @ row)
    return {
        "gemm_gflops": 2 * _SIDE**3 / product_s / 1e9,
        "read_gb_per_s": row.nbytes / read_s / 1e9,
    }


if __name__ == "__main__":
    from codemill.targets.worker import pin

    pin(int(sys.argv[1]))
    print(json.dumps(_rates()))
