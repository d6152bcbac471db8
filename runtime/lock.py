"""A lock between processes that goes with the process that holds it, a killed one included.

For the cache, where it saves work and says who may tidy up; what it guards has to be right without it
too, because not every file system knows locks.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["held"]

_POLL_S = 0.05


@contextlib.contextmanager
def held(path: Path, timeout_s: float = 60) -> Iterator[bool]:
    """Hold the lock file `path`, made where it is missing; yields whether it is held.

    False where another process has held it for `timeout_s`, or where locks do not work.
    """
    try:
        file = path.open("ab")
    except OSError:
        yield False
        return
    # closing gives it back
    with file:
        yield _acquire(file.fileno(), time.monotonic() + timeout_s)


def _acquire(descriptor: int, deadline: float) -> bool:
    while True:
        try:
            _try(descriptor)
        except (BlockingIOError, PermissionError):
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        except OSError:
            return False
        else:
            return True


if sys.platform == "win32":
    import msvcrt

    def _try(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _try(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
