"""`compress` as a process: a Ctrl-C from the first moment on ends it with a word, not a traceback.

Imports nothing before that is seen to. What the command does is `cli.py`'s, which takes over.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

__all__ = ["main"]


def _leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    os.write(2, b"interrupted\n")
    os._exit(130)


def main() -> int:
    """Run the process's own command line; returns its exit code."""
    # a process that was started to ignore it (nohup) goes on ignoring it
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _leave)
    from codemill.cli import main as run

    code = run()
    # all is done: Python takes its handlers away before it ends, and a late one would look like a failure
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return code


if __name__ == "__main__":
    sys.exit(main())
