"""Where the runtime keeps what it can make again: unpacked bundles, search indexes, what engines compile of graphs.

Everything in it may be deleted at any time.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from codemill.errors import MachineError

__all__ = ["cache_folder", "cache_root", "compiled_folder", "compiled_in"]

_COMPILED_IN: ContextVar[Path | None] = ContextVar("_COMPILED_IN", default=None)


def cache_folder(kind: str) -> Path:
    """The folder for `kind` ("bundles", "indexes"), made where it is missing.

    It lies in `cache_root()`. Raises MachineError where it cannot be made.
    """
    return _made((cache_root() or _temporary_root()) / kind)


def compiled_folder(kind: str) -> Path:
    """The folder for what an engine ("openvino", "tensorrt", "onnxruntime") compiles of graphs.

    It lies in the cache, or where `compiled_in` says. Raises MachineError where it cannot be made.
    """
    elsewhere = _COMPILED_IN.get()
    return cache_folder(kind) if elsewhere is None else _made(elsewhere / kind)


@contextmanager
def compiled_in(folder: Path | None) -> Iterator[None]:
    """Keep what this thread's engines compile in `folder`, not in the cache; None: no change."""
    token = _COMPILED_IN.set(folder or _COMPILED_IN.get())
    try:
        yield
    finally:
        _COMPILED_IN.reset(token)


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(
            f"cannot make the cache folder {folder}: {error.strerror or error}. "
            "Set CODEMILL_CACHE to a folder that can be written"
        ) from error
    return folder


def cache_root() -> Path | None:
    """$CODEMILL_CACHE, else $XDG_CACHE_HOME/codemill, else ~/.cache/codemill; makes nothing.

    Where there is no home a folder of this user among the temporary files, and None before there is one.
    """
    if configured := os.environ.get("CODEMILL_CACHE"):
        return Path(configured).absolute()
    xdg = os.environ.get("XDG_CACHE_HOME")
    # the XDG specification: a relative path is to be ignored
    if xdg and Path(xdg).is_absolute():
        return Path(xdg) / "codemill"
    try:
        # Python takes the root folder for an empty one
        home = Path() if os.environ.get("HOME") == "" else Path.home()
    except RuntimeError:
        home = Path()
    if home.is_absolute() and home.is_dir():
        return home / ".cache" / "codemill"
    if not hasattr(os, "getuid"):
        return Path(tempfile.gettempdir()) / "codemill"
    folder = _temporary_name()
    return folder if _is_private(folder) else None


def _temporary_root() -> Path:
    """A private folder among the temporary files, the same one each time where that is safe."""
    folder = _temporary_name()
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise MachineError(
            f"cannot make the cache folder {folder}: {error.strerror or error}. "
            "Set CODEMILL_CACHE to a folder that can be written"
        ) from error
    return folder if _is_private(folder) else Path(tempfile.mkdtemp(prefix="codemill-"))


def _temporary_name() -> Path:
    return Path(tempfile.gettempdir()) / f"codemill-{os.getuid()}"


def _is_private(folder: Path) -> bool:
    """Anybody can make a folder of that name: one that another user may write to is not ours."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
    )
