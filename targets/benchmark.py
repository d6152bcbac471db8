"""Measure engines against each other on this machine: cold start, latency, memory, quality.

Every engine runs in a process of its own and no two are alive at once: two engines in one process,
or one that spins beside another, spoil each other's figures several times over. Processes
alternate round by round, the order turned round every other time, and ratios are formed between
measurements of the same round, so that what slows the machine for a while slows both. The first
pass, round zero, is not timed: it measures quality, chooses the texts and warms the file cache.

Leaves to others: what an engine is (worker.py), the statistics (metrics.py), how it looks.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codemill.errors import CodemillError, InputError, MachineError
from codemill.targets.ceiling import Ceiling, best_of, measured_ceiling
from codemill.targets.codec import from_json
from codemill.targets.energy import WATTS_PER_CORE, on_processor
from codemill.targets.engine import Engine, EngineProcess, Role
from codemill.targets.environment import this_environment
from codemill.targets.evaluation import (
    CountTokens,
    Evaluation,
    LabelledEvaluation,
    texts_of_length,
)
from codemill.targets.examples import ranking_examples
from codemill.targets.figures import (
    BenchmarkResult,
    ColdStart,
    Comparison,
    Difference,
    Energy,
    EngineResult,
    LabelQuality,
    Latency,
    Memory,
    Operators,
    OperatorTime,
    Quality,
    RankingExample,
    Robustness,
    Size,
)
from codemill.targets.labelled import (
    KEPT,
    Answered,
    Rewrites,
    TextLengths,
    compared_with,
    quality_of,
    rewritten_rows,
    robustness_of,
    weights_of,
)
from codemill.targets.metrics import Ratio, paired_ratio, percentile, ranks, ratio_of_means
from codemill.targets.profile import DEFAULT_SHAPES, Shape

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from codemill.targets.classification import Weights

__all__ = ["BenchmarkResult", "Progress", "benchmark"]

Rewritten = Mapping[str, tuple[Sequence[int], Sequence[tuple[str, ...]]]]
"""kind of rewrite -> the rows of the evaluation that could be rewritten, and their texts"""

_QUALITY, _START = "quality", "start"
_CLOCK_FELL, _ROUNDS_DIFFER, _CEILING_FELL = 0.9, 0.3, 0.7
_PROFILED_CALLS = 20
_PRODUCTS = ("MatMul", "Gemm", "Attention")
"""What is in the names of operators that multiply matrices."""
_START_S = 1.0
"""What a start is taken to last before the first was seen."""


@dataclass(frozen=True)
class Progress:
    """How far a benchmark is: a share from 0 to 1 that never falls, seconds left, its step."""

    fraction: float
    left_s: float | None
    message: str


@dataclass
class _Measured:
    """One engine's raw measurements; each list has an entry a round."""

    engine: Engine
    info: dict[str, Any] = field(default_factory=dict)
    cold_start_ms: list[float] = field(default_factory=list)
    load_ms: list[float] = field(default_factory=list)
    first_encode_ms: list[float] = field(default_factory=list)
    cold_peak: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)
    calls: dict[Shape, list[dict[str, Any]]] = field(default_factory=dict)
    tokens: dict[int, float | None] = field(default_factory=dict)
    ranks: npt.NDArray[np.int64] | None = None
    examples: dict[int, RankingExample] = field(default_factory=dict)
    operators: Operators | None = None
    functions_per_s: float | None = None
    answered: Answered | None = None
    robustness: list[Robustness] = field(default_factory=list)
    lengths: TextLengths | None = None

    def round_p50(self, shape: Shape) -> list[float]:
        """Median milliseconds of a call, a round."""
        return [percentile(call["ms"], 50) for call in self.calls[shape]]


