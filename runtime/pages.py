"""Memory that ONNX Runtime does not need any more, and that stays with the process unless somebody lets go of it.

A graph's external weights are mapped, and most are then copied into the order that products want. The pages of the
file stay in memory behind them, once more as much. They are clean, so the system reads them again should anybody ask.
What was packed lies in the heap, which glibc keeps when it is freed: of a decoder of 92 MB, 97 MB.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["give_back_freed", "let_go_of_mapped"]

_DONTNEED = 4
_READ_ONLY = "r--p"


@cache
def _madvise() -> Any:
    """The C library's; looked up once a process."""
    return ctypes.CDLL(None, use_errno=True).madvise


@cache
def _trim() -> Any:
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back_freed() -> None:
    """Give what was freed back to the system, where the C library would keep it (glibc); else nothing."""
    if sys.platform == "linux" and (trim := _trim()) is not None:
        trim(0)


def let_go_of_mapped(folder: Path) -> int:
    """Drop the pages of files below `folder` that are mapped for reading alone; their bytes. Linux; else nothing, 0."""
    if sys.platform != "linux":
        return 0
    inside = os.fsencode(os.path.realpath(folder)) + b"/"
    total = 0
    try:
        advise = _madvise()
        with open("/proc/self/maps", "rb") as maps:  # noqa: PTH123
            for line in maps:
                # begin-end rights offset device inode path, which may hold spaces
                parts = line.rstrip(b"\n").split(maxsplit=5)
                if len(parts) < 6 or parts[1].decode() != _READ_ONLY:
                    continue
                if not parts[5].startswith(inside):
                    continue
                start, end = (int(number, 16) for number in parts[0].split(b"-"))
                if not advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED):
                    total += end - start
    except (OSError, AttributeError, ValueError):
        # a sandbox without /proc, a C library without madvise: the pages stay
        return total
    return total
