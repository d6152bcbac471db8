"""Stage `export`: the student as fused fp32 and int8 graphs, and the two gates int8 has to pass.

Writes candidates/ (a bundle with both variants) and export.json, which says what was accepted. The gates
are DESIGN.md's: a variant that is slower than what it replaces, when the confidence interval excludes
parity, or that loses more quality than the recipe allows, is refused with the figures.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codemill.compress.models.export import export_bundle
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.stages.corpus import read_split
from codemill.compress.stages.search import read_chosen
from codemill.compress.stages.student import STUDENT
from codemill.export.candidates import FP32, INT8

if TYPE_CHECKING:
    from codemill.targets.figures import BenchmarkResult
    from codemill.targets.profile import Shape

__all__ = ["CANDIDATES", "FACTS", "TOKENS", "VERSION", "accepted", "gates_of", "said_of", "stage"]

VERSION = 3
CANDIDATES = "candidates"
FACTS = "export.json"
_ROUNDS = 5
TOKENS = 128


def stage(recipe: Recipe, threads: int, machine: str) -> Stage:
    """Depends on the student, the validation pairs, the `quantize` section, and the machine it times on."""
    settings = {
        "quantize": recipe.quantize.model_dump(),
        "validation_pairs": recipe.data.validation_pairs,
        "max_tokens": recipe.student.max_tokens,
        "threads": threads,
    }

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        from codemill.compress.models.surgery import load_student

        student, architecture = load_student(inputs["student"] / STUDENT)
        report(0.0, "exporting")
        quantized = recipe.quantize.method == "dynamic-int8" and architecture.bits == 8
        export_bundle(
            student,
            folder / CANDIDATES,
            heads=architecture.heads,
            tokenizer_json=read_chosen(inputs["search"]).tokenizer_json,
            max_tokens=recipe.student.max_tokens,
            precisions=("fp32", "int8") if quantized else ("fp32",),
            name=CANDIDATES,
            architecture=architecture.to_json(),
        )
        found = {"accepted": FP32, "gates": None}
        if quantized:
            found = _gates(recipe, folder / CANDIDATES, inputs["corpus"], threads, report)
        (folder / FACTS).write_text(json.dumps(found, indent=1))

    libraries = ("torch", "transformers", "optimum-onnx", "onnx", "onnxruntime")
    inputs = ("student", "search", "corpus")
    return Stage("export", VERSION, inputs, settings, libraries, work, machine, said_of)


def said_of(folder: Path, metric: str = "MRR") -> str:
    """Which variant ships and why, for people; `metric` is what was compared on validation."""
    found = accepted(folder)
    if found["gates"] is None:
        return f"{found['accepted']} ships: no quantization was asked for"
    speed, quality = found["gates"]["speed"], found["gates"]["quality"]
    lost = f"and loses {quality['lost']:.1%} of validation {metric}"
    return (
        f"{found['accepted']} ships: int8 is {speed['times_faster']:.2f} times as fast as fp32 "
        f"({speed['low']:.2f} to {speed['high']:.2f}) {lost if 'why' not in quality else 'but ' + quality['why']}"
    )


def _gates(
    recipe: Recipe, candidates: Path, corpus: Path, threads: int, report: Report
) -> dict[str, Any]:
    """Measure int8 against fp32 on the validation pairs, each in processes of its own."""
    from dataclasses import replace

    from codemill.targets.benchmark import Progress, benchmark
    from codemill.targets.engine import bundle_engine
    from codemill.targets.evaluation import Evaluation
    from codemill.targets.profile import Shape

    pairs = read_split(corpus, "validation", recipe.data.validation_pairs)
    evaluation = Evaluation(
        "validation", tuple(pair.query for pair in pairs), tuple(pair.code for pair in pairs)
    )
    fp32 = replace(bundle_engine(candidates, FP32, threads, name=FP32), role="reference")
    int8 = bundle_engine(candidates, INT8, threads, name=INT8)

    def say(progress: Progress) -> None:
        report(0.1 + 0.9 * progress.fraction, progress.message)

    shape = Shape(min(TOKENS, recipe.longest_common), 1)
    result = benchmark([fp32, int8], evaluation, [shape], _ROUNDS, say)
    quality = result.ratio(INT8, FP32, "mrr")
    assert quality is not None
    return gates_of(recipe, result, shape, 1 - quality.value)


def gates_of(recipe: Recipe, result: BenchmarkResult, shape: Shape, lost: float) -> dict[str, Any]:
    """What export.json says: which variant is accepted, and how int8 did. `lost`: share of quality."""
    speed = result.ratio(INT8, FP32, "latency", shape)
    assert speed is not None
    gates: dict[str, dict[str, Any]] = {
        "speed": {
            "passed": not speed.below_parity,
            "times_faster": speed.value,
            "low": speed.low,
            "high": speed.high,
            "tokens": shape.tokens,
            "pairs": speed.pairs,
        },
        "quality": {
            "passed": lost <= recipe.quantize.max_loss,
            "lost": lost,
            "allowed": recipe.quantize.max_loss,
        },
    }
    passed = all(gate["passed"] for gate in gates.values())
    return {"accepted": INT8 if passed else FP32, "gates": gates}


def accepted(folder: Path) -> dict[str, Any]:
    """What export.json says."""
    value: dict[str, Any] = json.loads((folder / FACTS).read_text())
    return value
