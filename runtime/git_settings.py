"""The file of patterns that a user has git ignore everywhere: `core.excludesFile` of git's own settings.

Read as git reads them (git-config(1)), but for `includeIf`, which depends on the repository.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["small_lines", "users_excludes_file"]

_LARGEST_BYTES = 2**20
_MOST_INCLUDES = 10
"""Of files in one another, as in git."""
_HEADER = re.compile(r'\s*\[\s*([^\]"\s]*)\s*("(?:[^"\\]|\\.)*")?\s*\]')
_SETTING = re.compile(r"\s*([A-Za-z][A-Za-z0-9-]*)\s*=(.*)", re.DOTALL)
_VALUE = re.compile(r'"((?:[^"\\]|\\.)*)"|((?:\\.|[^"#;\\]))')


def users_excludes_file() -> Path | None:
    """What `core.excludesFile` of the user's settings names, by default git/ignore in the user's configuration."""
    try:
        home = Path.home()
    except RuntimeError:
        return None
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "git"
    chosen = os.environ.get("GIT_CONFIG_GLOBAL")
    found: Path | None = settings / "ignore"
    for path in (
        [Path(chosen)] if chosen is not None else [settings / "config", home / ".gitconfig"]
    ):
        for section, name, value in _settings(path):
            if (section, name) == ("core", "excludesfile"):
                found = _expanded(value)
    return found


def small_lines(path: Path, follow: bool = True) -> list[str]:
    """Lines of a small text file; none where it cannot be read, or is a link that is not to be followed."""
    try:
        if (
            not path.is_file()
            or (path.is_symlink() and not follow)
            or path.stat().st_size > _LARGEST_BYTES
        ):
            return []
        content = path.read_bytes()
    except OSError:
        return []
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    return [line.removesuffix("\r") for line in text.split("\n")]


def _settings(path: Path, above: tuple[str, ...] = ()) -> Iterator[tuple[str, str, str]]:
    """(section, name, value) of a file and of those that it includes, in their order; above: those that include it."""
    here = os.path.realpath(path)
    if here in above or len(above) > _MOST_INCLUDES:
        # git ends with an error there
        return
    section = ""
    lines = iter(small_lines(path))
    for line in lines:
        if (header := _HEADER.match(line)) is not None:
            # with a name of its own it is another section
            section = header[1].lower() + (header[2] or "")
            # a setting may stand on the line of its section
            line = line[header.end() :]
        if (setting := _SETTING.match(line)) is None:
            continue
        name, text = setting[1].lower(), setting[2]
        value, open_ = _value(text)
        while open_ and (more := next(lines, None)) is not None:
            text = text[: text.rindex("\\")] + more
            value, open_ = _value(text)
        if (section, name) != ("include", "path"):
            yield section, name, value
        elif (named := _expanded(value)) is not None:
            yield from _settings(path.parent / named, (*above, here))


def _value(text: str) -> tuple[str, bool]:
    """What is set, and whether the next line goes on with it; quotes hold `#` and `;`, else they begin comments."""
    found, at, kept = "", 0, 0
    text = text.strip()
    while (part := _VALUE.match(text, at)) is not None:
        found += re.sub(r"\\(.)", r"\1", part[1] or part[2] or "")
        # blanks count where something follows them, or quotes hold them
        kept = len(found) if part[1] is not None or not part[2].isspace() else kept
        at = part.end()
    left = text[at:]
    # a backslash at the end, perhaps in a quote that was not closed
    open_ = left == "\\" or (left.startswith('"') and (len(left) - len(left.rstrip("\\"))) % 2 == 1)
    return found[:kept], open_


def _expanded(path: str) -> Path | None:
    try:
        return Path(path).expanduser() if path else None
    except RuntimeError:
        # `~somebody` who is not there
        return None
