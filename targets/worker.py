"""One engine in a process of its own, answering JSON lines: what the benchmark times.

    -> {"op": "time", "texts": [...], "batch": 8, "repeats": 5, "warmup": 1, "max_s": 10, "energy": true}
    <- {"ms": [...], "cpu_ms": 812.0, "energy": {"joules": 9.1, "calls": 5, "how": "RAPL ..."} or null, ...}
    -> {"op": "encode", "texts": [...], "out": "path.npy"}       <- {"rows": 1000, "ms": 5123.0}
    -> {"op": "predict", "rows": [["..."], ["...", "..."]], "out": "path.npz"}     <- {"rows": 1000, "ms": 5123.0}
    -> {"op": "complete", "prefix": ..., "settings": {...}, "max_tokens": 32}   <- as `Completed` of completion.py
    -> {"op": "rates", "prefix": ..., "tokens": 64}              <- {"prompt_tokens": 400, "prefill_s": 0.5, ...}
    -> {"op": "write", "prefix": ..., "settings": {...}, "max_tokens": 256}         <- {"text": "..."}
    -> {"op": "said", "text": ...}                              <- {"right": 200, "tokens": 400, "said": [...]}
    -> {"op": "count", "texts": [...]}                           <- {"tokens": [...] or null}
    -> {"op": "operators", "texts": [...], "batch": 1, "calls": 20}      <- {"times": [...], "calls": 20}
    -> {"op": "info"}       <- {"engine": ..., "peak_rss_bytes": ..., "load_ms": ..., ...}
    -> {"op": "close"}      (or the end of stdin)

On start it loads, encodes one short text and says {"ready": true, ...info}. What fails answers
{"error": "...", "kind": "BundleError"} and goes on; a load that fails ends the process. `serve`
runs this for anything that encodes; run as a module, it serves a bundle. A PyTorch teacher is
served by `codemill.compress.teacher_worker` through the same function: there is no torch here. `operators` is answered
by a process that was started with `--operators`, once.

Imports at the top are the standard library's light ones: the start of this process is measured.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from codemill.runtime import Classifier, Completer
    from codemill.targets.operators import Profile

__all__ = ["Encode", "Loaded", "main", "peak_rss_bytes", "pin", "serve"]

Encode = Callable[[Sequence[str]], "npt.NDArray[np.float32]"]
Predict = Callable[[Sequence[Sequence[str]]], Sequence["npt.NDArray[Any]"]]

FIRST_TEXT = "def add(first, second):\n    return first + second\n"
ENCODE_BATCH = 32
PREDICT_ROWS = 4096
"""Rows a call of `predict`: enough that the pairs of one text mostly meet in a call."""
FEWEST_REPEATS = 3
MOST_WARMUP, ALIKE, ALIKE_WITHIN = 20, 3, 1.1
"""Further calls before those that are timed; how many of the last must be alike, and how nearly."""
NAMED_PACKAGES = ("codemill", "numpy", "onnxruntime", "tokenizers", "torch", "transformers")


@dataclass(frozen=True)
class Loaded:
    """An engine that is ready: `encode(texts) -> [n, dim]` and, where it has one, its tokenizer.

    `count_tokens` counts without truncation where it can, special tokens included. `details` joins
    the engine's info: provider, precision, threads.
    """

    encode: Encode
    """of a classifier: labels the texts, or pairs of them, and gives probabilities"""
    count_tokens: Callable[[Sequence[str]], list[int]] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    predict: Predict | None = None
    """of a classifier: rows of texts -> probabilities [n, labels], layers used [n], truncated [n]"""
    texts: int = 1
    """a row"""
    completer: Completer | None = None
    """of a bundle that completes"""
    memory: Callable[[], int] | None = None
    """of an engine in other processes: the most they were seen to hold, in bytes"""
    profile: Profile | None = None
    """of a bundle whose operators are timed"""
    close: Callable[[], object] = lambda: None
    """what it keeps for another start is written then"""


def serve(
    name: str,
    load: Callable[[], Loaded | Encode],
    *,
    threads: int | None = None,
    stdin: IO[str] | None = None,
) -> int:
    """Load the engine and answer requests until `close` or the end of stdin; returns the exit code.

    Takes over stdout for the protocol: from here on, whatever a library prints goes to stderr.
    """
    pin(threads)
    with _ProtocolStdout() as out:

        def say(message: Mapping[str, Any]) -> None:
            out.write(json.dumps(message) + "\n")
            out.flush()

        try:
            started = time.perf_counter()
            loaded = load()
            engine = loaded if isinstance(loaded, Loaded) else Loaded(loaded)
            ready = time.perf_counter()
            engine.encode([FIRST_TEXT])
            first = time.perf_counter()
        except Exception as error:
            _log_traceback()
            say(_error(error))
            return 1
        info: dict[str, Any] = {
            "engine": name,
            "threads": threads,
            "load_ms": (ready - started) * 1e3,
            "first_encode_ms": (first - ready) * 1e3,
            **engine.details,
        }
        say({"ready": True, **info, "peak_rss_bytes": _held(engine)})
        for line in stdin or sys.stdin:
            try:
                request = json.loads(line)
                if request["op"] == "close":
                    break
                say(_answer(engine, info, request))
            except Exception as error:
                _log_traceback()
                say(_error(error))
        engine.close()
    return 0


def _held(engine: Loaded) -> int:
    """The engine's memory: this process's peak, or the most that those it runs in were seen to hold."""
    return peak_rss_bytes() if engine.memory is None else engine.memory()


def peak_rss_bytes() -> int:
    """The most memory this process has held at once, in bytes.

    On Linux from VmHWM: `ru_maxrss` survives exec, so a worker started by a process that holds
    torch would report torch.
    """
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:  # noqa: PTH123
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def _answer(engine: Loaded, info: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    match request["op"]:
        case "time":
            return _time(engine, request)
        case "predict":
            return _predict(engine.predict, request["rows"], request["out"])
        case "complete" | "rates" | "said" | "write":
            return _complete(engine.completer, request)
        case "operators":
            return _operators(engine, request)
        case "encode":
            return _encode(engine.encode, request["texts"], request["out"])
        case "count":
            count = engine.count_tokens
            return {"tokens": None if count is None else [int(n) for n in count(request["texts"])]}
        case "info":
            return {**info, "peak_rss_bytes": _held(engine), "packages": _packages()}
        case other:
            raise ValueError(f"unknown op {other!r}")


def _time(engine: Loaded, request: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of each call: `batch` texts, or pairs of texts, a call, going round the texts.

    `repeats` calls are timed after `warmup` that are not, or more, until the last three are alike; past `max_s` seconds
    it stops early, never before FEWEST_REPEATS calls. Where `energy` is asked for and counted, calls that are not timed
    follow until the counter has seen enough.
    """
    from codemill.targets.energy import meter_of
    from codemill.targets.environment import clock_mhz

    encode, batches = engine.encode, _batches(engine, request)
    max_s = request.get("max_s") or float("inf")
    settled = _warmed_up(encode, batches, request.get("warmup", 1), max_s)
    meter = meter_of(engine.details.get("provider")) if request.get("energy") else None
    end = meter.begin() if meter else None
    cpu_before, start, ms = time.process_time(), time.perf_counter(), []
    for call in range(request["repeats"]):
        if call >= FEWEST_REPEATS and time.perf_counter() - start > max_s:
            break
        texts_now, before = batches[call % len(batches)], time.perf_counter()
        encode(texts_now)
        ms.append((time.perf_counter() - before) * 1e3)
    timed = {"ms": ms, "cpu_ms": (time.process_time() - cpu_before) * 1e3, "mhz": clock_mhz()}
    energy = None
    if meter and end:
        calls = len(ms)
        while time.perf_counter() - start < meter.least_s:
            encode(batches[calls % len(batches)])
            calls += 1
        joules = end()
        energy = {"joules": joules, "calls": calls, "how": meter.how} if joules else None
    return {**timed, "energy": energy, "settled": settled}


