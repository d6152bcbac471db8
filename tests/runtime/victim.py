"""A process that loads bundles it is told of, with its memory bounded, and says how each one ended.

    python victim.py REFERENCE CANARY MEMORY_BYTES        a path a line in, a JSON object a line out

`Victim` starts it, talks to it, and starts it again where a bundle kills it or never ends. While a
bundle is loaded, whatever Python opens, changes or starts outside the bundle and the cache is told,
and so is any opening of the file CANARY, by native code too (inotify).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TEXTS = ["parse a json file", "", "close", "read " * 40, "sort the list of data", "é ☃ \ud800"]
# what one bundle may take on top of what the libraries do; its graph and tokenizer are some kilobytes
MEMORY_BYTES = 512 * 2**20
_LONGEST_MESSAGE = 5000
_COMPLETED = 4
"""Tokens of a completion."""


@dataclass(frozen=True)
class Outcome:
    """How loading one bundle ended.

    `kind`: "refused" (a CodemillError), "same" (the embeddings, probabilities or tokens of the reference), "other"
    (another model, under another digest); everything else is a finding: "escaped" (another exception), "wrong"
    (another model under the reference's digest), "stray" (something outside was touched), "died", "hung".
    """

    kind: str
    error: str = ""
    message: str = ""
    strays: list[str] = field(default_factory=list)
    peak_rss_bytes: int = 0

    @property
    def fine(self) -> bool:
        return self.kind in ("refused", "same", "other")


class Victim:
    """The process, from the outside. A context manager."""

    def __init__(self, reference: Path, canary: Path, timeout_s: float = 20) -> None:
        self.deaths = 0
        self._argv = [sys.executable, __file__, str(reference), str(canary), str(MEMORY_BYTES)]
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._cache = tempfile.mkdtemp(prefix="victim-")

    def __enter__(self) -> Victim:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._cache, ignore_errors=True)

    def stop(self) -> None:
        """End the process; the next call starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __call__(self, path: Path) -> Outcome:
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(f"{path}\n".encode())
            process.stdin.flush()
            if not select.select([process.stdout], [], [], self._timeout_s)[0]:
                return self._ended(Outcome("hung", message=f"for {self._timeout_s} s"))
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            code = process.wait()
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return self._ended(Outcome("died", message=name))
        return Outcome(**json.loads(line))

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "CODEMILL_CACHE": self._cache,
            "OMP_NUM_THREADS": "1",
            "RUST_BACKTRACE": "0",
        }
        self._process = subprocess.Popen(
            self._argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            # rmtree opens names relative to a folder, which the audit does not tell from others
            cwd=self._cache,
        )
        assert self._process.stdout is not None
        ready = self._process.stdout.readline()
        assert ready == b"ready\n", f"the victim did not start: {self._argv}"
        return self._process

    def _ended(self, outcome: Outcome) -> Outcome:
        self.deaths += 1
        self.stop()
        # what a killed process leaves is swept by the next; here every bundle starts alike
        shutil.rmtree(self._cache, ignore_errors=True)
        Path(self._cache).mkdir()
        return outcome


