"""Which of a bundle's variants was measured to be the fastest on this machine: kept in the cache, asked on load.

`compress bench BUNDLE --variants` measures and writes it. Where nothing was measured, `session.choose_variant` goes by
providers and precisions alone.
"""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from codemill.errors import CodemillError
from codemill.runtime.atomic import write_atomically
from codemill.runtime.cache import cache_folder, cache_root
from codemill.runtime.engines import ENGINES
from codemill.runtime.machine import unlike

if TYPE_CHECKING:
    from codemill.runtime.bundle import Manifest

__all__ = ["prefer", "preferred"]

_KIND = "preferred"
_MOST_BYTES = 4096


def preferred(manifest: Manifest, providers: tuple[str, ...]) -> str | None:
    """The variant that was measured to be the best here, if one of `providers` still runs it; never an engine."""
    root = cache_root()
    if root is None:
        return None
    try:
        path = root / _KIND / _name(manifest)
        if path.stat().st_size > _MOST_BYTES:
            return None
        name = json.loads(path.read_text(encoding="utf-8"))["variant"]
        variant = manifest.variants[name]
    # not there, or not what was written: it is only a preference
    except (OSError, ValueError, KeyError, TypeError):
        return None
    runs = variant.provider in providers and unlike(variant.built_for) is None
    return str(name) if runs and variant.provider not in ENGINES else None


def prefer(manifest: Manifest, variant: str) -> bool:
    """Let `codemill.load` take this variant on this machine from now on; False where the cache cannot be written."""
    with contextlib.suppress(OSError, CodemillError):
        content = json.dumps({"bundle": manifest.name, "variant": variant}).encode()
        path: Path = cache_folder(_KIND) / _name(manifest)
        write_atomically(path, lambda file: file.write(content))
        return True
    return False


def _name(manifest: Manifest) -> str:
    from codemill.runtime.bundle import digest

    return re.sub(r"[^0-9a-f]", "", digest(manifest).removeprefix("sha256:"))[:64] + ".json"
