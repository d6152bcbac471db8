"""`compress profile`: how long encoders of many shapes take on this machine, for the search."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codemill.compress.commands.output import (
    NumberIn,
    continues,
    json_option,
    print_json,
    quiet_stdout,
    require_extra,
    table,
)
from codemill.errors import InputError, MachineError, RecipeError

if TYPE_CHECKING:
    from codemill.targets.latency import Kit, LatencyProfile
    from codemill.targets.profile import TargetSpec

_TARGET = "laptop-cpu"
_CPU = "CPUExecutionProvider"
_MINUTES = 5.0
# each holds torch and a model
_MOST_WORKERS = 4


@click.command("profile")
@click.option(
    "--target", help=f"The kind of machine that this one stands for. [default: {_TARGET}]"
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where to write the profile, as latency.json."
)
@click.option(
    "--minutes",
    type=NumberIn(0, 24 * 60, min_open=True),
    help=f"What the measuring should take. [default: {_MINUTES:g}]",
)
@click.option(
    "--threads", type=click.IntRange(1, 1024), help="Of each graph. [default: the target's]"
)
@click.option(
    "--kit",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Measure the graphs in this folder; needs no torch.",
)
@click.option(
    "--make-kit",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Only write the graphs into this new folder, to measure on another machine with --kit.",
)
@json_option
def profile_command(
    target: str | None,
    out: Path | None,
    minutes: float | None,
    threads: int | None,
    kit: Path | None,
    make_kit: Path | None,
    as_json: bool,
) -> None:
    """Measure how fast this machine runs encoders of many shapes.

    Some two dozen architectures with random weights are exported as a bundle's would be and timed
    against one of them. `compress search` fits a model to the profile and can then choose for this
    machine without sitting at it. Leave the machine alone meanwhile.
    """
    if make_kit is not None:
        unused = {"--kit": kit, "--out": out, "--minutes": minutes, "--threads": threads}
        given = [name for name, value in unused.items() if value is not None]
        if given:
            raise click.UsageError(f"--make-kit measures nothing: leave out {', '.join(given)}")
        _only_make(make_kit, target or _TARGET, as_json)
        return
    if out is None:
        raise click.UsageError("say where to write the profile: --out latency.json")
    from codemill.compress.places import check_file_out
    from codemill.targets.latency import measure, write_profile

    # all that can be wrong with what was asked for is found before anything is measured
    check_file_out(out)
    journal = out.with_name(f"{out.name}.partial")
    check_file_out(journal)
    continues()
    with (
        _alone(out),
        _kit(kit, target, threads) as (folder, opened),
        _shown("measuring") as progress,
    ):
        profile = measure(
            folder,
            opened,
            threads=threads,
            minutes=minutes or _MINUTES,
            journal=journal,
            progress=progress,
        )
    write_profile(out, profile)
    journal.unlink(missing_ok=True)
    _show(profile, out, as_json)


def _only_make(folder: Path, target: str, as_json: bool) -> None:
    require_extra("compress", "`compress profile --make-kit`")
    from codemill.compress.places import check_folder
    from codemill.targets.latency import KIT
    from codemill.targets.profile import target_named

    spec = _supported(target_named(target))
    check_folder(folder, "--make-kit")
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; choose another --make-kit")
    kit = _made(folder, spec)
    size_bytes = sum((folder / graph.file).stat().st_size for graph in kit.graphs)
    if as_json:
        print_json(
            {
                "kit": folder,
                "sha256": kit.digest,
                "graphs": len(kit.graphs),
                "size_bytes": size_bytes,
            }
        )
        return
    click.echo(
        table(
            [
                ("graphs", f"{len(kit.graphs)}, {size_bytes / 1e6:.0f} MB"),
                ("sha256", kit.digest),
                ("measure it with", f"compress profile --kit {folder} --out latency.json"),
            ]
        )
    )
    click.echo(f"wrote {folder / KIT}", err=True)


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Two that measure into one file would mix, and two at once disturb one another."""
    from codemill.runtime.lock import held

    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(f".{out.name}.lock")
    with held(path, timeout_s=0) as alone:
        if not alone:
            raise MachineError(
                f"another `compress profile` measures into {out}, or there are no locks in its folder; "
                "wait for it, or choose another --out"
            )
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _kit(
    folder: Path | None, target: str | None, threads: int | None
) -> Iterator[tuple[Path, Kit]]:
    """The kit to measure, and where it lies: the given one, or one made for the while."""
    from codemill.targets.latency import read_kit
    from codemill.targets.profile import Precision, TargetSpec, target_named

    if folder is not None:
        kit = read_kit(folder)
        if target not in (None, kit.target.name):
            raise RecipeError(
                f"--target {target}: the kit in {folder} was made for {kit.target.name}; leave "
                "--target out, or make another kit"
            )
        # the name, and not what is known of it here: profiles of targets need PyYAML
        named = kit.target
        _available(
            TargetSpec(
                name=named.name,
                description="",
                provider=named.provider,
                precision=Precision.INT8,
                threads=threads or named.threads,
                memory_bytes=None,
            )
        )
        yield folder, kit
        return
    require_extra("compress", "`compress profile` without --kit")
    spec = target_named(target or _TARGET)
    _available(_supported(spec))
    with tempfile.TemporaryDirectory(prefix="codemill-") as scratch:
        yield Path(scratch), _made(Path(scratch), spec)


