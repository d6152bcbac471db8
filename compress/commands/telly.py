"""`compress telly`: what freezing more and more of a teacher's layers costs and saves, on a user's own data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from codemill.compress.commands.output import (
    continues,
    json_option,
    print_json,
    quiet_stdout,
    require_extra,
    shown_path,
    table,
)
from codemill.compress.commands.run import recipe_of, recipe_options, work_option

_FILES = ("telly.json", "telly.html")


@click.command("telly")
@recipe_options
@click.option(
    "--sweep",
    "asked",
    metavar="LAYERS",
    help="How many of the lowest layers to freeze, a row each: 0..5, or none,0,4,8. L-1 is all but one; 0 the "
    "embeddings alone; none nothing. [default: none,0..L-1]",
)
@click.option("--out", type=click.Path(path_type=Path), help="A folder for telly.json and .html.")
@work_option
@click.option("--wait", is_flag=True, help="Wait for another run that works in --work.")
@json_option
def telly_command(
    asked: str | None, out: Path | None, work: Path, wait: bool, as_json: bool, **named: Any
) -> None:
    """Fine-tune the teacher with more and more layers frozen.

    RECIPE|MODEL as in `compress run`, of which the teacher, the data and teacher.finetune are used. For each
    row: quality on validation, trainable parameters, time and peak memory. A finished row is kept in --work;
    the same command continues there. Leave the machine alone meanwhile.
    """
    require_extra("compress", "`compress telly`")
    from codemill.compress.places import check_file_out, check_folder, write_out
    from codemill.compress.progress import shown_progress
    from codemill.targets.codec import to_json
    from codemill.targets.sweep import recommended, render_sweep, said

    recipe = recipe_of(**named)
    check_folder(work, "--work")
    files = [] if out is None else [out / name for name in _FILES]
    for path in files:
        check_file_out(path)
    continues()
    with quiet_stdout():
        from codemill.compress.telly import sweep

        with shown_progress() as progress:
            found = sweep(recipe, work, asked, progress, wait)
    chosen = recommended(found).frozen_layers
    value = {**to_json(found), "recommended": "none" if chosen is None else chosen}
    if files:
        write_out(files[0], json.dumps(value, indent=1).encode())
        render_sweep(found, files[1])
    if as_json:
        print_json({**value, "files": files})
        return
    click.echo(table(said(found), heading=True))
    click.echo()
    click.echo(f"recommended: teacher.finetune.freeze_layers: {value['recommended']}")
    for path in files:
        click.echo(f"wrote {shown_path(path)}", err=True)
