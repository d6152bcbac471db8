"""`compress find`: the functions below a folder that do what a sentence says."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from codemill.compress.commands.output import (
    continues,
    json_option,
    print_json,
    printable,
    shown_path,
)
from codemill.runtime.languages import LANGUAGES, title_of

if TYPE_CHECKING:
    from codemill.runtime import Hit, Index

_READY = "code-search"
_CODE_LINES = 5


@click.command("find")
@click.argument("query")
@click.argument("folder", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="The bundle to search with, a folder or a .mill file. [default: the one that codemill brings]",
)
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="How many.")
@click.option(
    "--language",
    "languages",
    multiple=True,
    type=click.Choice(LANGUAGES, case_sensitive=False),
    help="Show functions of this language alone; may be given several times.",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Leave out files and folders as in .gitignore, such as tests; may be given several times.",
)
@json_option
def find_command(
    query: str,
    folder: Path,
    bundle: Path | None,
    top: int,
    languages: tuple[str, ...],
    exclude: tuple[str, ...],
    as_json: bool,
) -> None:
    """Find the functions below DIR that do what QUERY says.

    DIR is the current folder by default.

    The first search of a folder reads all of it; later ones read what has changed. What git ignores is
    left out. Python is always searched, other languages with: pip install 'codemill[find]'
    """
    from codemill.compress.progress import counting
    from codemill.runtime import Index, load_encoder
    from codemill.runtime.find import check_query
    from codemill.runtime.ready import ready_bundle

    check_query(query)
    with load_encoder(bundle or ready_bundle(_READY)) as encoder:
        continues()
        with counting("reading functions", "files") as progress:
            index = Index.open(folder, encoder, progress, exclude)
        hits = index.search(query, top=top, languages=languages or None)
    if as_json:
        print_json(
            {
                "query": query,
                "folder": folder,
                "bundle": encoder.digest,
                "functions": len(index),
                "files": index.files,
                "unreadable": {str(path): why for path, why in index.unreadable.items()},
                "passed_over": index.passed_over,
                "hits": [
                    {
                        "path": hit.path,
                        "line": hit.line,
                        "qualified_name": hit.qualified_name,
                        "language": hit.language,
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
    if not hits and len(index):
        where = (
            f" is in {' or '.join(map(title_of, languages))}"
            if languages
            else " stayed as it was read; ask again"
        )
        click.echo(f"no function below {folder}{where}", err=True)


def _warn(index: Index, folder: Path) -> None:
    unreadable = index.unreadable
    if unreadable:
        path, why = next(iter(unreadable.items()))
        more = f" and {len(unreadable) - 1} more" if len(unreadable) > 1 else ""
        click.echo(f"not read, or not to the end: {shown_path(path)} ({why}){more}", err=True)
    if index.passed_over:
        counts = [f"{count:,} of {title_of(name)}" for name, count in index.passed_over.items()]
        files = "file" if sum(index.passed_over.values()) == 1 else "files"
        click.echo(
            f"passed over: {', '.join(counts)} ({files}); to search them too: pip install 'codemill[find]'",
            err=True,
        )
    if not len(index):
        click.echo(f"there is no function to search below {folder}", err=True)


def _print(hit: Hit) -> None:
    place = click.style(f"{printable(shown_path(hit.path))}:{hit.line}", fg="cyan")
    name = click.style(printable(hit.qualified_name), bold=True)
    click.echo(f"{place}  {hit.score:.3f}  {name}")
    lines = [printable(line.expandtabs(4)) for line in hit.code.split("\n")]
    shown = lines[:_CODE_LINES] + (["..."] if len(lines) > _CODE_LINES else [])
    click.echo(textwrap.indent("\n".join(shown), "    ") + "\n")
