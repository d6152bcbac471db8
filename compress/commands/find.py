"""`compress find`: the functions below a folder that do what a sentence says."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from codemill.compress.commands.output import json_option, print_json, shown_path
from codemill.errors import BundleError

if TYPE_CHECKING:
    from codemill.runtime import Hit, Index

# where `compress run code-search` leaves its bundle
_DEFAULT_BUNDLE = Path("code-search-bundle")
_CODE_LINES = 5


@click.command("find")
@click.argument("query")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help=f"The bundle to search with, a folder or a .mill file. [default: ./{_DEFAULT_BUNDLE}]",
)
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="How many.")
@click.option(
    "--exclude",
    multiple=True,
    metavar="NAME",
    help="Leave out folders of this name, such as tests; may be given several times.",
)
@json_option
def find_command(
    query: str,
    folder: Path,
    bundle: Path | None,
    top: int,
    exclude: tuple[str, ...],
    as_json: bool,
) -> None:
    """Find the functions below DIR that do what QUERY says.

    The first search of a folder reads all of it; later ones read what has changed.
    """
    from codemill.compress.progress import counting
    from codemill.runtime import Index, load_encoder

    if bundle is None and not _DEFAULT_BUNDLE.exists():
        raise BundleError(
            f"there is no bundle at ./{_DEFAULT_BUNDLE}; give one with --bundle, or make one with "
            "`compress run code-search`"
        )
    with load_encoder(bundle or _DEFAULT_BUNDLE) as encoder:
        with counting("reading functions", "files") as progress:
            index = Index.open(folder, encoder, progress, exclude)
        hits = index.search(query, top=top)
    if as_json:
        print_json(
            {
                "query": query,
                "folder": folder,
                "functions": len(index),
                "files": index.files,
                "unreadable": {str(path): why for path, why in index.unreadable.items()},
                "hits": [
                    {
                        "path": hit.path,
                        "line": hit.line,
                        "qualified_name": hit.qualified_name,
                        "score": round(hit.score, 4),
                        "code": hit.code,
                    }
                    for hit in hits
                ],
            }
        )
        return
    _warn(index, folder)
    for hit in hits:
        _print(hit)


def _warn(index: Index, folder: Path) -> None:
    unreadable = index.unreadable
    if unreadable:
        path, why = next(iter(unreadable.items()))
        more = f" and {len(unreadable) - 1} more" if len(unreadable) > 1 else ""
        click.echo(f"left out, could not be read: {path} ({why}){more}", err=True)
    if not len(index):
        click.echo(f"there is no Python function below {folder}", err=True)


def _print(hit: Hit) -> None:
    place = click.style(f"{shown_path(hit.path)}:{hit.line}", fg="cyan")
    name = click.style(hit.qualified_name, bold=True)
    click.echo(f"{place}  {hit.score:.3f}  {name}")
    lines = hit.code.splitlines()
    shown = lines[:_CODE_LINES] + (["..."] if len(lines) > _CODE_LINES else [])
    click.echo(textwrap.indent("\n".join(shown), "    ") + "\n")
