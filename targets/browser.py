"""A bundle in a web page: served to a browser, and measured in headless Chromium as an engine of the benchmark.

    python -m codemill.targets.browser BUNDLE --pages examples/browser       # http://127.0.0.1:8000/

`--pages` is a folder with the pages and their npm packages (examples/browser, after `npm install`). The page asks this
process for texts and answers what the bundle says of them, so that a call's time has a round trip on this machine in
it, a millisecond or two. The server listens on 127.0.0.1 and answers the pages that it serves, no other site's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from codemill.errors import CodemillError, InputError, MachineError
from codemill.runtime.engines import WEB
from codemill.runtime.machine import INT8_PRODUCTS
from codemill.targets.engine import Engine, ending

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from codemill.runtime import Manifest
    from codemill.targets.worker import Loaded

__all__ = ["BROWSERS", "Browser", "browser_engine", "browser_variant", "chromium"]

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    *("--headless", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
_TYPES = {".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm"}
_START_S, _ANSWER_S, _POLL_S = 120.0, 600.0, 10.0
_ALIVE_S = 0.25
"""Between two looks at whether the browser still runs, and what its last answer has to arrive after its end."""
_STDERR_LINES, _STDERR_BYTES = 20, 16384
_MOST_BYTES = 2**28
_LAST_PORT = 65535
_LOOK_S = 0.5
"""Between two looks at what its processes hold: each takes them some milliseconds."""
_AT_ONCE = 64
"""Texts, or rows, of one request."""
_FUNCTIONS = 200
_RUN_THERE = (WEB, "CPUExecutionProvider")
_PRECISIONS = ("int8", "int4", "fp32", "bf16", "fp16")
"""The best first, both, as in mill.js."""
_KINDS = ("systems", "architectures", INT8_PRODUCTS)
"""What a variant may be built for that mill.js looks at: a page knows neither of its machine."""
_MODULES = ("onnxruntime-web", "@huggingface/tokenizers")


class _Handler(SimpleHTTPRequestHandler):
    """Pages, the bundle's files, the functions of its evaluation, and the texts that a page is asked for."""

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, **_TYPES}  # noqa: RUF012

    def __init__(
        self, *arguments: Any, bundle: Path, asked: Any, answered: Any, **rest: Any
    ) -> None:
        self._bundle, self._asked, self._answered = bundle, asked, answered
        super().__init__(*arguments, **rest)

    def do_GET(self) -> None:
        if not self._ours():
            return
        path = self.path.split("?")[0]
        if path == "/next":
            try:
                request = self._asked.get(timeout=_POLL_S)
            except queue.Empty:
                request = {}
            self._say(json.dumps(request).encode())
        elif path == "/functions.json":
            self._say(json.dumps(_functions(self._bundle)).encode())
        elif path.startswith("/bundle/"):
            self._file(path.removeprefix("/bundle/"))
        else:
            super().do_GET()

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        if not self._ours() or size > _MOST_BYTES:
            return
        content = self.rfile.read(size)
        # less comes of a browser that ends while it answers
        if len(content) == size:
            self._answered.put(json.loads(content))
            self._say(b"{}")

    def _ours(self) -> bool:
        """Whether one of the pages that are served here asks: another site's may not, by whatever name it calls us."""
        port = self.server.server_port  # type: ignore[attr-defined]
        hosts = (f"127.0.0.1:{port}", f"localhost:{port}")
        origin = self.headers.get("Origin")
        if (
            self.headers.get("Host") in hosts
            and self.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")
            and (origin is None or origin.removeprefix("http://") in hosts)
        ):
            return True
        self.send_error(403)
        return False

    def _file(self, name: str) -> None:
        """A file that the manifest names, and the manifest."""
        from codemill.runtime.bundle import MANIFEST, read_manifest

        if name != MANIFEST and name not in read_manifest(self._bundle).files:
            self.send_error(404)
            return
        self._say((self._bundle / name).read_bytes(), "application/octet-stream")

    def _say(self, content: bytes, kind: str = "application/json") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


