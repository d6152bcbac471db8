"""`compress bench` of a bundle that completes: lines completed at the places of a file, engines in turns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from codemill import __version__
from codemill.compress.commands.bundle import folder_of
from codemill.compress.commands.output import print_json, table
from codemill.errors import InputError

if TYPE_CHECKING:
    from codemill.compress.commands.bench_target import AskedTarget
    from codemill.runtime import Manifest
    from codemill.targets.completion_benchmark import CompletionEngine

__all__ = ["bench_completion"]

_NEW_TOKENS = 32
_FULL, _SHIPPED = "full depth", "as it ships"


def bench_completion(
    bundle: Path,
    manifest: Manifest,
    evaluation: Path,
    against: str | None,
    variant: str | None,
    threads: int,
    target: AskedTarget | None,
    places: int | None,
    human_eval: bool,
    examples: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure, print, and write into `out`. Raises InputError for what cannot be compared."""
    from codemill.compress.commands.bench import completion_page, write_reports
    from codemill.compress.commands.bench_target import memory_limits, memory_line
    from codemill.compress.progress import shown_stage
    from codemill.targets import bundle_summary
    from codemill.targets.codec import to_json
    from codemill.targets.completion import read_completion_evaluation
    from codemill.targets.completion_benchmark import (
        CompletionReport,
        benchmark_completion,
        write_completion_report,
    )
    from codemill.targets.completion_page import completion_rows
    from codemill.targets.environment import this_environment

    asked = read_completion_evaluation(evaluation)
    if places is not None:
        asked = replace(asked, prefixes=asked.prefixes[:places], lines=asked.lines[:places])
    _check_room(str(bundle), manifest, human_eval)
    environment = this_environment()
    engines = _engines(bundle, manifest, "bundle", variant, threads)
    own, baseline = engines[-1], engines[0].name
    if against is not None:
        reference = _reference(against, threads, human_eval)
        # at full depth, with all that counts for what it says
        baseline = reference[-2].name
        engines = [*reference, *engines]
    with shown_stage("measuring") as said:
        results = benchmark_completion(
            engines, asked, baseline, _NEW_TOKENS, said, human_eval, examples
        )
    chosen = own.engine.argv[own.engine.argv.index("--variant") + 1]
    # of the process that runs the bundle as it ships
    peak = next(item.peak_rss_bytes for item in results if item.name == own.name)
    report = CompletionReport(
        schema=1,
        codemill=__version__,
        created_at=environment.measured_at,
        title=manifest.name,
        task=manifest.task,
        bundle=bundle_summary(folder_of(bundle), chosen),
        bundle_engine=own.name,
        baseline=baseline,
        evaluation=asked.name,
        evaluation_sha256=asked.sha256,
        engines=results,
        environment=environment,
        limits=memory_limits(target, peak),
        target=target.said if target else None,
        provenance=dict(manifest.provenance),
    )
    written = (
        write_reports(
            out, completion_page([report]), lambda path: write_completion_report(path, report)
        )
        if out
        else []
    )
    if as_json:
        print_json({**to_json(report), "files": [str(path) for path in written]})
        return
    click.echo(table(completion_rows(report), heading=True))
    if target is not None:
        click.echo(memory_line(target, peak))
    for path in written:
        click.echo(f"wrote {path}", err=True)


def _engines(
    bundle: Path, manifest: Manifest, name: str, variant: str | None, threads: int
) -> list[CompletionEngine]:
    """A bundle's model at full depth, with n-grams where they count, and with all that it ships with."""
    from codemill.runtime.completion.decoding import decoding_of
    from codemill.targets.completion_benchmark import CompletionEngine, means_of
    from codemill.targets.engine import bundle_engine

    engine = bundle_engine(bundle, variant, threads, name=name)
    decoding = decoding_of(manifest)
    what = means_of(
        exits=any(item.exit is not None for item in decoding.exits),
        ngrams=bool(decoding.escapes),
        stops=any(item.stop is not None for item in decoding.exits),
    )
    full = {"exits": False, "drafts": False}
    found = [CompletionEngine(f"{name}, {_FULL}", engine, full | {"ngrams": False})]
    if decoding.escapes:
        found.append(CompletionEngine(f"{name}, {_FULL}, n-grams", engine, full))
    shipped = {"exits": True, "drafts": True}
    return [*found, CompletionEngine(f"{name}, {_SHIPPED}: {what}", engine, shipped)]


def _check_room(name: str, manifest: Manifest, human_eval: bool) -> None:
    """InputError where what is measured has no room in a bundle's context."""
    from codemill.targets.completion_benchmark import fewest_tokens

    wanted = fewest_tokens(_NEW_TOKENS, human_eval) + len(manifest.input.get("begin", ()))
    if manifest.max_tokens < wanted:
        raise InputError(
            f"{name} takes {manifest.max_tokens} tokens, prompt and completion together; "
            f"{'--human-eval' if human_eval else 'measuring'} needs {wanted}: export it with a larger --max-tokens"
        )


def _reference(against: str, threads: int, human_eval: bool) -> list[CompletionEngine]:
    from codemill.runtime.bundle import read_manifest
    from codemill.runtime.completion.completer import completes

    path = Path(against)
    manifest = read_manifest(folder_of(path))
    if not completes(manifest):
        raise InputError(
            f"--against {against}: it is made for {manifest.task!r}, and this bundle completes; give another that does"
        )
    _check_room(f"--against {against}", manifest, human_eval)
    # never the name of the bundle's own engines, whatever the folder is called
    found = _engines(path, manifest, f"reference {path.resolve().name}", None, threads)
    return [replace(item, engine=replace(item.engine, role="reference")) for item in found]
