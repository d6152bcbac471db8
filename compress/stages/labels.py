"""Stage `labels`: the teacher's embeddings of every training text, in shards that a killed run keeps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.stages.corpus import read_split
from codemill.compress.stages.graphs import TEACHING
from codemill.runtime import Encoder, load_encoder
from codemill.runtime.atomic import write_atomically

__all__ = ["VERSION", "read_labels", "stage"]

VERSION = 2
_SHARD = 1024


def stage(recipe: Recipe, threads: int) -> Stage:
    """Depends on the teaching graph and on how many pairs are used."""
    settings = {"train_pairs": recipe.data.train_pairs, "threads": threads}

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        pairs = read_split(inputs["corpus"], "train", recipe.data.train_pairs)
        sides = {"queries": [pair.query for pair in pairs], "codes": [pair.code for pair in pairs]}
        with load_encoder(inputs["teacher-graphs"] / TEACHING, threads=threads) as teacher:
            _label(teacher, sides, folder, report)

    return Stage(
        "labels",
        VERSION,
        ("corpus", "teacher-graphs"),
        settings,
        ("onnxruntime", "tokenizers"),
        work,
    )


def _label(teacher: Encoder, sides: dict[str, list[str]], folder: Path, report: Report) -> None:
    # progress by characters: codes are several times as long as queries
    total = sum(len(text) for texts in sides.values() for text in texts)
    done, started, labelled = 0, time.monotonic(), 0
    for side, texts in sides.items():
        for number, start in enumerate(range(0, len(texts), _SHARD)):
            path, shard = folder / f"{side}-{number:05d}.npy", texts[start : start + _SHARD]
            if not path.is_file():
                _write_shard(teacher, shard, path)
                labelled += len(shard)
            done += sum(map(len, shard))
            # a coarse clock may not have moved yet
            rate = labelled / max(time.monotonic() - started, 1e-3)
            report(
                done / total, f"{side} {start + len(shard)}/{len(texts)}, {rate:.0f} texts a second"
            )


def _write_shard(teacher: Encoder, texts: Sequence[str], path: Path) -> None:
    rows = teacher.encode(texts).astype(np.float16)
    write_atomically(path, lambda file: np.save(file, rows))


def read_labels(folder: Path, side: str) -> np.ndarray:
    """float16 [n, dim], in the order of the training pairs."""
    return np.concatenate([np.load(path) for path in sorted(folder.glob(f"{side}-*.npy"))])
