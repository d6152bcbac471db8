"""What runs keep on disk: listing it, telling why a stage would be done again, removing it.

How a stage's folder is named and when it counts as finished is `pipeline.py`'s.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from codemill.compress.lock import working_in
from codemill.compress.pipeline import (
    Stage,
    folder_of,
    identities_of,
    is_finished,
    is_marked_done,
    read_done,
    stage_of,
    status,
)
from codemill.errors import InputError
from codemill.runtime.cache import cache_root

__all__ = ["Explanation", "Kept", "explain", "kept", "remove"]

_RUNTIME_KINDS = (
    *("bundles", "indexes", "models", "onnxruntime", "openvino", "preferred", "tensorrt"),
)
_SHOWN_DIFFERENCES = 8


_GONE = ".codemill-removed"
"""Ends the name of a folder that is being removed."""


@dataclass(frozen=True)
class Kept:
    """A folder that may be removed. `name` is a stage's, or a kind of the runtime's cache."""

    name: str
    state: Literal["finished", "unfinished", "runtime"]
    folder: Path
    size_bytes: int
    last_written: str
    """when something was last written there, ISO 8601 in local time"""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "folder": str(self.folder)}


@dataclass(frozen=True)
class Explanation:
    """Whether a stage would be done, and why."""

    stage: str
    cached: bool
    said: str
    differences: tuple[str, ...]
    """what differs from the last finished one of its name: `settings.epochs: 2, was 1`"""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def kept(work: Path) -> list[Kept]:
    """The stage folders in `work`, and the folders of the runtime's cache that hold something.

    Raises InputError where `work` is there and is no folder, or cannot be looked into.
    """
    try:
        found = _stages(work)
    except NotADirectoryError as error:
        raise InputError(f"{work} is not a folder to work in; choose another --work") from error
    except OSError as error:
        raise InputError(
            f"the work folder {work} cannot be looked into ({error.strerror or error}); choose another --work"
        ) from error
    root = cache_root()
    if root is None:
        return found
    for kind in _RUNTIME_KINDS:
        # not there, or another user's
        with contextlib.suppress(OSError):
            folder = root / kind
            if any(folder.iterdir()):
                found.append(_kept(kind, "runtime", folder))
    return found


def _stages(work: Path) -> list[Kept]:
    try:
        folders = sorted(work.iterdir())
    except FileNotFoundError:
        return []
    found = []
    for folder in folders:
        name = stage_of(folder.name)
        if name is not None and folder.is_dir() and not folder.is_symlink():
            state: Literal["finished", "unfinished"]
            state = "finished" if is_finished(folder) else "unfinished"
            # another process may remove it meanwhile
            with contextlib.suppress(FileNotFoundError):
                found.append(_kept(name, state, folder))
    return found


def _kept(name: str, state: Literal["finished", "unfinished", "runtime"], folder: Path) -> Kept:
    size, newest = 0, folder.stat().st_mtime
    # unlike rglob it goes on where another process removes a folder meanwhile
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *files)):
            with contextlib.suppress(OSError):
                status = path.lstat()
                size, newest = size + status.st_size, max(newest, status.st_mtime)
    when = datetime.fromtimestamp(newest).astimezone().isoformat(" ", "seconds")
    return Kept(name, state, folder, size, when)


def remove(chosen: Sequence[Kept], work: Path) -> None:
    """Remove the folders that still are what they were.

    Raises MachineError where a run works in `work`, OSError where one cannot be removed.
    """
    with contextlib.ExitStack() as stack:
        if any(entry.state != "runtime" for entry in chosen):
            stack.enter_context(working_in(work, wait=False, say=lambda _: None))
        for entry in chosen:
            # chosen before the lock was held: a run may have finished the stage since
            if not entry.folder.is_dir() or (
                entry.state != "runtime"
                and is_finished(entry.folder) != (entry.state == "finished")
            ):
                continue
            # by another name first: a stage would go on with what a kill on the way leaves
            for left in entry.folder.parent.glob(f".*{_GONE}"):
                shutil.rmtree(left)
            gone = entry.folder.with_name(f".{entry.folder.name}{_GONE}")
            entry.folder.rename(gone)
            shutil.rmtree(gone)


def explain(stages: Sequence[Stage], work: Path) -> list[Explanation]:
    """For each stage: kept, begun or to be done, and what differs from the last one that is kept."""
    entries, found = kept(work), []
    cached = status(stages, work)
    for name, identity in identities_of(stages).items():
        folder = folder_of(work, name, identity.key)
        if cached[name]:
            found.append(Explanation(name, True, f"done before, in {folder}", ()))
            continue
        if is_marked_done(folder):
            said = "to do again: its files are not those that it finished with"
            found.append(Explanation(name, False, said, ()))
            continue
        begun = "begun, and will be continued" if folder.is_dir() else "to do"
        last = _last_finished(entries, name)
        if last is None:
            found.append(Explanation(name, False, f"{begun}; none is kept in {work}", ()))
            continue
        lines = tuple(_differences(last, identity.made_of))
        said = f"{begun}; differs from the last that is kept"
        found.append(Explanation(name, False, said, lines))
    return found


def _last_finished(entries: Sequence[Kept], name: str) -> dict[str, Any] | None:
    """What the most recent finished folder of a stage was made of."""
    folders = [e.folder for e in entries if (e.name, e.state) == (name, "finished")]
    if not folders:
        return None
    newest = max(folders, key=lambda folder: (folder / "done.json").stat().st_mtime)
    value: dict[str, Any] = read_done(newest).get("made_of", {})
    return value


def _differences(was: Any, now: Any, key: str = "") -> list[str]:
    """`key: new value, was old value` for every leaf that differs; inputs by name only."""
    if isinstance(was, dict) and isinstance(now, dict):
        lines = []
        for name in sorted(was.keys() | now.keys()):
            lines += _differences(was.get(name), now.get(name), f"{key}.{name}" if key else name)
        if not key and len(lines) > _SHOWN_DIFFERENCES:
            lines[_SHOWN_DIFFERENCES:] = [f"and {len(lines) - _SHOWN_DIFFERENCES} more"]
        return lines
    if was == now:
        return []
    if key.startswith("inputs."):
        return [f"its input {key.removeprefix('inputs.')!r} differs"]
    return [f"{key}: {_short(now)}, was {_short(was)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
