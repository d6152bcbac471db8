"""What git ignores: .gitignore at every level, .git/info/exclude, and the user's own excludes file.

Read here and not asked of git, which need not be installed, runs what a folder's configuration names
(`core.fsmonitor`), and knows one work tree at a time. As with other search tools, a file that is tracked
although a pattern names it counts as ignored. Patterns are those of gitignore(5).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from codemill.runtime.git_settings import small_lines, users_excludes_file

__all__ = ["Ignored", "Patterns"]

_CASE = re.ASCII | (re.IGNORECASE if sys.platform in ("win32", "darwin") else re.NOFLAG)
_CLASSES = {
    "alpha": "a-zA-Z",
    "digit": "0-9",
    "alnum": "a-zA-Z0-9",
    "upper": "A-Z",
    "lower": "a-z",
    "xdigit": "0-9a-fA-F",
    "space": r"\s",
    "blank": r" \t",
    "punct": r"!-/:-@\[-`{-~",
    "cntrl": r"\x00-\x1f\x7f",
    "print": r"\x20-\x7e",
    "graph": r"\x21-\x7e",
}


@dataclass(frozen=True)
class _Run:
    """Patterns that follow each other and say the same, as one expression for each kind of path."""

    ignores: bool
    names: re.Pattern[str] | None
    folder_names: re.Pattern[str] | None
    paths: re.Pattern[str] | None
    folder_paths: re.Pattern[str] | None


class Patterns:
    """The patterns of one file, which hold for what lies below its folder."""

    def __init__(self, lines: Iterable[str]) -> None:
        grouped: list[tuple[bool, list[tuple[str, bool, bool]]]] = []
        for line in lines:
            parsed = _parse(_as_bytes(line))
            if parsed is None:
                continue
            ignores, expression, for_names, for_folders = parsed
            if not grouped or grouped[-1][0] is not ignores:
                grouped.append((ignores, []))
            grouped[-1][1].append((expression, for_names, for_folders))
        # the last pattern that matches decides
        self._runs = [_run(ignores, found) for ignores, found in reversed(grouped)]

    def __bool__(self) -> bool:
        return bool(self._runs)

    def verdict(self, path: str, folder: bool) -> bool | None:
        """Whether a path below the folder of these patterns is ignored; None where none matches."""
        path = _as_bytes(path)
        name = path.rpartition("/")[2]
        for run in self._runs:
            names = run.folder_names if folder else run.names
            paths = run.folder_paths if folder else run.paths
            if (names and names.match(name)) or (paths and paths.match(path)):
                return run.ignores
        return None


@dataclass(frozen=True)
class Ignored:
    """What is ignored in a folder: patterns from far to near, each with the place where they begin.

    `place` is the folder's path below the root of its work tree, with a slash at its end unless empty.
    """

    place: str = ""
    levels: Sequence[tuple[str, Patterns]] = field(default=())

    @classmethod
    def of(cls, folder: Path) -> Ignored:
        """What holds in `folder`, its own .gitignore not read yet: rules of its work tree, if it is in one.

        A folder that is itself ignored was asked for: then no rule from above holds.
        """
        whole = folder.resolve()
        root = next((path for path in (whole, *whole.parents) if _has_git(path)), None)
        if root is None:
            return cls(levels=_outermost(None))
        found = cls(levels=_outermost(root / ".git"))
        for part in whole.relative_to(root).parts:
            found = found.with_file(root / found.place / ".gitignore")
            if found.ignores(part, folder=True):
                return cls(levels=_outermost(None))
            found = cls(f"{found.place}{part}/", found.levels)
        return found

    def inside(self, name: str) -> Ignored:
        """The same for a folder of this one."""
        return Ignored(f"{self.place}{name}/", self.levels)

    def with_file(self, path: Path) -> Ignored:
        """With the patterns of this folder's .gitignore."""
        # git follows links to its settings, and not to a .gitignore
        patterns = Patterns(small_lines(path, follow=False))
        return Ignored(self.place, (*self.levels, (self.place, patterns))) if patterns else self

    def of_work_tree(self, git: Path) -> Ignored:
        """For a folder that is a work tree of its own, whose `.git` is `git`: no rule from above holds."""
        return Ignored(levels=_outermost(git))

    def ignores(self, name: str, folder: bool) -> bool:
        """Whether the file or folder `name` of this folder is ignored."""
        path = self.place + name
        for begin, patterns in reversed(self.levels):
            verdict = patterns.verdict(path[len(begin) :], folder)
            if verdict is not None:
                return verdict
        return False


def _outermost(git: Path | None) -> tuple[tuple[str, Patterns], ...]:
    """The rules of the user, and of a work tree, that are in no .gitignore."""
    sources = [users_excludes_file()]
    if git is not None:
        sources.append(_common(git) / "info/exclude")
    read = [Patterns(small_lines(path)) for path in sources if path is not None]
    return tuple(("", patterns) for patterns in read if patterns)


def _has_git(path: Path) -> bool:
    return os.path.lexists(path / ".git")


