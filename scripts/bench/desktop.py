"""How soon the window of examples/desktop is there, and what it costs while nobody touches it.

    python scripts/bench/desktop.py FOLDER --search BUNDLE --complete BUNDLE [--starts 10] [--idle-s 60] [--json]

A start is from before the process begins to the window's first painting: the least and the median of so many, and the
processor's time, which does not depend on what else runs. Idle: a window that has read FOLDER and loaded both models,
its cursor blinking; what the process used of a processor in so many seconds, and its memory. Runs offscreen unless
QT_QPA_PLATFORM says otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil

_HOME = Path(__file__).resolve().parents[2] / "examples/desktop"
# the clock is one for all processes
_STARTED = """
import os, sys, time
import app
class Timed(app.Window):
    def paintEvent(self, event):
        super().paintEvent(event)
        print(time.monotonic(), flush=True)
        os._exit(0)
app.Window = Timed
app.main()
"""
_LOADED = """
import sys
import app
class Ready(app.Window):
    def _told(self, who, event):
        super()._told(who, event)
        models = self._encoder, self._completer
        if self._searched and "functions" in self.state.text():
            self._read = True
        if getattr(self, "_read", False) and all(item.loaded is not None for item in models):
            print("ready", flush=True)
app.Window = Ready
app.main()
"""


def started(arguments: list[str]) -> tuple[float, float]:
    """Seconds until a window is painted, and those of a processor."""
    begin, spent = time.monotonic(), psutil.Process().cpu_times()
    command = [sys.executable, "-c", _STARTED, *arguments]
    ended = subprocess.run(command, cwd=_HOME, check=True, stdout=subprocess.PIPE, text=True)
    after = psutil.Process().cpu_times()
    cpu_s = (
        after.children_user + after.children_system - spent.children_user - spent.children_system
    )
    return float(ended.stdout.split()[0]) - begin, cpu_s


def idle(arguments: list[str], seconds: float) -> dict[str, float]:
    """Shares of a processor, and bytes, of a window that is left alone."""
    command = [sys.executable, "-c", _LOADED, *arguments]
    with subprocess.Popen(command, cwd=_HOME, stdout=subprocess.PIPE, text=True) as window:
        assert window.stdout is not None
        begin = time.monotonic()
        window.stdout.readline()
        ready_s = time.monotonic() - begin
        process = psutil.Process(window.pid)
        # what is still told and drawn
        time.sleep(2)
        before = process.cpu_times()
        time.sleep(seconds)
        after = process.cpu_times()
        found = {
            "ready_s": ready_s,
            "idle_cpu_share": (after.user + after.system - before.user - before.system) / seconds,
            "rss_bytes": process.memory_info().rss,
        }
        window.terminate()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--search", required=True, metavar="BUNDLE")
    parser.add_argument("--complete", required=True, metavar="BUNDLE")
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--idle-s", type=float, default=60)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    arguments = [str(Path(asked.folder).absolute())]
    for name in ("search", "complete"):
        arguments += [f"--{name}", str(Path(getattr(asked, name)).absolute())]
    starts = [started(arguments) for _ in range(asked.starts)]
    walls, spent = zip(*starts, strict=True)
    found = {
        "start_least_s": min(walls),
        "start_median_s": statistics.median(walls),
        "start_cpu_median_s": statistics.median(spent),
        **idle(arguments, asked.idle_s),
    }
    if asked.json:
        print(json.dumps(found, indent=1))
        return
    print(
        f"window painted after {found['start_median_s']:.2f} s (median of {len(starts)}, least "
        f"{found['start_least_s']:.2f}; {found['start_cpu_median_s']:.2f} s of a processor); both models loaded and "
        f"the folder read after {found['ready_s']:.2f} s; idle {100 * found['idle_cpu_share']:.2f} % of a processor "
        f"over {asked.idle_s:.0f} s, {found['rss_bytes'] / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main()
