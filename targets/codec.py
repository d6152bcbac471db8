"""Frozen dataclasses to JSON and back, checked, with the path of what is wrong in the message.

Just what report.json needs: numbers, strings, None, enums, literals, tuples, dicts and dataclasses
of those. Not pydantic, which the `bench` extra does not install on the laptop being measured.
"""

from __future__ import annotations

import dataclasses
import enum
import reprlib
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from codemill.errors import DataError

__all__ = ["from_json", "is_required", "to_json"]

T = TypeVar("T")

_MOST = 1e18
_DEEPEST = 50
# a plain repr of deeply nested data is an error of its own
_SHOWN = reprlib.Repr()
_SHOWN.maxlevel = 3


def to_json(value: object) -> Any:
    """`value` as plain JSON data: dataclasses become objects, tuples lists, enums their values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[T], data: object, where: str = "") -> T:
    """The dataclass `kind` made from JSON `data`; `where` is the path that messages start with.

    Keys that `kind` does not have are passed over, so that a figure can be added within a schema
    version. Raises DataError for a missing key, a value of the wrong type, a number that is not
    finite or beyond 1e18, a text that is not Unicode, and plain data nested more than 50 deep.
    """
    return cast(T, _value(kind, data, where or kind.__name__))


def _value(kind: Any, data: Any, where: str) -> Any:
    origin = get_origin(kind)
    if kind is Any or kind is object:
        return _plain(data, where)
    if origin in (Union, types.UnionType):
        if data is None and type(None) in get_args(kind):
            return None
        (inner,) = (option for option in get_args(kind) if option is not type(None))
        return _value(inner, data, where)
    if origin is Literal:
        return _known(data in get_args(kind), data, where, f"one of {list(get_args(kind))}")
    if origin is tuple:
        _known(isinstance(data, list), data, where, "a list")
        inner = get_args(kind)[0]
        return tuple(_value(inner, item, f"{where}[{i}]") for i, item in enumerate(data))
    if origin is dict:
        _known(isinstance(data, dict), data, where, "an object")
        inner = get_args(kind)[1]
        return {
            _text(key, where): _value(inner, item, f"{where}.{key}") for key, item in data.items()
        }
    if dataclasses.is_dataclass(kind):
        return _dataclass(cast(type, kind), data, where)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        members = [member.value for member in kind]
        return kind(_known(data in members, data, where, f"one of {members}"))
    if kind is float:
        is_number = isinstance(data, (int, float)) and not isinstance(data, bool)
        return float(_number(_known(is_number, data, where, "a number"), where))
    right = isinstance(data, kind) and (kind is bool or not isinstance(data, bool))
    return _plain(_known(right, data, where, f"a value of type {kind.__name__}"), where)


def _plain(data: Any, where: str, depth: int = 0) -> Any:
    """JSON data of no particular kind, if it can be shown and written again."""
    if depth > _DEEPEST:
        raise DataError(f"{where:.200}: nested more than {_DEEPEST} deep")
    if isinstance(data, str):
        return _text(data, where)
    if isinstance(data, list):
        return [_plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(data)]
    if isinstance(data, dict):
        return {
            _text(key, where): _plain(item, f"{where}.{key}", depth + 1)
            for key, item in data.items()
        }
    if isinstance(data, (int, float)) and not isinstance(data, bool):
        return _number(data, where)
    return data


def _number(data: float, where: str) -> float:
    # the comparison is False of NaN too
    return cast(float, _known(abs(data) <= _MOST, data, where, "a number of at most 1e18"))


def _text(data: str, where: str) -> str:
    try:
        data.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: expected Unicode text, found half a surrogate pair") from error
    return data


def _dataclass(kind: type, data: Any, where: str) -> Any:
    _known(isinstance(data, dict), data, where, "an object")
    hints = get_type_hints(kind)
    values = {}
    for field in dataclasses.fields(kind):
        if field.name in data:
            values[field.name] = _value(
                hints[field.name], data[field.name], f"{where}.{field.name}"
            )
        elif is_required(field):
            raise DataError(f"{where}: the key {field.name!r} is missing")
    return kind(**values)


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether JSON must have a key for it."""
    return field.default is field.default_factory is dataclasses.MISSING


def _known(right: bool, data: Any, where: str, expected: str) -> Any:
    if not right:
        raise DataError(f"{where}: expected {expected}, found {_SHOWN.repr(data)}")
    return data