class _Server(ThreadingHTTPServer):
    """Serves whoever is still there: a page that was closed, or whose browser has ended, is no error."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _functions(bundle: Path) -> list[str]:
    from codemill.targets.evaluation import read_evaluation

    path = bundle / "evaluation.jsonl.gz"
    return list(read_evaluation(path).codes[:_FUNCTIONS]) if path.is_file() else []


def _served(
    bundle: Path, pages: Path, port: int
) -> tuple[_Server, queue.Queue[Any], queue.Queue[Any]]:
    from codemill.runtime.bundle import check_files, read_manifest

    check_files(bundle, read_manifest(bundle))
    missing = [name for name in _MODULES if not (pages / "node_modules" / name).is_dir()]
    if missing:
        raise InputError(
            f"{pages} has no {' and no '.join(missing)} in node_modules: run `npm install` in it"
        )
    asked: queue.Queue[Any] = queue.Queue()
    answered: queue.Queue[Any] = queue.Queue()
    handler = partial(
        _Handler, bundle=bundle, asked=asked, answered=answered, directory=os.fspath(pages)
    )
    return _Server(("127.0.0.1", port), handler), asked, answered


def chromium() -> list[str]:
    """The command that runs the browser headless; MachineError where there is none."""
    for name in BROWSERS:
        found = shutil.which(name)
        if found:
            # it has no sandbox for root
            is_root = hasattr(os, "geteuid") and not os.geteuid()
            return [found, *_FLAGS, *(["--no-sandbox"] if is_root else [])]
    raise MachineError(
        f"no browser to measure in: none of {', '.join(BROWSERS)} is here; install chromium"
    )


class Browser:
    """A bundle open in headless Chromium: `encode` and `predict` as the runtime's, `tokens` of texts.

    variant None: `browser_variant`. MachineError, with the end of what it wrote to stderr, where the browser ends or
    does not answer.
    """

    def __init__(self, bundle: Path, pages: Path, variant: str | None = None) -> None:
        command = chromium()
        self.variant = _variant_there(bundle, variant)
        self._server, self._asked, self._answered = _served(bundle, pages, 0)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self._home = tempfile.TemporaryDirectory(prefix="codemill-", ignore_cleanup_errors=True)
        # a file takes whatever is written: nobody has to read along
        self._stderr = Path(self._home.name) / "stderr"
        address = _address(self._server, "worker.html", self.variant)
        self._process: subprocess.Popen[bytes] | None = None
        self._most_bytes, self._looking, self._closed = 0, threading.Lock(), threading.Event()
        try:
            self._process = self._started([*command, address])
            self._answer(_START_S)
            threading.Thread(target=self._look, daemon=True).start()
        except BaseException:
            self.close()
            raise

    def _started(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        profile = f"--user-data-dir={Path(self._home.name) / 'profile'}"
        with self._stderr.open("wb") as stderr:
            try:
                return subprocess.Popen(
                    [command[0], profile, *command[1:]],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                )
            except OSError as error:
                raise MachineError(f"{command[0]} cannot start: {error}") from error

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 [n, dim]."""
        import numpy as np

        rows = [
            self._ask({"op": "encode", "texts": list(texts[at : at + _AT_ONCE])})["rows"]
            for at in range(0, len(texts), _AT_ONCE)
        ]
        return np.array([row for part in rows for row in part], np.float32)

    def predict(self, items: Sequence[Any]) -> list[dict[str, Any]]:
        """label, score, probabilities, layersUsed and truncated of each item."""
        found: list[dict[str, Any]] = []
        for at in range(0, len(items), _AT_ONCE):
            found += self._ask({"op": "predict", "items": list(items[at : at + _AT_ONCE])})["found"]
        return found

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, cut as the bundle says."""
        found: list[list[int]] = self._ask({"op": "tokens", "texts": list(texts)})["tokens"]
        return found

    def memory_bytes(self) -> int:
        """The most that Chromium's processes were seen to hold, twice a second since the page was ready, and now."""
        with self._looking:
            self._most_bytes = max(self._most_bytes, self._held_bytes())
            return self._most_bytes

    def _look(self) -> None:
        import psutil

        # a browser that has ended is another's to report
        with contextlib.suppress(psutil.Error, MachineError):
            while not self._closed.wait(_LOOK_S):
                self.memory_bytes()

    def _held_bytes(self) -> int:
        """What they hold now; what they share is counted once, where the system tells (Linux)."""
        import psutil

        assert self._process is not None
        if self._process.poll() is not None:
            raise self._failure(ending(self._process.returncode))
        total = 0
        root = psutil.Process(self._process.pid)
        for process in (root, *root.children(recursive=True)):
            # one that has ended meanwhile holds nothing
            with contextlib.suppress(psutil.Error):
                held = process.memory_full_info()
                total += int(getattr(held, "pss", 0) or held.rss)
        return total

    def close(self) -> None:
        """End the browser and the server."""
        self._closed.set()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._server.shutdown()
        self._server.server_close()
        self._home.cleanup()

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self._asked.put(request)
        return self._answer(_ANSWER_S)

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        assert self._process is not None
        deadline = time.monotonic() + timeout_s
        while True:
            # asked first: the last answer of a browser that ends now is still waited for
            code = self._process.poll()
            try:
                found: dict[str, Any] = self._answered.get(timeout=_ALIVE_S)
                break
            except queue.Empty:
                if code is not None:
                    raise self._failure(ending(code)) from None
                if time.monotonic() >= deadline:
                    raise self._failure(f"did not answer within {timeout_s:g} s") from None
        if "error" in found:
            raise MachineError(f"the page failed: {found['error']:.500}")
        return found

    def _failure(self, what: str) -> MachineError:
        with self._stderr.open("rb") as file:
            file.seek(max(0, self._stderr.stat().st_size - _STDERR_BYTES))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
        tail = "\n".join(lines[-_STDERR_LINES:])
        written = f"; the end of its stderr:\n{tail}" if tail else "; it wrote nothing to stderr"
        return MachineError(f"the browser {what}{written}")


