"""What tests of concurrency run in processes of their own: python children.py NAME ARGUMENT...

Each prints lines and says `ready` where it can go on or be killed.
"""

from __future__ import annotations

import gc
import hashlib
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import codemill
from codemill.runtime import Index, archive, find, table

TEXTS = ["parse a json file", "", "close", "read " * 40, "sort the list of data"]


def _say(line: str) -> None:
    print(line, flush=True)


def _go() -> None:
    """Say so, and wait for a line."""
    _say("ready")
    sys.stdin.readline()


def _rss_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024


def _answer(model: Any) -> str:
    return hashlib.sha256(model.encode(TEXTS).tobytes()).hexdigest()


def load(path: str) -> None:
    """Load when told, and print a hash of what the model answers."""
    _go()
    with codemill.load(path, threads=1) as model:
        _say(_answer(model))


def stopped_unpack(path: str) -> None:
    """Unpack, and wait before the folder gets its name."""
    move = archive._move

    def wait(*arguments: Any) -> Path:
        _go()
        return move(*arguments)

    archive._move = wait
    load_now = archive.unpack(path)
    _say(str(load_now))


def slow_unpack(path: str) -> None:
    """Unpack some hundred times slower than usual, so that a kill comes in between."""
    extract = archive._extract

    def slow(*arguments: Any) -> None:
        _say("ready")
        time.sleep(0.02)
        extract(*arguments)

    archive._extract = slow
    _say(str(archive.unpack(path)))


def cycles(path: str, warm: str, count: str) -> None:
    """Load, encode and close; print memory and open files after the first `warm` and at the end."""
    found = []
    for rounds in (int(warm), int(count)):
        for _ in range(rounds):
            with codemill.load(path, threads=1) as model:
                answer = _answer(model)
            del model
        gc.collect()
        files = len(list(Path("/proc/self/fd").iterdir()))
        found.append({"rss_bytes": _rss_bytes(), "files": files, "answer": answer})
    _say(json.dumps(found))


def threads(path: str, warm: str, rounds: str) -> None:
    """16 threads share a model; print memory after the first rounds and the others, and the answers."""
    found = []
    with codemill.load(path, threads=1) as model, ThreadPoolExecutor(16) as pool:
        alone = _answer(model)
        for number in (int(warm), int(rounds)):
            answers = {*pool.map(lambda _: _answer(model), range(16 * number))}
            gc.collect()
            found.append({"rss_bytes": _rss_bytes(), "same": answers == {alone}})
    _say(json.dumps(found))


def index(folder: str, path: str, chunk: str, pause_s: str = "0") -> None:
    """Bring the index of a folder up to date, saving after each chunk; print the number embedded."""
    find._CHUNK = int(chunk)
    find._SAVE_EVERY_S = 0
    with codemill.load(path, threads=1) as model:
        _go()

        def progress(done: int, total: int) -> None:
            _say(f"{done}/{total}")
            time.sleep(float(pause_s))

        embedded = 0
        encode = model.encode

        def counted(texts: list[str], batch_size: int = 32) -> Any:
            nonlocal embedded
            embedded += len(texts)
            return encode(texts, batch_size)

        model.encode = counted
        opened = Index.open(folder, model, progress=progress)
        _say(json.dumps({"functions": len(opened), "embedded": embedded}))


def stopped_index(folder: str, path: str, at: str) -> None:
    """Bring an index up to date, and stop for good at the rename of the matrix or the table."""
    write = table.write_atomically

    def stop(target: Path, fill: Any) -> None:
        def filled(file: Any) -> None:
            fill(file)
            if at == "in " + target.suffix:
                file.flush()
                _go()

        write(target, filled)
        if at == "after " + target.suffix:
            _go()

    table.write_atomically = stop
    with codemill.load(path, threads=1) as model:
        Index.open(folder, model)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