def benchmark(
    engines: Sequence[Engine],
    evaluation: Evaluation | LabelledEvaluation,
    shapes: Sequence[Shape] = DEFAULT_SHAPES,
    rounds: int = 3,
    progress: Callable[[Progress], None] | None = None,
    *,
    repeats: int = 20,
    warmup: int = 2,
    max_s: float = 5.0,
    count_tokens: CountTokens | None = None,
    rewrites: Rewrites | None = None,
    examples: int = 0,
    operators: bool = False,
) -> BenchmarkResult:
    """Measure `engines` in `rounds` rounds, on texts made of the evaluation set's functions.

    Each round starts each engine afresh (one cold start), then makes up to `repeats` calls at each
    shape, after `warmup` untimed ones and stopping after `max_s` seconds (three calls at least).
    Every engine gets the same texts; of engines that label pairs, each two texts make a pair. Their length
    is in tokens of `count_tokens`, or of the first teacher, reference or engine, in that order. The same
    texts at batch 1 are gone round.

    `rewrites`, of a labelled evaluation: its texts with their code rewritten, to see which decisions survive;
    a row is asked of again where all of its texts are there, so that None for most of them makes a sample.
    `examples`, of a retrieval test: so many queries are shown with what the bundle finds; their text is in the result.
    `operators`: a bundle's time by operator too, in a process of its own at the end.

    Raises InputError for settings that make no sense, and what `EngineProcess` raises when a
    process fails; no process is left alive.
    """
    _check(engines, shapes, rounds, repeats)
    environment, started = this_environment(), time.perf_counter()
    again = _rewritten(evaluation, rewrites or {})
    clock = _Clock(
        engines,
        _first_steps(evaluation, again),
        {_said(shape): _texts_a_call(evaluation, shape) * (repeats + warmup) for shape in shapes},
        rounds,
        max_s,
        progress,
    )
    measured = {engine.name: _Measured(engine) for engine in engines}
    counter = _token_counter(engines)
    texts: dict[int, list[str]] = {}
    lengths: list[int] | None = None
    for engine in (counter, *(e for e in engines if e is not counter)):
        now = measured[engine.name]
        with ExitStack() as stack:
            with clock.step(engine.name, _QUALITY, 0):
                process = stack.enter_context(EngineProcess(engine))
                if not texts:
                    texts = _texts(process, evaluation, shapes, count_tokens)
                if isinstance(evaluation, Evaluation):
                    _measure_quality(process, now, evaluation, examples)
                else:
                    now.answered = _answers(process, _rows_of(evaluation))
                    now.lengths = _lengths(process, evaluation)
                _count_tokens(process, now, texts)
            for kind, (rows, items) in again.items():
                with clock.step(engine.name, _said_again(kind), 0):
                    assert isinstance(evaluation, LabelledEvaluation)
                    assert now.answered is not None
                    after = _answers(process, items).probabilities
                    now.robustness.append(
                        robustness_of(kind, evaluation, rows, now.answered, after)
                    )
        if engine is counter and now.lengths is not None:
            lengths = list(now.lengths.tokens)
    order = [tuple(engines) if i % 2 == 0 else tuple(reversed(engines)) for i in range(rounds)]
    ceilings: list[Ceiling] = []
    for number, turn in enumerate(order, start=1):
        for engine in turn:
            now = measured[engine.name]
            with _started(clock, engine, number, now) as process:
                for shape in shapes:
                    with clock.step(engine.name, _said(shape), number):
                        request: dict[str, Any] = {"op": "time", "texts": texts[shape.tokens]}
                        request |= {"batch": shape.batch, "repeats": repeats}
                        request |= {"warmup": warmup, "max_s": max_s}
                        request |= {"energy": shape == _headline(shapes)}
                        now.calls.setdefault(shape, []).append(process.ask(request))
                now.info = process.ask({"op": "info"})
                now.peak.append(now.info["peak_rss_bytes"])
        ceilings += measured_ceiling(_threads(measured.values()))
    everyone = tuple(measured.values())
    for now in everyone:
        if operators and now.engine.role == "bundle" and now.engine.times_operators:
            now.operators = _operators(now.engine, texts, _headline(shapes))
    clocks = _clocks(everyone, shapes, rounds)
    qualities: dict[str, LabelQuality] = {}
    comparisons = list(_comparisons(everyone, shapes))
    differences: list[Difference] = []
    sha256 = evaluation.sha256
    if isinstance(evaluation, LabelledEvaluation):
        weights = weights_of(evaluation)
        reference = measured[counter.name] if counter.role != "bundle" else None
        for m in everyone:
            assert m.answered is not None
            other = reference.answered if reference is not None and reference is not m else None
            found = quality_of(evaluation, m.answered, lengths, weights, other, m.lengths)
            qualities[m.engine.name] = replace(
                found, robustness=tuple(m.robustness), evaluation_sha256=sha256
            )
        for ratio, difference in _kept(everyone, evaluation, weights):
            comparisons += [ratio] if ratio else []
            differences += [difference] if difference else []
    return BenchmarkResult(
        engines=tuple(
            replace(
                _summary(m, shapes),
                quality=_ranking(m, everyone, evaluation.name, sha256),
                labelling=qualities.get(m.engine.name),
            )
            for m in everyone
        ),
        comparisons=tuple(comparisons),
        environment=replace(environment, ceiling=best_of(ceilings)),
        rounds=rounds,
        repeats=repeats,
        token_counter="given" if count_tokens else counter.name,
        order=tuple(tuple(engine.name for engine in turn) for turn in order),
        seconds=time.perf_counter() - started,
        differences=tuple(differences),
        round_clock_mhz=tuple(clocks),
        doubts=(*_doubts(everyone, shapes, clocks), *_uneven(ceilings)),
    )


