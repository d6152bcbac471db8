"""`compress encode`: embeddings of lines of text, for pipes and for trying a bundle out."""

from __future__ import annotations

import io
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from codemill.compress.commands.output import json_option, print_json
from codemill.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# enough to sort by length; bounds the memory that a pipe without an end takes
_LINES_AT_A_TIME = 1024
_MOST_LINE_BYTES = 1_000_000


@click.command("encode")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("file", default="-")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a float32 array [lines, dim] to this .npy file instead.",
)
@click.option("--variant", help="The bundle's variant to run; by default the best one here.")
@click.option(
    "--jsonl", is_flag=True, help="Each line is a JSON string: for texts of several lines."
)
@json_option
def encode_command(
    bundle: Path, file: str, out: Path | None, variant: str | None, jsonl: bool, as_json: bool
) -> None:
    """Embed the lines of FILE.

    One text a line; without FILE, or with -, from stdin. Prints one JSON list of floats a line.
    """
    from codemill.compress.places import check_file_out
    from codemill.runtime import load_encoder

    if out is not None:
        check_file_out(out)
    with load_encoder(bundle, variant=variant) as encoder:
        parts: list[NDArray[np.float32]] = []
        texts = _texts(file, jsonl)
        while chunk := list(itertools.islice(texts, _LINES_AT_A_TIME)):
            rows = encoder.encode(chunk)
            if out is None and not as_json:
                for row in rows:
                    click.echo(json.dumps(_floats(row)))
            else:
                parts.append(rows)
        found: dict[str, Any] = {
            "bundle": bundle,
            "digest": encoder.digest,
            "variant": encoder.variant,
            "texts": sum(map(len, parts)),
            "dim": encoder.dim,
        }
        if out is not None:
            _save(out, [encoder.encode([]), *parts])
            found["out"] = out
            if not as_json:
                shape = f"[{found['texts']}, {encoder.dim}]"
                click.echo(f"{out}: float32 {shape}", err=True)
        else:
            found["embeddings"] = [_floats(row) for part in parts for row in part]
    if as_json:
        print_json(found)


def _texts(file: str, jsonl: bool) -> Iterator[str]:
    """The texts in a file or in stdin; DataError names the file and the line."""
    where = "stdin" if file == "-" else file
    parse = _json_text if jsonl else str
    try:
        with _open(file) as opened:
            for number in itertools.count(1):
                raw = opened.readline(_MOST_LINE_BYTES + 1)
                if not raw:
                    return
                if len(raw) > _MOST_LINE_BYTES:
                    raise DataError(
                        f"{where}, line {number}: longer than {_MOST_LINE_BYTES:,} bytes; "
                        "what is beyond the bundle's longest input is cut off anyway"
                    )
                try:
                    # an editor may have put a byte order mark at the start
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                    yield parse(line.rstrip("\r\n"))
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{where}, line {number}: {error}") from error
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror or error}") from error


def _open(file: str) -> AbstractContextManager[IO[bytes]]:
    if file == "-" and sys.stdin is None:
        raise DataError("stdin is closed; give a FILE, or pipe the texts in")
    return nullcontext(sys.stdin.buffer) if file == "-" else Path(file).open("rb")


def _json_text(line: str) -> str:
    text = json.loads(line)
    if not isinstance(text, str):
        raise ValueError(f"expected a JSON string, found {line[:40]!r}")
    return text


def _save(out: Path, parts: list[NDArray[np.float32]]) -> None:
    import numpy as np

    from codemill.compress.places import write_out

    buffer = io.BytesIO()
    np.save(buffer, np.concatenate(parts), allow_pickle=False)
    write_out(out, buffer.getvalue())


def _floats(row: NDArray[np.float32]) -> list[float]:
    # nine digits are what a float32 has
    return [float(f"{value:.9g}") for value in row]
