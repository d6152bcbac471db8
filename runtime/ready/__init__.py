"""The bundles that codemill brings, found by name: folders beside this file, read where they are installed.

How each is made again is in its manifest: the recipe, under `provenance`.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["READY", "bundle_at", "ready_bundle"]

READY = ("code-search",)


def ready_bundle(name: str) -> Path:
    """The folder of one of `READY`."""
    return Path(__file__).parent / name


def bundle_at(path: str | os.PathLike[str]) -> Path:
    """`path`, or the ready bundle of that name where no bundle lies there."""
    # unlike Path.is_file it raises nothing: what cannot be looked at is refused further on
    own = any(os.path.isfile(each) for each in (path, Path(path) / "manifest.json"))  # noqa: PTH113
    name = os.fspath(path)
    return Path(path) if own or name not in READY else ready_bundle(name)