def _batches(engine: Loaded, request: dict[str, Any]) -> list[list[str]]:
    """The texts of each call, which go round."""
    texts, batch = request["texts"], request.get("batch") or len(request["texts"]) // engine.texts
    size = batch * engine.texts
    batches = [texts[start : start + size] for start in range(0, len(texts) - size + 1, size)]
    if not batches:
        raise ValueError(f"{len(texts)} texts do not fill one batch of {size}")
    return batches


def _operators(engine: Loaded, request: dict[str, Any]) -> dict[str, Any]:
    """Time by operator over `calls` calls, without the one that was made when the engine was loaded."""
    from codemill.targets.codec import to_json

    if engine.profile is None:
        raise ValueError("this engine was not started with --operators")
    batches, calls = _batches(engine, request), request["calls"]
    engine.profile.begin()
    for call in range(calls):
        engine.encode(batches[call % len(batches)])
    return {"times": to_json(engine.profile.times(calls)), "calls": calls}


def _warmed_up(
    encode: Encode, batches: Sequence[Sequence[str]], fewest: int, max_s: float
) -> bool | None:
    """Call until three calls one after another are alike; whether they became so. None: no warm-up is asked for."""
    if fewest < 1:
        return None
    started, seen = time.perf_counter(), []
    for call in range(fewest + MOST_WARMUP):
        before = time.perf_counter()
        # always the same texts: others take another time
        encode(batches[0])
        seen.append(time.perf_counter() - before)
        alike = len(seen) >= ALIKE and max(seen[-ALIKE:]) <= ALIKE_WITHIN * min(seen[-ALIKE:])
        if call + 1 >= fewest and alike:
            return True
        if call + 1 >= fewest and time.perf_counter() - started > max_s / 4:
            # too slow to tell
            return False if len(seen) >= ALIKE else None
    return False


