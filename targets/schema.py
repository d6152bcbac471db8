"""The JSON schema of report.json, made from the types that write and read it; docs/report.schema.json is its copy."""

from __future__ import annotations

import dataclasses
import enum
import types
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from codemill.targets.codec import is_required

__all__ = ["json_schema"]


def json_schema(kind: type, title: str, oldest: int, newest: int) -> dict[str, Any]:
    """A schema (draft 2020-12) of what `codec.to_json` makes of `kind`, whose `schema` is from `oldest` to `newest`."""
    definitions: dict[str, Any] = {}
    root = _of_dataclass(kind, definitions)
    root["properties"]["schema"] = {"type": "integer", "minimum": oldest, "maximum": newest}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


def _of_dataclass(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    fields = dataclasses.fields(cast(Any, kind))
    # a key that is not known is passed over by readers: one may be added within a schema's number
    return {
        "type": "object",
        "properties": {field.name: _of(hints[field.name], definitions) for field in fields},
        "required": [field.name for field in fields if is_required(field)],
    }


def _of(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin = get_origin(kind)
    if kind is Any or kind is object:
        return {}
    if origin in (Union, types.UnionType):
        found = [
            {"type": "null"} if option is type(None) else _of(option, definitions)
            for option in get_args(kind)
        ]
        return {"anyOf": found}
    if origin is Literal:
        return {"enum": list(get_args(kind))}
    if origin is tuple:
        return {"type": "array", "items": _of(get_args(kind)[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of(get_args(kind)[1], definitions)}
    if dataclasses.is_dataclass(kind):
        name = cast(type, kind).__name__
        if name not in definitions:
            # before its fields: it may hold itself
            definitions[name] = {}
            definitions[name] = _of_dataclass(cast(type, kind), definitions)
        return {"$ref": f"#/$defs/{name}"}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return {"enum": [member.value for member in kind]}
    return {"type": {bool: "boolean", int: "integer", float: "number", str: "string"}[kind]}