def _clocks(measured: Sequence[_Measured], shapes: Sequence[Shape], rounds: int) -> list[float]:
    """The clock as each round's calls ended, their mean; nothing where the system does not tell."""
    found = []
    for number in range(rounds):
        seen = [m.calls[shape][number].get("mhz") for m in measured for shape in shapes]
        known = [clock for clock in seen if clock is not None]
        found += [sum(known) / len(known)] if known else []
    return found


def _doubts(
    measured: Sequence[_Measured], shapes: Sequence[Shape], clocks: Sequence[float]
) -> Iterator[str]:
    """Why times are to be doubted."""
    if clocks and min(clocks) < _CLOCK_FELL * clocks[0]:
        yield (
            f"The clock fell from {clocks[0]:,.0f} to {min(clocks):,.0f} MHz from one round to another."
        )
    for m in measured:
        yield from _elsewhere(m)
        for shape in shapes:
            rounds = m.round_p50(shape)
            middle = percentile(rounds, 50)
            spread = (max(rounds) - min(rounds)) / middle if middle else 0.0
            if len(rounds) > 1 and spread > _ROUNDS_DIFFER:
                yield (
                    f"{m.engine.name}, {_said(shape)}: its rounds differ by {spread:.0%} of their median; other "
                    "work, or a clock that changes."
                )
            if any(call.get("settled") is False for call in m.calls[shape]):
                yield f"{m.engine.name}, {_said(shape)}: its calls had not become alike before they were timed."


def _threads(measured: Iterable[_Measured]) -> int:
    found = [m.info["threads"] for m in measured if isinstance(m.info.get("threads"), int)]
    return max(found, default=1)


def _uneven(ceilings: Sequence[Ceiling]) -> Iterator[str]:
    """Why what the processor can do at most is to be doubted."""
    rates = [ceiling.gemm_gflops for ceiling in ceilings]
    if rates and min(rates) < _CEILING_FELL * max(rates):
        yield (
            f"What the processor can do at most came to {min(rates):,.0f} GFLOP/s after one round and to "
            f"{max(rates):,.0f} after another; shares of it are of the best, and too high where that was disturbed too."
        )


