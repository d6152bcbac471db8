"""Docstring-and-function pairs mined from the code that is installed on this machine.

Train and validation come from third-party packages (validation is whole packages, or whole files
where few packages were named), the test from the standard library: 1,000 functions named in
`stdlib_test.txt`, so that figures can be compared between machines of one Python version. Functions
are read with `codemill.runtime.functions`, the very code that `compress find` uses on a user's folder.
"""

from __future__ import annotations

import gc
import hashlib
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from codemill.compress.data.leakage import remove_duplicates
from codemill.compress.data.pairs import Pair
from codemill.compress.data.splits import Splits, make_splits
from codemill.compress.parallel import map_processes
from codemill.errors import DataError
from codemill.runtime.functions import Function, functions_of

__all__ = [
    "TEST_LIST",
    "Corpus",
    "files_of_package",
    "held_out_packages",
    "installed_packages",
    "mine",
    "pairs_of_file",
    "query_of",
]

TEST_LIST = Path(__file__).with_name("stdlib_test.txt")
_MIN_WORDS, _MAX_WORDS = 3, 100
_MIN_LINES = 3
_MAX_FILE_BYTES = 1_000_000
_CHUNK = 64
# boilerplate docstrings stand over hundreds of functions; as queries they only confuse
_MOST_OF_ONE_QUERY = 3
_VALIDATION_SHARE = 0.03
# a package this large (a share of all functions) would be most of the validation set
_VALIDATION_LARGEST = 0.01


@dataclass(frozen=True)
class Corpus:
    """The three splits, and how they came about."""

    splits: Splits
    packages: dict[str, str]
    """name -> version of every package that was read."""
    validation_packages: list[str]
    test_missing: int
    """functions of the test list that this Python does not have."""


_NOT_MINED = ("pyarrow", "tree-sitter", "zstandard")
"""Required since the figures of the default recipe were measured, whose corpus stays what it was."""


def installed_packages(
    names: Iterable[str] | None = None, root: str = "codemill"
) -> dict[str, str]:
    """name -> version of the packages to mine.

    By default what `codemill[compress]` requires, directly or through others: a set that installing
    something unrelated does not change. Raises DataError for a named package that is not installed.
    """
    found: dict[str, str] = {}
    if names is not None:
        for name in names:
            try:
                found[_canonical(name)] = metadata.version(name)
            except (metadata.PackageNotFoundError, ValueError) as error:  # ValueError: no name
                raise DataError(
                    f"data.packages names {name!r}, which is not installed here"
                ) from error
        return dict(sorted(found.items()))
    waiting, seen = [(root, "compress")], set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        canonical = _canonical(name)
        if name != root and not canonical.startswith(_NOT_MINED):
            found[canonical] = distribution.version
        for requirement in distribution.requires or ():
            needed = _needed(requirement, extra)
            if needed:
                waiting.append((needed, ""))
    return dict(sorted(found.items()))


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _needed(requirement: str, extra: str) -> str | None:
    """The name of a requirement that applies here with this extra, or None."""
    from packaging.requirements import Requirement

    parsed = Requirement(requirement)
    if parsed.marker is not None and not parsed.marker.evaluate({"extra": extra}):
        return None
    return parsed.name


def query_of(docstring: str) -> str | None:
    """The first paragraph of a docstring on one line, as CodeSearchNet does; None if it says nothing in words."""
    paragraph = re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0]
    text = " ".join(paragraph.split())
    words = re.findall(r"[A-Za-z]{2,}", text)
    if not _MIN_WORDS <= len(words) <= _MAX_WORDS or text.startswith((">>>", ":", "@")):
        return None
    # a docstring may spell half a surrogate pair, which no tokenizer takes
    return None if any("\ud800" <= letter <= "\udfff" for letter in text) else text


def _usable(function: Function) -> str | None:
    """The query of a function worth learning from, or None."""
    if function.docstring is None or len(function.code.splitlines()) < _MIN_LINES:
        return None
    return query_of(function.docstring)


def pairs_of_file(item: tuple[str, str]) -> list[Pair]:
    """The pairs of one file: (path, origin). Files that do not parse are skipped, as Python does."""
    path, origin = item
    # trees of syntax nodes are large and acyclic: the collector finds nothing and costs a fifth of the time
    gc.disable()
    try:
        source = Path(path).read_bytes()
        functions = functions_of(source) if len(source) <= _MAX_FILE_BYTES else []
    except (OSError, SyntaxError, ValueError):
        return []
    finally:
        gc.enable()
    return [
        Pair(query, function.code, f"{origin}:{function.qualified_name}")
        for function in functions
        if (query := _usable(function)) is not None
    ]


