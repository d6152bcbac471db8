"""Training texts rewritten so that their meaning, and with it their label, stays: names, white space, comments, dead
code (`rewrite`).

Rewriting takes tens of milliseconds a text, so it is done once, before training, in processes; what is done is
kept in files, from which a run that was killed continues. Which of them a step sees is `labels.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

from codemill.compress.parallel import map_processes
from codemill.compress.pipeline import Report
from codemill.compress.recipe import Distill
from codemill.compress.rewrite import LANGUAGES, Rewrite, commonest_language, rewrite
from codemill.errors import DataError
from codemill.runtime.atomic import write_atomically

__all__ = ["Augmented", "augmented", "clear", "language_among"]

_SHARD = 128
"""Texts that are rewritten at once, and kept in one file."""
_SEEDS = 1000
"""Variants that one seed of a recipe has, and more than there can be."""


@dataclass(frozen=True)
class Augmented:
    """variants: as many as asked for, each with every text; one that cannot be rewritten stands there as it is."""

    variants: tuple[list[str], ...]
    language: str
    rewritten: int
    """texts of which one variant at least is another"""

    @property
    def said(self) -> str:
        """For people."""
        texts = len(self.variants[0])
        left = texts - self.rewritten
        found = f"{self.rewritten:,} of {texts:,} training texts ({self.language}) are seen rewritten too"
        if not left:
            return found
        return f"{found}; {left:,} ({left / texts:.1%}) could not be rewritten and are seen as they are"


class _Task(NamedTuple):
    path: str
    texts: list[str]
    language: str
    seed: int


def augmented(
    texts: Sequence[str],
    settings: Distill,
    seed: int,
    folder: Path,
    workers: int,
    report: Report,
) -> Augmented:
    """Each text in `settings.variants` other forms. The same for the same seed; `folder` keeps what is done.

    Raises DataError where the language cannot be told, and where no text can be rewritten.
    """
    language = settings.language or language_among(texts)
    tasks = [
        _Task(
            f"rewritten-{number:02d}-{start:07d}.json",
            list(texts[start : start + _SHARD]),
            language,
            # none of them is the seed of the report's own rewriting
            seed * _SEEDS + number + 1,
        )
        for number in range(settings.variants)
        for start in range(0, len(texts), _SHARD)
    ]
    missing = [task for task in tasks if _read(folder, task) is None]
    for done, (task, found) in enumerate(
        zip(missing, map_processes(_rewritten, missing, workers), strict=True), 1
    ):
        write_atomically(folder / task.path, partial(_save, found))
        report(0.0, f"rewriting training texts, {done / len(missing):.0%}")
    read = [_whole(folder, task) for task in tasks]
    variants: list[list[str]] = []
    changed: set[int] = set()
    for number in range(settings.variants):
        per_variant = len(tasks) // settings.variants
        mine = read[number * per_variant : (number + 1) * per_variant]
        found = [text for shard in mine for text in shard]
        changed |= {index for index, text in enumerate(found) if text is not None}
        variants.append(
            [old if new is None else new for old, new in zip(texts, found, strict=True)]
        )
    if not changed:
        raise DataError(
            f"distill.augment: none of the {len(texts):,} training texts can be rewritten as {language}; name their "
            f"language as distill.language ({', '.join(LANGUAGES)}), or set augment to 0"
        )
    return Augmented(tuple(variants), language, len(changed))


def clear(folder: Path) -> None:
    """Remove what `augmented` kept there."""
    for path in folder.glob("rewritten-*.json"):
        path.unlink()


def language_among(texts: Sequence[str]) -> str:
    """What most of the first texts are written in.

    Raises DataError where it is none that can be rewritten.
    """
    found = commonest_language(texts)
    if found is None:
        raise DataError(
            f"distill.augment rewrites {', '.join(LANGUAGES)}, and the first training texts look like none of "
            "these; name the language as distill.language, or set augment to 0"
        )
    return found


def _rewritten(task: _Task) -> list[str | None]:
    return [rewrite(text, task.language, Rewrite.ALL, task.seed) for text in task.texts]


def _read(folder: Path, task: _Task) -> list[str | None] | None:
    """What was rewritten before; a damaged file is as good as none."""
    try:
        found = json.loads((folder / task.path).read_bytes())
    except (OSError, ValueError):
        return None
    whole = isinstance(found, list) and len(found) == len(task.texts)
    return found if whole and all(text is None or isinstance(text, str) for text in found) else None


def _whole(folder: Path, task: _Task) -> list[str | None]:
    found = _read(folder, task)
    if found is None:
        raise DataError(
            f"{folder / task.path}: the rewritten texts that were just written there cannot be read back; is the disk "
            "damaged? Remove the file and run again"
        )
    return found


def _save(found: Sequence[str | None], file: IO[bytes]) -> None:
    file.write(json.dumps(found).encode())