def _elsewhere(m: _Measured) -> Iterator[str]:
    """Why an engine's figures are not those of its provider: some of its matrix products run on another one."""
    provider = m.info.get("provider")
    products = {
        name: sum(
            count
            for operator, count in nodes.items()
            if any(product in operator for product in _PRODUCTS)
        )
        for name, nodes in (m.info.get("placed") or {}).items()
    }
    others = [name for name, count in products.items() if count and name != provider]
    if others:
        count = sum(products[name] for name in others)
        yield (
            f"{m.engine.name}: {count} of its {sum(products.values())} matrix products run on {', '.join(others)}, not "
            f"on {provider}."
        )


def _rewritten(evaluation: Evaluation | LabelledEvaluation, rewrites: Rewrites) -> Rewritten:
    if isinstance(evaluation, Evaluation):
        return {}
    found = {kind: rewritten_rows(evaluation, texts) for kind, texts in rewrites.items()}
    return {kind: (rows, items) for kind, (rows, items) in found.items() if rows}


def _first_steps(evaluation: Evaluation | LabelledEvaluation, again: Rewritten) -> dict[str, float]:
    """The steps of round zero, and how many texts each reads."""
    if isinstance(evaluation, Evaluation):
        return {_QUALITY: 2.0 * len(evaluation.codes)}
    steps = {_QUALITY: float(len(evaluation.texts))}
    for kind, (_, items) in again.items():
        steps[_said_again(kind)] = float(len({text for item in items for text in item}))
    return steps


def _texts_a_call(evaluation: Evaluation | LabelledEvaluation, shape: Shape) -> float:
    texts = len(evaluation.rows[0]) if isinstance(evaluation, LabelledEvaluation) else 1
    return float(shape.batch * texts)


def _check(engines: Sequence[Engine], shapes: Sequence[Shape], rounds: int, repeats: int) -> None:
    names = [engine.name for engine in engines]
    if not names or len(set(names)) < len(names):
        raise InputError(f"a benchmark needs engines with names of their own, found {names}")
    if not shapes or len(set(shapes)) < len(shapes):
        raise InputError(f"a benchmark needs latency shapes, each once, found {list(shapes)}")
    if rounds < 1 or repeats < 1:
        raise InputError(f"rounds and repeats are 1 or more, found {rounds} and {repeats}")


def _token_counter(engines: Sequence[Engine]) -> Engine:
    roles: tuple[Role, ...] = ("teacher", "reference", "bundle")
    return min(engines, key=lambda engine: roles.index(engine.role))


def _texts(
    process: EngineProcess,
    evaluation: Evaluation | LabelledEvaluation,
    shapes: Sequence[Shape],
    count_tokens: CountTokens | None,
) -> dict[int, list[str]]:
    """For each length, as many texts as the largest batch (8 at least), the same for all."""

    def count(texts: Sequence[str]) -> list[int]:
        counts = process.ask({"op": "count", "texts": list(texts)})["tokens"]
        if counts is None:
            raise MachineError(
                "the engine that texts are measured by does not count tokens: give its worker a "
                "count_tokens, or benchmark() one"
            )
        return list(counts)

    texts = 1
    if isinstance(evaluation, LabelledEvaluation):
        functions, texts = evaluation.texts, len(evaluation.rows[0])
    else:
        functions = evaluation.codes
    n = max(8, *(shape.batch * texts for shape in shapes))
    lengths = sorted({shape.tokens for shape in shapes})
    counter = count_tokens or count
    return {tokens: texts_of_length(functions, counter, tokens, n) for tokens in lengths}


def _measure_quality(
    process: EngineProcess, measured: _Measured, evaluation: Evaluation, examples: int
) -> None:
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="codemill-") as folder:
        rows = []
        for name, asked in (("queries", evaluation.queries), ("codes", evaluation.codes)):
            out = Path(folder) / f"{name}.npy"
            answer = process.ask({"op": "encode", "texts": list(asked), "out": str(out)})
            rows.append(np.load(out, allow_pickle=False))
    measured.ranks = ranks(*rows)
    if measured.engine.role == "bundle":
        queries, codes = rows
        measured.examples = ranking_examples(evaluation, queries, codes, measured.ranks, examples)
    if answer.get("ms"):
        measured.functions_per_s = len(evaluation.codes) / (answer["ms"] / 1e3)