def files_of_package(name: str) -> list[tuple[str, str]]:
    """(path, origin) of the package's Python files, its tests left out."""
    distribution = metadata.distribution(name)
    items = []
    for file in distribution.files or ():
        parts = file.parts
        if file.suffix != ".py" or ".." in parts or {"tests", "test", "testing"} & set(parts):
            continue
        items.append((str(distribution.locate_file(file)), f"{name}:{file.as_posix()}"))
    # by name in the package: where it is installed must not change the order
    return sorted(items, key=lambda item: item[1])


def _stdlib_test() -> tuple[list[Pair], int]:
    """The test pairs, in the list's order, and how many of the list this Python lacks."""
    wanted = [
        line
        for line in TEST_LIST.read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, Pair] = {}
    for module in sorted({line.split(":")[0] for line in wanted}):
        base = root.joinpath(*module.split("."))
        path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        for pair in pairs_of_file((str(path), module)):
            found.setdefault(pair.origin, pair)
    return [found[name] for name in wanted if name in found], sum(
        name not in found for name in wanted
    )


def held_out_packages(sizes: dict[str, int]) -> list[str]:
    """Whole packages, drawn by a hash of their names, until they hold the validation share."""
    total = sum(sizes.values())
    chosen: list[str] = []
    held = 0
    for name in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if held >= _VALIDATION_SHARE * total:
            break
        if 0 < sizes[name] <= _VALIDATION_LARGEST * total:
            chosen.append(name)
            held += sizes[name]
    return sorted(chosen)


def _validation_files(pairs: list[Pair]) -> set[str]:
    """Where no package is small enough to be held out: files, drawn alike, for the same share."""
    sizes = Counter(_file_of(pair) for pair in pairs)
    chosen: set[str] = set()
    held = 0
    for name in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if held >= _VALIDATION_SHARE * len(pairs):
            break
        chosen.add(name)
        held += sizes[name]
    return chosen


def _file_of(pair: Pair) -> str:
    return pair.origin.rpartition(":")[0]


def _limit_same_query(pairs: list[Pair]) -> list[Pair]:
    seen: Counter[str] = Counter()
    kept = []
    for pair in pairs:
        seen[pair.query] += 1
        if seen[pair.query] <= _MOST_OF_ONE_QUERY:
            kept.append(pair)
    return kept


def mine(
    packages: dict[str, str], workers: int, report: Callable[[float], None] = lambda _: None
) -> Corpus:
    """Mine the corpus; report(share of the files read). Equal packages and Python give an equal corpus.

    Raises DataError where there is too little installed code to learn from.
    """
    files = {name: files_of_package(name) for name in packages}
    items = [item for name in packages for item in files[name]]
    # large files first would balance better, but order is kept: results are concatenated by item
    mined = iter(map_processes(pairs_of_file, items, workers, chunk=_CHUNK))
    by_package: dict[str, list[Pair]] = {}
    done = 0
    for name in packages:
        by_package[name] = []
        for _ in files[name]:
            by_package[name] += next(mined)
            done += 1
            if done % _CHUNK == 0:
                report(done / len(items))
    held = set(held_out_packages({name: len(pairs) for name, pairs in by_package.items()}))
    train = [pair for name in packages if name not in held for pair in by_package[name]]
    validation = [pair for name in packages if name in held for pair in by_package[name]]
    if not held:
        files_held = _validation_files(train)
        validation = [pair for pair in train if _file_of(pair) in files_held]
        train = [pair for pair in train if _file_of(pair) not in files_held]
    test, missing = _stdlib_test()

    train, dropped_train = remove_duplicates(train)
    train = _limit_same_query(train)
    validation, dropped_validation = remove_duplicates(validation)
    splits = make_splits(train, validation, test, dropped_train + dropped_validation)
    if len(splits.train) < 100 or not splits.validation:
        raise DataError(
            f"only {len(splits.train)} training and {len(splits.validation)} validation functions with docstrings "
            f"were found in {len(packages)} installed packages of "
            f"Python {sys.version_info.major}.{sys.version_info.minor}; "
            "install more packages, or bring data with --data pairs.jsonl"
        )
    return Corpus(splits, packages, sorted(held), missing)
