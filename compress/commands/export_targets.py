"""`compress export ... --target`: variants for named kinds of machine, each judged beside fp32 where it runs here."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codemill.compress.commands.output import (
    in_bytes,
    print_json,
    quiet_stdout,
    shown_path,
    table,
)
from codemill.errors import CodemillError, InputError, RefusedError

if TYPE_CHECKING:
    import numpy as np

    from codemill.runtime import Manifest
    from codemill.targets.evaluation import Evaluation, LabelledEvaluation
    from codemill.targets.profile import TargetSpec

_COMPARED = 500
"""Rows of the evaluation on which a variant is compared with fp32."""
_ROUNDING = 1e-9
"""Of a loss that is just what is allowed."""


@dataclass(frozen=True)
class Made:
    """A variant for a target, beside fp32 (a decoder: beside what it was made of).

    agreement: share of decisions that are the same. lost: share of the task's metric that is lost (negative: gained):
    MRR, accuracy, or next tokens right. Both None where it was not run or failed, lost also where fp32 gets nothing
    right. failed: what went wrong when it was asked.
    """

    target: str
    variant: str
    provider: str
    precision: str
    size_bytes: int
    agreement: float | None
    lost: float | None
    not_run: str | None
    failed: str | None
    covered: float | None
    missing: dict[str, int]


def export_targets(
    model: str,
    names: Sequence[str],
    out: Path,
    evaluation: Path | None,
    name: str,
    task: str | None,
    licence: str | None,
    max_loss: float,
    as_json: bool,
) -> None:
    """Write a bundle at `out` with a variant for each target, called as the target is.

    Of a bundle, beside the variants it has; of a model, beside its plain graphs. Raises RefusedError, and writes
    nothing, where a variant that runs here loses more than `max_loss` of fp32's quality.
    """
    from codemill.compress.commands.bench import asked_of
    from codemill.compress.commands.bundle import folder_of, is_bundle
    from codemill.compress.commands.plain import calibration_of, plain_bundle
    from codemill.compress.places import check_bundle_out, put_bundle, scratch_beside
    from codemill.compress.progress import shown_stage
    from codemill.export.candidates import PLAIN
    from codemill.runtime import load, read_manifest, verify_bundle
    from codemill.runtime.bundle import update_bundle
    from codemill.runtime.cache import compiled_in
    from codemill.runtime.completion.completer import completes
    from codemill.targets import buildable, target_named

    targets = [target_named(name) for name in dict.fromkeys(names)]
    decoder = is_bundle(model) and completes(read_manifest(folder_of(Path(model))))
    for target in targets:
        why = buildable(target, decoder=decoder)
        if why is not None:
            raise InputError(f"--target {target.name} cannot be built here: {why}")
    _check_names(targets, read_manifest(folder_of(Path(model))) if is_bundle(model) else None)
    check_bundle_out(out, out.parent / ".codemill")
    if decoder:
        from codemill.compress.commands.export_completion import export_completion

        export_completion(Path(model), targets, out, evaluation, licence, max_loss, as_json)
        return
    # what is compiled to compare variants goes with the scratch: the cache is for those that are loaded
    with quiet_stdout(), scratch_beside(out) as scratch, compiled_in(scratch / "compiled"):
        work = scratch / "work"
        file = plain_bundle(model, evaluation, work, name, task)
        asked = None if file is None else asked_of(read_manifest(work), file)
        texts = calibration_of(asked)
        with shown_stage("building") as said:
            for number, target in enumerate(targets):
                start = number / len(targets)
                _derive(
                    work,
                    target,
                    texts,
                    lambda at, what, start=start: said(start + at / len(targets), what),
                )
        ready = work
        if is_bundle(model):
            ready = scratch / "bundle"
            shutil.copytree(folder_of(Path(model)), ready)
            variants = read_manifest(work).variants
            for target in targets:
                for path in variants[target.name].files:
                    (ready / path).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(work / path, ready / path)
            made = {target.name: variants[target.name] for target in targets}
            update_bundle(ready, variants={**read_manifest(ready).variants, **made})
            without_reports(ready)
        if licence is not None:
            update_bundle(ready, license=licence)
        digest = verify_bundle(ready)
        with shown_stage("comparing with fp32"):
            plain = None if asked is None else partial(load, work, variant=PLAIN)
            found = compared(ready, targets, plain, lambda model: _judged(model, asked))
        refuse_lossy(found, "fp32", max_loss)
        put_bundle(ready, out, scratch)
    show_made(found, "fp32", out, digest, as_json)


def without_reports(folder: Path) -> None:
    """Drop reports of the bundle as it was; what variants are made of and judged by stays."""
    from codemill.runtime.bundle import UNSHIPPED

    for beside in UNSHIPPED:
        if beside.startswith("report."):
            (folder / beside).unlink(missing_ok=True)


def refuse_lossy(found: Sequence[Made], against: str, max_loss: float) -> None:
    """Raise RefusedError where a variant does not answer, or loses more than is allowed."""
    each = [
        f"{item.variant} does not answer: {item.failed}"
        for item in found
        if item.failed is not None
    ]
    each += [
        f"{item.variant} loses {item.lost:.4g} of {against}'s quality as a share, more than {max_loss:.4g}"
        for item in found
        if item.lost is not None and item.lost > max_loss + _ROUNDING
    ]
    if each:
        raise RefusedError(
            f"refused, nothing was written: {'; '.join(each)}. Leave the target out, give a profile of another "
            "precision, or allow more loss by --max-loss"
        )


@dataclass(frozen=True)
class Judged:
    """What a variant says of some rows, and the task's metric of it."""

    decisions: np.ndarray[Any, Any]
    quality: float


