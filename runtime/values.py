"""Checks of single values of a manifest: each says which key is wrong, what was expected and found.

They raise ValueError; whoever reads the manifest makes a BundleError of it. What the values mean
together is `bundle.py`'s and `labels.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["check_name", "check_number", "check_whole", "kind_of", "some_of"]

_LONGEST_NAME = 200


def check_name(value: object, where: str) -> str:
    """`value` if it is a text that may be shown as it is, on one line of a terminal."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where!r} should be a text, found {kind_of(value)}")
    if not value.isprintable() or len(value) > _LONGEST_NAME:
        raise ValueError(
            f"{where!r} should be a line of at most {_LONGEST_NAME} printable characters, found {value!r}"
        )
    return value


def check_whole(values: Mapping[str, Any], key: str, where: str, largest: int) -> int:
    """The whole number from 1 to `largest` under `key`."""
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
        raise ValueError(
            f"'{where}.{key}' should be a whole number from 1 to {largest}, found {value!r}"
        )
    return value


def check_number(values: Mapping[str, Any], key: str, where: str, largest: float) -> float:
    """The number above 0, `largest` at most, under `key`."""
    value = values.get(key)
    # the comparison also refuses what is not a number, and whole numbers beyond any float
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= largest:
        raise ValueError(
            f"'{where}.{key}' should be a number above 0, {largest:g} at most, found {value!r}"
        )
    return float(value)


def kind_of(value: object) -> str:
    """What a message calls the type of `value`."""
    return type(value).__name__


def some_of(names: Sequence[str], limit: int = 5) -> str:
    """The first of `names`, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + more
