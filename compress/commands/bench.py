"""`compress bench` and `report`: measuring on this machine, and showing it."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from codemill.compress.commands.bundle import folder_of, is_bundle
from codemill.compress.commands.output import (
    doubts_said,
    json_option,
    print_json,
    report_rows,
    require_extra,
    table,
)
from codemill.errors import DataError, InputError, ProviderError

if TYPE_CHECKING:
    from codemill.runtime import Manifest
    from codemill.targets.completion_benchmark import CompletionReport
    from codemill.targets.engine import Engine
    from codemill.targets.evaluation import Evaluation, LabelledEvaluation
    from codemill.targets.report import Report

_EVALUATION = "evaluation.jsonl.gz"
_ROUNDS = 3
REPORTS = ("report.json", "report.html")


@click.command("bench")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--against",
    metavar="MODEL",
    help="A model to compare with, run in PyTorch (a folder, owner/name or package:NAME), "
    "or another bundle. A bundle that labels or completes is compared with another bundle.",
)
@click.option(
    "--variant",
    help="The bundle's variant to run; by default the best one here. One for web pages is what --browser runs, with "
    "the best one here beside it.",
)
@click.option(
    "--evaluation",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Queries and functions, labelled rows, or places and the lines there, to measure on. "
    f"[default: {_EVALUATION} in the bundle's folder]",
)
@click.option(
    "--target",
    metavar="NAME",
    help="Measure as a kind of machine does that this one can stand for (`compress targets`, or a profile, a .yaml): "
    "with its threads, at its lengths of text, its variant where the bundle has one; and whether the process stays "
    "within its memory. Of a bundle that completes: all but the lengths.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="Of each engine. [default: the target's, else the physical cores]",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 1000),
    help="Fresh processes of each engine; of a bundle that completes there is one. [default: 3]",
)
@click.option(
    "--places",
    type=click.IntRange(1),
    help="Of a bundle that completes: so many of the evaluation's places. [default: all]",
)
@click.option(
    "--human-eval",
    is_flag=True,
    help="Of a bundle that completes: write HumanEval's 164 functions too, and run them on their tests, each in a "
    "process with limits (Python that a model wrote is run on this machine).",
)
@click.option(
    "--variants",
    "every",
    is_flag=True,
    help="Measure all variants that run here beside each other; `codemill.load` takes the best from then on, on this "
    "machine: of the fastest, and those that cannot be told apart from it, the smallest.",
)
@click.option(
    "--browser",
    metavar="PAGES",
    type=click.Path(path_type=Path),
    help="Measure it in headless Chromium as well, by onnxruntime-web; PAGES is examples/browser, after `npm install` "
    "in it.",
)
@click.option(
    "--browser-variant",
    metavar="NAME",
    help="What the browser runs. [default: what --variant names, else what a page takes by itself]",
)
@click.option(
    "--examples",
    type=click.IntRange(0, 20),
    default=6,
    show_default=True,
    help="Queries, or lines to complete, of which the report shows the text and what the bundle makes of it.",
)
@click.option("--out", type=click.Path(path_type=Path), help="A folder for report.json and .html.")
@json_option
def bench_command(
    bundle: Path,
    against: str | None,
    variant: str | None,
    evaluation: Path | None,
    target: str | None,
    threads: int | None,
    rounds: int | None,
    places: int | None,
    human_eval: bool,
    every: bool,
    browser: Path | None,
    browser_variant: str | None,
    examples: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure BUNDLE on this machine.

    Latency, cold start, memory and quality of the bundle, and of what it is compared with; of one that completes, time
    and quality of completed lines. Every engine runs in processes of its own, alternating. Leave the machine alone
    meanwhile.
    """
    require_extra("bench", "`compress bench`")
    from codemill.compress.commands.bench_completion import bench_completion
    from codemill.compress.commands.bench_target import (
        asked_target,
        memory_limits,
        memory_line,
        shapes_for,
        threads_for,
        variant_for,
    )
    from codemill.compress.progress import shown_stage
    from codemill.runtime.bundle import read_manifest
    from codemill.runtime.completion.completer import completes
    from codemill.targets import bundle_engine, bundle_summary, make_report, write_report
    from codemill.targets.benchmark import benchmark
    from codemill.targets.codec import to_json

    # all that can be wrong with what was asked for is found before anything is measured
    manifest = read_manifest(folder_of(bundle))
    measured_as = asked_target(target) if target is not None else None
    # said to both: left to themselves, PyTorch and ONNX Runtime count cores differently
    threads = threads or threads_for(measured_as)
    completing = completes(manifest)
    if completing and rounds is not None:
        raise click.UsageError(
            "--rounds: a bundle that completes is measured in one process; give --places"
        )
    for option, given in (("--places", places is not None), ("--human-eval", human_eval)):
        if given and not completing:
            raise click.UsageError(f"{option} is of a bundle that completes")
    for option, given in (("--browser", browser is not None), ("--variants", every)):
        if given and completing:
            raise click.UsageError(f"{option} is of a bundle that embeds or labels")
    if browser_variant is not None and browser is None:
        raise click.UsageError("--browser-variant goes with --browser")
    mine, theirs = _variants(manifest, variant, browser_variant, browser is not None)
    runs = mine or variant_for(measured_as, manifest)
    engines = [bundle_engine(bundle, variant=runs, threads=threads)]
    # bundle_engine names the variant it chose
    chosen = engines[0].argv[engines[0].argv.index("--variant") + 1]
    if out is not None:
        _check_out(out)
    file = _evaluation_of(bundle, completing) if evaluation is None else evaluation
    if completing:
        bench_completion(
            *(bundle, manifest, file, against, runs, threads, measured_as),
            *(places, human_eval, examples),
            out,
            as_json,
        )
        return
    asked = asked_of(manifest, file)
    if every:
        others = (("--against", against), ("--variant", variant), ("--browser", browser))
        for option, value in (*others, ("--target", target), ("--out", out)):
            if value is not None:
                raise click.UsageError(f"{option} does not go with --variants")
        from codemill.compress.commands.bench_variants import bench_variants

        folder = folder_of(bundle)
        bench_variants(folder, manifest, asked, threads, rounds or _ROUNDS, as_json)
        return
    if against is not None:
        _check_comparable(manifest, against)
        engines.insert(0, _reference(against, threads))
    if browser is not None:
        from codemill.targets.browser import browser_engine

        engines.insert(-1, browser_engine(folder_of(bundle), browser, theirs))
    # what can be wrong with it is found before anything is measured, too
    summary = bundle_summary(folder_of(bundle), chosen)
    with shown_stage("measuring") as said:
        found = benchmark(
            engines,
            asked,
            shapes=shapes_for(measured_as),
            rounds=rounds or _ROUNDS,
            progress=lambda now: said(now.fraction, now.message),
            examples=examples,
            operators=True,
        )
    peak = found.engine(engines[-1].name).memory.peak_rss_bytes
    report = make_report(
        found,
        title=manifest.name,
        task=manifest.task,
        bundle=summary,
        bundle_engine=engines[-1].name,
        limits=memory_limits(measured_as, peak),
        target=measured_as.said if measured_as else None,
        provenance=dict(manifest.provenance),
    )
    written = (
        write_reports(out, _page([report]), lambda path: write_report(path, report)) if out else []
    )
    if as_json:
        print_json({**to_json(report), "files": [str(path) for path in written]})
        return
    click.echo(table(report_rows(report), heading=True))
    for line in doubts_said(report):
        click.echo(line)
    if measured_as is not None:
        click.echo(memory_line(measured_as, peak))
    for path in written:
        click.echo(f"wrote {path}", err=True)


