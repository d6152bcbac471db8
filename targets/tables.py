"""The cards and the table of the report's page: which figures, in what words and units, from where.

Every figure becomes a `Cell` with its source; how cells are laid out is report.html.j2's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from codemill.targets.ceiling import Ceiling
from codemill.targets.classification import Interval
from codemill.targets.environment import Environment
from codemill.targets.figures import EngineResult, LabelQuality, Latency, Quantity, Source
from codemill.targets.layer_cost import parts_of
from codemill.targets.metrics import Ratio
from codemill.targets.profile import Shape
from codemill.targets.report import Limit, Report

Tone = Literal["better", "worse", "even"]
"""Of a ratio: its whole interval is on one side of 1, or it is not."""


@dataclass(frozen=True)
class Cell:
    """One figure in a table or on a card; `tone`: of its ratio."""

    main: str
    small: str = ""
    ratio: str = ""
    source: Source = "measured"
    tone: Tone = "even"


_BUSY = 0.15
"""Share of the CPU from which on it is said."""


@dataclass(frozen=True)
class Row:
    """One line of a table; a heading when it has no cells."""

    name: str
    cells: tuple[Cell | None, ...] = ()


def cards(report: Report, shape: Shape) -> Iterator[tuple[str, Cell, str]]:
    """(label, figure, the baseline's figure), the headline figures first."""
    student, teacher = report.student, report.teacher

    def card(
        label: str, cell: Callable[[EngineResult], Cell | None]
    ) -> Iterator[tuple[str, Cell, str]]:
        mine, theirs = cell(student), cell(teacher) if teacher else None
        if mine is not None:
            yield label, mine, f"{teacher.name}: {theirs.main}" if teacher and theirs else ""

    def less(cell: Cell | None, quantity: Quantity, word: str) -> Cell | None:
        """`cell` with how many times less it is than the baseline's, in words."""
        ratio = ratio_of(report, student, quantity, shape if quantity == "latency" else None)
        return cell and with_ratio(cell, ratio, word)

    yield from card("size on disk", lambda e: less(size_cell(e), "size", "smaller"))
    if student.quality:
        kept_share = ratio_of(report, student, "mrr")
        yield from card(
            f"MRR over {student.quality.functions:,} functions",
            lambda e: quality_cell(e, "mrr", kept_share),
        )
    if student.labelling:
        labelling, share = student.labelling, ratio_of(report, student, "accuracy")
        yield from card(
            f"accuracy over {labelling.rows:,} {row_word(labelling)}s",
            lambda e: label_cell(e, "accuracy", share),
        )
    row = row_word(student.labelling) if student.labelling else "function"
    of = f"two functions of {shape.tokens} tokens each" if row == "pair" else _tokens(shape)
    yield from card(
        f"a {row} of {of}, batch {shape.batch}",
        lambda e: less(latency_cell(e, shape), "latency", "faster"),
    )
    yield from card(
        "cold start, process to first answer", lambda e: less(start_cell(e), "cold_start", "faster")
    )
    yield from card("peak memory after the first answer", cold_memory_cell)


def _tokens(shape: Shape) -> str:
    return f"{shape.tokens} tokens"


def busy_said(environment: Environment, ratios: bool = True) -> str | None:
    """That something else was running before the measurement, where it was; ratios: whether there are any to trust."""
    share = environment.cpu_busy_share or 0.0
    if share <= _BUSY:
        return None
    trust = ": trust the ratios more than the milliseconds" if ratios else ""
    return (
        f"Something else was running when this was measured ({share:.0%} of the CPU was busy before the first engine "
        f"started){trust}."
    )


def environment_rows(environment: Environment) -> Iterator[tuple[str, str]]:
    """What was measured on: (name, value)."""
    machine = environment.machine
    cores = f"{machine.get('physical_cores')} physical, {machine.get('logical_cores')} logical"
    memory = machine.get("memory_bytes")
    yield "processor", str(machine.get("cpu"))
    yield "cores this process may use", cores
    yield "instruction sets", ", ".join(machine.get("instruction_sets") or ()) or "unknown"
    yield "memory", in_bytes(memory) if memory else "unknown"
    if environment.gpus:
        yield "GPUs", "; ".join(environment.gpus)
    yield "execution providers", ", ".join(machine.get("providers") or ()) or "none"
    yield "system", str(machine.get("os"))
    yield "packages", ", ".join(f"{n} {v}" for n, v in sorted(environment.packages.items()))
    if (ceiling := environment.ceiling) is not None:
        yield (
            "at most, measured",
            f"{ceiling.gemm_gflops:,.0f} GFLOP/s of float32 products, {ceiling.read_gb_per_s:,.1f} GB/s read, "
            f"{ceiling.threads} thread{'s' if ceiling.threads > 1 else ''}",
        )
    if environment.cpu_busy_share is not None:
        yield "CPU busy before the start", f"{environment.cpu_busy_share:.0%}"
    yield "measured at", environment.measured_at
    yield "machine", environment.machine_id


def engine_rows(report: Report, engines: Sequence[EngineResult]) -> Iterator[Row]:
    """The table of all engines: one figure a row, one engine a column."""

    def row(name: str, cell: Callable[[EngineResult], Cell | None]) -> Row:
        return Row(name, tuple(cell(engine) for engine in engines))

    def less(
        cell: Cell | None, engine: EngineResult, quantity: Quantity, shape: Shape | None = None
    ) -> Cell | None:
        return cell and with_ratio(cell, ratio_of(report, engine, quantity, shape))

    yield Row("Size and quality")
    if any(e.variant for e in engines):
        yield row("variant", lambda e: Cell(e.variant) if e.variant else None)
    yield row("size on disk", lambda e: less(size_cell(e), e, "size"))
    counts = [e.quality.functions for e in engines if e.quality]
    if counts:
        yield row(f"MRR@{counts[0]}", lambda e: quality_cell(e, "mrr", ratio_of(report, e, "mrr")))
        yield row(
            "Recall@10",
            lambda e: quality_cell(e, "recall_at_10", ratio_of(report, e, "recall_at_10")),
        )
    if any(e.labelling for e in engines):
        yield from _label_rows(report, engines)
    pairs = any(e.labelling and row_word(e.labelling) == "pair" for e in engines)
    yield Row(f"Latency a {'pair of functions' if pairs else 'function'}, p50")
    for shape in dict.fromkeys(Shape(x.tokens, x.batch) for e in engines for x in e.latencies):
        cells = [less(latency_cell(e, shape), e, "latency", shape) for e in engines]
        yield Row(f"{shape.tokens} tokens, batch {shape.batch}", tuple(cells))
    lengths = sorted({x.tokens for e in engines for x in e.latencies})
    written = " / ".join(map(str, lengths))
    batches = sorted({x.batch for e in engines for x in e.latencies})
    for name, share in (
        ("its products at the processor's float32 rate", ceiling_cell),
        ("its weights read once from memory", memory_share_cell),
    ):
        for batch in batches:
            cells = [share(report, e, lengths, batch) for e in engines]
            if any(cells):
                yield Row(f"of that, {name}, {written} tokens, batch {batch}", tuple(cells))
    yield row(f"its own tokens for {written}", lambda e: tokens_cell(e, lengths))
    yield Row("Start, memory, throughput, energy")
    yield row("cold start", lambda e: less(start_cell(e), e, "cold_start"))
    yield row("peak memory, first answer", cold_memory_cell)
    yield row("peak memory, all shapes", lambda e: less(memory_cell(e), e, "peak_rss"))
    if any(e.labelling and e.labelling.rows_per_s for e in engines):
        yield row("rows a second, evaluation set", rows_per_second_cell)
    if any(e.quality and e.quality.functions_per_s for e in engines):
        yield row("functions a second, evaluation set", throughput_cell)
    energies = [e.energy for e in engines if e.energy]
    if energies:
        at = f"{energies[0].tokens} tokens, batch {energies[0].batch}"
        yield row(f"energy a {'pair' if pairs else 'function'}, {at}", energy_cell)


LABEL_FIGURES = {
    "accuracy": "accuracy",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "auc": "AUC",
    "mcc": "Matthews correlation",
    "ece": "expected calibration error",
}
"""Figures of a classifier, as people call them."""


def row_word(labelling: LabelQuality) -> str:
    """What one row of a labelled test is."""
    return "pair" if labelling.texts == 2 else "function"


def _label_rows(report: Report, engines: Sequence[EngineResult]) -> Iterator[Row]:
    first = next(e.labelling for e in engines if e.labelling)
    for name, said in LABEL_FIGURES.items():
        shown = tuple(label_cell(e, name, _kept_of(report, e, name)) for e in engines)
        yield Row(said, shown)
    always = Cell(f"{first.majority:.3f}", "always the most frequent label")
    yield Row("majority baseline, accuracy", (always,) * len(engines))
    if any(e.labelling and e.labelling.margin for e in engines):
        yield Row("margin of accuracy over it", tuple(map(_margin_cell, engines)))
    if any(e.labelling and e.labelling.agreement is not None for e in engines):
        yield Row("decides as the first teacher or reference", tuple(map(_agreement_cell, engines)))
    if any(e.labelling and e.labelling.text_tokens_mean for e in engines):
        yield Row(
            "mean length of a test text, in its own tokens", tuple(map(_length_cell, engines))
        )
    if any(e.labelling and e.labelling.texts_longer is not None for e in engines):
        yield Row("test texts longer than it reads at once", tuple(map(_longer_cell, engines)))
    if any(e.labelling and e.labelling.truncated for e in engines):
        yield Row(
            f"{row_word(first)}s of which something was cut off",
            tuple(map(_truncated_cell, engines)),
        )
    kinds = dict.fromkeys(x.rewrite for e in engines if e.labelling for x in e.labelling.robustness)
    if kinds:
        yield Row(f"Decisions that survive rewriting the code{_sample_said(engines)}")
    for kind in kinds:
        yield Row(REWRITES.get(kind, kind), tuple(_robustness_cell(e, kind) for e in engines))


REWRITES = {
    "rename": "local names changed",
    "reformat": "formatted otherwise",
    "comments": "comments changed",
    "dead-code": "dead code added",
    "all": "all of these",
}
"""Kinds of rewriting, in words."""


def _kept_of(report: Report, engine: EngineResult, name: str) -> Ratio | None:
    return ratio_of(report, engine, name) if name in ("accuracy", "f1", "auc") else None  # type: ignore[arg-type]


def label_cell(engine: EngineResult, name: str, ratio: Ratio | None) -> Cell | None:
    """A figure of a classifier with its interval, and the share kept of the baseline's."""
    labelling = engine.labelling
    found = labelling.figures.get(name) if labelling else None
    if labelling is None or found is None:
        return None
    value = f"{found.value:.3f}".replace("-", "\u2212")
    return Cell(value, interval(found), kept(ratio), labelling.source, tone_of(ratio))


def interval(found: Interval) -> str:
    """Its two ends, as 0.912–0.934; empty where it has none."""
    if found.low is None or found.high is None:
        return ""
    return f"{found.low:.3f}{DASH}{found.high:.3f}".replace("-", "\u2212")


def signed(value: float) -> str:
    """As +0.012 or \u22120.012."""
    return "0.000" if abs(value) < 0.0005 else f"{value:+.3f}".replace("-", "\u2212")


def signed_interval(found: Interval) -> str:
    """The two ends of a difference, as \u22120.012 to +0.003; empty where it has none."""
    if found.low is None or found.high is None:
        return ""
    return f"{signed(found.low)} to {signed(found.high)}".replace(" ", "\u00a0")


def _sample_said(engines: Sequence[EngineResult]) -> str:
    """Over what decisions were looked at again, where that is known."""
    for engine in engines:
        labelling = engine.labelling
        for found in labelling.robustness if labelling else ():
            if labelling and found.texts is not None:
                most = max(x.rows for x in labelling.robustness)
                texts = max(x.texts or 0 for x in labelling.robustness)
                of = "all" if most == labelling.rows else f"a sample of {most:,} of the"
                word = row_word(labelling)
                over = f" over {texts:,} functions" if word == "pair" else ""
                return f": {of} {labelling.rows:,} {word}s{over}"
    return ""


def _margin_cell(engine: EngineResult) -> Cell | None:
    if engine.labelling is None or engine.labelling.margin is None:
        return None
    found = engine.labelling.margin
    return Cell(signed(found.value), signed_interval(found), source=engine.labelling.source)


def _length_cell(engine: EngineResult) -> Cell | None:
    if engine.labelling is None or engine.labelling.text_tokens_mean is None:
        return None
    return Cell(f"{engine.labelling.text_tokens_mean:,.0f}", source=engine.labelling.source)


def _longer_cell(engine: EngineResult) -> Cell | None:
    labelling = engine.labelling
    if labelling is None or labelling.texts_longer is None:
        return None
    done = {"split": ", read in pieces", "truncate": ", cut off there"}.get(
        labelling.long or "", ""
    )
    small = f"than {labelling.longest_tokens:,} tokens{done}"
    return Cell(f"{labelling.texts_longer:.1%}", small, source=labelling.source)


def _agreement_cell(engine: EngineResult) -> Cell | None:
    if engine.labelling is None or engine.labelling.agreement is None:
        return None
    return Cell(f"{engine.labelling.agreement:.1%}", source=engine.labelling.source)


def _truncated_cell(engine: EngineResult) -> Cell | None:
    if engine.labelling is None:
        return None
    return Cell(f"{engine.labelling.truncated:.1%}", source=engine.labelling.source)


def _robustness_cell(engine: EngineResult, kind: str) -> Cell | None:
    labelling = engine.labelling
    for found in labelling.robustness if labelling else ():
        if labelling and found.rewrite == kind:
            said = [f"of {found.rows:,}"]
            if found.survived_low is not None and found.survived_high is not None:
                said = [
                    f"{found.survived_low:.1%}{DASH}{found.survived_high:.1%} of {found.rows:,}"
                ]
            if found.unchanged_accuracy is not None and found.rewritten_accuracy is not None:
                said.append(
                    f"accuracy {found.unchanged_accuracy:.3f} \u2192 {found.rewritten_accuracy:.3f}"
                )
            # the line may break between the two and not within them
            small = ", ".join(part.replace(" ", "\u00a0") for part in said)
            return Cell(f"{found.survived:.1%}", small, source=labelling.source)
    return None


def rows_per_second_cell(engine: EngineResult) -> Cell | None:
    """Rows of the labelled test a second, where each distinct text is read once."""
    labelling = engine.labelling
    if labelling is None or labelling.rows_per_s is None:
        return None
    return Cell(f"{labelling.rows_per_s:,.0f}", source=labelling.source)


def size_cell(engine: EngineResult) -> Cell:
    """What it takes on disk."""
    return Cell(in_bytes(engine.size.size_bytes), source=engine.size.source)


def quality_cell(
    engine: EngineResult, name: Literal["mrr", "recall_at_10"], ratio: Ratio | None
) -> Cell | None:
    """MRR or Recall@10, with the share kept of the baseline's."""
    if engine.quality is None:
        return None
    value = engine.quality.mrr if name == "mrr" else engine.quality.recall_at_10
    return Cell(f"{value:.3f}", "", kept(ratio), engine.quality.source, tone_of(ratio))


def start_cell(engine: EngineResult) -> Cell:
    """Cold start, and the parts of it that the worker timed."""
    start = engine.cold_start
    named = (("load", start.load_ms_p50), ("first encode", start.first_encode_ms_p50))
    small = " · ".join(f"{name} {in_ms(ms)}" for name, ms in named if ms is not None)
    return Cell(in_ms(start.cold_start_ms_p50), small, source=start.source)


def cold_memory_cell(engine: EngineResult) -> Cell:
    """Peak memory after the first answer."""
    return Cell(in_bytes(engine.memory.cold_peak_rss_bytes), source=engine.memory.source)


def memory_cell(engine: EngineResult) -> Cell:
    """Peak memory after every shape."""
    return Cell(in_bytes(engine.memory.peak_rss_bytes), source=engine.memory.source)


def throughput_cell(engine: EngineResult) -> Cell | None:
    """Functions a second over the evaluation set."""
    quality = engine.quality
    if quality is None or quality.functions_per_s is None:
        return None
    return Cell(f"{quality.functions_per_s:,.0f}", source=quality.source)


def energy_cell(engine: EngineResult) -> Cell | None:
    """Joules a function."""
    energy = engine.energy
    if energy is None:
        return None
    return Cell(in_joules(energy.energy_j_per_function), source=energy.source)


def latency_cell(engine: EngineResult, shape: Shape) -> Cell | None:
    """p50 at `shape`, with the tail."""
    for x in engine.latencies:
        if (x.tokens, x.batch) == (shape.tokens, shape.batch):
            tail = (f"p90 {in_ms(x.latency_ms_p90)} ·", f"p99 {in_ms(x.latency_ms_p99)}")
            # the line may break between the two figures and not within them
            small = " ".join(figure.replace(" ", "\u00a0") for figure in tail)
            return Cell(in_ms(x.latency_ms_p50), small, source=x.source)
    return None


def tokens_cell(engine: EngineResult, lengths: Sequence[int]) -> Cell | None:
    """How many tokens this engine makes of the texts of each length: more, with fewer words."""
    seen = {x.tokens: x.engine_tokens for x in engine.latencies}
    counts = [seen.get(tokens) for tokens in lengths]
    if all(count is None for count in counts):
        return None
    return Cell(" / ".join("?" if count is None else f"{count:.0f}" for count in counts))


def ceiling_cell(
    report: Report, engine: EngineResult, lengths: Sequence[int], batch: int
) -> Cell | None:
    """The share of a call's time that its products would take at the rate that was measured; of the bundle alone.

    Above 100 % where int8 multiplies faster than float32.
    """
    ceiling = _ceiling_of(report, engine)
    if ceiling is None:
        return None
    texts = 2 if engine.labelling and engine.labelling.texts == 2 else 1

    def seconds(x: Latency) -> float | None:
        parts = parts_of(report.bundle.architecture, x.engine_tokens or x.tokens)
        if parts is None:
            return None
        return texts * sum(part.gflops for part in parts) / ceiling.gemm_gflops

    cell = _shares_cell(engine, lengths, batch, seconds, most=_MOST_SHARE)
    whole = {str(report.bundle.architecture.get("layers"))}
    leaves = engine.labelling is not None and engine.labelling.layers_used.keys() != whole
    return _noted(cell, leaves, "of all layers; a text that leaves at an exit takes fewer")


def memory_share_cell(
    report: Report, engine: EngineResult, lengths: Sequence[int], batch: int
) -> Cell | None:
    """The share of a call's time that reading the variant's files once would take; of the bundle alone.

    All of them: of a table of words a call reads some rows only. Above 100 % where the processor's cache keeps them.
    """
    ceiling = _ceiling_of(report, engine)
    held = sum(size for name, size in report.bundle.files.items() if name not in _NO_WEIGHTS)
    if ceiling is None or not held:
        return None
    # of one function: a call reads them for all of its batch
    took = held / 1e9 / ceiling.read_gb_per_s / batch
    cell = _shares_cell(engine, lengths, batch, lambda _: took)
    kept = any(x.batch == batch and x.latency_ms_p50 / 1e3 < took for x in engine.latencies)
    return _noted(
        cell, kept, "above 100%: kept in the processor's cache, or rows of a table not read"
    )


_NO_WEIGHTS = ("manifest.json", "tokenizer.json")
_MOST_SHARE = 4.0
"""int8 multiplies at most four times as fast as float32: beyond it, the rate or the time is wrong."""


def _ceiling_of(report: Report, engine: EngineResult) -> Ceiling | None:
    """What the bundle's processor can do; None of another engine, or where it runs elsewhere."""
    elsewhere = engine.provider not in (None, "CPUExecutionProvider")
    if engine.name != report.bundle_engine or elsewhere:
        return None
    return report.benchmark.environment.ceiling


def _shares_cell(
    engine: EngineResult,
    lengths: Sequence[int],
    batch: int,
    seconds: Callable[[Latency], float | None],
    most: float = math.inf,
) -> Cell | None:
    """`seconds` a function at each length, as shares of its latency; one above `most` is withheld, and why is said."""
    shares, withheld = [], False
    for tokens in lengths:
        found = [x for x in engine.latencies if (x.tokens, x.batch) == (tokens, batch)]
        took = seconds(found[0]) if found else None
        share = None if took is None else took / (found[0].latency_ms_p50 / 1e3)
        impossible = share is not None and share > most
        withheld = withheld or impossible
        shares.append("?" if share is None or impossible else f"{share:.0%}")
    if set(shares) <= {"?"} and not withheld:
        return None
    small = f"?: above {most:.0%}, so the rate or the time is wrong" if withheld else ""
    return Cell(" / ".join(shares), small, source="estimate")


def _noted(cell: Cell | None, holds: bool, note: str) -> Cell | None:
    """`cell` with a note, where it holds."""
    if cell is None or not holds:
        return cell
    return replace(cell, small="; ".join(filter(None, (cell.small, note))))


def with_ratio(cell: Cell, ratio: Ratio | None, word: str = "") -> Cell:
    """`cell` with how many times less it is; in words only where the interval does not hold 1."""
    if ratio is None:
        return cell
    tone = tone_of(ratio)
    open_ = bool(word) and tone == "even" and ratio.low != ratio.high
    said = f"{times(ratio)}: not told apart" if open_ else times(ratio, word)
    return replace(cell, ratio=said, tone=tone)


def tone_of(ratio: Ratio | None) -> Tone:
    """Whether what a ratio says is more than chance."""
    if ratio is None:
        return "even"
    return "better" if ratio.above_parity else "worse" if ratio.below_parity else "even"


def headline_shape(engine: EngineResult) -> Shape:
    """The measured shape nearest to 128 tokens, batch 1."""
    x = min(engine.latencies, key=lambda x: (abs(x.tokens - 128), x.batch))
    return Shape(x.tokens, x.batch)


def ratio_of(
    report: Report, engine: EngineResult, quantity: Quantity, shape: Shape | None = None
) -> Ratio | None:
    """`engine` against the report's baseline, where that was formed."""
    if report.baseline is None:
        return None
    return report.benchmark.ratio(engine.name, report.baseline, quantity, shape)


# an en dash that no line breaks at
DASH = "\u2060–\u2060"
OPPOSITES = {"faster": "slower", "smaller": "larger"}


def times(ratio: Ratio | None, word: str = "") -> str:
    """As "8.91× faster [8.52–9.40]"; empty without a ratio.

    Below 1, a word is turned round with its number: "1.20× slower", not "0.83× faster".
    """
    if ratio is None:
        return ""
    value, low, high = ratio.value, ratio.low, ratio.high
    if word and value < 1:
        word, value = OPPOSITES[word], 1 / value
        low, high = (1 / high if high else None), (1 / low if low else None)
    text = f"{digits(value)}×" + (f" {word}" if word else "")
    if low is None or high is None or low == high:
        return text
    return f"{text} [{digits(low)}{DASH}{digits(high)}]"


def kept(ratio: Ratio | None) -> str:
    """As "92.1% kept [90.0%–94.0%]"; empty without a ratio."""
    if ratio is None:
        return ""
    text = f"{ratio.value:.1%} kept"
    if ratio.low is None or ratio.high is None:
        return text
    return f"{text} [{ratio.low:.1%}{DASH}{ratio.high:.1%}]"


def limit_value(x: Limit) -> str:
    """What was found under a limit."""
    return "not measured" if x.value is None else amount(x.name, x.value)


def amount(name: str, value: float) -> str:
    """A value under a key whose name carries its unit."""
    if "bytes" in name:
        return f"{value:,.0f} bytes"
    if "_ms" in name:
        return in_ms(value)
    return f"{value:.3f}" if value < 10 else f"{value:,.1f}"


def words(name: str) -> str:
    """The name of a limit without its unit."""
    return name.replace("_bytes", "").replace("_ms", "").replace("_", " ")


def digits(value: float) -> str:
    """Three significant digits or so."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def in_bytes(value: float) -> str:
    """Decimal megabytes, as sizes are advertised: 3 MB is 3,000,000 bytes."""
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.{2 - (value >= 1e8)}f} MB"


def in_ms(value: float) -> str:
    """Milliseconds, or seconds from one on."""
    if value >= 1000:
        return f"{value / 1000:.2f} s"
    return f"{digits(value)} ms"


def in_joules(value: float) -> str:
    """Joules, or millijoules below one."""
    return f"{value:.2f} J" if value >= 1 else f"{value * 1e3:.{0 if value >= 0.1 else 1}f} mJ"
