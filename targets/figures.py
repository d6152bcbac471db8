"""The figures of a benchmark, as report.json holds them: frozen, typed, units in their names.

Each group says where it comes from (`source`): measured where the report was made, estimated, or,
once another machine shows the report, imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from codemill.errors import InputError
from codemill.targets.classification import Bin, Interval
from codemill.targets.engine import Role
from codemill.targets.environment import Environment
from codemill.targets.metrics import Ratio
from codemill.targets.profile import Shape

__all__ = [
    "BenchmarkResult",
    "ColdStart",
    "Comparison",
    "Difference",
    "Energy",
    "EngineResult",
    "Found",
    "LabelFigures",
    "LabelQuality",
    "Latency",
    "LengthFigures",
    "Long",
    "Memory",
    "OperatorTime",
    "Operators",
    "Quality",
    "Quantity",
    "RankingExample",
    "Robustness",
    "Size",
    "Source",
]

Source = Literal["measured", "imported", "estimate"]
Long = Literal["truncate", "split"]
"""What a classifier does with a text that is longer than it reads at once."""
# The first four are baseline / engine (times less), the others engine / baseline (share kept).
Quantity = Literal[
    "latency", "cold_start", "peak_rss", "size", "mrr", "recall_at_10", "accuracy", "f1", "auc"
]


@dataclass(frozen=True)
class Latency:
    """Milliseconds per function (a call's time over its batch) at one shape, over all rounds.

    `tokens` are the token counter's (the teacher's), `engine_tokens` the mean that this engine
    makes of the same texts: a pruned vocabulary makes functions longer. `settled`: whether its calls had become alike
    before they were timed, in every round.
    """

    tokens: int
    batch: int
    engine_tokens: float | None
    latency_ms_p50: float
    latency_ms_p90: float
    latency_ms_p99: float
    functions_per_s: float
    calls: int
    round_latency_ms_p50: tuple[float, ...]
    source: Source = "measured"
    settled: bool | None = None


@dataclass(frozen=True)
class ColdStart:
    """From making the process to having read its first answer, file cache warm."""

    cold_start_ms_p50: float
    cold_start_ms_max: float
    load_ms_p50: float | None
    first_encode_ms_p50: float | None
    starts: int
    source: Source = "measured"


@dataclass(frozen=True)
class Memory:
    """The most a process held: after its first answer, and after every shape. Medians of rounds."""

    cold_peak_rss_bytes: float
    peak_rss_bytes: float
    source: Source = "measured"


@dataclass(frozen=True)
class Size:
    """What the engine takes on disk."""

    size_bytes: int
    source: Source = "measured"


@dataclass(frozen=True)
class Found:
    """A function that a query found: its code, cut short, its cosine, and whether it is the right one."""

    code: str
    score: float
    right: bool


@dataclass(frozen=True)
class RankingExample:
    """A query of the test, the rank of its right function, and what stood first; `ranks`: of the other engines.

    Texts are cut short.
    """

    query: str
    code: str
    rank: int
    ranks: dict[str, int]
    found: tuple[Found, ...]


@dataclass(frozen=True)
class Quality:
    """Retrieval over `functions` functions by the very engine that was timed.

    `functions_per_s` is its rate over those functions at their own lengths. `evaluation_sha256`: of the set's rows.
    `examples`: of a bundle, some queries that it answers right, then some that it does not.
    """

    evaluation: str
    functions: int
    mrr: float
    recall_at_10: float
    functions_per_s: float | None
    source: Source = "measured"
    evaluation_sha256: str | None = None
    examples: tuple[RankingExample, ...] = ()


@dataclass(frozen=True)
class LabelFigures:
    """How one label did: `rows` of it in the test."""

    label: str
    rows: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class LengthFigures:
    """Accuracy of the rows whose texts have so many tokens together, as the token counter counts."""

    tokens_from: int
    tokens_to: int
    rows: int
    accuracy: float


@dataclass(frozen=True)
class Robustness:
    """The share of decisions that stay the same when the code is rewritten without another meaning.

    Of `rows` of the test over `texts` distinct texts that could be rewritten: where the test is large, a sample of
    it. `unchanged_accuracy` and `rewritten_accuracy` are over these; `survived_low` and `survived_high` are the
    interval of `survived`, resampled as the other figures are.
    """

    rewrite: str
    rows: int
    survived: float
    unchanged_accuracy: float | None
    rewritten_accuracy: float | None
    texts: int | None = None
    survived_low: float | None = None
    survived_high: float | None = None


@dataclass(frozen=True)
class LabelQuality:
    """How well an engine labels the `rows` of a test whose label is known, by the very engine that was timed.

    `figures`: accuracy, f1, precision, recall, auc, mcc, ece, with intervals over resampled `clusters` (rows, groups
    or functions); None where a figure is undefined. `majority`: accuracy of always saying the most frequent label;
    `margin`: accuracy less that, with its interval. `truncated`: share of rows of which something was cut off.
    `text_tokens_mean`: tokens of a text of the test, by the engine's own tokenizer; `texts_longer`: the share of
    the texts that have more than `longest_tokens`, the most it reads at once, and `long` what it does with these.
    `confusion`: rows by label, then by decision; empty where there are more than 200 labels.
    `agreement`: share of rows labelled as the first teacher or reference does. `layers_used`: layers -> rows.
    """

    evaluation: str
    rows: int
    texts: int
    """a row"""
    labels: tuple[str, ...]
    clusters: str
    figures: dict[str, Interval | None]
    majority: float
    confusion: tuple[tuple[int, ...], ...]
    calibration: tuple[Bin, ...]
    per_label: tuple[LabelFigures, ...]
    per_length: tuple[LengthFigures, ...]
    layers_used: dict[str, int]
    truncated: float
    agreement: float | None
    rows_per_s: float | None
    robustness: tuple[Robustness, ...] = ()
    margin: Interval | None = None
    text_tokens_mean: float | None = None
    longest_tokens: int | None = None
    texts_longer: float | None = None
    long: Long | None = None
    source: Source = "measured"
    evaluation_sha256: str | None = None

    @property
    def accuracy(self) -> float:
        """The share of rows labelled right."""
        found = self.figures["accuracy"]
        assert found is not None
        return found.value


@dataclass(frozen=True)
class Energy:
    """Joules per function at one shape; `how` says by what counter, or on what assumption."""

    energy_j_per_function: float
    tokens: int
    batch: int
    how: str
    source: Source


@dataclass(frozen=True)
class OperatorTime:
    """How long the nodes of one operator in one graph of a bundle take in a call, together."""

    graph: str
    operator: str
    nodes: int
    time_ms: float


@dataclass(frozen=True)
class Operators:
    """Time by operator of a call at one shape, by ONNX Runtime's profiler in a process of its own.

    A call is a mean of `calls`: with early exits later graphs run in some of them only.
    """

    tokens: int
    batch: int
    calls: int
    times: tuple[OperatorTime, ...]
    source: Source = "measured"


@dataclass(frozen=True)
class EngineResult:
    """All that was measured of one engine; `operators` of the bundle, where ONNX Runtime runs it.

    `variant`: of a bundle, the one that this engine ran.
    """

    name: str
    role: Role
    provider: str | None
    precision: str | None
    threads: int | None
    size: Size
    cold_start: ColdStart
    memory: Memory
    latencies: tuple[Latency, ...]
    quality: Quality | None
    energy: Energy | None
    packages: dict[str, str]
    labelling: LabelQuality | None = None
    operators: Operators | None = None
    variant: str | None = None


@dataclass(frozen=True)
class Comparison:
    """An engine against a baseline. The ratio is above 1 when the engine is faster, smaller,
    or better: baseline / engine for what should be small, engine / baseline for quality.
    """

    engine: str
    baseline: str
    quantity: Quantity
    tokens: int | None
    batch: int | None
    ratio: Ratio


@dataclass(frozen=True)
class Difference:
    """A quality of an engine less that of a baseline over the same `rows`, both resampled together."""

    engine: str
    baseline: str
    quantity: Quantity
    rows: int
    difference: Interval


@dataclass(frozen=True)
class BenchmarkResult:
    """What `benchmark` found. `order` is the order of the processes, round by round.

    `differences` are of classifiers: for each teacher and reference, of every other engine. `round_clock_mhz`: the
    clock as each round's calls ended. `doubts`: why its times are to be doubted, in sentences: rounds that differ, a
    clock that fell, calls that did not become alike.
    """

    engines: tuple[EngineResult, ...]
    comparisons: tuple[Comparison, ...]
    environment: Environment
    rounds: int
    repeats: int
    token_counter: str
    order: tuple[tuple[str, ...], ...]
    seconds: float
    differences: tuple[Difference, ...] = ()
    round_clock_mhz: tuple[float, ...] = ()
    doubts: tuple[str, ...] = ()

    def engine(self, name: str) -> EngineResult:
        """The result of the engine called `name`; InputError when there is none."""
        for engine in self.engines:
            if engine.name == name:
                return engine
        raise InputError(f"no engine {name!r} was measured: {[e.name for e in self.engines]}")

    def ratio(
        self, engine: str, baseline: str, quantity: Quantity, shape: Shape | None = None
    ) -> Ratio | None:
        """The ratio of `engine` against `baseline`, or None where it was not formed."""
        where = (shape.tokens, shape.batch) if shape else (None, None)
        wanted = (engine, baseline, quantity, *where)
        for c in self.comparisons:
            if (c.engine, c.baseline, c.quantity, c.tokens, c.batch) == wanted:
                return c.ratio
        return None

    def difference(self, engine: str, baseline: str, quantity: Quantity) -> Interval | None:
        """`engine` less `baseline`, or None where that was not formed."""
        for d in self.differences:
            if (d.engine, d.baseline, d.quantity) == (engine, baseline, quantity):
                return d.difference
        return None
