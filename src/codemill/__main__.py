"""`compress` as a process: a Ctrl-C, or a polite kill, from the first moment on ends it with a word, not a traceback.

Imports nothing before that is seen to. What the command does is `cli.py`'s, which takes over.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

__all__ = ["main"]


_ASKED = (signal.SIGINT, signal.SIGTERM)


def _leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


def main() -> int:
    """Run the process's own command line; returns its exit code."""
    for number in _ASKED:
        # a process that was started to ignore one (nohup) goes on ignoring it
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)
    from codemill.cli import main as run

    code = run()
    # all is done: Python takes its handlers away before it ends, and a late one would look like a failure
    for number in _ASKED:
        signal.signal(number, signal.SIG_IGN)
    return code


if __name__ == "__main__":
    sys.exit(main())
