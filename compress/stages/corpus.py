"""Stage `corpus`: the pairs, in three splits, as train / validation / test .jsonl.gz and corpus.json."""

from __future__ import annotations

import gc
import hashlib
import json
import platform
import random
from dataclasses import asdict
from pathlib import Path

from codemill.compress.data.installed import installed_packages, mine
from codemill.compress.data.pairs import Pair, read_pairs, write_pairs
from codemill.compress.data.splits import Splits, split_pairs
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Data, Recipe
from codemill.errors import DataError
from codemill.targets.json_lines import check_there

__all__ = ["VERSION", "hash_of", "path_of", "read_split", "stage"]

VERSION = 2
_INSTALLED = "installed"


def stage(recipe: Recipe, threads: int) -> Stage:
    """Depends on the source: the packages' versions, or the file's contents."""
    data = recipe.data
    settings: dict[str, object] = {"seed": recipe.seed}
    if data.source == _INSTALLED:
        # the test is this very standard library: another patch release, another test
        settings |= {
            "source": _INSTALLED,
            "packages": installed_packages(data.packages),
            "python": platform.python_version(),
        }
    else:
        # not where the file lies: one that was moved is read no second time
        settings |= {
            "source": "file",
            "sha256": hash_of(path_of(data)),
            "fields": [data.query_field, data.code_field],
            "held_out": [data.validation_pairs, data.test_pairs],
        }

    def work(_: Folders, folder: Path, report: Report) -> None:
        if data.source == _INSTALLED:
            _mined(installed_packages(data.packages), recipe.seed, threads, folder, report)
        else:
            _given(data, recipe.seed, folder, report)

    return Stage("corpus", VERSION, (), settings, (), work, findings=_findings)


def _findings(folder: Path) -> str:
    found = json.loads((folder / "corpus.json").read_text())
    overlaps = (found["removed_from_train"], found["removed_from_validation"])
    in_train, in_validation = (
        sum(overlap[kind] for kind in ("same_code", "similar_code", "same_query"))
        for overlap in overlaps
    )
    return (
        f"{found['train']:,} training, {found['validation']:,} validation, {found['test']:,} test pairs; removed "
        f"{found['duplicates_removed']:,} duplicates, {in_train:,} training pairs that validation or test has too "
        f"and {in_validation:,} validation pairs that the test has too"
    )


def path_of(data: Data) -> Path:
    """Where the file of `data.source` lies."""
    return Path(data.source).expanduser()


def hash_of(path: Path) -> str:
    """sha256 of a data file; DataError where it cannot be read."""
    check_there(path, "data.source", "expected 'installed' or a .jsonl file of pairs")
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"data.source {str(path)!r} cannot be read ({error.strerror}); "
            "expected 'installed' or a .jsonl file of pairs"
        ) from error


def _mined(packages: dict[str, str], seed: int, threads: int, folder: Path, report: Report) -> None:
    report(0.0, f"reading {len(packages)} installed packages")
    corpus = mine(packages, threads, lambda share: report(share, "reading installed packages"))
    facts = {
        "packages": corpus.packages,
        "validation_packages": corpus.validation_packages,
        "test_missing": corpus.test_missing,
    }
    _write(folder, seed, corpus.splits, facts)


def _given(data: Data, seed: int, folder: Path, report: Report) -> None:
    report(0.0, f"reading {data.source}")
    pairs = list(read_pairs(path_of(data), data.query_field, data.code_field))
    report(0.5, f"{len(pairs)} pairs read")
    splits = split_pairs(pairs, data.validation_pairs, data.test_pairs, seed, data.source)
    _write(folder, seed, splits, {})


def _write(folder: Path, seed: int, splits: Splits, facts: dict[str, object]) -> None:
    # shuffled once here: whoever wants n pairs takes the first n
    random.Random(seed).shuffle(splits.train)
    random.Random(seed).shuffle(splits.validation)
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    for name, pairs in parts.items():
        write_pairs(folder / f"{name}.jsonl.gz", pairs)
    summary = {
        **{name: len(pairs) for name, pairs in parts.items()},
        "duplicates_removed": splits.duplicates_removed,
        "removed_from_train": asdict(splits.removed_from_train),
        "removed_from_validation": asdict(splits.removed_from_validation),
        **facts,
    }
    (folder / "corpus.json").write_text(json.dumps(summary, indent=1))
    gc.collect()


def read_split(folder: Path, name: str, most: int | None = None) -> list[Pair]:
    """The first `most` pairs of a split."""
    return [
        pair
        for _, pair in zip(
            range(most or 2**62), read_pairs(folder / f"{name}.jsonl.gz"), strict=False
        )
    ]
