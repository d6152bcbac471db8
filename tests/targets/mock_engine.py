"""A process that serves a made-up engine: `python mock_engine.py NAME [key=value]...`.

Texts become random unit vectors that depend on their words only, with `noise` added; `die=OP` ends
the process at that request, `hang=OP` stops answering. Starts and ends are noted in `log`. `provider`: where it says
that it runs; `elsewhere`: matrix products of its ten that it says another one runs; `joules`: what a counter of energy
that it alone has gives of every stretch.
"""

from __future__ import annotations

import os
import re
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from codemill.targets import energy
from codemill.targets.energy import Meter
from codemill.targets.worker import Loaded, serve


def words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


def count_tokens(texts: Sequence[str], factor: float = 1.0) -> list[int]:
    return [int(len(words(text)) * factor) for text in texts]


def main(name: str, options: dict[str, str]) -> int:
    log, busy_ms = options.get("log"), float(options.get("busy_ms", 0))
    noise, factor = float(options.get("noise", 0)), float(options.get("factor", 1))

    def note(event: str) -> None:
        if log:
            with Path(log).open("a") as file:
                file.write(f"{event} {name}\n")

    def vector(text: str) -> npt.NDArray[np.float32]:
        total = np.zeros(64)
        for word in words(text):
            total += np.random.default_rng(zlib.crc32(word.encode())).normal(size=64)
        extra = np.random.default_rng(zlib.crc32((name + text).encode())).normal(size=64)
        return (total + noise * extra).astype(np.float32)

    def encode(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        print("a library that prints to stdout")
        os.write(1, b"and one that does so in C\n")
        until = time.perf_counter() + busy_ms * len(texts) / 1e3
        rows = np.stack([vector(text) for text in texts])
        while time.perf_counter() < until:
            pass
        if any("DIE" in text for text in texts):
            print("Traceback: the last words", file=sys.stderr, flush=True)
            os._exit(7)
        if any("HANG" in text for text in texts):
            time.sleep(600)
        if any("RAISE" in text for text in texts):
            raise ValueError("this text cannot be encoded")
        return rows

    def load() -> Loaded:
        note("start")
        if options.get("fail") == "load":
            from codemill.errors import BundleError

            raise BundleError("there is no bundle here")
        provider = options.get("provider", "CPUExecutionProvider")
        details: dict[str, Any] = {"provider": provider, "precision": "fp32"}
        if "elsewhere" in options:
            other = int(options["elsewhere"])
            details["placed"] = {
                provider: {"MatMul": 10 - other, "Add": 5},
                "OtherExecutionProvider": {"FusedMatMul": other, "Shape": 3},
            }
        if "joules" in options:
            counted = Meter("a made-up counter", lambda: lambda: float(options["joules"]))
            energy.meter_of = lambda _: counted
        return Loaded(encode, lambda texts: count_tokens(texts, factor), details)

    try:
        return serve(name, load, threads=1)
    finally:
        note("end")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], dict(part.split("=", 1) for part in sys.argv[2:])))