def _common(git: Path) -> Path:
    """The folder that holds info/: of a submodule or a second work tree, `.git` is a file that names it."""
    try:
        a_file = git.is_file()
    except OSError:
        # a folder that cannot be entered: its .git says nothing
        return git
    if a_file:
        named = _first_line(git).partition("gitdir:")[2].strip()
        git = git.parent / named
    common = _first_line(git / "commondir")
    return git / common if common else git


def _first_line(path: Path) -> str:
    return next(iter(small_lines(path)), "")


def _as_bytes(text: str) -> str:
    """A letter for each byte of UTF-8: that is what git's `?` stands for."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("latin-1")


def _parse(line: str) -> tuple[bool, str, bool, bool] | None:
    """(ignores, expression, for names alone, for folders alone) of a line; None where it says nothing."""
    line = _without_trailing_spaces(line)
    if not line or line.startswith("#"):
        return None
    ignores = not line.startswith("!")
    if not ignores:
        line = line[1:]
    folders = line.endswith("/")
    line = line.removesuffix("/")
    anchored = "/" in line
    expression = _translated(line.removeprefix("/"), anchored) if line else None
    return None if expression is None else (ignores, expression, not anchored, folders)


def _without_trailing_spaces(line: str) -> str:
    kept = line.rstrip(" ")
    backslashes = len(kept) - len(kept.rstrip("\\"))
    # a space behind a backslash stays
    return kept + " " if backslashes % 2 and len(kept) < len(line) else kept


def _run(ignores: bool, found: Sequence[tuple[str, bool, bool]]) -> _Run:
    def either(names: bool, folder: bool) -> re.Pattern[str] | None:
        chosen = [
            text for text, for_names, folders in found if for_names is names and folder >= folders
        ]
        return re.compile(f"(?:{'|'.join(chosen)})\\Z", _CASE | re.DOTALL) if chosen else None

    return _Run(
        ignores, either(True, False), either(True, True), either(False, False), either(False, True)
    )


def _translated(pattern: str, anchored: bool) -> str | None:
    """The regular expression of a pattern; None where git takes it to match nothing.

    What follows a star is looked for once, atomically, so that no pattern takes exponential time: for what
    comes behind it, the first place is as good as any.
    """
    # the parts between `**/`
    parts: list[list[str]] = [[]]
    # the star that waits for the fixed text behind it, and that text
    star = False
    fixed: list[str] = []

    def settle(last: bool) -> None:
        nonlocal star
        text = "".join(fixed)
        if star:
            text = f"[^/]*{text}" if last else f"(?>[^/]*?{text})"
        parts[-1].append(text)
        fixed.clear()
        star = False

    at = 0
    while at < len(pattern):
        letter = pattern[at]
        if letter == "*":
            end = at
            while end < len(pattern) and pattern[end] == "*":
                end += 1
            alone = (at == 0 or pattern[at - 1] == "/") and pattern[end : end + 1] in ("", "/")
            if anchored and alone and end - at > 1:
                settle(last=True)
                if end == len(pattern):
                    parts[-1].append(".+")
                else:
                    parts.append([])
                at = end + 1
                continue
            settle(last=False)
            star = True
            at = end
            continue
        if letter == "/":
            settle(last=True)
            parts[-1].append("/")
        elif letter == "?":
            fixed.append("[^/]")
        elif letter == "[":
            found = _bracket(pattern, at)
            if found is None:
                return None
            fixed.append(found[0])
            at = found[1]
            continue
        else:
            if letter == "\\":
                at += 1
                if at == len(pattern):
                    return None
            fixed.append(re.escape(pattern[at]))
        at += 1
    settle(last=True)
    first, *others = ("".join(part) for part in parts)
    if not others:
        return first
    *middle, last = (f"(?:[^/]+/)*?{part}" for part in others)
    return "".join((first, *(f"(?>{part})" for part in middle), last))


def _bracket(pattern: str, at: int) -> tuple[str, int] | None:
    """The expression of the class that begins at `at`, and where it ends; None where it does not end."""
    at += 1
    negated = pattern[at : at + 1] in ("!", "^")
    at += negated
    items: list[str] = []
    first = True
    while first or pattern[at : at + 1] != "]":
        first = False
        if at >= len(pattern):
            return None
        if pattern.startswith("[:", at) and (end := pattern.find(":]", at)) > 0:
            named = _CLASSES.get(pattern[at + 2 : end])
            if named is None:
                return None
            items.append(named)
            at = end + 2
            continue
        low, at = _letter(pattern, at)
        if low is None:
            return None
        high: str | None = low
        if pattern[at : at + 1] == "-" and pattern[at + 1 : at + 2] not in ("", "]"):
            high, at = _letter(pattern, at + 1)
        if high is None:
            return None
        if low <= high:
            items.append(f"{re.escape(low)}-{re.escape(high)}")
    inside = "".join(items)
    if not inside:
        return ("[^/]" if negated else "(?!)"), at + 1
    return (f"(?!/)[{'^' if negated else ''}{inside}]"), at + 1


def _letter(pattern: str, at: int) -> tuple[str | None, int]:
    if pattern[at] == "\\":
        at += 1
    return (pattern[at], at + 1) if at < len(pattern) else (None, at)
