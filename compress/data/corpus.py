"""A labelled corpus on disk: distinct texts once, and for each split arrays that point into them.

    texts.jsonl.gz                        {"text": ..., "id": ...}, in the order of first use
    train.npz, validation.npz, test.npz   rows, labels, soft, groups, recurs (no pickle)
    corpus.json                           labels, counts, and everything that was found on the way

Rows are in an order drawn by the seed, so that whoever wants n rows takes the first n. Equal data make
equal bytes. How a corpus comes about is `labelled.py`.
"""

from __future__ import annotations

import gzip
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codemill.compress.data.sources import SPLITS
from codemill.errors import DataError

__all__ = ["Labelled", "SplitArrays", "read_labelled", "read_report", "write_files"]

_TEXTS, _REPORT = "texts.jsonl.gz", "corpus.json"


@dataclass(frozen=True)
class SplitArrays:
    """The rows of one split; `rows` points into the texts of the corpus."""

    rows: NDArray[np.int32]
    """[n, 1 | 2]"""
    labels: NDArray[np.int32]
    """[n], -1: none"""
    soft: NDArray[np.float32] | None
    """[n, classes], a teacher's probabilities; NaN in rows without any; None: no row has any."""
    groups: NDArray[np.int32]
    """[n], -1: none"""
    recurs: NDArray[np.int8]
    """[n], of pairs in a held-out split, what recurs in train: 0 nothing, 1 one text, 2 both texts, 3 the pair."""


@dataclass(frozen=True)
class Labelled:
    """The first rows of a split, with the texts they need; `rows` points into `texts`."""

    texts: list[str]
    rows: NDArray[np.int32]
    labels: NDArray[np.int32]
    soft: NDArray[np.float32] | None
    groups: NDArray[np.int32]
    recurs: NDArray[np.int8]
    function_ids: list[str]
    """the id of each text, empty where the data had none."""


def write_files(
    folder: Path,
    texts: Iterable[tuple[str, str]],
    splits: Mapping[str, SplitArrays],
    report: Mapping[str, Any],
) -> None:
    """Write a corpus of (id, text)s and splits into `folder`; `corpus.json` comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / _TEXTS).open("wb") as raw,
        # no timestamp and no name: equal texts make equal files
        gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="", compresslevel=3) as stream,
    ):
        for name, text in texts:
            stream.write(json.dumps({"text": text, "id": name}, ensure_ascii=False).encode())
            stream.write(b"\n")
    for split, arrays in splits.items():
        named = {
            "rows": arrays.rows,
            "labels": arrays.labels,
            "groups": arrays.groups,
            "recurs": arrays.recurs,
        }
        if arrays.soft is not None:
            named["soft"] = arrays.soft
        np.savez(folder / f"{split}.npz", allow_pickle=False, **named)  # type: ignore[arg-type]
    text = json.dumps(report, indent=1, ensure_ascii=False, sort_keys=True)
    (folder / _REPORT).write_text(text + "\n", encoding="utf-8")


def read_report(folder: Path) -> dict[str, Any]:
    """What `corpus.json` says."""
    path = folder / _REPORT
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); make the corpus again") from error
    if not isinstance(report, dict):
        raise DataError(f"{path}: expected an object; make the corpus again")
    return report


def read_labelled(folder: Path, split: str, most: int | None = None) -> Labelled:
    """The first `most` rows of a split (None: all), and the distinct texts that they use."""
    if split not in SPLITS:
        raise DataError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    path = folder / f"{split}.npz"
    try:
        # opened here: numpy leaves a file open that turns out to be damaged
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as stored:
            arrays = {name: stored[name][:most] for name in stored.files}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); make the corpus again") from error
    missing = {"rows", "labels", "groups", "recurs"} - set(arrays)
    if missing:
        raise DataError(f"{path}: {', '.join(sorted(missing))} missing; make the corpus again")
    needed, rows = np.unique(arrays["rows"], return_inverse=True)
    texts, names = _texts(folder / _TEXTS, needed)
    return Labelled(
        texts,
        rows.reshape(arrays["rows"].shape).astype(np.int32),
        arrays["labels"],
        arrays.get("soft"),
        arrays["groups"],
        arrays["recurs"],
        names,
    )


def _texts(path: Path, needed: NDArray[np.int32]) -> tuple[list[str], list[str]]:
    """The texts (and their ids) whose numbers are `needed`, which is sorted; reads no further than it must."""
    texts: list[str] = []
    names: list[str] = []
    try:
        with gzip.open(path, "rb") as stream:
            for number, line in enumerate(stream):
                if len(texts) == len(needed):
                    break
                if number == needed[len(texts)]:
                    row = json.loads(line)
                    texts.append(row["text"])
                    names.append(row["id"])
    except (OSError, EOFError, ValueError, KeyError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); make the corpus again") from error
    if len(texts) < len(needed):
        raise DataError(f"{path} ends after {len(texts):,} texts; make the corpus again")
    return texts, names
