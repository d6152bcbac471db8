"""What the user set: which bundles to run, and how. Every feature is off until its bundle is named.

Plain JSON from the client, in the parts `completion`, `search` and `diagnostics`. A part that is wrong is off, and
why is said; the others hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from codemill.errors import InputError

__all__ = ["Bundle", "Completion", "Diagnostics", "Search", "Settings", "Severity", "settings_of"]

Severity = Literal["error", "warning", "information", "hint"]
_SEVERITIES = ("error", "warning", "information", "hint")
_MODES = ("line", "block", "none")
T = TypeVar("T")


@dataclass(frozen=True)
class Bundle:
    """What is given to `codemill.load`. `path` may begin with `~`, or be relative to the first workspace folder."""

    path: str
    variant: str | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Completion:
    """Inline completion. debounce_ms: how long a request that nobody asked for by hand waits for a newer one.

    context_chars: of the text before the place that are read, and a quarter as many behind it where the bundle fills.
    memory_mb: of keys and values that are kept between requests: in an editor one text is typed into at a time.
    """

    bundle: Bundle
    max_tokens: int = 48
    mode: Literal["line", "block", "none"] = "line"
    exits: bool = True
    context_chars: int = 8000
    debounce_ms: int = 50
    memory_mb: int = 192


@dataclass(frozen=True)
class Search:
    """Finding functions by meaning. exclude: patterns, as in .gitignore, of what is left out; top: symbols given."""

    bundle: Bundle
    exclude: tuple[str, ...] = ()
    top: int = 20


@dataclass(frozen=True)
class Diagnostics:
    """Labels of functions. labels: which are told of, and how; empty: all, as information."""

    bundle: Bundle
    labels: Mapping[str, Severity] = field(default_factory=dict)
    least_score: float = 0.5
    on: Literal["change", "save"] = "change"
    debounce_ms: int = 500


@dataclass(frozen=True)
class Settings:
    """What to run; None: off. `problems` says of each part that is off because it is wrong what is wrong."""

    completion: Completion | None = None
    search: Search | None = None
    diagnostics: Diagnostics | None = None
    problems: tuple[str, ...] = ()


def settings_of(value: object) -> Settings:
    """The settings in what a client sent, under `codemill` or by itself; wrong parts are off and in `problems`."""
    if isinstance(value, Mapping) and "codemill" in value:
        value = value["codemill"]
    problems: list[str] = []
    parts: Mapping[object, object] = {}
    if isinstance(value, Mapping):
        parts = value
    # an empty table of Lua is a list for those who do not know it
    elif value is not None and value != []:
        problems.append(f"the settings of codemill should be an object, found {value!r}")
    # "trace" is every VS Code client's own
    for key in parts:
        if key not in ("completion", "search", "diagnostics", "trace"):
            problems.append(
                f"there is no setting codemill.{key}; there are: completion, search, diagnostics"
            )

    def part(name: str, read: Callable[[_Part], T]) -> T | None:
        given = parts.get(name)
        if given is None:
            return None
        try:
            found = _Part(name, given)
            result = read(found)
            found.end()
        except InputError as error:
            problems.append(str(error))
            return None
        return result if found.named else None

    return Settings(
        completion=part("completion", _completion),
        search=part("search", _search),
        diagnostics=part("diagnostics", _diagnostics),
        problems=tuple(problems),
    )


class _Part:
    """The keys of one part, each taken once; what is left in the end is unknown."""

    def __init__(self, name: str, given: object) -> None:
        if not isinstance(given, Mapping):
            raise InputError(f"codemill.{name} should be an object, found {given!r}")
        self._name = name
        self._left = dict(given)
        self._known: list[str] = []
        self.named = given.get("bundle") is not None

    def take(self, key: str, default: T, right: Callable[[object], bool], expected: str) -> T:
        """The value of `key`, or the default where there is none or null."""
        self._known.append(key)
        value = self._left.pop(key, None)
        if value is None:
            return default
        if not right(value):
            raise InputError(f"codemill.{self._name}.{key} should be {expected}, found {value!r}")
        return value  # type: ignore[no-any-return]

    def bundle(self) -> Bundle:
        """The keys that say what is loaded."""
        return Bundle(
            path=self.take("bundle", "", _is_text, "the path of a bundle"),
            variant=self.take("variant", None, _is_text, "the name of a variant"),
            threads=self.whole("threads", None, 1, 1024),
        )

    def whole(self, key: str, default: T, least: int, most: int) -> T:
        """A whole number."""
        expected = f"a whole number from {least} to {most}"
        return self.take(key, default, lambda value: _is_whole(value, least, most), expected)

    def end(self) -> None:
        """Raises InputError for a key that nobody took."""
        for key in self._left:
            raise InputError(
                f"there is no setting codemill.{self._name}.{key}; there are: {', '.join(self._known)}"
            )


def _completion(part: _Part) -> Completion:
    return Completion(
        bundle=part.bundle(),
        max_tokens=part.whole("max_tokens", 48, 1, 1024),
        mode=part.take("mode", "line", lambda value: value in _MODES, "line, block or none"),
        exits=part.take("exits", True, lambda value: isinstance(value, bool), "true or false"),
        context_chars=part.whole("context_chars", 8000, 100, 10_000_000),
        debounce_ms=part.whole("debounce_ms", 50, 0, 10_000),
        memory_mb=part.whole("memory_mb", 192, 1, 2**20),
    )


def _search(part: _Part) -> Search:
    return Search(
        bundle=part.bundle(),
        exclude=tuple(part.take("exclude", (), _are_texts, "a list of patterns as in .gitignore")),
        top=part.whole("top", 20, 1, 1000),
    )


def _diagnostics(part: _Part) -> Diagnostics:
    expected = f"an object of labels, each with one of {', '.join(_SEVERITIES)}"
    return Diagnostics(
        bundle=part.bundle(),
        labels=part.take("labels", {}, _are_severities, expected),
        least_score=part.take("least_score", 0.5, _is_share, "a number from 0 to 1"),
        on=part.take("on", "change", lambda value: value in ("change", "save"), "change or save"),
        debounce_ms=part.whole("debounce_ms", 500, 0, 60_000),
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value


def _is_whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(_is_text(item) for item in value)


def _are_severities(value: object) -> bool:
    return isinstance(value, Mapping) and all(item in _SEVERITIES for item in value.values())