def _encode(encode: Encode, texts: list[str], out: str) -> dict[str, Any]:
    """Embeddings of `texts` [n, dim] into the file `out`, in batches of texts of like length.

    Batched here, so that an engine which takes every list as one batch keeps its memory.
    """
    import numpy as np

    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    start, parts = time.perf_counter(), []
    for first in range(0, len(order), ENCODE_BATCH):
        parts.append(encode([texts[i] for i in order[first : first + ENCODE_BATCH]]))
    ms = (time.perf_counter() - start) * 1e3
    sorted_rows = np.concatenate([np.asarray(part, dtype=np.float32) for part in parts])
    rows = np.empty_like(sorted_rows)
    rows[order] = sorted_rows
    np.save(out, rows, allow_pickle=False)
    return {"rows": len(rows), "ms": ms}


def _predict(predict: Predict | None, rows: list[list[str]], out: str) -> dict[str, Any]:
    """What is said of each row, into the file `out`: probabilities, layers_used, truncated."""
    import numpy as np

    if predict is None:
        raise ValueError("this engine embeds, it does not label")
    start, parts = time.perf_counter(), []
    for first in range(0, len(rows), PREDICT_ROWS):
        parts.append(predict(rows[first : first + PREDICT_ROWS]))
    ms = (time.perf_counter() - start) * 1e3
    names = ("probabilities", "layers_used", "truncated")
    found = {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}
    np.savez(out, allow_pickle=False, **found)
    return {"rows": len(rows), "ms": ms}


def _complete(model: Completer | None, request: dict[str, Any]) -> dict[str, Any]:
    from dataclasses import asdict

    from codemill.targets.completion import complete_one, rates_of, said_of

    if model is None:
        raise ValueError("this engine does not complete")
    if request["op"] == "said":
        return said_of(model, request["text"], request.get("ngrams", True))
    if request["op"] == "rates":
        return rates_of(model, request["prefix"], request["tokens"], request.get("ngrams", True))
    if request["op"] == "write":
        found = model.complete(
            request["prefix"], max_tokens=request["max_tokens"], **request["settings"]
        )
        model.forget()
        return {"text": found.text}
    made = complete_one(model, request["prefix"], request["settings"], request["max_tokens"])
    # what is kept of other texts is no part of what completing takes
    model.forget()
    return asdict(made)


