"""YAML as a recipe or a target profile may be: plain values, each written where it is used.

PyYAML's safe loader with fewer freedoms. What is refused either harms (aliases, of which a kilobyte
unfolds to gigabytes; tags, which ask for objects) or silently means something else than was written (a
key twice in one mapping, of which the last would count).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from codemill.errors import RecipeError

__all__ = ["parse_yaml", "read_yaml"]

_MOST_BYTES = 1_000_000
_DEEPEST = 20
_INTEGER = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"
_OCTAL = re.compile(r"[-+]?0[0-9_]+")
_MOST_INTEGER = 2**63


def read_yaml(path: Path, where: str) -> Any:
    """The value in a YAML file; RecipeError that begins with `where`."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"{where} cannot be read: {error.strerror or error}") from error
    if len(content) > _MOST_BYTES:
        raise RecipeError(f"{where} is larger than {_MOST_BYTES:,} bytes; a few thousand are usual")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{where} cannot be read: line {line} is not UTF-8 text") from error
    return parse_yaml(text, where)


def parse_yaml(text: str, where: str) -> Any:
    """The value that the YAML `text` holds; RecipeError that begins with `where` and names the line."""
    loader = None
    try:
        # the constructor looks for characters that YAML does not allow
        loader = _Loader(text)
        return loader.get_single_data()
    except _Refused as error:
        raise RecipeError(f"{where}, {_place(error)}: {error.problem}") from error
    except yaml.MarkedYAMLError as error:
        said = " ".join(str(error.problem or error.context).split())
        raise RecipeError(f"{where} is not valid YAML: {_place(error)}: {said}") from error
    # ValueError: a 31 February; RecursionError: brackets that never end
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise RecipeError(f"{where} is not valid YAML: {said}") from error
    finally:
        if loader is not None:
            loader.dispose()


class _Refused(yaml.MarkedYAMLError):
    """Valid YAML that is not taken."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(problem=problem, problem_mark=mark)


class _Loader(yaml.SafeLoader):
    """The safe loader without aliases, tags, repeated keys and deep nesting."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _Refused(
                f"*{event.anchor} stands for what is written elsewhere; write it out here",
                event.start_mark,
            )
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise _Refused(
                f"the tag {tag!r:.80} is not taken; write a plain value", event.start_mark
            )
        self.depth += 1
        if self.depth > _DEEPEST:
            raise _Refused(f"nested more than {_DEEPEST} deep", event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value == "<<":
                    raise _Refused("<< takes keys from elsewhere; write them out", key.start_mark)
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise _Refused(
                        f"the key {key.value!r:.80} stands on line {lines[key.value]} already",
                        key.start_mark,
                    )
                lines[key.value] = line
        return super().construct_mapping(node, deep)


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    _check_number(node)
    try:
        value = int(loader.construct_yaml_int(node))
    except ValueError:
        value = _MOST_INTEGER
    if not -_MOST_INTEGER <= value < _MOST_INTEGER:
        raise _Refused(f"{node.value!r:.40} is no whole number of 64 bits", node.start_mark)
    return value


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    _check_number(node)
    return float(loader.construct_yaml_float(node))


def _check_number(node: yaml.ScalarNode) -> None:
    """Refuse what YAML 1.1 alone takes for a number: 1:30 is 90 there, and 010 is 8."""
    if ":" in node.value or _OCTAL.fullmatch(node.value):
        raise _Refused(
            f"{node.value!r:.40} would be read as base 60 or 8; write a plain number, or quote a text",
            node.start_mark,
        )


_Loader.add_constructor(_INTEGER, _integer)
_Loader.add_constructor(_FLOAT, _float)


def _place(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return "somewhere" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}"
