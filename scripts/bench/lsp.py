#!/usr/bin/env python3
"""The language server as an editor meets it: start, memory, idling, cancelling, a thousand edits.

    scripts/bench/lsp.py --completion BUNDLE --search BUNDLE [--folder FOLDER] [--idle-s 60] [--edits 1000]
                         [--rounds 7] [--cancels 50] [--only start,memory,idle,cancel,edits] [--json]

Everything goes through the protocol, to a process of its own each time. FOLDER (the standard library's `email`) is what
is searched; its index is made first, so that a start finds it. Where a bundle is not named, what needs it is left out.

What a cancel costs: a request for 200 tokens is cancelled after some; the server is asked how many it has computed
right behind the cancel (messages are handled in their order), and again once the cancelled request is answered.

What is stale: an answer with items that comes after the server has acknowledged a newer version of the text.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

PARTS = ("start", "memory", "idle", "cancel", "edits")
QUERIES = ("parse a date", "decode a header", "join lines", "write a message to a file")


class Client:
    """An editor: sends messages, collects answers by their id."""

    def __init__(self, cache: Path) -> None:
        environment = {**os.environ, "CODEMILL_CACHE": str(cache)}
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "codemill.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self.answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self.shown: list[str] = []
        self._kept: dict[int, dict[str, Any]] = {}
        self._count = 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        stream = self.process.stdout
        assert stream is not None
        while header := stream.readline():
            length = int(header.split(b":")[1])
            while stream.readline().strip():
                pass
            message = json.loads(stream.read(length))
            if message.get("method") == "window/showMessage":
                self.shown.append(message["params"]["message"])
            if "id" in message and "method" not in message:
                self.answers.put(message)
            elif "id" in message:
                self._send({"id": message["id"], "result": None})

    def _send(self, *messages: dict[str, Any]) -> None:
        stream = self.process.stdin
        assert stream is not None
        for message in messages:
            body = json.dumps({"jsonrpc": "2.0", **message}).encode()
            stream.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        stream.flush()

    def tell(self, method: str, params: Any) -> None:
        """A notification."""
        self._send({"method": method, "params": params})

    def request(self, method: str, params: Any = None) -> int:
        """Ask; the id of the answer."""
        self._count += 1
        self._send({"id": self._count, "method": method, "params": params})
        return self._count

    def answer(self, wanted: int) -> dict[str, Any]:
        """Wait for an answer; others that come before it are kept."""
        while wanted not in self._kept:
            message = self.answers.get(timeout=120)
            self._kept[message["id"]] = message
        return self._kept.pop(wanted)

    def ask(self, method: str, params: Any = None) -> Any:
        """Ask and wait; RuntimeError where it is refused."""
        message = self.answer(self.request(method, params))
        if "error" in message:
            raise RuntimeError(message["error"]["message"])
        return message["result"]

    def begin(self, folder: Path, settings: dict[str, Any]) -> float:
        """Seconds from the start of the process to its being initialized."""
        uri = folder.as_uri()
        self.ask(
            "initialize",
            {
                "processId": os.getpid(),
                "rootUri": uri,
                "capabilities": {"workspace": {"workspaceFolders": True}},
                "workspaceFolders": [{"uri": uri, "name": folder.name}],
                "initializationOptions": settings,
            },
        )
        ready = time.perf_counter() - self.started
        self.tell("initialized", {})
        return ready

    def until(self, right: Callable[[Any], bool]) -> Any:
        """The first status that is as wanted."""
        while not right(status := self.ask("codemill/status")):
            time.sleep(0.02)
        return status

    def open(self, path: Path, text: str) -> str:
        """Open a text; its address."""
        uri = path.as_uri()
        item = {"uri": uri, "languageId": "python", "version": 1, "text": text}
        self.tell("textDocument/didOpen", {"textDocument": item})
        return uri

    def complete(self, uri: str, line: int, character: int, by_hand: bool = True) -> int:
        """Ask for inline completion; the id of the answer."""
        return self.request(
            "textDocument/inlineCompletion",
            {
                "textDocument": {"uri": uri},
                "position": {"line": line, "character": character},
                "context": {"triggerKind": 1 if by_hand else 2},
            },
        )

    def memory(self) -> tuple[int, int]:
        """Memory of the process now, and the most it had, in bytes."""
        info = psutil.Process(self.process.pid).memory_info()
        peak = 0
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                peak = 1024 * int(line.split()[1])
        return info.rss, peak

    def cpu_s(self) -> float:
        """Seconds of processor time up to now."""
        found = psutil.Process(self.process.pid).cpu_times()
        return found.user + found.system

    def end(self) -> int:
        """Say shutdown and exit; the exit code."""
        self.ask("shutdown")
        self.tell("exit", None)
        return self.process.wait(60)


def start(cache: Path, folder: Path, settings: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Seconds from the start of the process to answers; the index is there already."""
    found: dict[str, list[float]] = {"initialized_s": []}
    for _ in range(rounds):
        if "search" in settings:
            client = Client(cache)
            found["initialized_s"].append(client.begin(folder, {"search": settings["search"]}))
            client.ask("codemill/find", {"query": QUERIES[0], "top": 5})
            found.setdefault("first_search_s", []).append(time.perf_counter() - client.started)
            client.end()
        if "completion" in settings:
            client = Client(cache)
            client.begin(folder, {"completion": settings["completion"]})
            uri = client.open(folder / "new.py", "def add(a, b):\n    return ")
            client.answer(client.complete(uri, 1, 11))
            found.setdefault("first_completion_s", []).append(time.perf_counter() - client.started)
            client.end()
    return {name: _summary(values) for name, values in found.items()}


