"""The entry point of `compress` (also installed as `codemill`): runs the command, ends the process.

What a command does is in `codemill.compress.commands`. Here every way it can end becomes an exit
code and, where it failed, one message on stderr:

    0 done; 1 input or environment, with what to do; 2 wrong usage; 3 refused, a bound not met;
    70 a bug of codemill; 130 interrupted, 143 asked to end
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from types import FrameType
from typing import Any

import click

from codemill.compress.commands import Options, compress
from codemill.errors import CodemillError

__all__ = ["main"]

BUG = 70
INTERRUPTED = 130

# an untranslated OSError of these kinds is the machine's state, not a mistake in the program
_ENVIRONMENT = {
    *(errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EFBIG),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENXIO, errno.ESTALE, errno.ETIMEDOUT),
}
# of a RuntimeError
_TORCH_OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (None: the process's own) and return its exit code."""
    options = Options()
    # a file's name need not be Unicode, and a terminal need not be UTF-8
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    with _Interrupts(options) as interrupts:
        code = _end(arguments, options, interrupts)
        if interrupts.came or code == INTERRUPTED:
            # a library may have made another error of it; and what ends now is not worth a traceback
            code = interrupts.code
            interrupts.say()
    return code


def _end(arguments: Sequence[str] | None, options: Options, interrupts: _Interrupts) -> int:
    """Run the command; the exit code, with its message said."""
    try:
        return _run(arguments, options)
    except SystemExit:
        raise
    # a panic inside the tokenizers library is no Exception
    except BaseException as error:
        if interrupts.came:
            return INTERRUPTED
        code, message = _ending(error, options)
        with contextlib.suppress(OSError):
            if options.debug:
                traceback.print_exc(file=sys.stderr)
            click.echo(message, err=True)
        _forget_unwritten()
        return code


class _Interrupts:
    """Ctrl-C, or a polite kill, while a command runs: the first raises KeyboardInterrupt, so that what is half done is
    cleared away; a second ends the process at once.
    """

    def __init__(self, options: Options) -> None:
        self.came = False
        self.code = INTERRUPTED
        self._options = options
        self._said = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Interrupts:
        # only the main thread may, and a process that was started to ignore one (nohup) goes on so
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *failure: object) -> None:
        # once it came the process ends: a further one must not print a traceback on the way
        if not self.came:
            for number, before in self._before.items():
                signal.signal(number, before)

    def say(self) -> None:
        """That it came, and how to go on, once."""
        if not self._said:
            self._said = True
            with contextlib.suppress(OSError):
                how = "; run the same command again to continue" if self._options.continues else ""
                click.echo(f"interrupted{how}", err=True)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.code = 128 + number
        # libraries print tracebacks of their own where their import is interrupted; a second one hits the way out
        if self.came or _importing(frame):
            self.say()
            os._exit(self.code)
        self.came = True
        raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _run(arguments: Sequence[str] | None, options: Options) -> int:
    """The exit code where click says it; whatever else a command raises passes through."""
    try:
        code = compress.main(
            None if arguments is None else list(arguments), standalone_mode=False, obj=options
        )
    except click.ClickException as error:
        error.show()
        return error.exit_code
    # click makes Abort of a Ctrl-C that reaches it, and of a question that nobody answers
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def _forget_unwritten() -> None:
    """Let what stdout could not take go nowhere: Python would try again, and complain, at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _ending(error: BaseException, options: Options) -> tuple[int, str]:
    """Exit code and message of an exception."""
    if isinstance(error, CodemillError):
        return error.exit_code, f"error: {error}"
    if isinstance(error, MemoryError) or _TORCH_OUT_OF_MEMORY in str(error):
        return 1, "error: out of memory; close other programs, or ask for smaller batches"
    if isinstance(error, BrokenExecutor):
        return 1, (
            "error: a process of this run was killed, perhaps by the system for want of memory; "
            f"close other programs and run the same command again{': it continues' if options.continues else ''}"
        )
    if isinstance(error, OSError) and error.errno in _ENVIRONMENT:
        return 1, f"error: {error}"
    if isinstance(error, FileNotFoundError) and error.filename is None:
        return 1, "error: the current folder is not there any more; change to another"
    line = " ".join(f"{type(error).__name__}: {error}".split())
    return BUG, (
        f"error: this is a bug of codemill: {line}\n"
        "Run `compress --debug ...` with the same arguments and report what it prints"
    )


if __name__ == "__main__":
    sys.exit(main())
