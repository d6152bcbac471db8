"""Stage `corpus` of completion: pieces of files to learn from, and places in held-out files to complete.

Writes train.jsonl.gz and validation.jsonl.gz (texts), calibration.jsonl.gz and test.jsonl.gz (places), corpus.json.
"""

from __future__ import annotations

import gzip
import json
import platform
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from codemill.compress.data.code import (
    INSTALLED,
    CodeFile,
    Place,
    given,
    installed,
    piece_of,
    place_in,
)
from codemill.compress.data.installed import installed_packages
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.stages.corpus import hash_of, path_of
from codemill.errors import DataError

__all__ = ["VERSION", "counted", "read_places", "read_texts", "stage"]

VERSION = 1
_PER_TOKEN = 4
"""Characters, about, of a token of code: a piece has enough of them to fill its tokens."""
_VALIDATION = 64
"""Pieces of held-out files that training is judged by."""
_COUNTED = 2000
_PER_FILE = 2
"""Places in one file, at most."""


def stage(recipe: Recipe) -> Stage:
    """Depends on the source, and on how much of it is wanted."""
    data, complete = recipe.data, recipe.complete
    settings: dict[str, Any] = {
        "seed": recipe.seed,
        "tokens": [complete.tokens, complete.piece_tokens, complete.pieces],
        "places": [complete.calibration_places, complete.test_places, complete.context],
    }
    if data.source == INSTALLED:
        settings |= {
            "packages": installed_packages(data.packages),
            "python": platform.python_version(),
        }
    else:
        settings |= {"sha256": hash_of(path_of(data)), "field": data.code_field}

    def work(_: Folders, folder: Path, report: Report) -> None:
        _write(recipe, folder, report)

    return Stage("corpus", VERSION, (), settings, (), work, findings=_findings)


def _findings(folder: Path) -> str:
    found = json.loads((folder / "corpus.json").read_text())
    return (
        f"{found['pieces']:,} pieces of {found['files']:,} files to learn from ({found['characters']:,} characters); "
        f"{found['calibration']:,} places to calibrate on, {found['test']:,} to test on; left out "
        f"{found['equal']:,} files that equal another and {found['near']:,} near to held-out ones"
    )


def _write(recipe: Recipe, folder: Path, report: Report) -> None:
    data, complete = recipe.data, recipe.complete
    length = complete.piece_tokens * _PER_TOKEN
    wanted = complete.tokens * _PER_TOKEN
    # as many files as give that many pieces, each of few
    most = wanted * 4

    def said(share: float) -> None:
        report(share * 0.9, "reading code")

    if data.source == INSTALLED:
        splits = installed(installed_packages(data.packages), most, recipe.seed, said)
    else:
        splits = given(path_of(data), data.code_field, most, recipe.seed, said)
    generator = random.Random(recipe.seed)
    pieces: list[dict[str, str]] = []
    characters = 0
    files = 0
    for file in splits.train:
        if characters >= wanted:
            break
        files += 1
        for _ in range(min(complete.pieces, 1 + len(file.text) // (2 * length))):
            text = piece_of(file.text, length, generator)
            pieces.append({"origin": file.origin, "text": text})
            characters += len(text)
    generator.shuffle(pieces)
    validation = [
        {"origin": file.origin, "text": piece_of(file.text, length, generator)}
        for file in splits.validation[:_VALIDATION]
    ]
    python = data.source == INSTALLED
    calibration = _places(
        splits.validation, complete.calibration_places, complete.context, generator, python
    )
    test = _places(splits.test, complete.test_places, complete.context, generator, python)
    for what, found in (("calibration", calibration), ("test", test)):
        if not found:
            raise DataError(
                f"no file that is held out for the {what} has a line to complete; bring larger files as data.source"
            )
    parts: dict[str, Iterable[dict[str, str]]] = {
        "train": pieces,
        "validation": validation,
        "calibration": [place.as_json() for place in calibration],
        "test": [place.as_json() for place in test],
    }
    for name, rows in parts.items():
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
    facts = {
        "pieces": len(pieces),
        "files": files,
        "characters": characters,
        "calibration": len(calibration),
        "test": len(test),
        "equal": splits.equal,
        "near": splits.near,
    }
    (folder / "corpus.json").write_text(json.dumps(facts, indent=1))


def _places(
    files: list[CodeFile], wanted: int, context: int, generator: random.Random, python: bool
) -> list[Place]:
    """So many places, one of each file before a second one of any."""
    found: dict[str, Place] = {}
    for _ in range(_PER_FILE):
        for file in files:
            if len(found) == wanted:
                break
            place = place_in(file, context, generator, python)
            if place is not None:
                found[place.origin] = place
    return list(found.values())


def _read(path: Path, make: Callable[[dict[str, str]], Any]) -> list[Any]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [make(json.loads(line)) for line in stream]


def read_texts(folder: Path, name: str) -> list[str]:
    """The texts of `train` or `validation`."""
    return _read(folder / f"{name}.jsonl.gz", lambda row: row["text"])


def counted(folder: Path) -> list[str]:
    """Texts that tell how often tokens are used."""
    return read_texts(folder, "train")[:_COUNTED]


def read_places(folder: Path, name: str) -> list[Place]:
    """The places of `calibration` or `test`."""
    return _read(folder / f"{name}.jsonl.gz", lambda row: Place(**row))