def _rows_of(evaluation: LabelledEvaluation) -> list[list[str]]:
    return [[evaluation.texts[index] for index in row] for row in evaluation.rows]


def _lengths(process: EngineProcess, evaluation: LabelledEvaluation) -> TextLengths | None:
    tokens = process.ask({"op": "count", "texts": list(evaluation.texts)})["tokens"]
    if tokens is None:
        return None
    ready = process.ready
    return TextLengths(tokens, ready.get("max_tokens"), ready.get("long"))


def _answers(process: EngineProcess, rows: Sequence[Sequence[str]]) -> Answered:
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="codemill-") as folder:
        out = Path(folder) / "answers.npz"
        request = {"op": "predict", "rows": [list(row) for row in rows], "out": str(out)}
        answer = process.ask(request)
        with np.load(out, allow_pickle=False) as stored:
            found = {name: stored[name] for name in stored.files}
    speed = len(rows) / (answer["ms"] / 1e3) if answer.get("ms") else None
    return Answered(rows_per_s=speed, **found)


def _count_tokens(process: EngineProcess, measured: _Measured, texts: dict[int, list[str]]) -> None:
    for tokens, chosen in texts.items():
        counts = process.ask({"op": "count", "texts": chosen})["tokens"]
        longest = process.ready.get("max_tokens")
        if counts and longest:
            # what the engine really reads: it cuts what is longer
            counts = [min(count, longest) for count in counts]
        measured.tokens[tokens] = sum(counts) / len(counts) if counts else None


@contextmanager
def _started(
    clock: _Clock, engine: Engine, number: int, measured: _Measured
) -> Iterator[EngineProcess]:
    """The engine's process, its cold start noted."""
    with clock.step(engine.name, _START, number):
        process = EngineProcess(engine)
    with process:
        measured.cold_start_ms.append(process.cold_start_ms)
        ready = process.ready
        for key, into in (
            ("load_ms", measured.load_ms),
            ("first_encode_ms", measured.first_encode_ms),
            ("peak_rss_bytes", measured.cold_peak),
        ):
            if ready.get(key) is not None:
                into.append(float(ready[key]))
        yield process


def _operators(
    engine: Engine, texts: Mapping[int, Sequence[str]], shape: Shape
) -> Operators | None:
    """Time by operator at a shape; None where the engine does not say, or is none of ONNX Runtime's."""
    profiled = replace(engine, argv=(*engine.argv, "--operators"))
    request = {"op": "operators", "texts": texts[shape.tokens], "batch": shape.batch}
    # what was measured before is worth more than this
    with suppress(CodemillError), EngineProcess(profiled) as process:
        answer = process.ask({**request, "calls": _PROFILED_CALLS})
        times = tuple(from_json(OperatorTime, item) for item in answer["times"])
        return Operators(shape.tokens, shape.batch, answer["calls"], times) if times else None
    return None


def _ranking(
    m: _Measured, everyone: Sequence[_Measured], evaluation: str, sha256: str
) -> Quality | None:
    if m.ranks is None:
        return None
    others = [other for other in everyone if other is not m]
    return Quality(
        evaluation=evaluation,
        functions=len(m.ranks),
        mrr=float((1.0 / m.ranks).mean()),
        recall_at_10=float((m.ranks <= 10).mean()),
        functions_per_s=m.functions_per_s,
        evaluation_sha256=sha256,
        examples=tuple(
            replace(
                example,
                ranks={x.engine.name: int(x.ranks[i]) for x in others if x.ranks is not None},
            )
            for i, example in m.examples.items()
        ),
    )


def _headline(shapes: Sequence[Shape]) -> Shape:
    """The shape nearest to 128 tokens, batch 1."""
    return min(shapes, key=lambda shape: (abs(shape.tokens - 128), shape.batch))


