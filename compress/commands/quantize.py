"""`compress quantize`: one model in smaller numbers, by the method that measures best on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codemill.compress.commands.output import (
    NumberIn,
    in_bytes,
    json_option,
    plain_name,
    print_json,
    quiet_stdout,
    require_extra,
    shown_path,
    table,
)
from codemill.errors import InputError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from codemill.compress.stages.classify.recalibrated import Calibration, Parts
    from codemill.export.choose import Tried
    from codemill.export.quantize.settings import Method
    from codemill.targets.evaluation import Evaluation, LabelledEvaluation

_VALIDATION = "validation.jsonl.gz"
_METHODS = ("dynamic-int8", "static-int8", "controlled-int8", "weights-int8", "weights-int4")
_TRAINED = "qat-int8"
_TRAINS = (
    f"{_TRAINED} trains the student further, which takes the data and the teacher of its run: `compress run RECIPE "
    f"--set quantize.method={_TRAINED}` continues that run"
)
_TOKENS = 128


@click.command("quantize")
@click.argument("model")
@click.option(
    "--method",
    type=click.Choice(["auto", *_METHODS, _TRAINED]),
    default="auto",
    show_default=True,
    help="auto tries all of the others, but for qat-int8, which takes the data of `compress run`; it takes the fastest "
    "that loses no more than --max-loss and that none beats in size, quality and speed at once.",
)
@click.option(
    "--evaluation",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="What quality is compared on, and activations are seen on: JSON lines of query and code, or labelled rows. "
    f"[default: {_VALIDATION} in the bundle's folder]",
)
@click.option(
    "--max-loss",
    type=NumberIn(0, 1),
    default=0.02,
    show_default=True,
    help="Share of fp32's MRR, or accuracy, that may be lost; controlled-int8 aims at .005 or less.",
)
@click.option("--max-size", type=click.IntRange(1), metavar="BYTES", help="Of what ships.")
@click.option(
    "--threads", type=click.IntRange(1, 1024), help="Of each variant. [default: the physical cores]"
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 1000),
    default=5,
    show_default=True,
    help="Fresh processes of each variant, in turns.",
)
@click.option(
    "--full-range",
    is_flag=True,
    help="8-bit weights in place of 7-bit ones: for processors with VNNI or dot products only; others answer "
    "otherwise with them.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The bundle's folder, or a file ending in .mill. [default: ./NAME-quantized]",
)
@json_option
def quantize_command(
    model: str,
    method: str,
    evaluation: Path | None,
    max_loss: float,
    max_size: int | None,
    threads: int | None,
    rounds: int,
    full_range: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Quantize MODEL in several ways and keep the best.

    MODEL is the folder of a bundle that `compress run` made, or an encoder, with or without a head, as `compress
    export` takes it. Forms of one that labels are calibrated on half of the evaluation's rows and judged by the others.
    Leave the machine alone meanwhile.
    """
    require_extra("compress", "`compress quantize`")
    from codemill.compress.commands.bench import asked_of
    from codemill.compress.commands.bench_variants import ONE_ROUND, tried_rows
    from codemill.compress.commands.plain import plain_bundle
    from codemill.compress.places import check_bundle_out, put_bundle, scratch_beside
    from codemill.compress.progress import shown_stage
    from codemill.export.choose import chosen, measured
    from codemill.export.quantize.settings import Method
    from codemill.runtime import read_manifest, size_bytes, verify_bundle
    from codemill.runtime.machine import INT8_PRODUCTS, physical_cores, unlike
    from codemill.targets.evaluation import LabelledEvaluation
    from codemill.targets.profile import Shape

    if method == _TRAINED:
        raise InputError(_TRAINS)
    why = unlike({INT8_PRODUCTS: True}) if full_range else None
    if why is not None:
        raise InputError(
            f"--full-range: {why}, so that what it measured here would be true of no machine that it is for; leave "
            "--full-range out, or run this where they are"
        )
    name = plain_name(model.removeprefix("package:").rstrip("/").rsplit("/", 1)[-1], "model")
    target = out or Path(f"{name}-quantized")
    check_bundle_out(target, target.parent / ".codemill")
    methods = [Method(each) for each in (_METHODS if method == "auto" else (method,))]
    with quiet_stdout(), scratch_beside(target) as scratch:
        work = scratch / "work"
        file = plain_bundle(model, evaluation, work, name)
        if file is None:
            raise InputError(
                f"there is no {_VALIDATION} in {model} to compare quality on; give --evaluation FILE: JSON lines of "
                "query and code, or labelled rows"
            )
        manifest = read_manifest(work)
        asked = asked_of(manifest, file)
        shape = Shape(min(_TOKENS, manifest.max_tokens), 1)
        parts = None
        seen, judging = asked, asked
        if isinstance(asked, LabelledEvaluation):
            from codemill.compress.stages.classify.recalibrated import parts_of

            parts = parts_of(asked, manifest)
            seen, judging = parts.calibrating, parts.judging
        threads = threads or physical_cores()
        made = (Method.FP32, *methods)
        _derive(work, made, seen, max_loss, reduced_range=not full_range)
        forms = scratch / "forms"
        calibrations = {} if parts is None else _calibrated(work, made, forms, parts, threads)
        with shown_stage("measuring") as said:
            tried = measured(
                work,
                Method.FP32.value,
                [each.value for each in methods],
                judging,
                shape,
                threads=threads,
                rounds=rounds,
                max_loss=max_loss,
                most_bytes=max_size,
                apart={each: forms / each for each in calibrations},
                say=said,
            )
        best = chosen(tried, Method.FP32.value)
        if best is None:
            said_why = "; ".join(f"{item.variant}: {item.why}" for item in tried)
            raise RefusedError(f"refused, nothing was written: {said_why}")
        ready = scratch / "bundle"
        shipped = _ship(work, best, calibrations.get(best.variant), asked, model, ready)
        digest, size = verify_bundle(ready), size_bytes(ready, shipped)
        put_bundle(ready, target, scratch)
    found = {"bundle": str(target), "digest": digest, "variant": shipped, "size_bytes": size}
    if as_json:
        tokens = {"tokens": shape.tokens, "max_loss": max_loss}
        said_of = {"tried": [item.to_json() for item in tried], "chosen": best.variant}
        forms_said = {each: item.to_json() for each, item in calibrations.items()}
        calibrated = None if parts is None else {**parts.to_json(), "forms": forms_said}
        print_json({**found, **tokens, **said_of, "calibrated": calibrated})
        return
    click.echo(table(tried_rows(tried, best, Method.FP32.value), heading=True))
    click.echo()
    if rounds == 1:
        click.echo(ONE_ROUND)
    if parts is None:
        click.echo("judged by the same pairs whose functions activations were seen on")
    else:
        click.echo(f"{calibrations[best.variant].said()} {parts.said()}")
    if method == "auto" and all(
        item.lost > max_loss for item in tried if item.variant.endswith("int8")
    ):
        click.echo(f"every int8 form loses more than {max_loss:.1%}; {_TRAINS}")
    rows = [("bundle", shown_path(target)), ("variant", f"{shipped}, {best.variant}")]
    click.echo(table([*rows, ("size", in_bytes(size)), ("digest", digest)]))


