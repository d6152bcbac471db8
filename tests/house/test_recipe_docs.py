"""The documents that are made from the recipe's schema."""

from __future__ import annotations

from pathlib import Path

import yaml

from codemill.compress.recipe import Recipe, parse_recipe
from codemill.compress.recipe_docs import Key, commented_recipe, keys, reference


def flat(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, dict):
        return {prefix.rstrip("."): value}
    return {k: v for key, item in value.items() for k, v in flat(item, f"{prefix}{key}.").items()}


def test_the_committed_reference_is_up_to_date(root: Path) -> None:
    committed = (root / "docs/recipes.md").read_text(encoding="utf-8")
    assert committed == reference(), "run scripts/docs"


def test_every_key_of_a_recipe_is_described_with_its_default() -> None:
    described = {item.name: item for item in keys() if isinstance(item, Key)}
    defaults = flat(Recipe(name="x").model_dump(mode="json"))
    assert described.keys() == defaults.keys()
    for name, item in described.items():
        assert item.description, name
        assert item.expected, name
        assert item.required == (name == "name")
        if not item.required:
            assert item.default == defaults[name], name


def test_a_commented_recipe_holds_every_key_and_means_the_defaults() -> None:
    text = commented_recipe("mine", "retrieval")
    assert parse_recipe(yaml.safe_load(text)) == Recipe(name="mine")
    assert flat(yaml.safe_load(text)).keys() == flat(Recipe(name="x").model_dump()).keys()
    described = [item.description for item in keys()]
    comments = " ".join(
        line.strip().lstrip("# ") for line in text.splitlines() if line.strip().startswith("#")
    )
    assert all(description in comments for description in described)
    assert max(map(len, text.splitlines())) <= 100
