"""`compress predict`: labels of source files, of rows of JSON Lines, or of stdin.

Reads and prints; what is labelled how is the runtime's. A row that cannot be used is left out and
told of, so that one bad row among a million does not end the work.
"""

from __future__ import annotations

import gzip
import itertools
import json
import reprlib
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

import click

from codemill.compress.commands.output import json_option, print_json, table
from codemill.errors import DataError

if TYPE_CHECKING:
    from codemill.runtime import Classifier, Prediction

# enough to sort by length; bounds the memory that a pipe without an end takes
_ITEMS_AT_A_TIME = 1024
_MOST_BYTES = 10_000_000
_SKIPPED_SHOWN = 20
_FIRST = ("code", "code1", "func", "func1", "function", "function1", "original_string", "text")
_SECOND = ("code2", "func2", "function2", "text2")
"""Fields that are looked for, in this order."""
_TABLES = (".csv", ".tsv", ".json", ".ndjson", ".parquet", ".zst", ".csv.gz", ".tsv.gz", ".json.gz")
_EXPECTED = "expected source code, or JSON Lines in a file that ends in .jsonl or .jsonl.gz"


@dataclass(frozen=True)
class _Row:
    """One thing to label: where it is, and its texts, or why it cannot be used."""

    where: str
    texts: tuple[str, ...] = ()
    problem: str = ""


@click.command("predict")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("files", metavar="[FILE|-]...", nargs=-1)
@click.option("--jsonl", is_flag=True, help="FILE is JSON Lines, whatever its name; for stdin.")
@click.option(
    "--field", help="Of JSON Lines: what holds the text. [default: code, code1, func, ...]"
)
@click.option("--second", help="Of pairs: what holds the other text. [default: code2, func2, ...]")
@click.option("--variant", help="The bundle's variant to run; by default the best one here.")
@click.option(
    "--batch", type=click.IntRange(1), default=32, show_default=True, help="Texts in one batch."
)
@click.option(
    "--long",
    type=click.Choice(["truncate", "split"]),
    help="A text that is too long: cut off the rest, or divide it and average what is found. [default: as the "
    "bundle was made for]",
)
@click.option(
    "--exits/--no-exits",
    default=True,
    help="Let what is certain early leave early, where the bundle can. [default: --exits]",
)
@json_option
def predict_command(
    bundle: Path,
    files: tuple[str, ...],
    jsonl: bool,
    field: str | None,
    second: str | None,
    variant: str | None,
    batch: int,
    long: str | None,
    exits: bool,
    as_json: bool,
) -> None:
    """Label code with BUNDLE.

    A FILE of source code is one text; each line of a .jsonl or .jsonl.gz is one; without FILE, or
    with -, stdin is. For a bundle that labels pairs, give two files of source code, or JSON Lines
    with two fields. Prints label, probability and layers used of each.
    """
    from codemill.runtime import load_classifier

    _check_files(files)
    with load_classifier(bundle, variant=variant) as model:
        if long == "split" and model.labelling.joined:
            raise click.UsageError(
                f"{bundle} reads two texts together and cannot split them; use --long truncate"
            )
        sides = ((field,) if field else _FIRST, (second,) if second else _SECOND)
        fields = sides[: model.labelling.texts]
        rows = _rows(files or ("-",), jsonl, fields)
        problems: list[_Row] = []
        found: list[dict[str, Any]] = []
        count = skipped = 0
        while chunk := list(itertools.islice(rows, _ITEMS_AT_A_TIME)):
            usable = [row for row in chunk if not row.problem]
            bad = [row for row in chunk if row.problem]
            shown = bad[: _SKIPPED_SHOWN - len(problems)]
            problems += shown
            skipped += len(bad)
            predictions = _predict(model, usable, batch, long, exits)
            count += len(usable)
            if as_json:
                found += [
                    {"item": row.where, **asdict(prediction)}
                    for row, prediction in zip(usable, predictions, strict=True)
                ]
            elif usable:
                click.echo(table(list(_lines(usable, predictions, model.manifest.max_tokens))))
            for row in [] if as_json else shown:
                click.echo(f"skipped {row.where}: {row.problem}", err=True)
        if not count:
            first = f"{problems[0].where}: {problems[0].problem}" if problems else "no rows"
            raise DataError(f"there is nothing to label in {', '.join(files) or 'stdin'}: {first}")
        if as_json:
            print_json(
                {
                    "bundle": bundle,
                    "digest": model.digest,
                    "variant": model.variant,
                    "labels": list(model.labels),
                    "items": count,
                    "skipped": skipped,
                    "skipped_first": [
                        {"item": row.where, "problem": row.problem} for row in problems
                    ],
                    "predictions": found,
                }
            )
        elif skipped:
            click.echo(f"skipped {skipped:,} of {count + skipped:,} rows", err=True)


