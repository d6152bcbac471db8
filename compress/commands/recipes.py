"""`compress recipes` and `compress init`: the recipes that ship, and a new one to edit."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path

import click

from codemill.compress.commands.output import (
    TASKS,
    json_option,
    plain_name,
    print_json,
    require_extra,
    table,
)
from codemill.errors import InputError

_NEEDED = ("pydantic", "yaml")


@click.command("recipes")
@json_option
def recipes_command(as_json: bool) -> None:
    """List the recipes that ship."""
    require_extra("compress", "`compress recipes`", only=_NEEDED)
    from codemill.compress.recipe import shipped_recipes

    found = [(name, _summary(path), path) for name, path in shipped_recipes().items()]
    if as_json:
        print_json([{"name": n, "summary": s, "path": p} for n, s, p in found])
    else:
        click.echo(table([(name, summary) for name, summary, _ in found]))


@click.command("init")
@click.option("--task", type=click.Choice(TASKS), default="retrieval", show_default=True)
@click.option(
    "--out",
    default="recipe.yaml",
    show_default=True,
    help="The file to write; - prints it.",
)
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def init_command(task: str, out: str, force: bool) -> None:
    """Write a recipe to edit.

    It has every key, with its default and what it means.
    """
    require_extra("compress", "`compress init`", only=_NEEDED)
    from codemill.compress.places import check_file_out, write_out
    from codemill.compress.recipe_docs import commented_recipe

    path = Path(out)
    text = commented_recipe("my-recipe" if out == "-" else plain_name(path.stem, "my-recipe"), task)
    if out == "-":
        click.echo(text, nl=False)
        return
    check_file_out(path)
    if path.exists() and not force:
        raise InputError(
            f"{path} is there already; choose another --out, or write over it with --force"
        )
    write_out(path, text.encode())
    click.echo(f"wrote {path}; edit it, then: compress run {shlex.quote(str(path))}", err=True)


def _summary(path: Path) -> str:
    """The comment a recipe opens with, up to its first full stop or blank line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#") and line.strip("# "), lines)
    text = " ".join(line.lstrip("# ").strip() for line in comment)
    return text.split(". ")[0].removesuffix(".")
