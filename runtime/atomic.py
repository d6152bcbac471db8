"""Writing a file so that a reader, or a run after a crash, finds it whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO

__all__ = ["remove_temporaries", "sync_file", "write_atomically"]

_RANDOM_BYTES = 8
_TEMPORARY = re.compile(rf"\..+\.[0-9a-f]{{{2 * _RANDOM_BYTES}}}")


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a new file beside `path`, then rename it to `path`.

    Raises OSError; whatever is raised, an older file at `path` stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(_RANDOM_BYTES)}")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            # without it a power cut can leave the new name on an empty file
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_file(path: Path) -> None:
    """Have the system put the file on the disk now: a power cut must not empty what is called finished."""
    # Windows syncs only what is open for writing
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def remove_temporaries(folder: Path) -> None:
    """Remove what writers killed midway left below `folder`; nobody may be writing there now."""
    for path in folder.rglob(".*"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)
