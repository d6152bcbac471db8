"""The ordered stages of a run, each in a folder named by what went into it.

A stage's key is a hash of its settings, its inputs' keys, the versions of the libraries that shape its
result, its own VERSION, and the machine where it times things. Its folder ends with `done.json`, written
last and by rename: a folder without one is unfinished work, which the stage may continue or redo.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from codemill.runtime.atomic import write_atomically
from codemill.targets.worker import peak_rss_bytes

__all__ = [
    "CHECKPOINT",
    "Done",
    "Folders",
    "Progress",
    "Report",
    "Stage",
    "keys_of",
    "read_done",
    "run_stages",
    "status",
]

CHECKPOINT = "checkpoint.pt"
"""Where a stage keeps unfinished training; removed once the stage is finished."""

_DONE = "done.json"

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


def keys_of(stages: Sequence[Stage]) -> dict[str, str]:
    """stage name -> key, for all stages, before any has run."""
    keys: dict[str, str] = {}
    for stage in stages:
        value = {
            "name": stage.name,
            "version": stage.version,
            "inputs": {name: keys[name] for name in stage.inputs},
            "settings": stage.settings,
            "libraries": {name: metadata.version(name) for name in stage.libraries},
            "machine": stage.machine,
            "python": list(sys.version_info[:2]),
        }
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
        keys[stage.name] = hashlib.sha256(text.encode()).hexdigest()
    return keys


def _folder(work: Path, stage: Stage, keys: Mapping[str, str]) -> Path:
    return work / f"{stage.name}-{keys[stage.name][:12]}"


def read_done(folder: Path) -> dict[str, Any]:
    """What the `done.json` of a finished stage's folder says."""
    value: dict[str, Any] = json.loads((folder / _DONE).read_text())
    return value


def _read_done(stage: Stage, folder: Path, key: str) -> Done | None:
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
        stage.name: _read_done(stage, _folder(work, stage, keys), keys[stage.name]) is not None
        for stage in stages
    }


def run_stages(stages: Sequence[Stage], work: Path, progress: Progress) -> dict[str, Done]:
    """Run what is not finished yet, in order."""
    keys = keys_of(stages)
    done: dict[str, Done] = {}
    for number, stage in enumerate(stages, 1):
        folder = _folder(work, stage, keys)
        finished = _read_done(stage, folder, keys[stage.name])
        report = progress.stage(stage.name, number, len(stages), finished is not None)
        if finished is None:
            folder.mkdir(parents=True, exist_ok=True)
            _forget_peak()
            start = time.monotonic()
            stage.work({name: done[name].folder for name in stage.inputs}, folder, report)
            finished = _write_done(stage, folder, keys[stage.name], time.monotonic() - start)
            _release_memory()
        (folder / CHECKPOINT).unlink(missing_ok=True)
        done[stage.name] = finished
        progress.finished(stage.name, finished.seconds)
        if stage.findings is not None:
            progress.say(stage.findings(finished.folder))
    return done


def _forget_peak() -> None:
    """Let the peak of resident memory start anew, so that it is this stage's; where Linux allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _release_memory() -> None:
    """Give what a stage freed back to the system: glibc keeps it, and the stages' leftovers would add up."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _write_done(stage: Stage, folder: Path, key: str, seconds: float) -> Done:
    peak = peak_rss_bytes()
    value = {
        "stage": stage.name,
        "version": stage.version,
        "key": key,
        "settings": stage.settings,
        "seconds": round(seconds, 3),
        "peak_rss_bytes": peak,
    }
    text = json.dumps(value, indent=1, sort_keys=True).encode()
    write_atomically(folder / _DONE, lambda file: file.write(text))
    return Done(stage.name, key, folder, value["seconds"], peak, False)
