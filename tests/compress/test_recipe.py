"""Recipes: read, overridden, refused with the key named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from codemill.compress.recipe import Recipe, parse_recipe, read_recipe, shipped_recipes
from codemill.errors import RecipeError


def refused(value: dict[str, Any], *settings: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe({"name": "mine", **value}, settings)
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_recipe_that_ships_is_valid(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.name == name
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


def test_recipes_ship() -> None:
    assert "code-search" in shipped_recipes()


def test_what_is_left_out_is_the_default() -> None:
    recipe = parse_recipe({"name": "mine"})
    assert recipe.distill.batch_size == 64
    assert recipe.budget.size_bytes == 3_000_000


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"sed": 1}, "unknown key 'sed'; did you mean 'seed'?"),
        (
            {"epochs": 1},
            "unknown key 'epochs'; did you mean 'teacher.finetune.epochs' or 'distill.epochs' or 'exits.epochs' or "
            "'quantize.epochs'?",
        ),
        (
            {"distill": {"epoch": 1}},
            "unknown key 'distill.epoch'; did you mean 'distill.epochs'?",
        ),
        (
            {"teacher": {"finetune": {"freeze_layer": 1}}},
            "unknown key 'teacher.finetune.freeze_layer'; did you mean 'teacher.finetune.freeze_layers'?",
        ),
        ({"quality": {"zzz": 1}}, "unknown key 'quality.zzz'; known keys: min_kept"),
        ({1: 2}, "1"),
    ],
)
def test_an_unknown_key_names_the_nearest(value: dict[str, Any], message: str) -> None:
    assert message in refused(value)


@pytest.mark.parametrize(
    ("value", "key", "found"),
    [
        ({"distill": {"epochs": "two"}}, "distill.epochs", "'two'"),
        ({"distill": {"epochs": 0}}, "distill.epochs", "0"),
        ({"distill": {"epochs": float("inf")}}, "distill.epochs", "inf"),
        ({"distill": {"epochs": float("nan")}}, "distill.epochs", "nan"),
        ({"distill": 3}, "distill", "3"),
        ({"seed": -1}, "seed", "-1"),
        ({"task": "poetry"}, "task", "'poetry'"),
        ({"teacher": {"model": " "}}, "teacher.model", "' '"),
        ({"budget": {"gflops": "some"}}, "budget.gflops", "'some'"),
        ({"search": {"layers": [0, 5]}}, "search.layers", "0"),
        ({"bench": {"tokens": []}}, "bench.tokens", "[]"),
        ({"bench": {"batches": [1, 0]}}, "bench.batches", "[1, 0]"),
        (
            {"distill": {"losses": {"cosine": 0, "similarity": 0, "contrastive": 0}}},
            "distill.losses",
            "all losses are 0",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_key(value: dict[str, Any], key: str, found: str) -> None:
    message = refused(value)
    assert key in message
    assert found in message


def test_every_fault_is_named_at_once() -> None:
    message = refused({"sed": 1, "distill": {"epochs": -1}})
    assert len(message.splitlines()) == 2


def test_a_recipe_needs_a_name() -> None:
    with pytest.raises(RecipeError, match="'name' is missing"):
        parse_recipe({})


@pytest.mark.parametrize(
    ("text", "size"), [("3MB", 3_000_000), ("2.5 MiB", 2_621_440), (1000, 1000), (None, None)]
)
def test_sizes_are_read_as_people_write_them(text: object, size: int | None) -> None:
    recipe = parse_recipe({"name": "mine", "budget": {"size_bytes": text}})
    assert recipe.budget.size_bytes == size


def test_a_size_that_is_none_is_a_recipe_error() -> None:
    assert "'3 potatoes' is not understood" in refused({"budget": {"size_bytes": "3 potatoes"}})
    assert "budget.size_bytes" in refused({"budget": {"size_bytes": 0}})


def test_settings_are_laid_over_the_recipe_as_yaml() -> None:
    value = {"name": "mine", "distill": {"epochs": 2, "batch_size": 8}}
    settings = [
        "distill.epochs=3",
        "search.layers=[[0, 2], [1]]",
        "budget.size_bytes=1MB",
        "budget.gflops=null",
        "teacher.finetune.pairs=0",
        "teacher.model=a=b",
        "distill.epochs=0.5",
    ]
    recipe = parse_recipe(value, settings)
    assert (recipe.distill.epochs, recipe.distill.batch_size) == (0.5, 8), "the last one counts"
    assert recipe.search.layers == ((0, 2), (1,))
    assert (recipe.budget.size_bytes, recipe.budget.gflops) == (1_000_000, None)
    assert (recipe.teacher.finetune.pairs, recipe.teacher.model) == (0, "a=b")
    assert value == {"name": "mine", "distill": {"epochs": 2, "batch_size": 8}}, "not changed"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed", "expected key=value"),
        ("=3", "expected key=value"),
        ("name.first=x", "'name' is a value, not a section"),
        ("seed=[1", "not valid YAML"),
        ("name=2024-02-31", "not valid YAML"),
        ("seed=" + "[" * 5000, "nested more than 20 deep"),
        ("seed=&a [*a, *a]", "*a stands for what is written elsewhere"),
        ("data={source: a, source: b}", "the key 'source' stands on line 1 already"),
        ("seed=0x" + "f" * 5000, "no whole number of 64 bits"),
        ("seed=" + "9" * 5000, "no whole number of 64 bits"),
        ("seed=4294967296", "less than or equal to 4294967295; found 4294967296"),
        ("seed=true", "must not be true or false"),
        ("search.layers=[[0, yes]]", "must not be true or false"),
        ("seed" + ".a" * 5000 + "=1", "seed: Input should be a valid integer"),
        ('data.source="a\\0b"', "must not hold a zero character"),
        ("teacher.model=~nobody-of-this-name/x", "there is no such home folder here"),
        ("name=a\x00b", "not valid YAML"),
        ("name=\udcff", "not valid YAML"),
        ("sed=3", "did you mean 'seed'"),
        ("name=!!python/object/apply:os.getcwd []", "object/apply:os.getcwd' is not taken"),
    ],
)
def test_a_wrong_setting_is_named(setting: str, message: str) -> None:
    assert message in refused({}, setting)


def test_a_section_whose_keys_are_all_commented_out_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ndistill:\n  # epochs: 2\nsearch:\n")
    assert read_recipe(str(path)) == parse_recipe({"name": "mine"})
    assert read_recipe(str(path), ["distill.epochs=2"]).distill.epochs == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected keys and values, found NoneType"),
        (b"- a\n- b\n", "found list"),
        (b"name: [", "not valid YAML"),
        (b"name: 2024-02-31", "not valid YAML"),
        (b"a: 1\n---\nb: 2\n", "not valid YAML"),
        (b"a: " + b"[" * 20_000, "mine.yaml, line 1, column 23: nested more than 20 deep"),
        (b"a:\n" + b"".join(b" " * i + b"a:\n" for i in range(1, 40)), "nested more than 20"),
        (b"name: x\nlicense: \xff\xfe", "cannot be read: line 2 is not UTF-8 text"),
        (b"name: a\0b", "not valid YAML"),
        (
            b"name: !!python/object/apply:os.system ['true']",
            "'tag:yaml.org,2002:python/object/appl",
        ),
        (b"name: !!python/name:os.system", "python/name:os.system' is not taken"),
        (b'seed: !!int ""', "the tag 'tag:yaml.org,2002:int' is not taken"),
        (b"name: x\nname: y", "line 2, column 1: the key 'name' stands on line 1 already"),
        (b"name: x\ndistill:\n  epochs: 1\n  epochs: 2", "line 4, column 3: the key 'epochs'"),
        (b"a: &a [1]\nb: *a", "line 2, column 4: *a stands for what is written elsewhere"),
        (b"a: &a\n  b: *a", "*a stands for"),
        (b"a: &a {seed: 1}\nb:\n  <<: *a", "*a stands for"),
        (b"name: x\n#" + b" " * 1_000_000, "larger than 1,000,000 bytes"),
    ],
)
def test_a_file_that_is_no_recipe_is_a_recipe_error_with_its_name(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        read_recipe(str(path))
    assert message in str(caught.value)
    assert "mine.yaml" in str(caught.value)


def test_a_python_object_in_yaml_is_not_made(tmp_path: Path) -> None:
    path, marker = tmp_path / "mine.yaml", tmp_path / "it-ran"
    path.write_text(f"name: !!python/object/apply:builtins.open [{str(marker)!r}, w]")
    with pytest.raises(RecipeError):
        read_recipe(str(path))
    assert not marker.exists()


def test_aliases_that_would_unfold_to_gigabytes_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for depth in range(1, 12):
        aliases = ", ".join([f"*a{depth - 1}"] * 10)
        lines.append(f"a{depth}: &a{depth} [{aliases}]")
    path.write_text("\n".join(lines))
    with pytest.raises(RecipeError, match=r"line 2, column 10: \*a0 stands for"):
        read_recipe(str(path))


def test_what_is_given_is_laid_below_the_settings_whatever_characters_it_has() -> None:
    path = "d\u00e4ta: #1 \U0001f600 \x7f'\".jsonl"
    recipe = parse_recipe({"name": "mine"}, ["seed=5"], given={"data.source": path, "seed": 4})
    assert (recipe.data.source, recipe.seed) == (path, 5)


def test_of_many_faults_the_first_are_named() -> None:
    lines = refused({f"key{number}": 1 for number in range(1000)}).splitlines()
    assert len(lines) == 11
    assert lines[-1] == "recipe: and 990 more"


def test_a_value_of_no_kind_that_is_allowed_is_one_fault() -> None:
    (line,) = refused({"budget": {"gflops": "some"}}).splitlines()
    assert "budget.gflops: Input should be 'auto' or a valid number" in line


def test_a_recipe_that_is_not_there_names_those_that_ship(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'code-search'"):
        read_recipe("code-serch")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(str(tmp_path))


@pytest.mark.parametrize("value", ["010", "1:30", "-0_7", "1:1:1.5", ":".join(["1"] * 300) + ".5"])
def test_a_number_that_only_old_yaml_knows_is_refused(value: str) -> None:
    with pytest.raises(RecipeError, match=r"base 60 or 8; write a plain number"):
        parse_recipe({"name": "mine"}, [f"seed={value}"])


def test_keys_merged_in_are_refused() -> None:
    with pytest.raises(RecipeError, match="<< takes keys from elsewhere"):
        parse_recipe({"name": "mine"}, ["distill={<<: {epochs: 3}}"])


def test_the_size_of_a_block_is_that_of_export() -> None:
    """Said twice: recipes are listed where numpy is not installed."""
    from codemill.compress.recipe import Complete
    from codemill.export.quantize.blocks import BLOCK

    assert Complete().block == BLOCK
