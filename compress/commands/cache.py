"""`compress cache`: what runs keep on disk, why a stage would be done again, and throwing it away."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codemill.compress.commands.output import (
    in_bytes,
    json_option,
    print_json,
    quiet_stdout,
    require_extra,
    table,
)
from codemill.compress.commands.run import recipe_of, recipe_options, work_option
from codemill.errors import MachineError

if TYPE_CHECKING:
    from codemill.compress.cache import Kept


@click.group("cache")
def cache_command() -> None:
    """List, explain and clear what runs keep on disk."""


@cache_command.command("list")
@work_option
@json_option
def list_command(work: Path, as_json: bool) -> None:
    """List the stages kept in --work, and what the runtime keeps for this user."""
    kept = _kept(work)
    if as_json:
        print_json([entry.to_json() for entry in kept])
        return
    rows = [("what", "size", "state", "last written", "where")]
    rows += [
        (
            entry.name,
            in_bytes(entry.size_bytes).split(" (")[0],
            entry.state,
            entry.last_written[:16],
            str(entry.folder),
        )
        for entry in kept
    ]
    click.echo(table(rows, heading=True))
    click.echo(f"\n{in_bytes(sum(entry.size_bytes for entry in kept))} in all")


@cache_command.command("explain")
@recipe_options
@work_option
@json_option
def explain_command(work: Path, as_json: bool, **named: Any) -> None:
    """Say for each stage of a run whether it is kept, and if not, what differs from what is."""
    require_extra("compress", "`compress cache explain`")
    recipe = recipe_of(**named)
    with quiet_stdout():
        from codemill.compress.cache import explain
        from codemill.compress.run import stages_of

        found = explain(stages_of(recipe), work)
    if as_json:
        print_json([item.to_json() for item in found])
        return
    for item in found:
        click.echo(f"{item.stage}: {item.said}")
        for line in item.differences:
            click.echo(f"    {line}")


@cache_command.command("clear")
@work_option
@click.option("--unfinished", is_flag=True, help="Stages that did not finish.")
@click.option("--finished", is_flag=True, help="Stages that did: the next run does them again.")
@click.option("--runtime", is_flag=True, help="Unpacked bundles and models, indexes of `find`.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def clear_command(work: Path, unfinished: bool, finished: bool, runtime: bool, yes: bool) -> None:
    """Remove what is kept; say which with at least one of the flags."""
    wanted = {"unfinished": unfinished, "finished": finished, "runtime": runtime}
    if not any(wanted.values()):
        raise click.UsageError("say what to remove: --unfinished, --finished, --runtime")
    chosen = [entry for entry in _kept(work) if wanted[entry.state]]
    if not chosen:
        click.echo("there is nothing to remove", err=True)
        return
    for entry in chosen:
        click.echo(f"{in_bytes(entry.size_bytes):>30}  {entry.folder}", err=True)
    if not yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise click.UsageError("nobody is there to be asked; add --yes to remove these")
        if not click.confirm("remove these?", err=True):
            click.echo("nothing was removed", err=True)
            return
    from codemill.compress.cache import remove

    try:
        remove(chosen, work)
    except OSError as error:
        raise MachineError(f"cannot remove {error.filename}: {error.strerror or error}") from error
    click.echo(f"removed {in_bytes(sum(entry.size_bytes for entry in chosen))}", err=True)


def _kept(work: Path) -> list[Kept]:
    require_extra("compress", "`compress cache`")
    from codemill.compress.cache import kept

    return kept(work)