def _derive(
    work: Path,
    methods: Sequence[Method],
    seen: Evaluation | LabelledEvaluation,
    max_loss: float,
    reduced_range: bool,
) -> None:
    """Add the forms to the bundle in `work`; seen: what activations are seen on, and controlled-int8 keeps to."""
    from codemill.compress.commands.plain import calibration_of
    from codemill.compress.progress import shown_stage
    from codemill.export.derive import derive
    from codemill.export.quantize.settings import Quantization

    with shown_stage("quantizing") as said:
        for number, each in enumerate(methods):
            least = min(max_loss, Quantization(each).max_loss)
            start = number / len(methods)
            derive(
                work,
                Quantization(each, reduced_range=reduced_range, max_loss=least),
                validation=seen,
                calibration=calibration_of(seen),
                report=lambda at, what, start=start: said(  # type: ignore[misc]
                    start + at / len(methods), what
                ),
            )


def _calibrated(
    work: Path, methods: Sequence[Method], forms: Path, parts: Parts, threads: int
) -> dict[str, Calibration]:
    """Bundles in `forms`, one a form, with a temperature and exits of its own; what these are, by the form."""
    from codemill.compress.progress import shown_stage
    from codemill.compress.stages.classify.recalibrated import recalibrated

    found = {}
    with shown_stage("calibrating") as said:
        for number, each in enumerate(methods):
            start = number / len(methods)
            found[each.value] = recalibrated(
                work,
                each.value,
                forms / each.value,
                parts.calibrating,
                threads,
                lambda at, what, start=start, name=each.value: said(  # type: ignore[misc]
                    start + at / len(methods), f"{name}: {what}"
                ),
            )
    return found


def _ship(
    work: Path,
    best: Tried,
    calibration: Calibration | None,
    asked: Evaluation | LabelledEvaluation,
    model: str,
    ready: Path,
) -> str:
    """The chosen variant as a bundle, what it was made of and judged by beside it; its name there."""
    import shutil

    from codemill.compress.stages.bundle import VALIDATION, copied, write_plain
    from codemill.runtime import read_manifest
    from codemill.runtime.bundle import write_bundle_like
    from codemill.targets.evaluation import Evaluation, write_evaluation

    source = read_manifest(work)
    ready.mkdir()
    variants = copied(work, best.variant, ready)
    (name,) = variants
    metric = "mrr" if isinstance(asked, Evaluation) else "accuracy"
    # what it was chosen by says more than is true of other data; the test's figure is in the report of `bench`
    evaluation = f"{asked.name}, by which it was chosen"
    figures = {
        "quantization": best.variant,
        metric: round(best.quality, 4),
        "evaluation": evaluation,
    }
    changes: dict[str, Any] = {"variants": variants, "metrics": {name: figures}}
    if calibration is not None:
        changes["output"] = {**source.output, "temperature": calibration.temperature}
        changes["exits"] = calibration.exits
    write_bundle_like(ready, source, **changes)
    write_evaluation(ready / VALIDATION, asked)
    write_plain(work, ready, best.variant)
    old = Path(model) / "evaluation.jsonl.gz"
    if old.is_file():
        shutil.copyfile(old, ready / old.name)
    return name