@click.command("report")
@click.argument("reports", metavar="REPORT.json...", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The page to write.")
@click.option(
    "--analysis",
    metavar="FILE",
    help="An analysis.json of `compress analyze`, to show with the one report.",
)
def report_command(reports: tuple[str, ...], out: Path, analysis: str | None) -> None:
    """Draw one or several report.json as one page, side by side.

    Several are of one task and one test: bundles, variants or machines.
    """
    require_extra("bench", "`compress report`")
    from codemill.compress.places import check_file_out, write_out
    from codemill.targets import read_report
    from codemill.targets.analysis import read_analysis
    from codemill.targets.comparable import check_comparable
    from codemill.targets.completion_benchmark import (
        CompletionReport,
        is_completion_report,
        read_completion_report,
    )
    from codemill.targets.report import Report

    check_file_out(out)
    if any(out.resolve() == Path(path).resolve() for path in reports):
        raise InputError(f"--out {out} is one of the reports; choose another --out for the page")
    read = [
        read_completion_report(Path(path))
        if is_completion_report(Path(path))
        else read_report(path)
        for path in reports
    ]
    check_comparable(list(zip(reports, read, strict=True)))
    completing = [report for report in read if isinstance(report, CompletionReport)]
    if completing:
        if analysis is not None:
            raise click.UsageError("--analysis does not go with a report of completion")
        write_out(out, completion_page(completing))
        click.echo(f"wrote {out}", err=True)
        return
    shown = [report for report in read if isinstance(report, Report)]
    if analysis is not None:
        if len(shown) > 1:
            raise click.UsageError("--analysis goes with one report: give that one alone")
        shown = [replace(shown[0], analysis=read_analysis(analysis))]
    write_out(out, _page(shown))
    click.echo(f"wrote {out}", err=True)


def _check_out(out: Path) -> None:
    """The folder for the reports can be made and written to, before anything is measured."""
    from codemill.compress.places import check_file_out, check_folder

    check_folder(out)
    for name in REPORTS:
        check_file_out(out / name)


def _variants(
    manifest: Manifest, variant: str | None, browser_variant: str | None, in_browser: bool
) -> tuple[str | None, str | None]:
    """What Python and the browser run, of what was named for them; None: the best one there.

    Raises UsageError, InputError or ProviderError where Python cannot run what is named for it; `browser_engine` says
    so of the browser.
    """
    from codemill.runtime.engines import WEB
    from codemill.runtime.session import available_providers
    from codemill.runtime.tensorrt import available

    if variant is None:
        return None, browser_variant
    provider = manifest.variant(variant).provider
    if provider == WEB:
        if not in_browser:
            raise InputError(
                f"variant {variant!r} runs in a web page, not in Python; give --browser PAGES to measure it there, "
                "with the best one here beside it"
            )
        if browser_variant not in (None, variant):
            raise click.UsageError(
                f"--variant {variant} and --browser-variant {browser_variant} are both for the browser; give one"
            )
        return None, variant
    here = (*available_providers(), *available())
    if provider not in here:
        raise ProviderError(
            f"variant {variant!r} is for {provider}, which does not run here. This machine has: {', '.join(here)}. "
            "`compress targets` says what others take"
        )
    return variant, browser_variant or variant


def _page(reports: Sequence[Report]) -> bytes:
    """The page of the reports, in full before a byte of it is put anywhere."""
    from codemill.targets import render

    with tempfile.TemporaryDirectory(prefix="codemill-") as folder, warnings.catch_warnings():
        # the page's own font draws the names
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        return render(reports, Path(folder) / "report.html").read_bytes()


def completion_page(reports: Sequence[CompletionReport]) -> bytes:
    """The page of bundles that complete, as `_page` of the others."""
    from codemill.targets.completion_page import render_completion

    with tempfile.TemporaryDirectory(prefix="codemill-") as folder:
        return render_completion(reports, Path(folder) / "report.html").read_bytes()


def _evaluation_of(bundle: Path, completing: bool) -> Path:
    path = bundle / _EVALUATION
    if bundle.exists() and not path.is_file():
        kind = (
            "`prefix` and `line`"
            if completing
            else "`query` and `code`, or with labels, texts and rows"
        )
        raise DataError(
            f"{bundle} has no {_EVALUATION} to measure quality on (a .mill never has: it does not "
            f"ship); give one with --evaluation: JSON lines with {kind}"
        )
    return path


def asked_of(manifest: Manifest, path: Path) -> Evaluation | LabelledEvaluation:
    """What quality is measured on, of the kind that the bundle answers."""
    from codemill.runtime.labels import LABEL_TASKS, labelling_of
    from codemill.targets.evaluation import read_evaluation, read_labelled_evaluation

    if manifest.task not in LABEL_TASKS:
        return read_evaluation(path)
    found, labelling = read_labelled_evaluation(path), labelling_of(manifest)
    if found.labels != labelling.labels or len(found.rows[0]) != labelling.texts:
        raise DataError(
            f"{path} has rows of {len(found.rows[0])} texts and the labels {list(found.labels)!r:.200}; the bundle "
            f"labels {labelling.texts} at a time with {list(labelling.labels)!r:.200}, in this order"
        )
    return found


def _check_comparable(manifest: Manifest, against: str) -> None:
    """Raise InputError where a bundle that labels is to be compared with what gives other labels, or none."""
    from codemill.runtime.bundle import read_manifest
    from codemill.runtime.completion.completer import completes
    from codemill.runtime.labels import LABEL_TASKS, labelling_of

    if manifest.task not in LABEL_TASKS:
        if is_bundle(against):
            other = read_manifest(folder_of(Path(against)))
            if other.task in LABEL_TASKS or completes(other):
                raise InputError(
                    f"--against {against}: it is made for {other.task!r}, and this bundle embeds; give another "
                    "that does"
                )
        return
    if not is_bundle(against):
        raise InputError(
            f"--against {against}: a model in PyTorch embeds here, and this bundle labels; make a bundle of it with "
            "`compress export MODEL --task classify` and give that"
        )
    other = read_manifest(folder_of(Path(against)))
    mine = labelling_of(manifest)
    if other.task != manifest.task or labelling_of(other).labels != mine.labels:
        raise InputError(
            f"--against {against}: it is made for {other.task!r} and the labels are not those of this bundle, "
            f"{list(mine.labels)!r:.200}"
        )


def _reference(model: str, threads: int) -> Engine:
    """The engine to compare with: another bundle through the runtime, or a model in PyTorch."""
    from codemill.targets import bundle_engine

    if is_bundle(model):
        other = bundle_engine(model, threads=threads, name=f"bundle {Path(model).name}")
        return replace(other, role="reference")
    require_extra("compress", f"`compress bench --against {model}`")
    from codemill.compress.models.load import read_shape, resolve_model
    from codemill.compress.teacher_worker import teacher_engine

    # what the worker would say, before anything is started
    read_shape(resolve_model(model))
    name = f"{model.removeprefix('package:').rstrip('/').rsplit('/', 1)[-1]}, PyTorch"
    return replace(teacher_engine(model, name, threads=threads), role="reference")


def write_reports(out: Path, page: bytes, write: Callable[[Path], None]) -> list[Path]:
    """Both reports into `out`, made where it is not there: what `write` writes to a path, and the page."""
    from codemill.compress.places import write_out

    try:
        out.mkdir(parents=True, exist_ok=True)
        write(out / REPORTS[0])
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror or error}") from error
    write_out(out / REPORTS[1], page)
    return [out / name for name in REPORTS]
