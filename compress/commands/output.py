"""What the commands share: JSON on stdout and nothing beside it, tables, and missing extras."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codemill.errors import MachineError

if TYPE_CHECKING:
    from codemill.targets.report import Report

__all__ = [
    "TASKS",
    "NumberIn",
    "continues",
    "doubts_said",
    "in_bytes",
    "is_given",
    "json_option",
    "plain_name",
    "print_json",
    "printable",
    "quiet_stdout",
    "report_rows",
    "require_extra",
    "shown_path",
    "table",
]

# import names of what an extra installs and its commands cannot do without
_EXTRAS = {
    "compress": (
        *("jinja2", "matplotlib", "onnx", "onnxscript", "optimum", "psutil", "pydantic"),
        *("pygad", "rich", "safetensors", "scipy", "sklearn", "torch", "transformers", "yaml"),
    ),
    "bench": ("jinja2", "matplotlib", "psutil", "rich", "yaml"),
}

TASKS = ("retrieval", "classification", "pair-classification", "completion")
"""What a bundle can do, as recipes name it."""


class NumberIn(click.FloatRange):
    """A number in a range; click takes `nan` for one in any."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number; click's error where it is none, or outside."""
        found: float = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value!r} is not a number", param, ctx)
        return found


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."
)


def is_given(name: str) -> bool:
    """Whether the parameter `name` of the command that runs stood on the command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def continues() -> None:
    """From here on the command keeps what is finished: given again, it goes on there, which is said if it is ended."""
    from codemill.compress.commands import Options

    options = click.get_current_context().find_object(Options)
    if options is not None:
        options.continues = True


def require_extra(extra: str, what: str, only: Sequence[str] | None = None) -> None:
    """Raise MachineError saying how to install `extra` where `what` would miss a package.

    `only`: the packages that it uses, where those are not all that the extra installs.
    """
    # looks for the packages without importing them
    missing = [name for name in only or _EXTRAS[extra] if find_spec(name) is None]
    if missing:
        raise MachineError(
            f"{what} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            f"installed; run: pip install 'codemill[{extra}]'"
        )


def print_json(value: Any) -> None:
    """One document on stdout; keys stay in the order they were given in."""
    click.echo(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, default=_plain))


def _plain(value: object) -> str:
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    raise TypeError(f"{type(value).__name__} is not JSON")


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """While it lasts, what anything prints to stdout goes to stderr; C libraries' prints too.

    Leave it before the result is printed.
    """
    # closed by whoever started us
    if sys.stdout is not None:
        sys.stdout.flush()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        try:
            out, err = sys.__stdout__.fileno(), sys.__stderr__.fileno()  # type: ignore[union-attr]
            kept = os.dup(out)
        # no such descriptors: started without them, or with replaced streams
        except (AttributeError, OSError, ValueError, io.UnsupportedOperation):
            kept = None
        if kept is not None:
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, out)
            os.dup2(err, out)
        yield


def table(rows: Sequence[Sequence[str]], heading: bool = False) -> str:
    """Rows in columns as wide as their widest cell; short rows leave their last cells empty.

    With `heading`, a rule stands under the first row.
    """
    columns = max((len(row) for row in rows), default=0)
    filled = [[*map(printable, row), *[""] * (columns - len(row))] for row in rows]
    widths = [max(len(row[i]) for row in filled) for i in range(columns)]
    if heading and filled:
        filled.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in filled
    )


def printable(cell: str) -> str:
    """On one line, and without what a terminal would obey: names come from files of others."""
    # half a surrogate pair stands for a byte of a file's name, and is shown as its number
    return "".join(
        letter if letter.isprintable() or "\ud800" <= letter <= "\udfff" else "\ufffd"
        for letter in cell
    )


def plain_name(text: str, default: str) -> str:
    """A recipe's name made of any text: letters, digits, `.`, `_` and `-`; `default` where none is left."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")
    return name[:100] or default


def report_rows(report: Report) -> list[tuple[str, ...]]:
    """The report's table of engines for a terminal: a heading row, then a figure a row."""
    from codemill.targets.tables import engine_rows

    engines = sorted(report.benchmark.engines, key=lambda e: e.name == report.bundle_engine)
    rows: list[tuple[str, ...]] = [("", *(engine.name for engine in engines))]
    for row in engine_rows(report, engines):
        # one without cells is a heading of the page
        if row.cells:
            cells = (f"{c.main}  {c.ratio}".rstrip() if c is not None else "" for c in row.cells)
            # word joiners forbid line breaks on the page; some terminals show them
            rows.append((row.name, *(cell.replace("\u2060", "") for cell in cells)))
    return rows


def doubts_said(report: Report) -> list[str]:
    """Why a report's times are to be doubted, for a terminal; empty where nothing was seen."""
    from codemill.targets.tables import busy_said

    busy = busy_said(report.benchmark.environment, bool(report.benchmark.comparisons))
    return [f"! {line}" for line in (busy, *report.benchmark.doubts) if line]


def in_bytes(size: float) -> str:
    """As `2.97 MB (2,970,123 bytes)`, decimal megabytes."""
    return f"{size / 1e6:.2f} MB ({size:,.0f} bytes)"


def shown_path(path: Path) -> str:
    """`path` relative to the current folder where it is below it."""
    try:
        return os.fspath(path.resolve().relative_to(Path.cwd().resolve()))
    except (OSError, ValueError):
        return os.fspath(path)