def _packages() -> dict[str, str]:
    """Versions of the named packages that this process has imported."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in NAMED_PACKAGES:
        if name in sys.modules:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = str(getattr(sys.modules[name], "__version__", "unknown"))
    return found


def _error(error: Exception) -> dict[str, Any]:
    return {"error": str(error) or type(error).__name__, "kind": type(error).__name__}


def _log_traceback() -> None:
    import traceback

    traceback.print_exc(file=sys.stderr)


class _ProtocolStdout:
    """Moves file descriptor 1 aside for the protocol; prints, of C libraries too, go to stderr."""

    def __enter__(self) -> IO[str]:
        sys.stdout.flush()
        self.own = os.dup(1)
        os.dup2(2, 1)
        self.file = os.fdopen(self.own, "w", encoding="utf-8")
        return self.file

    def __exit__(self, *failure: object) -> None:
        self.file.close()


def pin(threads: int | None) -> None:
    """Keep this process on so many cores, where the system allows it, so that none of its threads wanders."""
    if threads is None or not hasattr(os, "sched_setaffinity"):
        return
    from codemill.runtime.machine import one_a_core

    allowed = one_a_core()
    if threads < len(allowed):
        os.sched_setaffinity(0, allowed[:threads])


def _load_bundle(
    bundle: str, variant: str | None, threads: int | None, compiled: Path | None
) -> Loaded:
    from codemill.runtime import Classifier, Completer, load
    from codemill.runtime.cache import compiled_in
    from codemill.runtime.machine import physical_cores

    with compiled_in(compiled):
        encoder = load(bundle, variant=variant, threads=threads)
    record = encoder.manifest.variants[encoder.variant]
    details = {
        "max_tokens": encoder.manifest.max_tokens,
        "variant": encoder.variant,
        "provider": record.provider,
        "precision": record.precision,
        "threads": threads or physical_cores(),
        "placed": _placed(encoder.graphs),
    }
    if isinstance(encoder, Classifier):
        return _classifier(encoder, {**details, "long": encoder.labelling.long})
    if isinstance(encoder, Completer):
        return _completes(encoder, details)
    return Loaded(
        # as many texts a call as asked for; the runtime splits what is beyond its tokens a run
        encode=lambda texts: encoder.encode(texts, batch_size=max(1, len(texts))),
        count_tokens=encoder.count_tokens,
        details=details,
        close=encoder.close,
    )


def _placed(graphs: Sequence[Any]) -> dict[str, dict[str, int]]:
    """Provider -> operator -> nodes that it runs, of graphs whose sessions tell."""
    found: dict[str, dict[str, int]] = {}
    for graph in graphs:
        for (provider, operator), count in getattr(graph, "placed", {}).items():
            nodes = found.setdefault(provider, {})
            nodes[operator] = nodes.get(operator, 0) + count
    return found


def _completes(model: Completer, details: Mapping[str, Any]) -> Loaded:
    import numpy as np

    def first(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        # what a process begins with: one token
        for text in texts:
            model.complete(text, max_tokens=1)
        return np.zeros((len(texts), 1), np.float32)

    return Loaded(first, details=details, completer=model, close=model.close)


def _classifier(model: Classifier, details: Mapping[str, Any]) -> Loaded:
    texts = model.labelling.texts

    def items(rows: Sequence[Sequence[str]]) -> Sequence[Any]:
        return [row[0] for row in rows] if texts == 1 else [tuple(row) for row in rows]

    def label(given: Sequence[str]) -> npt.NDArray[np.float32]:
        # one text alone is what a process begins with
        whole = list(given) if len(given) >= texts else [*given, FIRST_TEXT + "\n"]
        rows = [whole[start : start + texts] for start in range(0, len(whole), texts)]
        return model.probabilities(items(rows), batch_size=max(1, len(whole)))

    def predict(rows: Sequence[Sequence[str]]) -> Sequence[npt.NDArray[Any]]:
        return model.run(items(rows))

    return Loaded(label, model.count_tokens, details, predict, texts, close=model.close)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m codemill.targets.worker BUNDLE [--variant V] [--threads N] [--name NAME] [--compiled FOLDER]`.

    With `--operators` it times those too.
    """
    import argparse

    parser = argparse.ArgumentParser(prog="codemill.targets.worker", description="Serve a bundle.")
    parser.add_argument("bundle")
    parser.add_argument("--variant")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--name", default="bundle")
    parser.add_argument("--operators", action="store_true")
    parser.add_argument("--compiled", type=Path)
    asked = parser.parse_args(arguments)
    if not asked.operators:
        return serve(
            asked.name,
            lambda: _load_bundle(asked.bundle, asked.variant, asked.threads, asked.compiled),
            threads=asked.threads,
        )
    from dataclasses import replace

    from codemill.targets.operators import profiled

    with profiled() as profile:
        return serve(
            asked.name,
            lambda: replace(
                _load_bundle(asked.bundle, asked.variant, asked.threads, asked.compiled),
                profile=profile,
            ),
            threads=asked.threads,
        )


if __name__ == "__main__":
    sys.exit(main())
