"""The source files below a folder: which there are, in which language, and what is passed by.

Hidden folders, those that hold other people's code, and what git ignores (`ignored.py`) are not looked
into; links are not followed. What a file holds is not read here.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from codemill.runtime.ignored import Ignored, Patterns
from codemill.runtime.languages import language_of, readable_languages

__all__ = ["SKIPPED_FOLDERS", "Sources", "source_files"]

SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages", "venv"})
"""Folders not looked into, besides hidden ones and virtual environments of any name."""

# a file that only the root of a virtual environment has, of Python's and of conda
_ENVIRONMENTS = ("pyvenv.cfg", "conda-meta")


@dataclass(frozen=True)
class Sources:
    """Files by relative POSIX path, in order; and of each language that cannot be read here, how many."""

    files: dict[str, os.stat_result] = field(default_factory=dict)
    passed_over: Counter[str] = field(default_factory=Counter)


def source_files(folder: Path, exclude: Iterable[str] = ()) -> Sources:
    """The source files below `folder`. `exclude`: patterns as in .gitignore, which always hold."""
    found = Sources()
    readable = readable_languages()
    excluded = Patterns(exclude)
    # a stack rather than recursion, each with its path: "" or one that ends with a slash
    waiting = [("", Ignored.of(folder))]
    while waiting:
        path, ignored = waiting.pop()
        entries = _entries(folder / path)
        names = {entry.name for entry in entries}
        if path and not names.isdisjoint(_ENVIRONMENTS):
            continue
        if path and ".git" in names:
            ignored = ignored.of_work_tree(folder / path / ".git")
        if ".gitignore" in names:
            ignored = ignored.with_file(folder / path / ".gitignore")
        folders: list[tuple[str, Ignored]] = []
        for entry in entries:
            name = entry.name
            if entry.is_dir(follow_symlinks=False):
                if not (
                    name.startswith(".")
                    or name in SKIPPED_FOLDERS
                    or excluded.verdict(path + name, folder=True)
                    or ignored.ignores(name, folder=True)
                ):
                    folders.append((f"{path}{name}/", ignored.inside(name)))
                continue
            language = language_of(name)
            # neither a link nor a pipe
            if language is None or not entry.is_file(follow_symlinks=False):
                continue
            if excluded.verdict(path + name, folder=False) or ignored.ignores(name, folder=False):
                continue
            if language not in readable:
                found.passed_over[language] += 1
                continue
            try:
                found.files[path + name] = entry.stat(follow_symlinks=False)
            except OSError:
                # deleted since it was listed
                continue
        waiting += reversed(folders)
    return found


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        # no permission, or deleted since it was listed
        return []
