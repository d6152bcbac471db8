"""Code as it stands in files, to learn to continue it: pieces of files, and places in held-out files to complete.

Train and validation come from installed packages (validation is whole packages), the test from the standard library;
or all of it from one file of texts, split by file. A training file that equals a held-out one, or is near to one, is
left out.
"""

from __future__ import annotations

import hashlib
import io
import random
import re
import sysconfig
import tokenize
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from codemill.compress.data.installed import (
    files_of_package,
    held_out_packages,
    installed_packages,
)
from codemill.compress.data.near import NearIndex
from codemill.errors import DataError
from codemill.targets.json_lines import json_lines, text_of

__all__ = [
    "INSTALLED",
    "CodeFile",
    "CodeSplits",
    "Place",
    "given",
    "installed",
    "piece_of",
    "pieces_from",
    "place_in",
]

INSTALLED = "installed"
_LARGEST, _SMALLEST = 200_000, 400
"""Characters of a file that is used."""
_LONGEST_LINE = 400
"""Of a file that people wrote."""
_FIRST_LINE = 12
"""Above it there is too little to go on."""
_DRAWN = 200
_SHORTEST = 4
"""Characters of a completion that is asked for."""
_NOT_TESTED = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "ensurepip",
    "site-packages",
    "encodings",
    "pydoc_data",
}
_CODE = {
    *(
        ".c",
        ".cc",
        ".cpp",
        ".cs",
        ".cxx",
        ".go",
        ".h",
        ".hpp",
        ".java",
        ".js",
        ".jsx",
        ".kt",
        ".lua",
        ".php",
        ".py",
    ),
    *(".rb", ".rs", ".scala", ".sh", ".sql", ".swift", ".ts", ".tsx"),
}
_WORD = re.compile(r"(?<=[\s.,=(\[{:])[^\s)\]}]")


@dataclass(frozen=True)
class CodeFile:
    """A file's text, and where it comes from: `package:path`."""

    origin: str
    text: str


@dataclass(frozen=True)
class Place:
    """A place in a line: what is before it in the file, as much of that as is given, and the rest of the line."""

    origin: str
    prefix: str
    line: str

    @property
    def file(self) -> str:
        """The file that the place is in."""
        return self.origin.rpartition(":")[0]

    def as_json(self) -> dict[str, str]:
        """As a row of a file."""
        return {"origin": self.origin, "prefix": self.prefix, "line": self.line}


@dataclass(frozen=True)
class CodeSplits:
    """Files, shuffled; and what was left out of train: equal to another file, or near to a held-out one."""

    train: list[CodeFile]
    validation: list[CodeFile]
    test: list[CodeFile]
    equal: int
    near: int


def installed(
    packages: Iterable[str], characters: int, seed: int, report: Callable[[float], None]
) -> CodeSplits:
    """Of installed packages and the standard library: so many characters to learn from, or all there are.

    Raises DataError where there is too little.
    """
    files = {name: files_of_package(name) for name in packages}
    held = set(held_out_packages({name: len(found) for name, found in files.items()}))
    items = {
        kind: [
            item
            for name in files
            if (name in held) is (kind == "validation")
            for item in files[name]
        ]
        for kind in ("train", "validation")
    }
    test = list(_usable(_standard_library()))
    validation = list(_usable(_shuffled(items["validation"], seed)))
    return _split(
        _usable(_shuffled(items["train"], seed)), validation, test, characters, seed, report
    )


def given(
    path: Path, field: str, characters: int, seed: int, report: Callable[[float], None]
) -> CodeSplits:
    """Of a .jsonl file of texts: a twentieth each, drawn by a hash of the text, is held out."""
    parts: dict[str, list[CodeFile]] = {"train": [], "validation": [], "test": []}
    for where, row in json_lines(path, "data.source", [field]):
        text = text_of(row, field, where)
        if not _is_usable(text):
            continue
        drawn = hashlib.sha256(text.encode("utf-8", "replace")).digest()[0]
        kind = "test" if drawn < 13 else "validation" if drawn < 26 else "train"
        parts[kind].append(CodeFile(f"{path.name}:{where.rpartition(':')[2]}", text))
    random.Random(seed).shuffle(parts["train"])
    return _split(
        iter(parts["train"]), parts["validation"], parts["test"], characters, seed, report
    )


def pieces_from(source: str, count: int, characters: int, seed: int = 0) -> list[str]:
    """Up to `count` pieces of about so many characters, each of another file of code.

    source: `installed` packages, a .jsonl file of rows with `code`, or a folder of code in any language. Raises
    DataError where it is none of these, or has no code.
    """
    generator = random.Random(seed)
    files = _files_from(source, generator)
    found: list[str] = []
    for file in files:
        if len(found) == count:
            break
        found.append(piece_of(file.text, characters, generator))
    if not found:
        raise DataError(
            f"{source} has no code to learn from: expected files of {_SMALLEST} to {_LARGEST:,} characters, of lines "
            f"of {_LONGEST_LINE} at most; name other code"
        )
    return found


