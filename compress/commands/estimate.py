"""`compress estimate`: what architectures are worth on a recipe's data, for the search."""

from __future__ import annotations

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


@click.command("estimate")
@recipe_options
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Where to write what was found, as quality.json.",
)
@click.option(
    "--longest",
    type=click.IntRange(8, 1000),
    default=12,
    show_default=True,
    help="Architectures to distil to the end; four times as many are distilled for a while.",
)
@click.option("--workers", type=click.IntRange(1, 1024), help="At once. [default: one a core]")
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="Run the trials on a Ray cluster (extra `scale`): its address, `auto`, or `local`.",
)
@work_option
@click.option("--wait", is_flag=True, help="Wait for another run that works in --work.")
@json_option
def estimate_command(
    out: Path,
    longest: int,
    workers: int | None,
    ray: str | None,
    work: Path,
    wait: bool,
    as_json: bool,
    **named: Any,
) -> None:
    """Distil a sample of architectures, for the search.

    Four times --longest of them for a while, --longest to the end.

    RECIPE|MODEL as in `compress run`, whose search space, budget, data and teacher are used. The file is
    what search.quality of a recipe names: with it the search knows that equal GFLOPs are not equal quality.
    What is finished is kept in --work; the same command continues there.
    """
    require_extra("compress", "`compress estimate`")
    from codemill.compress.places import check_file_out, check_folder, write_out
    from codemill.compress.progress import shown_progress

    if ray == "":
        raise click.UsageError("--ray: give an address, auto, or local")
    recipe = recipe_of(**named)
    check_folder(work, "--work")
    check_file_out(out)
    with quiet_stdout():
        from codemill.compress.estimate import before_estimate, check_origin, estimate
        from codemill.compress.parallel import Cluster
        from codemill.compress.preflight import preflight
        from codemill.compress.search.quality import QualityModel, estimate_bytes

        check_origin(recipe)
        checked = preflight(before_estimate(recipe), work)
        checked.raise_if_refused()
        checked.raise_if_impossible()
        continues()
        cluster = None if ray is None else Cluster(None if ray == "local" else ray)
        with shown_progress() as progress:
            found = estimate(
                recipe,
                work,
                progress,
                longest=longest,
                workers=workers,
                cluster=cluster,
                wait=wait,
            )
        write_out(out, estimate_bytes(found))
        model = QualityModel(found)
    if as_json:
        print_json({"out": str(out), "observations": len(found.observations), **model.to_json()})
        return
    rows = [("predictor", "rank correlation")]
    rows += [(name, f"{value:.2f}") for name, value in model.correlations.items()]
    click.echo(table(rows, heading=True))
    click.echo()
    rows = [
        ("trials", f"{len(found.observations)}, {model.longest} of them to the end"),
        ("error of the estimate", f"{model.error:.3f} {found.metric}"),
        ("the search will use", model.predictor),
        ("written to", shown_path(out)),
    ]
    click.echo(table(rows))