def judged_beside(
    open_: Callable[[], AbstractContextManager[Any]],
    ask: Callable[[Any], Judged],
    whole: Judged,
) -> dict[str, Any]:
    """`agreement`, `lost`, `not_run` and `failed` of a variant. What cannot be opened here, as where a driver is
    missing, is not run; what was opened and does not answer has failed.
    """
    found: dict[str, Any] = dict.fromkeys(("agreement", "lost", "not_run", "failed"))
    try:
        opened = open_()
    except CodemillError as error:
        return {**found, "not_run": str(error)}
    with opened as model:
        try:
            own = ask(model)
        except CodemillError as error:
            return {**found, "failed": str(error)}
    found["agreement"] = float((own.decisions == whole.decisions).mean())
    if whole.quality:
        # no negative zero
        found["lost"] = 1 - own.quality / whole.quality + 0.0
    return found


def show_made(found: Sequence[Made], against: str, out: Path, digest: str, as_json: bool) -> None:
    """Print what was made, and how often it decides as `against`."""
    if as_json:
        rows = [asdict(item) for item in found]
        print_json({"bundle": str(out), "digest": digest, "targets": rows})
        return
    click.echo(table(_rows(found, against), heading=True))
    click.echo()
    click.echo(table([("bundle", shown_path(out)), ("digest", digest)]))


def _check_names(targets: Sequence[TargetSpec], manifest: Manifest | None) -> None:
    """Raise InputError where a variant would take the place of one that is not the same target's."""
    from codemill.export.candidates import PLAIN
    from codemill.targets.profile import Precision

    providers = {}
    if manifest is not None:
        for name, variant in manifest.variants.items():
            own = name in manifest.metrics
            providers[name] = "which no target made" if own else f"for {variant.provider}"
    # what a run or an export calls its own, whether this bundle has it or not
    providers |= {f"cpu-{each.value}": "as a run or an export makes it" for each in Precision}
    providers |= {PLAIN: "which others are made of"}
    for number, target in enumerate(targets):
        if any(other.name == target.name for other in targets[:number]):
            raise InputError(f"two targets are called {target.name!r}; give one another `name`")
        for name, what in providers.items():
            again = name == target.name and what == f"for {target.provider}"
            # as some file systems see them
            if name.lower() == target.name.lower() and not again:
                raise InputError(
                    f"--target {target.name}: {name!r} is the name of a variant {what}; give the profile another "
                    "`name`"
                )


