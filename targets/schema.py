"""JSON schemas of the files that have a type: of report.json, and of a target's profile; docs/ has a copy of each."""

from __future__ import annotations

import dataclasses
import enum
import types
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from codemill.targets.codec import is_required

__all__ = ["json_schema"]


def json_schema(kind: type, title: str, *, closed: bool = False) -> dict[str, Any]:
    """A schema (draft 2020-12) of what `codec.to_json` makes of `kind`.

    A type that is annotated with pairs of key and value has these in its schema, a tuple as a list.

    closed: a key that is not known is wrong. Else readers pass over it, so that one may be added within a schema's
    number.
    """
    definitions: dict[str, Any] = {}
    root = _of_dataclass(kind, definitions, closed)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


def _of_dataclass(kind: type, definitions: dict[str, Any], closed: bool) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    fields = dataclasses.fields(cast(Any, kind))
    return {
        "type": "object",
        "properties": {field.name: _of(hints[field.name], definitions, closed) for field in fields},
        "required": [field.name for field in fields if is_required(field)],
        **({"additionalProperties": False} if closed else {}),
    }


def _of(kind: Any, definitions: dict[str, Any], closed: bool) -> dict[str, Any]:
    origin = get_origin(kind)
    if origin is Annotated:
        inner, *more = get_args(kind)
        said = {key: list(v) if isinstance(v, tuple) else v for key, v in more}
        return _of(inner, definitions, closed) | said
    if kind is Any or kind is object:
        return {}
    if origin in (Union, types.UnionType):
        found = [
            {"type": "null"} if option is type(None) else _of(option, definitions, closed)
            for option in get_args(kind)
        ]
        return {"anyOf": found}
    if origin is Literal:
        return {"enum": list(get_args(kind))}
    if origin is tuple:
        return {"type": "array", "items": _of(get_args(kind)[0], definitions, closed)}
    if origin is dict:
        return {
            "type": "object",
            "additionalProperties": _of(get_args(kind)[1], definitions, closed),
        }
    if dataclasses.is_dataclass(kind):
        name = cast(type, kind).__name__
        if name not in definitions:
            # before its fields: it may hold itself
            definitions[name] = {}
            definitions[name] = _of_dataclass(cast(type, kind), definitions, closed)
        return {"$ref": f"#/$defs/{name}"}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return {"enum": [member.value for member in kind]}
    return {"type": {bool: "boolean", int: "integer", float: "number", str: "string"}[kind]}