def memory(cache: Path, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Memory with a search bundle: as it makes its index, and with one that is there."""
    found = {}
    with tempfile.TemporaryDirectory() as empty:
        for name, home in (("first_index", Path(empty)), ("kept_index", cache)):
            client = Client(home)
            client.begin(folder, {"search": settings["search"]})
            client.until(lambda status: status["search"]["functions"] > 0)
            for query in QUERIES * 5:
                client.ask("codemill/find", {"query": query, "top": 10})
            now, peak = client.memory()
            functions = client.ask("codemill/status")["search"]["functions"]
            found[name] = {"functions": functions, "rss_bytes": now, "peak_rss_bytes": peak}
            client.end()
    return found


def idle(cache: Path, folder: Path, settings: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Processor time of a server that has answered from every model and is left alone."""
    client = Client(cache)
    client.begin(folder, settings)
    loaded = _used(client, folder, settings)
    time.sleep(2)
    before, started = client.cpu_s(), time.perf_counter()
    time.sleep(seconds)
    spent, took = client.cpu_s() - before, time.perf_counter() - started
    now, _ = client.memory()
    client.end()
    return {
        "loaded": loaded,
        "cpu_s": round(spent, 3),
        "wall_s": round(took, 1),
        "cpu_percent": round(100 * spent / took, 3),
        "rss_bytes": now,
    }


def cancel(cache: Path, folder: Path, settings: dict[str, Any], times: int) -> dict[str, Any]:
    """Tokens and milliseconds from a cancel to the answer of what it cancelled."""
    client = Client(cache)
    client.begin(
        folder, {"completion": {**settings["completion"], "max_tokens": 200, "mode": "none"}}
    )
    text = "import os\n\n\ndef walk(folder):\n"
    uri = client.open(folder / "new.py", text)
    tokens, waits_ms, steps_ms, finished = [], [], [], 0
    draws = random.Random(0)
    for _ in range(times):
        base = client.ask("codemill/status")["completion"]["tokens"]
        wanted = client.complete(uri, 4, 0)
        least = base + draws.randint(2, 12)
        begun = None
        while (count := client.ask("codemill/status")["completion"]["tokens"]) < least:
            if begun is None and count > base:
                begun = time.perf_counter(), count
        if begun is not None and count > begun[1]:
            steps_ms.append(1000 * (time.perf_counter() - begun[0]) / (count - begun[1]))
        sent = time.perf_counter()
        client.tell("$/cancelRequest", {"id": wanted})
        behind = client.request("codemill/status")
        answer = client.answer(wanted)
        waits_ms.append(1000 * (time.perf_counter() - sent))
        if "result" in answer:
            finished += 1
            continue
        at = client.answer(behind)["result"]["completion"]["tokens"]
        tokens.append(client.ask("codemill/status")["completion"]["tokens"] - at)
    reading_ms = []
    source = Path(argparse.__file__).read_text()
    for number in range(times // 5):
        # a text that was not read yet: it is looked at between parts of 128 tokens
        text = source[9000 * number :][:8000]
        uri = client.open(folder / f"new{number}.py", text)
        wanted = client.complete(uri, text.count("\n"), len(text.rpartition("\n")[2]))
        time.sleep(0.3)
        sent = time.perf_counter()
        client.tell("$/cancelRequest", {"id": wanted})
        if "error" in client.answer(wanted):
            reading_ms.append(1000 * (time.perf_counter() - sent))
    client.end()
    return {
        "answer_while_reading_ms": _summary(reading_ms),
        "cancelled": len(tokens),
        "finished_before": finished,
        "tokens_after": {str(n): tokens.count(n) for n in sorted(set(tokens))},
        "answer_ms": _summary(waits_ms),
        "token_ms": _summary(steps_ms),
    }


def edits(cache: Path, folder: Path, settings: dict[str, Any], count: int) -> dict[str, Any]:
    """A text that is typed into, with requests all the time."""
    client = Client(cache)
    client.begin(folder, settings)
    text = (
        (folder / "header.py").read_text() if (folder / "header.py").exists() else "x = 1\n" * 300
    )
    # short, so that reading all of it again, as an edit above and one below at once need, is no waiting
    text = text[:2000]
    uri = client.open(folder / "typed.py", text)
    _used(client, folder, settings)
    draws = random.Random(0)
    lines = text.split("\n")
    line = len(lines) - 1
    character = len(lines[-1])
    version, acknowledged = 1, 1
    asked: dict[int, tuple[str, int]] = {}
    ended: dict[str, int] = {}
    stale = 0
    sizes: list[int] = []

    def take(message: dict[str, Any]) -> None:
        nonlocal acknowledged, stale
        kind, of = asked.pop(message["id"])
        how = message["error"]["code"] if "error" in message else "answered"
        key = f"{kind}: {how}"
        ended[key] = ended.get(key, 0) + 1
        if kind == "status":
            acknowledged = max(acknowledged, of)
        elif kind == "completion" and message.get("result") and of < acknowledged:
            stale += 1

    typed = "    value = self.parse(name, 12)\n"
    started = time.perf_counter()
    for number in range(count):
        version += 1
        letter = typed[number % len(typed)]
        at = {"line": line, "character": character}
        change = {"range": {"start": at, "end": at}, "text": letter}
        if draws.random() < 0.05 and letter != "\n" and character > 0:
            # an edit far above
            above = {"line": draws.randrange(20), "character": 0}
            change = {"range": {"start": above, "end": above}, "text": " "}
        elif letter == "\n":
            line, character = line + 1, 0
        else:
            character += 1
        client.tell(
            "textDocument/didChange",
            {"textDocument": {"uri": uri, "version": version}, "contentChanges": [change]},
        )
        if "completion" in settings:
            wanted = client.complete(uri, line, character, by_hand=draws.random() < 0.3)
            asked[wanted] = ("completion", version)
            if draws.random() < 0.1:
                client.tell("$/cancelRequest", {"id": wanted})
        asked[client.request("codemill/status")] = ("status", version)
        if "search" in settings and number % 10 == 0:
            wanted = client.request("workspace/symbol", {"query": QUERIES[number // 10 % 4]})
            asked[wanted] = ("search", version)
        if number % 100 == 50:
            client.tell("textDocument/didSave", {"textDocument": {"uri": uri}})
        # at times the writer waits for what is offered
        if draws.random() < 0.3:
            while any(kind == "completion" for kind, _ in asked.values()):
                take(client.answers.get(timeout=120))
        else:
            time.sleep(draws.random() * 0.02)
        while not client.answers.empty():
            take(client.answers.get())
        if number + 1 in (count // 10, count // 2, count):
            sizes.append(client.memory()[0])
    while asked:
        take(client.answers.get(timeout=120))
    seconds = time.perf_counter() - started
    alive = client.process.poll() is None
    status = client.ask("codemill/status")
    code = client.end()
    return {
        "edits": count,
        "seconds": round(seconds, 1),
        "stale": stale,
        "ended": dict(sorted(ended.items())),
        "alive": alive,
        "exit_code": code,
        "rss_bytes_at_tenth_half_end": sizes,
        "kept_bytes": status["completion"]["kept_bytes"],
        "shown": client.shown,
    }


def _used(client: Client, folder: Path, settings: dict[str, Any]) -> list[str]:
    """Have every model answer once; what is loaded."""
    if "search" in settings:
        client.until(lambda status: status["search"]["functions"] > 0)
        client.ask("codemill/find", {"query": QUERIES[0]})
    if "completion" in settings:
        uri = client.open(folder / "other.py", "def add(a, b):\n    return ")
        client.answer(client.complete(uri, 1, 11))
    status = client.ask("codemill/status")
    return [
        name for name in ("completion", "search", "diagnostics") if status[name]["state"] == "ready"
    ]


def _summary(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {
        "median": round(statistics.median(values), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }


def main() -> None:
    """Measure what is asked for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--completion", type=Path)
    parser.add_argument("--search", type=Path)
    parser.add_argument("--diagnostics", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--idle-s", type=float, default=60)
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cancels", type=int, default=50)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    only = asked.only.split(",")
    if unknown := set(only) - set(PARTS):
        parser.error(f"--only takes {', '.join(PARTS)}, found {', '.join(sorted(unknown))}")
    settings = {
        name: {"bundle": str(path.resolve())}
        for name in ("completion", "search", "diagnostics")
        if (path := getattr(asked, name)) is not None
    }
    folder = asked.folder
    if folder is None:
        import email

        folder = Path(email.__file__).parent
    found: dict[str, Any] = {}

    def keep(part: str, values: dict[str, Any]) -> None:
        found[part] = values
        if not asked.json:
            print(
                part,
                *(f"  {name}: {value}" for name, value in values.items()),
                sep="\n",
                flush=True,
            )

    with tempfile.TemporaryDirectory() as home:
        cache = Path(home)
        if "search" in settings:
            client = Client(cache)
            client.begin(folder.resolve(), {"search": settings["search"]})
            client.until(lambda status: status["search"]["functions"] > 0)
            client.end()
        arguments = (cache, folder.resolve(), settings)
        if "start" in only:
            keep("start", start(*arguments, asked.rounds))
        if "memory" in only and "search" in settings:
            keep("memory", memory(*arguments))
        if "cancel" in only and "completion" in settings:
            keep("cancel", cancel(*arguments, asked.cancels))
        if "edits" in only:
            keep("edits", edits(*arguments, asked.edits))
        if "idle" in only:
            keep("idle", idle(*arguments, asked.idle_s))
    if asked.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