def browser_variant(manifest: Manifest) -> str:
    """The variant that a page takes where none is named, by the rule of `chooseVariant` in examples/browser/mill.js.

    One for web pages before one for processors, then by precision, the plain graphs last; none that is for one kind of
    machine. InputError where none is left.
    """
    from codemill.runtime.session import PLAIN

    runs = [
        name
        for name, item in manifest.variants.items()
        if item.provider in _RUN_THERE and not any(item.built_for.get(key) for key in _KINDS)
    ]
    if not runs:
        has = ", ".join(f"{name} ({item.provider})" for name, item in manifest.variants.items())
        raise InputError(
            f"no variant of {manifest.name} runs in a browser. It has: {has}; a browser runs those of "
            f"{' and '.join(_RUN_THERE)} that are for any machine. `compress export BUNDLE --target browser` adds one"
        )

    def rank(name: str) -> tuple[bool, int, int]:
        item = manifest.variants[name]
        known = item.precision in _PRECISIONS
        precision = _PRECISIONS.index(item.precision) if known else len(_PRECISIONS)
        return name == PLAIN, _RUN_THERE.index(item.provider), precision

    # of equal ones the manifest's first, as there
    return min(runs, key=rank)


def _variant_there(bundle: Path, variant: str | None) -> str:
    """The variant that a browser runs; InputError where it cannot run the one that is named."""
    from codemill.runtime.bundle import read_manifest

    manifest = read_manifest(bundle)
    if variant is None:
        return browser_variant(manifest)
    provider = manifest.variant(variant).provider
    if provider not in _RUN_THERE:
        raise InputError(
            f"variant {variant!r} is for {provider}; a browser runs those of {' and '.join(_RUN_THERE)}"
        )
    return variant


def _address(server: _Server, page: str, variant: str | None) -> str:
    """Of a page, which is told the variant: it does not choose another."""
    named = f"?{urlencode({'variant': variant})}" if variant else ""
    return f"http://127.0.0.1:{server.server_port}/{page}{named}"