class _Watch:
    """What the process does outside the folders it may use."""

    # of Python's audit events: those that change a path, their first argument
    _CHANGES = frozenset(
        f"os.{name}"
        for name in (
            *(
                "remove",
                "rename",
                "rmdir",
                "mkdir",
                "link",
                "symlink",
                "chmod",
                "chown",
                "truncate",
            ),
            *("utime", "setxattr", "removexattr", "chdir"),
        )
    ) | {"shutil.rmtree"}
    _NEVER = (
        *("subprocess.", "os.exec", "os.fork", "os.spawn", "os.posix_spawn", "os.system"),
        *("os.startfile", "socket.", "ctypes.dlopen", "pickle.", "code.__new__", "urllib."),
    )
    _WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def __init__(self, canary: Path) -> None:
        self.found: list[str] = []
        self.bundle = ""
        self._busy = False
        self._cache = os.path.realpath(os.environ["CODEMILL_CACHE"])
        # a module that is imported when first needed, and what the machine says of itself
        here = Path(__file__).resolve().parents[2]
        roots = {sys.prefix, sys.base_prefix, *sys.path, str(here)}
        self._readable = [os.path.realpath(root) for root in roots if root] + ["/proc", "/sys"]
        libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = libc.inotify_init1(os.O_NONBLOCK)
        opened, read, written, made, removed = 0x20, 0x1, 0x2, 0x100, 0x200
        # who lists the folder of temporary files is somebody else
        for path, mask in ((canary, opened | read | written), (canary.parent, made | removed)):
            assert libc.inotify_add_watch(self._inotify, os.fsencode(path), mask) >= 0
        self._drain()
        sys.addaudithook(self._hook)

    @contextlib.contextmanager
    def over(self, bundle: str) -> Any:
        self.found = []
        self._drain()
        self.bundle = os.path.realpath(bundle)
        try:
            yield
        finally:
            self.bundle = ""
            if self._drain():
                self.found.append("the canary was touched")

    def _drain(self) -> bool:
        try:
            return bool(os.read(self._inotify, 65536))
        except BlockingIOError:
            return False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.bundle or self._busy:
            return
        self._busy = True
        try:
            if event == "open":
                path, mode, flags = arguments
                writes = bool(flags & self._WRITING) or bool(mode and set(mode) & set("wax+"))
                self._look(event, path, writes)
            elif event in ("os.rename", "os.link"):
                source, target, source_folder, target_folder = arguments
                self._look(event, source, True, source_folder)
                self._look(event, target, True, target_folder)
            elif event in self._CHANGES:
                in_folder = event in ("os.remove", "os.rmdir", "os.mkdir")
                self._look(event, arguments[0], True, arguments[-1] if in_folder else -1)
            elif event.startswith(self._NEVER):
                self.found.append(f"{event} {arguments!r}"[:300])
        finally:
            self._busy = False

    def _look(self, event: str, path: Any, writes: bool, folder: int = -1) -> None:
        if isinstance(path, int):
            return
        base = Path(f"/proc/self/fd/{folder}" if folder >= 0 else "")
        real = os.path.realpath(base / os.fsdecode(path))
        allowed = [self._cache] if writes else [self._cache, self.bundle, *self._readable]
        if not any(real == root or real.startswith(f"{root}/") for root in allowed):
            self.found.append(f"{event} {real}"[:300])


def _main(reference: str, canary: str, memory_bytes: str) -> None:
    import resource

    import numpy as np

    from codemill.errors import CodemillError
    from codemill.runtime import Classifier, Completer, Encoder, load

    def answers(model: Encoder | Classifier | Completer) -> Any:
        if isinstance(model, Completer):
            return _completed(model)
        model.count_tokens(TEXTS)
        return model.probabilities(TEXTS) if isinstance(model, Classifier) else model.encode(TEXTS)

    with load(reference, threads=1) as model:
        expected, expected_digest = answers(model), model.digest
    cache = Path(os.environ["CODEMILL_CACHE"])
    watch = _Watch(Path(canary))

    def attempt(path: str) -> tuple[str, str, str]:
        try:
            with load(path, threads=1) as model:
                found, digest = answers(model), model.digest
                repr(model)
        except CodemillError as error:
            # what is said has to fit a terminal
            message = str(error)
            if len(message) > _LONGEST_MESSAGE or not message.replace("\n", "").isprintable():
                return "escaped", type(error).__name__, f"unfit to show: {message[:300]!r}"
            return "refused", type(error).__name__, message
        except BaseException as error:
            return "escaped", type(error).__name__, str(error)[:1000]
        if found.dtype != np.float32 or found.ndim != 2 or not np.isfinite(found).all():
            return "wrong", "", "not a float32 matrix of finite numbers"
        if digest != expected_digest:
            return "other", "", ""
        same = np.array_equal(found, expected)
        return ("same", "", "") if same else ("wrong", "", "other answers, the same digest")

    limit = _memory("VmSize") + int(memory_bytes)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", flush=True)
    for line in sys.stdin:
        path = line.rstrip("\n")
        with watch.over(path):
            kind, error, message = attempt(path)
        strays = watch.found
        left = [item.name for item in cache.glob("bundles/*")] if path.endswith(".mill") else []
        if any(not name.startswith("sha256-") for name in left) or len(left) > 1:
            strays.append(f"left in the cache: {left}")
        if left:
            shutil.rmtree(cache / "bundles")
        answer = Outcome("stray" if strays else kind, error, message, strays, _memory("VmHWM"))
        print(json.dumps(vars(answer)), flush=True)


def _completed(model: Any) -> Any:
    """Tokens of each text's completion, as float32 [texts, tokens]: as it ships, and through every exit."""
    import numpy as np

    found = np.full((2 * len(TEXTS), _COMPLETED), -1, np.float32)
    exits = [(0.0, None)] * len(model.manifest.exits)
    for number, text in enumerate(TEXTS * 2):
        settings: Any = {"exits": exits} if number >= len(TEXTS) else {}
        made = model.complete(text, max_tokens=_COMPLETED, **settings)
        found[number, : len(made.tokens)] = made.tokens
        len(made.text)
    return found


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    # ru_maxrss would begin with what the parent had taken
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


if __name__ == "__main__":
    _main(*sys.argv[1:])
