"""`compress analyze`: what each layer of a model holds, and how many of the lowest to freeze."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from codemill.compress.commands.output import (
    json_option,
    print_json,
    quiet_stdout,
    require_extra,
    table,
)

if TYPE_CHECKING:
    from codemill.targets.analysis import LayerAnalysis

_FILES = ("analysis.json", "analysis.html")


@click.command("analyze")
@click.option(
    "--model",
    required=True,
    help="An encoder or a decoder: a folder, owner/name or package:NAME.",
)
@click.option(
    "--data",
    default="installed",
    show_default=True,
    help="Code: .jsonl, .csv, .parquet ..., with queries or labels where it has them; or the functions of the "
    "`installed` packages.",
)
@click.option(
    "--finetuned",
    metavar="MODEL",
    help="The same model after fine-tuning, to compare with; or a run's folder with finetuned.safetensors.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="A folder for analysis.json and .html."
)
@click.option(
    "--texts",
    type=click.IntRange(20, 1_000_000),
    default=600,
    show_default=True,
    help="Functions to look at.",
)
@click.option(
    "--items",
    type=click.IntRange(100, 1_000_000),
    default=4_000,
    show_default=True,
    help="Tokens, or pairs, of each property to probe.",
)
@click.option(
    "--max-tokens", type=click.IntRange(8, 100_000), default=128, show_default=True, help="Of each."
)
@click.option(
    "--memory-mb",
    type=click.IntRange(1, 1_000_000),
    default=512,
    show_default=True,
    help="For layers' outputs; with less, the model runs several times.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--language", help="Of the code. [default: guessed]")
@click.option("--code-field", metavar="NAME")
@click.option("--query-field", metavar="NAME")
@click.option("--label-field", metavar="NAME")
@json_option
def analyze_command(
    model: str,
    data: str,
    finetuned: str | None,
    out: Path | None,
    texts: int,
    items: int,
    max_tokens: int,
    memory_mb: int,
    seed: int,
    language: str | None,
    code_field: str | None,
    query_field: str | None,
    label_field: str | None,
    as_json: bool,
) -> None:
    """Look into a model's layers.

    Linear probes read properties of code off every layer; with --finetuned, the two models are compared layer by
    layer. Ends with how many of the lowest layers to freeze in fine-tuning, and why.
    """
    require_extra("compress", "`compress analyze`")
    from codemill.compress.places import check_file_out, check_folder
    from codemill.targets.codec import to_json

    # all that can be wrong with what was asked for is found before anything is run
    if out is not None:
        check_folder(out)
        for name in _FILES:
            check_file_out(out / name)
    if language is not None:
        from codemill.compress.rewrite.syntax import grammar_of

        grammar_of(language)
    with quiet_stdout():
        from codemill.compress.analyze.analysis import Settings, analyze
        from codemill.compress.analyze.source import read_snippets
        from codemill.compress.analyze.stack import load_finetuned, load_stack

        snippets = read_snippets(
            data,
            texts,
            seed,
            code_field=code_field,
            query_field=query_field,
            label_field=label_field,
        )
        stack = load_stack(model)
        other = None if finetuned is None else load_finetuned(finetuned, model, stack)
        settings = Settings(max_tokens, items, seed, memory_mb * 1_000_000, language)
        with _shown() as progress:
            found = analyze(snippets, stack, other, settings, (model, data, finetuned), progress)
    written = [] if out is None else _write(found, out)
    if as_json:
        print_json({**to_json(found), "files": [str(path) for path in written]})
        return
    click.echo(_table(found))
    click.echo(
        f"\nfreeze the lowest {found.recommendation.freeze_layers} of {found.layers} layers, and the embeddings\n"
        f"{found.recommendation.reason}"
    )
    for note in found.notes:
        click.echo(note, err=True)
    for path in written:
        click.echo(f"wrote {path}", err=True)


@contextlib.contextmanager
def _shown() -> Iterator[Callable[[float, str], None]]:
    from codemill.compress.progress import shown_progress

    started = time.monotonic()
    with shown_progress() as shown:
        yield shown.stage("analyzing", 1, 1, False)
        shown.finished("analyzing", time.monotonic() - started)


def _table(found: LayerAnalysis) -> str:
    """Accuracy by layer, and in brackets selectivity."""
    from codemill.targets.analysis_page import layer_table

    heads, rows = layer_table(found)
    lines: list[list[str]] = [["layer", *(head for head, _ in heads)]]
    for name, cells in rows:
        lines.append([name, *(f"{main} ({small})" if small else main for main, small in cells)])
    return table(lines, heading=True)


def _write(found: LayerAnalysis, out: Path) -> list[Path]:
    from codemill.compress.places import write_out
    from codemill.targets.analysis import write_analysis
    from codemill.targets.analysis_page import analysis_page

    with warnings.catch_warnings():
        # the page's own font draws the names
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        page = analysis_page(found)
    data, drawn = (out / name for name in _FILES)
    write_out(drawn, page.encode())
    write_analysis(data, found)
    return [data, drawn]