def _predict(
    model: Classifier, rows: Sequence[_Row], batch: int, long: str | None, exits: bool
) -> list[Prediction]:
    items = [row.texts[0] if model.labelling.texts == 1 else row.texts for row in rows]
    # click lets no other through
    chosen = cast(Literal["truncate", "split"] | None, long)
    return model.predict(items, batch_size=batch, long=chosen, exits=exits)


def _lines(
    rows: Sequence[_Row], predictions: Sequence[Prediction], max_tokens: int
) -> Iterator[tuple[str, ...]]:
    for row, found in zip(rows, predictions, strict=True):
        layers = f"{found.layers_used} layer{'' if found.layers_used == 1 else 's'}"
        note = f"cut off at {max_tokens} tokens" if found.truncated else ""
        yield row.where, found.label, f"{found.score:.3f}", layers, note


def _check_files(files: Sequence[str]) -> None:
    """Before the bundle is loaded: each is a file, or the one stdin."""
    from codemill.targets.json_lines import check_there

    if files.count("-") > 1:
        raise click.UsageError("stdin can be read once: give - once")
    for file in files:
        if file != "-":
            check_there(Path(file), "the file", _EXPECTED)
            if file.endswith(_TABLES):
                raise DataError(f"{file} holds rows and is no source code; {_EXPECTED}")


def _rows(files: Sequence[str], jsonl: bool, fields: Sequence[Sequence[str]]) -> Iterator[_Row]:
    """What to label, in order."""
    lines = [jsonl or Path(file).name.endswith((".jsonl", ".jsonl.gz")) for file in files]
    if len(fields) == 2 and not all(lines):
        if len(files) != 2 or any(lines):
            raise click.UsageError(
                "this bundle labels pairs: give two files of source code, or JSON Lines with "
                f"{fields[0][0]!r} and {fields[1][0]!r} (--jsonl for stdin; --field, --second)"
            )
        sources = [_source(file) for file in files]
        yield _Row(
            where=" ".join(row.where for row in sources),
            texts=tuple(text for row in sources for text in row.texts),
            problem=next((f"{row.where}: {row.problem}" for row in sources if row.problem), ""),
        )
        return
    for file, is_lines in zip(files, lines, strict=True):
        if is_lines:
            yield from _json_rows(file, fields)
        else:
            yield _source(file)


def _source(file: str) -> _Row:
    where = "stdin" if file == "-" else file
    try:
        with _open(file) as opened:
            content = opened.read(_MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{where} cannot be read: {error}") from error
    if b"\0" in content:
        return _Row(where, problem=f"it is no text; {_EXPECTED}")
    if len(content) > _MOST_BYTES:
        return _Row(where, problem=f"larger than {_MOST_BYTES:,} bytes")
    # comments of old code are in any encoding
    text = content.decode("utf-8-sig", "replace")
    return _Row(where, (text,)) if text.strip() else _Row(where, problem="it is empty")


def _json_rows(file: str, fields: Sequence[Sequence[str]]) -> Iterator[_Row]:
    name = "stdin" if file == "-" else file
    number = 0
    try:
        with _open(file) as opened:
            while line := opened.readline(_MOST_BYTES + 1):
                number += 1
                where = f"{name}:{number}"
                if len(line) > _MOST_BYTES:
                    yield _Row(where, problem=f"longer than {_MOST_BYTES:,} bytes")
                    # what is left of it is no line of its own
                    while line and not line.endswith(b"\n"):
                        line = opened.readline(_MOST_BYTES)
                elif line.strip():
                    yield _json_row(where, line, fields)
    except (OSError, EOFError, zlib.error) as error:
        after = f" after line {number}" if number else ""
        raise DataError(f"{name} cannot be read{after}: {error}") from error


def _json_row(where: str, line: bytes, fields: Sequence[Sequence[str]]) -> _Row:
    try:
        data = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return _Row(where, problem=f"not JSON: {error}")
    if not isinstance(data, dict):
        return _Row(where, problem=f"expected a JSON object, found {type(data).__name__}")
    texts = []
    for names in fields:
        field = next((name for name in names if name in data), names[0])
        text = data.get(field)
        if not isinstance(text, str) or not text.strip():
            found = reprlib.repr(text) if field in data else f"fields {reprlib.repr(sorted(data))}"
            return _Row(where, problem=f"expected text under {field!r}, found {found}")
        texts.append(text)
    return _Row(where, tuple(texts))


def _open(file: str) -> AbstractContextManager[IO[bytes]]:
    if file == "-":
        if sys.stdin is None:
            raise DataError("stdin is closed; give a FILE, or pipe the code in")
        return nullcontext(sys.stdin.buffer)
    if file.endswith(".gz"):
        return cast(AbstractContextManager[IO[bytes]], gzip.open(file, "rb"))
    return Path(file).open("rb")