def _summary(m: _Measured, shapes: Sequence[Shape]) -> EngineResult:
    """All but its quality."""
    return EngineResult(
        name=m.engine.name,
        role=m.engine.role,
        provider=m.info.get("provider"),
        precision=m.info.get("precision"),
        threads=m.info.get("threads"),
        size=Size(m.engine.size_bytes),
        cold_start=ColdStart(
            cold_start_ms_p50=percentile(m.cold_start_ms, 50),
            cold_start_ms_max=max(m.cold_start_ms),
            load_ms_p50=percentile(m.load_ms, 50) if m.load_ms else None,
            first_encode_ms_p50=percentile(m.first_encode_ms, 50) if m.first_encode_ms else None,
            starts=len(m.cold_start_ms),
        ),
        memory=Memory(percentile(m.cold_peak, 50), percentile(m.peak, 50)),
        latencies=tuple(_latency(m, shape) for shape in shapes),
        quality=None,
        energy=_energy(m, shapes),
        packages=dict(m.info.get("packages") or {}),
        operators=m.operators,
        variant=m.info.get("variant"),
    )


def _latency(m: _Measured, shape: Shape) -> Latency:
    per_function = [ms / shape.batch for call in m.calls[shape] for ms in call["ms"]]
    return Latency(
        tokens=shape.tokens,
        batch=shape.batch,
        engine_tokens=m.tokens.get(shape.tokens),
        latency_ms_p50=percentile(per_function, 50),
        latency_ms_p90=percentile(per_function, 90),
        latency_ms_p99=percentile(per_function, 99),
        functions_per_s=1e3 * len(per_function) / sum(per_function),
        calls=len(per_function),
        round_latency_ms_p50=tuple(ms / shape.batch for ms in m.round_p50(shape)),
        settled=_settled(m.calls[shape]),
    )


def _settled(calls: Sequence[dict[str, Any]]) -> bool | None:
    known = [call["settled"] for call in calls if call.get("settled") is not None]
    return all(known) if known else None


def _energy(m: _Measured, shapes: Sequence[Shape]) -> Energy | None:
    """A function's at the headline shape: counted, else estimated of an engine on the processor, else None."""
    shape = _headline(shapes)
    calls = m.calls[shape]
    counted = [call["energy"] for call in calls if call.get("energy")]
    if len(counted) == len(calls):
        functions = shape.batch * sum(item["calls"] for item in counted)
        joules = sum(item["joules"] for item in counted) / functions
        return Energy(joules, shape.tokens, shape.batch, counted[0]["how"], "measured")
    if on_processor(m.info.get("provider")) and all(
        call.get("cpu_ms") is not None for call in calls
    ):
        functions = shape.batch * sum(len(call["ms"]) for call in calls)
        joules = sum(call["cpu_ms"] for call in calls) / 1e3 * WATTS_PER_CORE / functions
        how = f"CPU seconds of the process x {WATTS_PER_CORE:g} W a busy core (an assumption)"
        return Energy(joules, shape.tokens, shape.batch, how, "estimate")
    return None


def _comparisons(measured: Sequence[_Measured], shapes: Sequence[Shape]) -> Iterator[Comparison]:
    """Every engine against every teacher and reference that is not itself."""
    for base in measured:
        if base.engine.role == "bundle":
            continue
        for m in measured:
            if m is base:
                continue
            names = (m.engine.name, base.engine.name)
            for shape in shapes:
                ratio = paired_ratio(base.round_p50(shape), m.round_p50(shape))
                yield Comparison(*names, "latency", shape.tokens, shape.batch, ratio)
            starts = paired_ratio(base.cold_start_ms, m.cold_start_ms)
            yield Comparison(*names, "cold_start", None, None, starts)
            yield Comparison(*names, "peak_rss", None, None, paired_ratio(base.peak, m.peak))
            if base.engine.size_bytes and m.engine.size_bytes:
                times = base.engine.size_bytes / m.engine.size_bytes
                exact = Ratio(times, times, times, 1)
                yield Comparison(*names, "size", None, None, exact)
            if base.ranks is not None and m.ranks is not None:
                mrr = ratio_of_means(1.0 / m.ranks, 1.0 / base.ranks)
                recall = ratio_of_means(1.0 * (m.ranks <= 10), 1.0 * (base.ranks <= 10))
                if mrr:
                    yield Comparison(*names, "mrr", None, None, mrr)
                if recall:
                    yield Comparison(*names, "recall_at_10", None, None, recall)


