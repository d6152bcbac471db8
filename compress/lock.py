"""One run at a time in a work folder: two would mix their halves of one stage.

The lock goes with the process that holds it, a killed one included (`runtime/lock.py`). Beside it
`running.json` says who that is, for the message of the one who has to wait.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from codemill.errors import InputError, MachineError
from codemill.runtime.atomic import write_atomically
from codemill.runtime.lock import held

__all__ = ["working_in"]

_LOCK = ".lock"
_HOLDER = "running.json"


@contextlib.contextmanager
def working_in(work: Path, wait: bool, say: Callable[[str], object]) -> Iterator[None]:
    """Make the folder `work` where it is missing, and hold it for this process.

    Where another process holds it: with `wait`, say so and wait; else raise MachineError, as where
    files cannot be locked. Raises InputError where the folder cannot be made or written to.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the work folder {work} cannot be made ({error.strerror or error}); choose another --work"
        ) from error
    with contextlib.ExitStack() as stack:
        if not stack.enter_context(held(work / _LOCK, timeout_s=0)):
            _check_lockable(work)
            if not wait:
                raise MachineError(
                    f"{_holder(work)} is working in {work}, and two runs would mix; wait for it with --wait, "
                    "or choose another --work"
                )
            say(f"waiting for {_holder(work)}, which works in {work}")
            if not stack.enter_context(held(work / _LOCK, timeout_s=math.inf)):
                raise _no_locks(work)
        stack.callback(lambda: (work / _HOLDER).unlink(missing_ok=True))
        said = {"pid": os.getpid(), "since": datetime.now().astimezone().isoformat("T", "seconds")}
        # only for a message: a disk that is full is met where it matters
        with contextlib.suppress(OSError):
            write_atomically(work / _HOLDER, lambda file: file.write(json.dumps(said).encode()))
        yield


def _check_lockable(work: Path) -> None:
    """The lock can be opened, and a file of this process's own locked: it is another process that holds it."""
    try:
        (work / _LOCK).open("ab").close()
        with (
            tempfile.TemporaryDirectory(prefix=".lock-", dir=work) as folder,
            held(Path(folder) / _LOCK, timeout_s=0) as works,
        ):
            if not works:
                raise _no_locks(work)
    except OSError as error:
        raise InputError(
            f"the work folder {work} cannot be written to ({error.strerror or error}); choose another --work"
        ) from error


def _no_locks(work: Path) -> MachineError:
    return MachineError(
        f"the work folder {work} lies where files cannot be locked, so that two runs there could mix; "
        "choose another --work, on a disk of this machine"
    )


def _holder(work: Path) -> str:
    try:
        said = json.loads((work / _HOLDER).read_text())
        return f"another run (process {int(said['pid'])}, since {said['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another run"