def browser_engine(bundle: Path, pages: Path, variant: str | None) -> Engine:
    """The engine that runs a variant in Chromium; what can be missing is said before anything is measured.

    variant None: `browser_variant`.
    """
    from codemill.runtime.bundle import size_bytes

    chromium()
    server, _, _ = _served(bundle, pages, 0)
    server.server_close()
    variant = _variant_there(bundle, variant)
    argv = [sys.executable, "-m", "codemill.targets.browser", str(bundle)]
    argv += ["--pages", str(pages), "--variant", variant, "--measured"]
    # of role bundle: nothing is compared with it unless it is asked for by name
    size = size_bytes(bundle, variant)
    return Engine("onnxruntime-web in Chromium", tuple(argv), "bundle", size)


def _load(bundle: Path, browser: Browser) -> Loaded:
    import numpy as np

    from codemill.runtime.bundle import TOKENIZER, read_manifest
    from codemill.runtime.labels import LABEL_TASKS, labelling_of
    from codemill.runtime.texts import Texts, open_tokenizer
    from codemill.targets.worker import FIRST_TEXT, Loaded

    manifest = read_manifest(bundle)
    content = (bundle / TOKENIZER).read_bytes()
    texts = Texts(open_tokenizer(content, str(bundle)), content, manifest.name, manifest.max_tokens)
    details = {
        "max_tokens": manifest.max_tokens,
        "variant": browser.variant,
        "provider": WEB,
        "precision": manifest.variants[browser.variant].precision,
        "threads": 1,
    }

    def count(given: Sequence[str]) -> list[int]:
        return [texts.count(text) for text in given]

    if manifest.task not in LABEL_TASKS:
        return Loaded(browser.encode, count, details, memory=browser.memory_bytes)
    sides = labelling_of(manifest).texts

    def items(rows: Sequence[Sequence[str]]) -> list[Any]:
        return [row[0] if sides == 1 else list(row) for row in rows]

    def predict(rows: Sequence[Sequence[str]]) -> Sequence[NDArray[Any]]:
        found = browser.predict(items(rows))
        chances = np.array([item["probabilities"] for item in found], np.float32)
        used = np.array([item["layersUsed"] for item in found])
        return chances, used, np.array([item["truncated"] for item in found], bool)

    def label(given: Sequence[str]) -> NDArray[np.float32]:
        whole = list(given) if len(given) >= sides else [*given, FIRST_TEXT + "\n"]
        rows = [whole[start : start + sides] for start in range(0, len(whole), sides)]
        chances: NDArray[np.float32] = predict(rows)[0]
        return chances

    return Loaded(label, count, details, predict, sides, memory=browser.memory_bytes)


def _port(text: str) -> int:
    # what has too many digits is no number to Python
    if not text.isdecimal() or len(text) > len(str(_LAST_PORT)) or int(text) > _LAST_PORT:
        raise argparse.ArgumentTypeError(
            f"expected a whole number from 0 to {_LAST_PORT}, found {text!r:.40}"
        )
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the pages until Ctrl-C, or answer the benchmark (`--measured`)."""
    from codemill.targets.worker import serve

    parser = argparse.ArgumentParser(
        prog="python -m codemill.targets.browser", description="A bundle in a web page."
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--pages", type=Path, required=True)
    parser.add_argument("--variant", help="by default the page's choice")
    parser.add_argument("--port", type=_port, default=8000, help="0: any that is free")
    parser.add_argument("--measured", action="store_true")
    asked = parser.parse_args(arguments)
    if asked.measured:
        with contextlib.ExitStack() as stack:

            def load() -> Loaded:
                # the time that a page takes to be there is its start
                page = stack.enter_context(Browser(asked.bundle, asked.pages, asked.variant))
                return _load(asked.bundle, page)

            return serve("browser", load)
    try:
        _variant_there(asked.bundle, asked.variant)
        server, _, _ = _served(asked.bundle, asked.pages, asked.port)
    except (CodemillError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(_address(server, "", asked.variant), flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