def _kept(
    measured: Sequence[_Measured], evaluation: LabelledEvaluation, weights: Weights
) -> Iterator[tuple[Comparison | None, Difference | None]]:
    """The share that each engine keeps of what every teacher and reference reaches, and its own less that."""
    for base in measured:
        for m in measured:
            if m is base or base.engine.role == "bundle" or not (m.answered and base.answered):
                continue
            for name in KEPT:
                ratio, less = compared_with(name, evaluation, m.answered, base.answered, weights)
                names = (m.engine.name, base.engine.name)
                rows = sum(truth >= 0 for truth in evaluation.truth)
                yield (
                    Comparison(*names, name, None, None, ratio) if ratio else None,
                    Difference(*names, name, rows, less) if less else None,
                )


def _said(shape: Shape) -> str:
    return f"{shape.tokens} tokens, batch {shape.batch}"


def _said_again(kind: str) -> str:
    return f"the test's code rewritten: {kind}"


class _Clock:
    """Turns finished steps into a share done and the time left.

    A step still to come is taken to last as long as the same engine's same step did before; one not
    seen yet, by the texts it reads, at the rate of that engine's steps so far, or of all engines'. A
    step that times calls ends by itself after `max_s` seconds.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        firsts: Mapping[str, float],
        timed: Mapping[str, float],
        rounds: int,
        max_s: float,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        names = [engine.name for engine in engines]
        self._left = [(name, step) for name in names for step in firsts]
        self._left += [(name, step) for name in names for step in (_START, *timed)] * rounds
        self._texts, self._timed, self._max_s = {**firsts, **timed}, frozenset(timed), max_s
        self._took: dict[tuple[str, str], float] = {}
        self._rounds, self._progress = rounds, progress
        self._started, self._fraction = time.perf_counter(), 0.0

    @contextmanager
    def step(self, engine: str, step: str, number: int) -> Iterator[None]:
        """Time one step of one engine and report before and after it."""
        where = f"round {number} of {self._rounds}: " if number else ""
        message = f"{where}{engine}, {step}"
        self._report(message)
        began = time.perf_counter()
        yield
        self._took[engine, step] = time.perf_counter() - began
        self._left.remove((engine, step))
        self._report(message)

    def _report(self, message: str) -> None:
        if self._progress is None:
            return
        left_s = None
        if self._took:
            left_s = sum(self._expected_s(*step) for step in self._left)
            done_s = time.perf_counter() - self._started
            self._fraction = max(self._fraction, done_s / (done_s + left_s))
        self._progress(Progress(self._fraction, left_s, message))

    def _expected_s(self, engine: str, step: str) -> float:
        """How long a step will take."""
        if (engine, step) in self._took:
            return self._took[engine, step]
        if step == _START:
            seen = [s for (_, name), s in self._took.items() if name == _START]
            return sum(seen) / len(seen) if seen else _START_S
        seconds = self._texts[step] * self._seconds_a_text(engine)
        return min(seconds, self._max_s) if step in self._timed else seconds

    def _seconds_a_text(self, engine: str) -> float:
        read = [key for key in self._took if key[1] in self._texts]
        mine = [key for key in read if key[0] == engine] or read
        texts = sum(self._texts[step] for _, step in mine)
        return sum(self._took[key] for key in mine) / texts if texts else 0.0