def _derive(work: Path, target: TargetSpec, texts: list[tuple[str, ...]], report: Any) -> None:
    from codemill.export.derive import derive
    from codemill.export.quantize.settings import Method, Quantization
    from codemill.runtime.engines import ENGINES, OPENVINO, TENSORRT_PROVIDERS

    compiled = target.provider in (OPENVINO, *ENGINES, *TENSORRT_PROVIDERS)
    methods = {
        "fp32": Method.FP32,
        "fp16": Method.FP16,
        "bf16": Method.BF16,
        "int8": Method.STATIC if compiled else Method.DYNAMIC,
        "int4": Method.WEIGHTS_INT4,
    }
    derive(
        work,
        Quantization(methods[target.precision.value], reduced_range=target.reduced_range),
        name=target.name,
        provider=target.provider,
        capabilities=target.compute_capabilities,
        needs=target.needs(),
        calibration=texts,
        report=report,
    )


def compared(
    ready: Path,
    targets: Sequence[TargetSpec],
    reference: Callable[[], AbstractContextManager[Any]] | None,
    ask: Callable[[Any], Judged],
) -> list[Made]:
    """The variant of each target in the bundle at `ready` beside what `reference` opens, which is None without rows."""
    from codemill.runtime import load, read_manifest, size_bytes
    from codemill.targets import availability
    from codemill.targets.coverage import coverage

    whole = None
    if reference is not None and any(availability(target) is None for target in targets):
        with reference() as model:
            whole = ask(model)
    manifest = read_manifest(ready)
    found = []
    for target in targets:
        variant = manifest.variants[target.name]
        covered = coverage([ready / path for path in variant.segments], target.provider)
        why = availability(target)
        figures: dict[str, Any] = dict.fromkeys(("agreement", "lost", "failed"))
        if why is not None:
            figures["not_run"] = why
        elif whole is None:
            figures["not_run"] = "nothing to compare on: give --evaluation"
        else:
            figures = judged_beside(partial(load, ready, variant=target.name), ask, whole)
        made = Made(
            target=target.name,
            variant=target.name,
            provider=variant.provider,
            precision=variant.precision,
            size_bytes=size_bytes(ready, target.name),
            covered=None if covered is None else covered.share,
            missing={} if covered is None else covered.missing,
            **figures,
        )
        found.append(made)
    return found


def _judged(model: Any, asked: Evaluation | LabelledEvaluation | None) -> Judged:
    """Decisions, a row's label or the nearest function of a query; MRR or accuracy."""
    import numpy as np

    from codemill.targets.evaluation import Evaluation
    from codemill.targets.metrics import mrr

    assert asked is not None
    if isinstance(asked, Evaluation):
        queries = model.encode(asked.queries[:_COMPARED])
        codes = model.encode(asked.codes[:_COMPARED])
        return Judged((queries @ codes.T).argmax(1), mrr(queries, codes))
    decided = model.probabilities(asked.items[:_COMPARED]).argmax(1)
    truth = np.asarray(asked.truth[:_COMPARED])
    known = truth >= 0
    return Judged(decided, float((decided == truth)[known].mean()) if known.any() else 0.0)


def _rows(found: Sequence[Made], against: str) -> list[tuple[str, ...]]:
    from codemill.targets.coverage import covered_said

    rows: list[tuple[str, ...]] = [
        ("variant", "provider", "precision", "ships", f"decides as {against}", "quality lost", "")
    ]
    for item in found:
        notes = [] if item.not_run is None else [f"not run: {item.not_run}"]
        if item.covered is not None:
            notes.append(covered_said(item.covered, item.missing))
        agreed = "" if item.agreement is None else f"{item.agreement:.1%}"
        if item.agreement is not None and item.lost is None:
            notes.append(f"nothing to lose: {against} gets nothing right that is known")
        lost = "" if item.lost is None else f"{item.lost:.2%}"
        size = in_bytes(item.size_bytes)
        rows.append(
            (item.variant, item.provider, item.precision, size, agreed, lost, "; ".join(notes))
        )
    return rows
