"""`compress bench BUNDLE --variants`: all variants that run here beside each other; the best is taken from then on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from codemill.compress.commands.output import in_bytes, print_json, table
from codemill.errors import InputError

if TYPE_CHECKING:
    from codemill.export.choose import Tried
    from codemill.runtime import Manifest
    from codemill.targets.evaluation import Evaluation, LabelledEvaluation

__all__ = ["ONE_ROUND", "bench_variants", "tried_rows"]

_EXACT = ("fp32", "bf16", "fp16", "int8", "int4")
ONE_ROUND = "one round: nothing says whether their times differ by more than chance; give --rounds"
_MAX_LOSS = 0.005
_TOKENS = 128


def bench_variants(
    folder: Path,
    manifest: Manifest,
    asked: Evaluation | LabelledEvaluation,
    threads: int,
    rounds: int,
    as_json: bool,
) -> None:
    """Measure, print, and remember the best that loses half a percent of the most exact one's quality at most.

    The best as `chosen` says: of the fastest, and what cannot be told apart from it, the smallest; of those as small
    the one that is taken anyway.
    """
    from codemill.compress.progress import shown_stage
    from codemill.export.choose import chosen, measured
    from codemill.runtime.machine import unlike
    from codemill.runtime.opening import best_variant
    from codemill.runtime.preferred import prefer
    from codemill.runtime.session import available_providers
    from codemill.targets.profile import Shape

    here = available_providers()
    names = [
        name
        for name, item in manifest.variants.items()
        if item.provider in here and unlike(item.built_for) is None
    ]
    if len(names) < 2:
        raise InputError(
            f"--variants: {len(names)} of the bundle's variants ({', '.join(manifest.variants)}) run here, two or more "
            "are needed to compare; `compress export BUNDLE --target` adds some"
        )
    reference = min(names, key=lambda name: (_place(manifest.variants[name].precision), name))
    with shown_stage("measuring") as said:
        tried = measured(
            folder,
            reference,
            [name for name in names if name != reference],
            asked,
            Shape(min(_TOKENS, manifest.max_tokens), 1),
            threads=threads,
            rounds=rounds,
            max_loss=_MAX_LOSS,
            say=said,
        )
    best = chosen(tried, kept=best_variant(manifest)) or tried[0]
    # of one round nothing says whether times differ by more than chance
    noted = rounds > 1 and prefer(manifest, best.variant)
    if as_json:
        rows = [item.to_json() for item in tried]
        print_json({"tried": rows, "chosen": best.variant, "noted": noted})
        return
    click.echo(table(tried_rows(tried, best, reference), heading=True))
    if rounds == 1:
        told = f"{ONE_ROUND}; nothing is noted"
    elif noted:
        told = f"codemill.load takes {best.variant} of this bundle on this machine from now on"
    else:
        told = f"the cache cannot be written: codemill.load takes {best.variant} only where it is named"
    click.echo(f"\n{told}")


def tried_rows(tried: Sequence[Tried], best: Tried, reference: str) -> list[tuple[str, ...]]:
    """What was measured, a variant a row, against `reference`."""
    heading = ("variant", "ships", "quality", "lost", "ms", f"times as fast as {reference}", "")
    rows: list[tuple[str, ...]] = [heading]
    for item in tried:
        between = "" if item.low is None else f" [{item.low:.2f}, {item.high:.2f}]"
        note = "chosen" if item is best else f"refused: {item.why}" if item.why else ""
        times = f"{item.times_faster:.2f}{between}"
        figures = (f"{item.quality:.4f}", f"{item.lost:.2%}", f"{item.latency_ms:.2f}", times)
        rows.append((item.variant, in_bytes(item.size_bytes), *figures, note))
    return rows


def _place(precision: str) -> int:
    return _EXACT.index(precision) if precision in _EXACT else len(_EXACT)