def _supported(target: TargetSpec) -> TargetSpec:
    if target.provider == _CPU:
        return target
    from codemill.targets.profile import all_targets

    known = ", ".join(item.name for item in all_targets() if item.provider == _CPU)
    # what it lacks here is what a user is to know first
    _available(target)
    raise RecipeError(
        f"--target {target.name}: a kit's graphs are those of a bundle for the CPU; choose one of: {known}"
    )


def _available(target: TargetSpec) -> None:
    from codemill.targets.profile import availability

    why = availability(target)
    if why is not None:
        raise MachineError(f"target {target.name} cannot be measured on this machine: {why}")


def _made(folder: Path, target: TargetSpec) -> Kit:
    from codemill.compress.progress import counting
    from codemill.compress.search.latency_kit import make_kit
    from codemill.runtime.machine import physical_cores

    workers = min(physical_cores(), _MOST_WORKERS)
    with quiet_stdout(), counting("exporting", "architectures") as progress:
        return make_kit(folder, target, workers=workers, progress=progress)


@contextlib.contextmanager
def _shown(name: str) -> Iterator[Callable[[float, str], None]]:
    from codemill.compress.progress import shown_progress

    started = time.monotonic()
    with shown_progress() as shown:
        yield shown.stage(name, 1, 1, False)
        shown.finished(name, time.monotonic() - started)


def _show(profile: LatencyProfile, out: Path, as_json: bool) -> None:
    from codemill.targets.codec import to_json

    held_out = _held_out(profile)
    if as_json:
        found = {key: value for key, value in to_json(profile).items() if key != "rows"}
        print_json({**found, "rows": len(profile.rows), "held_out": held_out, "files": [out]})
        return
    click.echo(table(_rows(profile, held_out)))
    click.echo(f"wrote {out}", err=True)


def _rows(profile: LatencyProfile, held_out: dict[str, Any] | None) -> Sequence[Sequence[str]]:
    architectures = {
        precision: sum(
            row.precision == precision and (row.tokens, row.batch) == _first(profile)
            for row in profile.rows
        )
        for precision in profile.target.precisions
    }
    rows = [
        ("machine", f"{profile.environment.machine.get('cpu', '')}, {profile.threads} threads"),
        ("measured", f"{profile.environment.measured_at}, {profile.rounds} rounds"),
        ("architectures", ", ".join(f"{n} in {name}" for name, n in architectures.items())),
    ]
    busy = profile.environment.cpu_busy_share
    if busy is not None:
        rows.append(("busy before", f"{busy:.0%}"))
    rows += [
        (f"anchor, {at.batch} x {at.tokens} tokens", f"{at.latency_ms:.2f} ms")
        for at in profile.anchor.latencies
    ]
    if held_out is None:
        rows.append(("held-out error", "`compress search` will state it (this install cannot fit)"))
        return rows
    for name, found in held_out.items():
        said = f"{found['mape']:.1%} mean, rank correlation {found['rank_correlation']:.3f}"
        rows.append((f"held-out error, {name}", said))
    return rows


def _first(profile: LatencyProfile) -> tuple[int, int]:
    return profile.rows[0].tokens, profile.rows[0].batch


def _held_out(profile: LatencyProfile) -> dict[str, Any] | None:
    """What the model fitted to this profile is worth; None where the packages to fit one are not here."""
    if find_spec("scipy") is None:
        return None
    from codemill.compress.search.latency import holdout
    from codemill.targets.codec import to_json

    return {name: to_json(found) for name, found in holdout(profile).items()}
