"""Which variant ships: all that were made, measured beside fp32 on this machine, and the one no other dominates.

A variant is refused where it is slower than fp32 (the whole confidence interval says so), costs more of the task's
metric on validation than is allowed, or is larger than is allowed. Of the others one ships that no other beats or
equals in size, quality and speed at once: see `chosen`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codemill.targets.engine import Engine
    from codemill.targets.evaluation import Evaluation, LabelledEvaluation
    from codemill.targets.figures import BenchmarkResult
    from codemill.targets.profile import Shape

__all__ = ["Tried", "chosen", "measured", "tried_of"]

_SIZES_ALIKE = 1.01
_MANIFEST_BYTES = 4096
"""Of a bundle with one variant, about."""


@dataclass(frozen=True)
class Tried:
    """A variant as it was measured: quality on validation, and the share of fp32's that is lost (negative: gained).

    times_faster: than fp32, a call at batch 1; with its interval. why: what it is refused for, or None.
    """

    variant: str
    size_bytes: int
    quality: float
    lost: float
    latency_ms: float
    times_faster: float
    low: float | None
    high: float | None
    why: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    def dominates(self, other: Tried) -> bool:
        """Whether it is at least as good in size, quality and speed, and better in one of them."""
        mine = (self.size_bytes, -self.quality, -self.times_faster)
        its = (other.size_bytes, -other.quality, -other.times_faster)
        return mine != its and all(a <= b for a, b in zip(mine, its, strict=True))


def measured(
    folder: Path,
    reference: str,
    variants: Sequence[str],
    evaluation: Evaluation | LabelledEvaluation,
    shape: Shape,
    *,
    threads: int,
    rounds: int,
    max_loss: float,
    most_bytes: int | None = None,
    apart: Mapping[str, Path] | None = None,
    say: Callable[[float, str], None] = lambda _, __: None,
) -> list[Tried]:
    """The variants of the bundle in `folder` beside its fp32 one, `reference`, which comes first in what is returned.

    apart: variants that have a bundle of their own, calibrated for them. Each runs in processes of its own,
    alternating (`targets.benchmark`). What they compile goes with them: the cache is for what ships.
    """
    from codemill.runtime.bundle import TOKENIZER, read_manifest
    from codemill.targets.benchmark import benchmark
    from codemill.targets.engine import bundle_engine

    def engine(name: str) -> Engine:
        home = (apart or {}).get(name, folder)
        manifest = read_manifest(home)
        # what would ship: this folder's manifest names all variants
        shipped = (*manifest.variants[name].files, TOKENIZER)
        size = sum(manifest.files[path].size_bytes for path in shipped) + _MANIFEST_BYTES
        found = bundle_engine(home, name, threads, name=name, compiled=Path(compiled))
        return replace(found, size_bytes=size)

    with tempfile.TemporaryDirectory(prefix="codemill-", ignore_cleanup_errors=True) as compiled:
        engines = [replace(engine(reference), role="reference"), *map(engine, variants)]
        result = benchmark(
            engines, evaluation, [shape], rounds, lambda now: say(now.fraction, now.message)
        )
    return tried_of(result, reference, variants, shape, max_loss, most_bytes)


def tried_of(
    result: BenchmarkResult,
    reference: str,
    variants: Sequence[str],
    shape: Shape,
    max_loss: float,
    most_bytes: int | None = None,
) -> list[Tried]:
    """What a benchmark says of each variant; see `measured`."""
    whole = _quality(result, reference)
    found: list[Tried] = []
    for name in (reference, *variants):
        engine = result.engine(name)
        (latency,) = (
            item
            for item in engine.latencies
            if (item.tokens, item.batch) == (shape.tokens, shape.batch)
        )
        quality = _quality(result, name)
        lost = 1 - quality / whole if whole else 0.0
        speed = result.ratio(name, reference, "latency", shape)
        times, low, high = (speed.value, speed.low, speed.high) if speed else (1.0, None, None)
        size = engine.size.size_bytes
        why = None
        if most_bytes is not None and size > most_bytes:
            why = f"{size:,} bytes, more than {most_bytes:,}"
        elif not whole and name != reference:
            why = f"{reference} itself gets nothing right on validation, so no share of it can be kept"
        elif lost > max_loss:
            why = f"loses {lost:.1%}, more than {max_loss:.1%}"
        elif speed is not None and speed.below_parity:
            why = f"{times:.2f} times as fast as {reference} [{low:.2f}, {high:.2f}]"
        p50 = latency.latency_ms_p50
        found.append(Tried(name, size, quality, lost, p50, times, low, high, why))
    return found


def chosen(
    tried: Sequence[Tried], reference: str | None = None, kept: str | None = None
) -> Tried | None:
    """What ships of those that are not refused; None where all are. `reference` ships only where nothing else does.

    Of the fastest, and those that cannot be told apart from it by speed: the smallest, and of those within a percent of
    it the one called `kept`, or the one that keeps most quality. No other is at least as good in all three (as `kept`:
    but for speed that nothing tells apart).
    """
    open_ = [item for item in tried if item.why is None]
    others = [item for item in open_ if item.variant != reference] or open_
    if not others:
        return None
    fastest = max(others, key=lambda item: item.times_faster)
    alike = [item for item in others if item is fastest or _as_fast(item, fastest)]
    least = min(item.size_bytes for item in alike)
    small = [item for item in alike if item.size_bytes <= _SIZES_ALIKE * least]
    best = max(
        small,
        key=lambda item: (item.variant == kept, item.quality, item.times_faster, -item.size_bytes),
    )
    if best.variant == kept:
        # as fast as far as can be told, and as small: no reason to change
        return best
    # what is refused for another reason than being worse dominates nothing
    better = [item for item in others if item.dominates(best)]
    # of those as fast, one may dominate another
    return max(
        better, key=lambda item: (item.times_faster, item.quality, -item.size_bytes), default=best
    )


def _as_fast(item: Tried, fastest: Tried) -> bool:
    """Whether it may be as fast; what all are compared with has no interval, and the other's says it."""
    if item.high is None:
        return fastest.low is not None and fastest.low <= item.times_faster
    return fastest.times_faster <= item.high


def _quality(result: BenchmarkResult, name: str) -> float:
    engine = result.engine(name)
    if engine.quality is not None:
        return engine.quality.mrr
    assert engine.labelling is not None
    accuracy = engine.labelling.figures.get("accuracy")
    return accuracy.value if accuracy is not None else 0.0