def _files_from(source: str, generator: random.Random) -> Iterator[CodeFile]:
    path = Path(source)
    if source == INSTALLED:
        names = installed_packages()
        items = [item for name in names for item in files_of_package(name)]
    elif path.is_dir():
        items = [
            (str(file), file.name)
            for file in sorted(path.rglob("*"))
            if file.suffix in _CODE
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        ]
    elif path.is_file():
        yield from _drawn(path, generator)
        return
    else:
        raise DataError(
            f"there is no {source}: expected `{INSTALLED}`, a folder of code or a .jsonl file with `code`"
        )
    generator.shuffle(items)
    yield from _usable(items)


def _drawn(path: Path, generator: random.Random) -> list[CodeFile]:
    """Some of the usable texts of a file of rows, each as likely as any other; no more are held."""
    found: list[CodeFile] = []
    number = 0
    for where, row in json_lines(path, "a file of code", ["code"]):
        text = text_of(row, "code", where)
        if not _is_usable(text):
            continue
        number += 1
        if len(found) < _DRAWN:
            found.append(CodeFile(where, text))
        elif (at := generator.randrange(number)) < _DRAWN:
            found[at] = CodeFile(where, text)
    generator.shuffle(found)
    return found


def piece_of(text: str, characters: int, generator: random.Random) -> str:
    """About so many characters of a text, from the beginning of a line on."""
    if len(text) <= characters:
        return text
    start = generator.randrange(len(text) - characters)
    start = text.rfind("\n", 0, start) + 1
    return text[start : start + characters]


def place_in(
    file: CodeFile, context: int, generator: random.Random, python: bool = True
) -> Place | None:
    """A place in one of the file's lines of code, with up to `context` characters before it; None: it has none.

    As often at the beginning of the line's text as within it, where a word begins. Comments and long texts in quotes
    are no code.
    """
    lines = file.text.split("\n")
    prose = _prose(file.text) if python else set()
    found = [
        number
        for number, line in enumerate(lines)
        if number >= _FIRST_LINE and number not in prose and len(line.strip()) >= 2 * _SHORTEST
    ]
    if not found:
        return None
    number = generator.choice(found)
    line = lines[number]
    indent = len(line) - len(line.lstrip())
    columns = [
        m.start()
        for m in _WORD.finditer(line, indent + 1)
        if len(line.rstrip()) - m.start() >= _SHORTEST
    ]
    column = generator.choice(columns) if columns and generator.random() < 0.5 else indent
    before = "\n".join([*lines[:number], line[:column]])
    if len(before) > context:
        start = before.find("\n", len(before) - context) + 1
        before = before[start or len(before) - context :]
    return Place(f"{file.origin}:{number + 1}", before, line[column:].rstrip())


def _prose(source: str) -> set[int]:
    """Numbers, from 0, of lines that are comments alone, or inside of a text of several lines."""
    found: set[int] = set()
    lines = source.split("\n")
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            first, last = token.start[0] - 1, token.end[0] - 1
            alone = not lines[first][: token.start[1]].strip()
            if (token.type == tokenize.COMMENT and alone) or (
                token.type == tokenize.STRING and last > first
            ):
                found.update(range(first, last + 1))
    except (tokenize.TokenError, SyntaxError, IndexError):
        pass
    return found


def _standard_library() -> list[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if not _NOT_TESTED & set(inside.parts[:-1]):
            found.append((str(path), f"stdlib:{inside.as_posix()}"))
    return found


def _shuffled(items: Sequence[tuple[str, str]], seed: int) -> list[tuple[str, str]]:
    order = list(items)
    random.Random(seed).shuffle(order)
    return order


def _usable(items: Iterable[tuple[str, str]]) -> Iterator[CodeFile]:
    for path, origin in items:
        try:
            # a character has four bytes at most
            if Path(path).stat().st_size > 4 * _LARGEST:
                continue
            text = Path(path).read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        text = text.replace("\r\n", "\n")
        if _is_usable(text):
            yield CodeFile(origin, text)


def _is_usable(text: str) -> bool:
    if not _SMALLEST <= len(text) <= _LARGEST:
        return False
    return max(map(len, text.split("\n"))) <= _LONGEST_LINE


def _split(
    train: Iterator[CodeFile],
    validation: list[CodeFile],
    test: list[CodeFile],
    characters: int,
    seed: int,
    report: Callable[[float], None],
) -> CodeSplits:
    held = [*test, *validation]
    index = NearIndex(file.text for file in held)
    seen = {_key(file.text) for file in held}
    kept: list[CodeFile] = []
    equal = near = total = 0
    for file in train:
        if total >= characters:
            break
        key = _key(file.text)
        if key in seen:
            equal += 1
            continue
        seen.add(key)
        if index.find(file.text) is not None:
            near += 1
            continue
        kept.append(file)
        total += len(file.text)
        report(min(1.0, total / characters))
    for part in (validation, test):
        random.Random(seed).shuffle(part)
    if len(kept) < 2 or not validation or not test:
        raise DataError(
            f"there are {len(kept)} files of code to learn from, {len(validation)} to validate on and {len(test)} to "
            "test on; expected some of each: install more packages, or bring a larger file as data.source"
        )
    return CodeSplits(kept, validation, test, equal, near)


def _key(text: str) -> bytes:
    return hashlib.sha256("".join(text.split()).encode("utf-8", "replace")).digest()
