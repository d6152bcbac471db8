"""`compress search`: the architecture search alone, of a recipe's space or of Compressor's paper."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codemill.compress.commands.output import (
    continues,
    in_bytes,
    is_given,
    json_option,
    print_json,
    quiet_stdout,
    require_extra,
    table,
)
from codemill.compress.commands.run import recipe_of, recipe_options, work_option
from codemill.errors import RecipeError

if TYPE_CHECKING:
    from codemill.compress.recipe import Recipe

_BUDGETS = {"size": "size_bytes", "gflops": "gflops", "latency": "latency_ms"}
_SEARCHED = ("objective", "pick", "quality", "latency")
_SHAPE = ("vocab_size", "hidden_size", "layers", "heads", "intermediate_size")


@click.command("search")
@partial(recipe_options, required=False)
@click.option(
    "--space",
    type=click.Choice(["recipe", "compressor"]),
    default="recipe",
    show_default=True,
    help="What can be cut out of the recipe's teacher, or the space of the Compressor paper.",
)
@click.option(
    "--objective",
    type=click.Choice(["gflops", "pareto"]),
    help="The most GFLOPs within the budget, or NSGA-II over quality, latency and size. "
    "[default: the recipe's]",
)
@click.option(
    "--pick",
    type=click.Choice(["budget", "knee"]),
    help="Of a Pareto front: the best quality within the budget, or the knee. [default: the recipe's]",
)
@click.option("--quality", metavar="FILE", help="What `compress estimate` wrote, or `reference`.")
@click.option("--latency", metavar="FILE", help="What `compress profile` wrote, or `reference`.")
@click.option(
    "--fitness",
    type=click.Choice(["limits", "paper"]),
    default="limits",
    show_default=True,
    help="limits: the objective's most within the budget. paper: the objective less the distance to "
    "the size in MB, which may be overshot.",
)
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    metavar="KEY=VALUE",
    help="size=3MB, gflops=0.5 or latency=2 (ms); may be given several times. In the space `compressor`, "
    "size is the paper's: 4 bytes a parameter.",
)
@work_option
@click.option("--wait", is_flag=True, help="Wait for another run that works in --work.")
@json_option
def search_command(
    recipe_or_model: str | None,
    space: str,
    fitness: str,
    budgets: tuple[str, ...],
    work: Path,
    wait: bool,
    as_json: bool,
    seed: int | None,
    **named: Any,
) -> None:
    """Search an architecture under a budget, and train nothing.

    RECIPE|MODEL as in `compress run`; the search is that run's, and is kept in --work for it. It is
    left out with `--space compressor`, which reproduces the search of *Compressing Pre-trained Models
    of Code into 3 MB*.
    """
    require_extra("compress", "`compress search`")
    given = dict(_budget(item) for item in budgets)
    if len(given) < len(budgets):
        raise click.UsageError("--budget: each key may be given once")
    searched = {name: named.pop(name) for name in _SEARCHED}
    if space == "compressor":
        flags = {"settings": "--set"}
        used = [flags.get(name, f"--{name}") for name, value in named.items() if value]
        used += [
            f"--{name}" for name in ("pick", "quality", "latency") if searched[name] is not None
        ]
        used += ["--objective pareto"] if searched["objective"] == "pareto" else []
        used += ["--work"] if is_given("work") else []
        used += [recipe_or_model] if recipe_or_model else []
        if "latency" in given:
            raise click.UsageError(
                "--space compressor knows no latency: leave out --budget latency"
            )
        if used:
            raise click.UsageError(
                f"--space compressor stands for itself: leave out {', '.join(used)}"
            )
        found = _compressor(given, fitness, seed or 0)
    else:
        if recipe_or_model is None:
            raise click.UsageError("name a RECIPE or MODEL, or take --space compressor")
        if fitness != "limits":
            raise click.UsageError(f"--fitness {fitness} goes with --space compressor only")
        settings = [f"budget.{_BUDGETS[key]}={value}" for key, value in given.items()]
        settings += [
            f"search.{key}={value}" for key, value in searched.items() if value is not None
        ]
        named["settings"] = (*named["settings"], *settings)
        recipe = recipe_of(recipe_or_model=recipe_or_model, seed=seed, **named)
        if "latency" in given and recipe.search.latency is None:
            raise click.UsageError(
                "--budget latency needs a profile: give --latency FILE or reference"
            )
        if searched["pick"] and recipe.search.objective != "pareto":
            raise click.UsageError("--pick chooses on a Pareto front: give --objective pareto too")
        continues()
        found = _of_recipe(recipe, work, wait)
    if as_json:
        print_json(found)
        return
    click.echo(table(_rows(found)))
    for line in found.get("warnings", []):
        click.echo(f"note: {line}", err=True)


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    best = found["best"]
    rows = [
        (key, str(best[key]))
        for key in (*_SHAPE, "embedding_rank", "copied_layers", "bits")
        if key in best
    ]
    rows += [("GFLOPs a function", f"{found['gflops']:.4f}")]
    rows += [("fp32 parameters", in_bytes(found["params_fp32_bytes"]))]
    rows += [("what ships", in_bytes(found["size_bytes"]))]
    if best.get("latency_ms") is not None:
        rows += [("latency of 128 tokens", f"{best['latency_ms']:.2f} ms by the profile")]
    if best.get("quality") is not None:
        predictor, error = found["quality"]["predictor"], found["quality"]["error"]
        if predictor == "estimate":
            rows += [("quality", f"{best['quality']:.3f} MRR, give or take {error:.3f}")]
        else:
            rows += [(f"{predictor}, which predict quality best", f"{best['quality']:.3f}")]
    if found.get("front"):
        rows += [("Pareto front", f"{len(found['front'])} architectures in search.json")]
    else:
        rows += [("fitness", f"{found['fitness']:.4f}")]
    proven = ", then held against all of the space" if found.get("exact") else ""
    rows += [
        ("space", f"{found['space_size']:,} architectures"),
        ("evaluations", f"{found['evaluations']:,}{proven}"),
        ("seconds", f"{found['seconds']:.1f}"),
    ]
    return rows


def _budget(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not value or key not in _BUDGETS:
        raise click.UsageError(
            f"--budget {text!r}: expected one of {', '.join(f'{name}=VALUE' for name in _BUDGETS)}"
        )
    return key, value


def _compressor(given: dict[str, str], fitness: str, seed: int) -> dict[str, Any]:
    from codemill.compress.budget import Budget, parse_size
    from codemill.compress.search.compressor import (
        CompressorCosts,
        CompressorSpace,
        paper_fitness,
        shipped_bytes,
    )
    from codemill.compress.search.genetic import search

    size = parse_size(given["size"]) if "size" in given else None
    gflops = _number("gflops", given["gflops"]) if "gflops" in given else None
    if fitness == "paper" and size is None:
        raise click.UsageError("--fitness paper aims at a size: give --budget size=3MB")
    aims = fitness == "paper" and size is not None
    goal = paper_fitness(size) if aims and size is not None else lambda item: item.gflops
    result = search(
        CompressorSpace(),
        Budget(size_bytes=None if aims else size, gflops=gflops),
        CompressorCosts(),
        seed,
        fitness=goal,
    )
    best = result.best
    figures = {
        "gflops": best.gflops,
        "params_fp32_bytes": best.size_bytes,
        "size_bytes": shipped_bytes(best.architecture),
        "fitness": goal(best),
    }
    shape = {key: getattr(best.architecture, key) for key in _SHAPE}
    return {
        "best": {**shape, **figures},
        **figures,
        "evaluations": result.evaluations,
        "exact": result.exact,
        "seconds": result.seconds,
        "space_size": CompressorSpace().size,
    }


def _number(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise RecipeError(f"--budget {key}={text}: expected a number, such as {key}=0.5") from error


def _of_recipe(recipe: Recipe, work: Path, wait: bool) -> dict[str, Any]:
    from codemill.compress.places import check_folder
    from codemill.compress.progress import shown_progress

    check_folder(work, "--work")
    with quiet_stdout():
        from codemill.compress.preflight import preflight
        from codemill.compress.run import run_search

        preflight(recipe, work).raise_if_refused()
        with shown_progress() as progress:
            folder = run_search(recipe, work, progress, wait)
    found: dict[str, Any] = json.loads((folder / "search.json").read_text())
    figures = {key: found["best"][key] for key in ("gflops", "params_fp32_bytes", "size_bytes")}
    # the first objective, or the one that is maximised under limits
    fitness = figures["gflops"] if found["objective"] == "gflops" else found["best"]["quality"]
    return {
        **figures,
        "fitness": fitness,
        **{key: value for key, value in found.items() if key != "seen"},
    }
