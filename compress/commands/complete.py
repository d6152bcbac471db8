"""`compress complete`: what comes next at a place in a file, or behind stdin. The rest is the runtime's."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path

import click

from codemill.compress.commands.output import NumberIn, json_option, print_json
from codemill.errors import InputError

_MOST_BYTES = 10_000_000


@click.command("complete")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("stdin", metavar="[-]", type=click.Choice(["-"]), required=False)
@click.option("--file", type=click.Path(path_type=Path), help="A source file to complete in.")
@click.option(
    "--line", type=click.IntRange(1), help="Of the place in FILE, from 1. [default: its last]"
)
@click.option(
    "--column",
    type=click.IntRange(1),
    help="Of the place in its line, from 1, in characters. [default: the line's end]",
)
@click.option("--max-tokens", type=click.IntRange(1), default=64, show_default=True)
@click.option(
    "--mode",
    type=click.Choice(["line", "block", "all"]),
    default="line",
    show_default=True,
    help="To the end of the line; until a line is indented less; or until --max-tokens.",
)
@click.option("--stop", multiple=True, help="A text that ends it; may be given several times.")
@click.option(
    "--temperature",
    type=NumberIn(0, 100),
    default=0.0,
    show_default=True,
    help="0 takes the likeliest token each time.",
)
@click.option("--top-p", type=NumberIn(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--seed", type=click.IntRange(0), help="Of what is drawn with a temperature.")
@click.option(
    "--exits/--no-exits",
    default=True,
    help="Let tokens leave early, and give up what is uncertain, where the bundle can. [default: --exits]",
)
@click.option(
    "--drafts/--no-drafts",
    default=True,
    help="Look what followed before, and check it at once. [default: --drafts]",
)
@click.option(
    "--ngrams/--no-ngrams",
    default=True,
    help="Let what followed the same tokens before count, where the bundle is calibrated for it. [default: --ngrams]",
)
@click.option(
    "--speculate",
    is_flag=True,
    help="Exits say what may follow, and the layers above check it at once: the text of full depth.",
)
@click.option("--stream", is_flag=True, help="Print each piece as soon as it is certain.")
@click.option("--variant", help="The bundle's variant to run; by default the best one here.")
@click.option("--threads", type=click.IntRange(1, 1024), help="[default: the physical cores]")
@json_option
def complete_command(
    bundle: Path,
    stdin: str | None,
    file: Path | None,
    line: int | None,
    column: int | None,
    max_tokens: int,
    mode: str,
    stop: tuple[str, ...],
    temperature: float,
    top_p: float,
    seed: int | None,
    exits: bool,
    drafts: bool,
    ngrams: bool,
    speculate: bool,
    stream: bool,
    variant: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Complete code with BUNDLE, at a place in --file or behind stdin.

    A bundle whose model was trained to fill reads what is behind the place too; others read what is before it. Prints
    the completion alone; --json says why it ended, and what it took.
    """
    if (file is None) and (line is not None or column is not None):
        raise click.UsageError("--line and --column are of a file: give --file")
    if file is not None and stdin is not None:
        raise click.UsageError("give --file or -, not both")
    if stream and as_json:
        raise click.UsageError("--stream prints text: leave out --json")
    from codemill.runtime import load_completer

    text = _read(file)
    at = len(text) if file is None else _place(text, file, line, column)
    with load_completer(bundle, variant=variant, threads=threads) as model:
        started = time.perf_counter()
        try:
            pieces = model.stream(
                text[:at],
                text[at:] if model.fills else "",
                max_tokens=max_tokens,
                mode=None if mode == "all" else mode,  # type: ignore[arg-type]
                stop=stop,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                exits=exits,
                drafts=drafts,
                ngrams=ngrams,
                speculate=speculate,
            )
        except ValueError as error:
            # what only the bundle knows: how long its context is
            raise InputError(str(error)) from error
        with pieces:
            for piece in pieces:
                if stream:
                    click.echo(_shown(piece), nl=False)
                    sys.stdout.flush()
        found = pieces.completion
        if as_json:
            print_json({**asdict(found), "seconds": round(time.perf_counter() - started, 4)})
        else:
            click.echo("" if stream else _shown(found.text))
        if found.finish_reason == "uncertain" and not as_json:
            click.echo("ended early: what follows would be uncertain", err=True)


def _shown(text: str) -> str:
    """Text for a terminal, which control characters would drive; whoever reads a pipe gets what was said."""
    if not sys.stdout.isatty():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _read(file: Path | None) -> str:
    """The file's text, or stdin's; bytes that are no UTF-8 become marks."""
    if file is None:
        content = sys.stdin.buffer.read(_MOST_BYTES + 1)
    else:
        try:
            with file.open("rb") as opened:
                content = opened.read(_MOST_BYTES + 1)
        except OSError as error:
            raise InputError(f"--file {file} cannot be read: {error.strerror or error}") from error
    if len(content) > _MOST_BYTES:
        raise InputError(f"more than {_MOST_BYTES:,} bytes of source code; expected one file")
    return content.decode("utf-8", "replace")


def _place(text: str, file: Path, line: int | None, column: int | None) -> int:
    """Where in the text a line and a column are."""
    lines = text.split("\n")
    if line is not None and line > len(lines):
        raise InputError(f"--line {line}: {file} has {len(lines)} lines")
    number = len(lines) if line is None else line
    # in a file of Windows the line ends before its \r
    length = len(lines[number - 1].removesuffix("\r"))
    if column is not None and column > length + 1:
        raise InputError(
            f"--column {column}: line {number} of {file} has {length} characters, so {length + 1} at most"
        )
    before = sum(len(item) + 1 for item in lines[: number - 1])
    return before + (length if column is None else column - 1)
