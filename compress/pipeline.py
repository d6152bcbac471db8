"""The ordered stages of a run, each in a folder named by what went into it.

A stage's key is a hash of its settings, its inputs' keys, the versions of the libraries that shape its
result, its own VERSION, and the machine where it times things. Its folder ends with `done.json`, written
last and by rename: a folder without one is unfinished work, which the stage may continue or redo. So is one
whose files are not those that `done.json` lists. One run at a time works in a folder (`working_in`, lock.py).
"""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from codemill.errors import CodemillError, MachineError
from codemill.runtime.atomic import remove_temporaries, sync_file, write_atomically
from codemill.runtime.pages import give_back_freed
from codemill.targets.worker import peak_rss_bytes

__all__ = [
    "CHECKPOINT",
    "Done",
    "Folders",
    "Identity",
    "Progress",
    "Report",
    "Stage",
    "folder_of",
    "forget_peak",
    "full_disk_said",
    "identities_of",
    "is_finished",
    "is_marked_done",
    "keys_of",
    "read_done",
    "run_stages",
    "stage_of",
    "status",
]

CHECKPOINT = "checkpoint.pt"
"""Where a stage keeps unfinished training; removed once the stage is finished."""

_DONE = "done.json"
_SPENT = "spent.json"
_FOLDER = re.compile(r"([a-z]+(?:-[a-z]+)*)-[0-9a-f]{12}")
_NOTE_EVERY_S = 10.0
_FULL_BYTES = 1_000_000

Report = Callable[[float, str], None]
"""report(fraction of the stage done, what is happening)."""

Folders = Mapping[str, Path]
"""stage name -> its finished folder."""


class Progress(Protocol):
    """Where a run says what it is doing."""

    def stage(self, name: str, number: int, total: int, cached: bool) -> Report:
        """A stage begins, or is found finished."""

    def finished(self, name: str, seconds: float) -> None:
        """A stage has ended."""

    def say(self, line: str) -> None:
        """What a stage found, for people."""


@dataclass(frozen=True)
class Stage:
    """One step: reads the folders of `inputs`, writes its own.

    `work(inputs, folder, report)` may find unfinished work of its own in `folder`. `settings` is plain
    JSON and all that the stage's result depends on beside its inputs; `libraries` are distributions
    whose version shapes the result; `machine` is set where the stage measures time.
    """

    name: str
    version: int
    inputs: tuple[str, ...]
    settings: Any
    libraries: tuple[str, ...]
    work: Callable[[Folders, Path, Report], None]
    machine: str | None = None
    findings: Callable[[Path], str] | None = None
    """A line for people on what a finished folder holds."""


@dataclass(frozen=True)
class Done:
    """What `done.json` says of a finished stage."""

    name: str
    key: str
    folder: Path
    seconds: float
    peak_rss_bytes: int
    cached: bool


@dataclass(frozen=True)
class Identity:
    """What a stage's result depends on, as plain JSON (its inputs by their keys), and the hash of that."""

    made_of: dict[str, Any]
    key: str


def identities_of(stages: Sequence[Stage]) -> dict[str, Identity]:
    """stage name -> its identity, for all stages, before any has run."""
    found: dict[str, Identity] = {}
    for stage in stages:
        value = {
            "name": stage.name,
            "version": stage.version,
            "inputs": {name: found[name].key for name in stage.inputs},
            "settings": stage.settings,
            "libraries": {name: metadata.version(name) for name in stage.libraries},
            "machine": stage.machine,
            "python": list(sys.version_info[:2]),
        }
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
        # as it is read back: tuples are lists
        found[stage.name] = Identity(json.loads(text), hashlib.sha256(text.encode()).hexdigest())
    return found


def keys_of(stages: Sequence[Stage]) -> dict[str, str]:
    """stage name -> key."""
    return {name: identity.key for name, identity in identities_of(stages).items()}


def folder_of(work: Path, name: str, key: str) -> Path:
    """Where the stage `name` keeps its work."""
    return work / f"{name}-{key[:12]}"


def stage_of(folder_name: str) -> str | None:
    """The stage whose folder is of this name; None where it is no stage's."""
    match = _FOLDER.fullmatch(folder_name)
    return None if match is None else match[1]


def read_done(folder: Path) -> dict[str, Any]:
    """What the `done.json` of a finished stage's folder says."""
    value: dict[str, Any] = json.loads((folder / _DONE).read_text())
    return value


def is_marked_done(folder: Path) -> bool:
    """Whether a stage finished in `folder` once, whatever has become of its files."""
    return (folder / _DONE).is_file()


