"""How long a fresh process takes to import codemill, load a bundle and encode once, and what it holds.

    python scripts/bench/cold_start.py BUNDLE [--runs 10] [--python PYTHON] [--json]

Each run is a process of its own, alternating with a bare `python -c pass` on the same interpreter, so that
what the interpreter itself costs on this machine stands beside it. The first pair warms the file cache and
is not counted. PYTHON may be that of another environment, such as one with the base install alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

_CHILD = """
import json, sys, time
start = time.perf_counter()
import codemill
imported = time.perf_counter()
model = codemill.load(sys.argv[1])
loaded = time.perf_counter()
model.encode(["parse an ISO date"])
done = time.perf_counter()
from codemill.targets.worker import peak_rss_bytes
print(json.dumps({
    "import_s": imported - start, "load_s": loaded - imported, "first_encode_s": done - loaded,
    "total_s": done - start, "peak_rss_bytes": peak_rss_bytes(),
    "unwanted": [name for name in ("torch", "transformers", "click") if name in sys.modules],
}))
"""


def _timed(command: list[str]) -> tuple[float, str]:
    start = time.perf_counter()
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return time.perf_counter() - start, out


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    bare: list[float] = []
    whole: list[float] = []
    inner: list[dict[str, float]] = []
    unwanted: set[str] = set()
    for run in range(chosen.runs + 1):
        nothing, _ = _timed([chosen.python, "-c", "pass"])
        process, out = _timed([chosen.python, "-c", _CHILD, chosen.bundle])
        if run:
            found = json.loads(out)
            unwanted.update(found.pop("unwanted"))
            bare.append(nothing)
            whole.append(process)
            inner.append(found)
    summary = {
        "runs": chosen.runs,
        "process_s": statistics.median(whole),
        "bare_python_s": statistics.median(bare),
        **{key: statistics.median(item[key] for item in inner) for key in inner[0]},
        "unwanted_modules": sorted(unwanted),
    }
    if chosen.json:
        print(json.dumps(summary, indent=1))
        return
    for key, value in summary.items():
        print(f"{key:18} {value:.3f}" if isinstance(value, float) else f"{key:18} {value}")


if __name__ == "__main__":
    main()
