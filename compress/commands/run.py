"""`compress run`: a recipe, or a model and its data, to a bundle.

Reads the command line into a recipe and says what came of it; the work is `codemill.compress.run`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from codemill.compress.commands.output import (
    TASKS,
    continues,
    doubts_said,
    json_option,
    plain_name,
    print_json,
    quiet_stdout,
    report_rows,
    require_extra,
    shown_path,
    table,
)
from codemill.errors import RecipeError

if TYPE_CHECKING:
    from codemill.compress.recipe import Recipe
    from codemill.compress.run import Plan
    from codemill.targets.completion_benchmark import CompletionReport
    from codemill.targets.report import Report


_F = TypeVar("_F", bound=Callable[..., object])

work_option = click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path(".codemill"),
    show_default=True,
    help="Where stages keep their work; the same command continues there.",
)


def recipe_options(command: _F, required: bool = True) -> _F:
    """The argument and the options that name a recipe; `recipe_of` reads their values."""
    options = (
        click.argument("recipe_or_model", metavar="RECIPE|MODEL", required=required),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="A recipe key, such as distill.epochs=2; may be given several times, and comes last.",
        ),
        click.option(
            "--data",
            metavar="FILE",
            help="What to learn from: pairs or labelled rows, .jsonl, .csv, .parquet ...",
        ),
        click.option(
            "--task",
            type=click.Choice(TASKS),
            help="What the bundle will do.",
        ),
        click.option("--size", metavar="SIZE", help="The most that may ship, such as 3MB."),
        click.option("--seed", type=click.IntRange(0), help="Of every random choice."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def recipe_of(
    recipe_or_model: str,
    settings: tuple[str, ...],
    data: str | None,
    task: str | None,
    size: str | None,
    seed: int | None,
) -> Recipe:
    """The recipe that the values of `recipe_options` name; raises what `resolve` raises."""
    flags = {"data.source": data, "task": task, "budget.size_bytes": size, "seed": seed}
    given = {key: value for key, value in flags.items() if value is not None}
    return resolve(recipe_or_model, settings, given)


@click.command("run")
@recipe_options
@work_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The bundle's folder, or a file ending in .mill. [default: ./NAME-bundle]",
)
@click.option("--wait", is_flag=True, help="Wait for another run that works in --work.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and stop.")
@json_option
def run_command(
    work: Path,
    out: Path | None,
    wait: bool,
    dry_run: bool,
    as_json: bool,
    **named: Any,
) -> None:
    """Make a bundle from RECIPE, or MODEL and --data.

    RECIPE is one that ships (`compress recipes`) or a .yaml file. MODEL is a folder, a Hugging Face
    id (owner/name) or package:NAME.
    """
    require_extra("compress", "`compress run`")
    from codemill.compress.places import check_bundle_out, check_folder
    from codemill.compress.progress import shown_progress

    recipe = recipe_of(**named)
    target = out or Path(f"{recipe.name}-bundle")
    check_folder(work, "--work")
    check_bundle_out(target, work)
    # libraries print what they like: stdout is for the result
    with quiet_stdout():
        from codemill.compress.run import plan, run

        planned = plan(recipe, work)
        if not dry_run:
            for line in planned.preflight.lines():
                click.echo(line, err=True)
            planned.preflight.raise_if_refused()
            continues()
            with shown_progress() as progress:
                result = run(recipe, work, target, progress, wait=wait)
    if dry_run:
        _say_plan(planned, as_json)
        planned.preflight.raise_if_refused()
        planned.preflight.raise_if_impossible()
        return
    if as_json:
        print_json(result.to_json())
        return
    click.echo(table(_rows(result.report), heading=True))
    for line in _doubts(result.report):
        click.echo(line)
    click.echo()
    paths = {"bundle": result.bundle, "report": result.report_html}
    click.echo(table([(name, shown_path(path)) for name, path in paths.items()]))


def _rows(report: Report | CompletionReport) -> list[tuple[str, ...]]:
    from codemill.targets.completion_benchmark import CompletionReport
    from codemill.targets.completion_page import completion_rows

    if isinstance(report, CompletionReport):
        return completion_rows(report)
    return report_rows(report)


def _doubts(report: Report | CompletionReport) -> list[str]:
    from codemill.targets.completion_benchmark import CompletionReport

    return [] if isinstance(report, CompletionReport) else doubts_said(report)


def resolve(
    recipe_or_model: str, settings: Sequence[str] = (), given: Mapping[str, Any] | None = None
) -> Recipe:
    """The recipe that the command line names, or one made for the model that it names.

    `given` (dotted key -> value) and `settings` are laid over it. A name that ships and a .yaml or
    .yml file are recipes; a folder, `owner/name` and `package:NAME` are models. Raises RecipeError,
    and click.UsageError for a model without data.
    """
    from codemill.compress.recipe import parse_recipe, read_recipe, shipped_recipes

    if not recipe_or_model.strip():
        raise click.UsageError(
            "RECIPE|MODEL is empty; name a recipe (`compress recipes` lists those that ship), a .yaml file or a model"
        )
    is_yaml = Path(recipe_or_model).suffix in (".yaml", ".yml")
    if recipe_or_model in shipped_recipes() or (is_yaml and not _is_folder(recipe_or_model)):
        return read_recipe(recipe_or_model, settings, given)
    if not _is_model(recipe_or_model):
        try:
            return read_recipe(recipe_or_model, settings, given)
        except RecipeError as error:
            raise RecipeError(
                f"{error}\n(nor is it a model: a folder, owner/name or package:NAME)"
            ) from error
    has_data = "data.source" in (given or {})
    if not has_data and not any(item.startswith("data.source=") for item in settings):
        raise click.UsageError(
            f"{recipe_or_model} is a model, which needs --data: a .jsonl file of pairs, "
            "or `installed` for the functions of this Python's packages"
        )
    values = {"name": _name_of(recipe_or_model), "teacher": {"model": recipe_or_model}}
    return parse_recipe(values, settings, "the command line", given)


def _is_model(text: str) -> bool:
    if text.startswith("package:") or _is_folder(text):
        return True
    # owner/name; a path that is not there is neither
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and not _is_there(text)


def _is_folder(text: str) -> bool:
    with contextlib.suppress(OSError, RuntimeError):
        return Path(text).expanduser().is_dir()
    return False


def _is_there(text: str) -> bool:
    with contextlib.suppress(OSError):
        return Path(text).exists()
    return False


def _name_of(model: str) -> str:
    """A bundle's name for a model: the last part of its path or id, in harmless characters."""
    name = model.removeprefix("package:")
    if _is_folder(name):
        name = Path(name).expanduser().resolve().name
    return plain_name(name.rsplit("/", 1)[-1], "model")


def _say_plan(planned: Plan, as_json: bool) -> None:
    if as_json:
        print_json(planned.to_json())
        return
    import yaml

    values = planned.recipe.model_dump(mode="json")
    click.echo(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100))
    stages = [(name, "done before" if cached else "to do") for name, cached in planned.stages]
    click.echo(table([("stage", ""), *stages], heading=True))
    click.echo()
    for line in planned.preflight.lines():
        click.echo(line)
