"""The languages whose functions can be searched: their files, and what reading them needs.

Python is read with the standard library (`functions.py`), the others with tree-sitter (`syntax.py`, extra
`find`). A name's suffix decides; nothing is opened or imported here.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

__all__ = ["LANGUAGES", "language_of", "readable_languages", "title_of"]

_SUFFIXES = {
    "python": ("py", "pyw"),
    "javascript": ("js", "cjs", "mjs", "jsx"),
    "typescript": ("ts", "cts", "mts", "tsx"),
    "java": ("java",),
    "c": ("c", "h"),
    "cpp": ("cc", "cpp", "cxx", "c++", "hh", "hpp", "hxx", "ipp"),
    "go": ("go",),
    "rust": ("rs",),
}
_TITLES = {
    "python": "Python",
    "javascript": "JavaScript",
    "typescript": "TypeScript",
    "java": "Java",
    "c": "C",
    "cpp": "C++",
    "go": "Go",
    "rust": "Rust",
}
_OF_SUFFIX = {suffix: name for name, suffixes in _SUFFIXES.items() for suffix in suffixes}

LANGUAGES = tuple(_SUFFIXES)
"""Their names, as `--language` takes them."""


def language_of(name: str) -> str | None:
    """The language of a file by its name; None for any other file. A header counts as C."""
    stem, _, suffix = name.rpartition(".")
    return _OF_SUFFIX.get(suffix.lower()) if stem else None


def title_of(language: str) -> str:
    """What people call it."""
    return _TITLES[language]


@cache
def readable_languages() -> frozenset[str]:
    """Those that can be read with what is installed."""
    if find_spec("tree_sitter") is None:
        return frozenset({"python"})
    return frozenset(
        {"python", *(name for name in LANGUAGES if find_spec(f"tree_sitter_{name}") is not None)}
    )
