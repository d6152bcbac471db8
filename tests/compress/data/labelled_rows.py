"""Small labelled data for tests: functions that are no near duplicates of each other."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def code(number: int, words: int = 30) -> str:
    """A function of random words, alike to no other."""
    chance = random.Random(number)
    body = " ".join(f"name{chance.randrange(10_000)}" for _ in range(words))
    return f"int f{number}() {{ {body}; }}"


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """JSON Lines; returns the path as text."""
    with path.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row) + "\n")
    return str(path)