def is_finished(folder: Path) -> bool:
    """Whether a stage finished in `folder` and its files are still there, of the size they had."""
    try:
        return all(
            (folder / name).stat().st_size == size
            for name, size in read_done(folder)["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _read_done(stage: Stage, folder: Path, key: str) -> Done | None:
    if not is_finished(folder):
        return None
    try:
        value = read_done(folder)
        if value["key"] != key:
            return None
        seconds, peak = float(value["seconds"]), int(value["peak_rss_bytes"])
        return Done(stage.name, key, folder, seconds, peak, True)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def status(stages: Sequence[Stage], work: Path) -> dict[str, bool]:
    """stage name -> whether it is finished in `work`."""
    keys = keys_of(stages)
    return {
        stage.name: _read_done(stage, folder_of(work, stage.name, key), key) is not None
        for stage, key in zip(stages, keys.values(), strict=True)
    }


def run_stages(stages: Sequence[Stage], work: Path, progress: Progress) -> dict[str, Done]:
    """Run what is not finished yet, in order; the caller is the only one who works in `work`.

    Raises what a stage raises, and MachineError in its place where the disk was full.
    """
    identities = identities_of(stages)
    done: dict[str, Done] = {}
    for number, stage in enumerate(stages, 1):
        key = identities[stage.name].key
        folder = folder_of(work, stage.name, key)
        finished = _read_done(stage, folder, key)
        report = progress.stage(stage.name, number, len(stages), finished is not None)
        if finished is None:
            inputs = {name: done[name].folder for name in stage.inputs}
            with full_disk_said(stage.name, folder):
                spent = _work(stage, inputs, folder, report)
                finished = _write_done(stage, folder, identities[stage.name], spent)
            _release_memory()
        for name in (CHECKPOINT, _SPENT):
            (folder / name).unlink(missing_ok=True)
        done[stage.name] = finished
        progress.finished(stage.name, finished.seconds)
        if stage.findings is not None:
            progress.say(stage.findings(finished.folder))
    return done


def _work(stage: Stage, inputs: Folders, folder: Path, report: Report) -> _Spent:
    """Let the stage work, counting what its interrupted attempts took too."""
    folder.mkdir(parents=True, exist_ok=True)
    if is_marked_done(folder):
        _empty(folder)
    remove_temporaries(folder)
    forget_peak()
    spent = _Spent(folder / _SPENT)

    def counted(fraction: float, message: str) -> None:
        spent.note_now_and_then()
        report(fraction, message)

    try:
        stage.work(inputs, folder, counted)
    except BaseException:
        with contextlib.suppress(OSError):
            spent.note()
        raise
    return spent


class _Spent:
    """Time and peak memory of a stage over all its attempts; a killed one is known to some seconds."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._began = self._noted = time.monotonic()
        self._earlier_s, self._earlier_peak = 0.0, 0
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            value = json.loads(path.read_text())
            self._earlier_s = float(value["seconds"])
            self._earlier_peak = int(value["peak_rss_bytes"])

    @property
    def seconds(self) -> float:
        return self._earlier_s + time.monotonic() - self._began

    @property
    def peak_rss_bytes(self) -> int:
        return max(self._earlier_peak, peak_rss_bytes())

    def note(self) -> None:
        value = {"seconds": self.seconds, "peak_rss_bytes": self.peak_rss_bytes}
        write_atomically(self._path, lambda file: file.write(json.dumps(value).encode()))
        self._noted = time.monotonic()

    def note_now_and_then(self) -> None:
        if time.monotonic() - self._noted > _NOTE_EVERY_S:
            self.note()


@contextlib.contextmanager
def full_disk_said(name: str, folder: Path) -> Iterator[None]:
    """Say that the disk is full, whatever the library that met it made of that."""
    try:
        yield
    except Exception as error:
        if not _is_full_disk(error, folder):
            raise
        raise MachineError(
            f"the disk is full: stage {name!r} could not write in {folder}. Make room (`compress cache list` "
            "shows what takes it) and run the same command again, which continues; or choose another --work"
        ) from error


def _is_full_disk(error: BaseException, folder: Path) -> bool:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # libraries in C++ and Rust keep the text only
        if os.strerror(errno.ENOSPC) in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    # torch and onnx say no more than that a write failed
    with contextlib.suppress(OSError):
        return not isinstance(error, CodemillError) and shutil.disk_usage(folder).free < _FULL_BYTES
    return False


def forget_peak() -> None:
    """Let the peak of resident memory start anew, so that it is this stage's; where Linux allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _release_memory() -> None:
    """Give what a stage freed back to the system: the stages' leftovers would add up."""
    gc.collect()
    give_back_freed()


def _empty(folder: Path) -> None:
    """Clear away what finished once and is damaged: a stage would take what is left for the work of a killed run."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _DONE:
            path.unlink()
    # last, so that a kill on the way leaves it known as damaged
    (folder / _DONE).unlink()


def _write_done(stage: Stage, folder: Path, identity: Identity, spent: _Spent) -> Done:
    sizes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (CHECKPOINT, _SPENT):
            # before done.json says that they are there
            sync_file(path)
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    seconds, peak = round(spent.seconds, 3), spent.peak_rss_bytes
    said = {
        "stage": stage.name,
        "key": identity.key,
        "made_of": identity.made_of,
        "files": sizes,
        "seconds": seconds,
        "peak_rss_bytes": peak,
    }
    text = json.dumps(said, indent=1, sort_keys=True).encode()
    write_atomically(folder / _DONE, lambda file: file.write(text))
    return Done(stage.name, identity.key, folder, seconds, peak, False)
