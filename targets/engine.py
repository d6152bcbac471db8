"""An engine to measure, and the process that is one: started, spoken to, always ended.

The other end of worker.py. Knows nothing of rounds or figures. Whatever the process does (dies,
hangs, prints nonsense), a call here ends in an answer or in an error that carries the end of what
the process wrote to stderr, and nothing stays alive after the `with`.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import codemill.errors
from codemill.errors import CodemillError, MachineError

__all__ = ["Engine", "EngineProcess", "Role", "bundle_engine"]

Role = Literal["teacher", "bundle", "reference"]

STDERR_LINES = 20
START_TIMEOUT_S = 300.0
REQUEST_TIMEOUT_S = 1800.0
CLOSE_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Engine:
    """Something that encodes texts: the command that serves it, and what it takes on disk.

    `role`: the bundle that is shipped, the teacher it was distilled from, or a reference (the
    unmodified model). The bundle is compared with the other two. `times_operators`: with `--operators` behind its
    command it says how long each operator takes.
    """

    name: str
    argv: tuple[str, ...]
    role: Role
    size_bytes: int
    times_operators: bool = False


def bundle_engine(
    bundle: str | os.PathLike[str],
    variant: str | None = None,
    threads: int | None = None,
    name: str = "bundle",
    compiled: Path | None = None,
) -> Engine:
    """The engine that runs `variant` of a bundle, a folder or a `.mill`, through the runtime.

    `variant` None is the one `codemill.load` would take here; `compiled`: where what it compiles is kept, else in the
    cache. Raises BundleError when the bundle
    cannot be read or has no such variant, ProviderError when none of them runs here.
    """
    from codemill.runtime.archive import unpack
    from codemill.runtime.bundle import read_manifest, size_bytes
    from codemill.runtime.opening import best_variant

    folder = unpack(bundle) if Path(bundle).is_file() else Path(bundle)
    chosen = variant or best_variant(read_manifest(folder))
    argv = [sys.executable, "-m", "codemill.targets.worker", str(folder), "--name", name]
    argv += ["--variant", chosen]
    if threads is not None:
        argv += ["--threads", str(threads)]
    if compiled is not None:
        argv += ["--compiled", str(compiled)]
    size = size_bytes(folder, chosen)
    return Engine(name, tuple(argv), "bundle", size, times_operators=True)


class EngineProcess:
    """A running engine: `with EngineProcess(engine) as process: process.ask({"op": "info"})`.

    `cold_start_ms` is from just before the process was made to its first answer having been read;
    `ready` is the worker's first message.
    """

    def __init__(self, engine: Engine, start_timeout_s: float = START_TIMEOUT_S) -> None:
        self._engine = engine
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        started = time.perf_counter()
        try:
            self._process = subprocess.Popen(
                engine.argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                # a session of its own, so that ending it also ends what it started
                start_new_session=os.name == "posix",
            )
        except OSError as error:
            raise MachineError(f"engine {engine.name!r} cannot start: {error}") from error
        self._threads = [
            threading.Thread(target=self._read_answers, daemon=True),
            threading.Thread(target=self._read_stderr, daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        try:
            self.ready: Mapping[str, Any] = self._answer("start", start_timeout_s)
            self.cold_start_ms = (time.perf_counter() - started) * 1e3
            if self.ready.get("ready") is not True:
                raise self._failure(f"said {self.ready!r:.200} where it should say it is ready")
        except BaseException:
            self._end()
            raise

    def ask(
        self, request: Mapping[str, Any], timeout_s: float = REQUEST_TIMEOUT_S
    ) -> dict[str, Any]:
        """Send one request and return its answer.

        Raises the CodemillError that the worker names, or MachineError when the process died, did
        not answer in `timeout_s` or answered something that is not a JSON object.
        """
        stdin = self._pipe(self._process.stdin)
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
        except OSError:
            pass  # the process is gone: the answer below says how
        return self._answer(str(request.get("op")), timeout_s)

    def close(self) -> None:
        """Ask the process to end, and end it when it does not."""
        if self._process.poll() is None:
            with contextlib.suppress(OSError):
                stdin = self._pipe(self._process.stdin)
                stdin.write('{"op": "close"}\n')
                stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(CLOSE_TIMEOUT_S)
        self._end()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.close()
        else:
            self._end()

    def _answer(self, op: str, timeout_s: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            self._end()
            raise self._failure(f"did not answer {op!r} within {timeout_s:g} s") from None
        if line is None:
            # stdout has ended: let a dying process finish dying, so that its exit code is its own
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2.0)
            code = self._process.poll()
            self._end()
            raise self._failure(f"{ending(code)} during {op!r}")
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            self._end()
            raise self._failure(f"answered {line[:200]!r} to {op!r}, which is not a JSON object")
        if "error" in answer:
            raise self._told(op, answer)
        return answer

    def _told(self, op: str, answer: Mapping[str, Any]) -> CodemillError:
        """The error the worker reported: its own kind when it is one of codemill's."""
        kind = getattr(codemill.errors, str(answer.get("kind")), None)
        if isinstance(kind, type) and issubclass(kind, CodemillError):
            return kind(f"engine {self._engine.name!r}: {answer['error']}")
        name = answer.get("kind", "error")
        if op == "start":
            self._end()
        return self._failure(f"failed at {op!r} with {name}: {answer['error']}")

    def _failure(self, what: str) -> MachineError:
        tail = "\n".join(self._stderr).strip()
        written = f"; the end of its stderr:\n{tail}" if tail else "; it wrote nothing to stderr"
        return MachineError(f"engine {self._engine.name!r} {what}{written}")

    def _end(self) -> None:
        """Kill what is left, wait for it, let the readers finish, close the pipes."""
        if os.name == "posix":
            # the group outlives its leader when that left children behind
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        elif self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join(timeout=2.0)
        pipes = (self._process.stdin, self._process.stdout, self._process.stderr)
        for pipe in pipes if not any(t.is_alive() for t in self._threads) else pipes[:1]:
            with contextlib.suppress(OSError):
                self._pipe(pipe).close()

    def _read_answers(self) -> None:
        for line in self._pipe(self._process.stdout):
            self._answers.put(line)
        self._answers.put(None)

    def _read_stderr(self) -> None:
        for line in self._pipe(self._process.stderr):
            self._stderr.append(line.rstrip())

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def ending(code: int | None) -> str:
    """How a process ended, by its `returncode`, in words that go on after its name."""
    if code is None:
        return "closed its stdout"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    memory = " (the system may have run out of memory)" if name == "SIGKILL" else ""
    return f"was ended by {name}{memory}"
