"""Stage `rehearsal`: the whole way once with an untrained student, before anything expensive.

Cuts, exports, fuses and quantizes a student of the chosen architecture, loads it in the runtime, and times
a few steps of labelling and training: what would fail after an hour fails here, and the run's size, latency
and duration are known beforehand. Writes predicted.json.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from codemill.compress.compute import Compute
from codemill.compress.data.pairs import Pair
from codemill.compress.models.export import export_bundle
from codemill.compress.models.load import TeacherModel, load_teacher, resolve_model
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Losses, Recipe
from codemill.compress.stages.corpus import read_split
from codemill.compress.stages.quantized import has_qat, rehearsed
from codemill.compress.stages.search import Chosen, read_chosen
from codemill.compress.stages.student import cut
from codemill.errors import RefusedError
from codemill.runtime import load_encoder, size_bytes
from codemill.targets.profile import target_named

__all__ = [
    "FACTS",
    "MANIFEST_ALLOWANCE",
    "VERSION",
    "Prediction",
    "check_prediction",
    "predicted",
    "read_prediction",
    "said_of_qat",
    "stage",
    "timed",
]

VERSION = 4
FACTS = "predicted.json"
_FIXED_SECONDS = 45.0
"""Export, gates and bundle, beside what is timed."""
_SECONDS_PER_ROUND = 60.0
"""One round of the closing benchmark: four engines at six shapes, two of them in torch (measured)."""
MANIFEST_ALLOWANCE = 2_000
"""Bytes that the provenance of a trained bundle adds to the rehearsed one's manifest."""


@dataclass(frozen=True)
class Prediction:
    """What the run will give and take on this machine; seconds by stage, for the stages that take long.

    qat_seconds: what training for int8 will take, where it is known only then whether it is needed.
    """

    size_bytes: int
    latency_ms: float
    seconds: dict[str, float]
    qat_seconds: float | None = None

    @property
    def total_seconds(self) -> float:
        """All stages that come after this one."""
        return sum(self.seconds.values())


def stage(recipe: Recipe, compute: Compute, machine: str) -> Stage:
    """Depends on the architecture, the recipe's amounts, and the machine."""
    settings = {
        "finetune": recipe.teacher.finetune.made_of(),
        "label_precision": recipe.teacher.label_precision,
        "train_pairs": recipe.data.train_pairs,
        "validation_pairs": recipe.data.validation_pairs,
        "max_tokens": [recipe.data.max_tokens, recipe.student.max_tokens],
        "distill": recipe.distill.made_of(),
        "quantize": [recipe.quantize.method, recipe.quantize.epochs],
        "rounds": recipe.bench.rounds,
        "compute": asdict(compute),
    }

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        prediction = _rehearse(recipe, compute, inputs, folder, report)
        check_prediction(recipe, prediction)
        (folder / FACTS).write_text(json.dumps(asdict(prediction), indent=1))

    libraries = ("torch", "transformers", "optimum-onnx", "onnx", "onnxruntime")
    return Stage(
        "rehearsal", VERSION, ("corpus", "search"), settings, libraries, work, machine, _findings
    )


def _findings(folder: Path) -> str:
    found = read_prediction(folder)
    return (
        f"predicted: {found.size_bytes / 1e6:.2f} MB, {found.latency_ms:.2f} ms a function of 128 tokens, "
        f"{found.total_seconds / 60:.0f} minutes from here if nothing is cached{said_of_qat(found)}"
    )


def said_of_qat(found: Prediction) -> str:
    """What training for int8 would add, for people."""
    if found.qat_seconds is None:
        return ""
    return f", {found.qat_seconds / 60:.0f} more if int8 has to be trained for"


def _rehearse(
    recipe: Recipe, compute: Compute, inputs: Folders, folder: Path, report: Report
) -> Prediction:
    threads = compute.threads
    chosen = read_chosen(inputs["search"])
    teacher = load_teacher(resolve_model(recipe.model))
    pairs = read_split(inputs["corpus"], "train", recipe.data.train_pairs)
    precision = "int8" if chosen.architecture.bits == 8 else "fp32"
    report(0.1, "exporting an untrained student")
    # of a run that was killed
    shutil.rmtree(folder / "student", ignore_errors=True)
    student = cut(teacher, chosen)
    export_bundle(
        student,
        folder / "student",
        heads=chosen.architecture.heads,
        tokenizer_json=chosen.tokenizer_json,
        max_tokens=recipe.student.max_tokens,
        precisions=("plain", precision),
        name=recipe.name,
        architecture=chosen.architecture.to_json(),
    )
    report(0.4, "timing it")
    latency_ms = _latency_ms(folder / "student", threads, pairs)
    report(0.5, "timing the teacher")
    export_bundle(
        teacher.model,
        folder / "teacher",
        heads=teacher.model.config.num_attention_heads,
        tokenizer_json=teacher.tokenizer_json,
        max_tokens=recipe.data.max_tokens,
        precisions=(recipe.teacher.label_precision,),
        name=recipe.name,
    )
    seconds = {
        "labels": _label_seconds(folder / "teacher", threads, pairs),
        "teacher": _finetune_seconds(recipe, compute, teacher, pairs),
    }
    report(0.8, "timing a few training steps")
    seconds["student"], qat = _distill_seconds(recipe, compute, teacher, chosen, pairs)
    seconds["export, bundle, benchmark"] = _FIXED_SECONDS + recipe.bench.rounds * _SECONDS_PER_ROUND
    size = size_bytes(folder / "student", f"cpu-{precision}") + MANIFEST_ALLOWANCE
    report(0.9, "quantizing it as it will be")
    reading = 2 * recipe.data.validation_pairs * latency_ms / 1e3
    seconds["forms"] = rehearsed(recipe, chosen.architecture, folder / "student", reading)
    return predicted(recipe, size, latency_ms, seconds, qat)


def predicted(
    recipe: Recipe, size: int, latency_ms: float, seconds: dict[str, float], qat: float | None
) -> Prediction:
    """Of these seconds; qat: of training for int8, None where the recipe leaves it out."""
    if recipe.quantize.method == "qat-int8" and qat is not None:
        seconds, qat = {**seconds, "qat": qat}, None
    rounded = {name: round(value, 1) for name, value in seconds.items()}
    return Prediction(size, round(latency_ms, 3), rounded, qat and round(qat, 1))


def _latency_ms(bundle: Path, threads: int, pairs: list[Pair]) -> float:
    """Median milliseconds of a function of about 128 tokens, alone in a batch."""
    with load_encoder(bundle, threads=threads) as model:
        near = sorted(pairs[:500], key=lambda pair: abs(model.count_tokens([pair.code])[0] - 128))[
            :20
        ]
        timings = []
        for _ in range(2):  # the first pass warms up
            timings = [timed(partial(model.encode, [pair.code])) for pair in near]
    return statistics.median(timings) * 1e3


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _label_seconds(bundle: Path, threads: int, pairs: list[Pair]) -> float:
    sample = pairs[:96]
    with load_encoder(bundle, threads=threads) as teacher:
        teacher.encode([sample[0].code])
        texts = [text for pair in sample for text in (pair.query, pair.code)]
        return timed(lambda: teacher.encode(texts)) * len(pairs) / len(sample)


def _finetune_seconds(
    recipe: Recipe, compute: Compute, teacher: TeacherModel, pairs: list[Pair]
) -> float:
    from codemill.compress.distill.loop import seconds_per_pair
    from codemill.compress.freeze.freeze import freeze_bottom
    from codemill.compress.tasks.retrieval import tokenize_pairs

    settings = recipe.teacher.finetune
    if not settings.pairs:
        return 0.0
    # of a sweep nothing is known yet: the dearest
    frozen = settings.freeze_layers
    freeze_bottom(teacher.model, frozen if isinstance(frozen, int) else None)
    tokens = tokenize_pairs(pairs[:64], teacher.tokenizer_json, recipe.data.max_tokens)
    contrastive_only = Losses(cosine=0.0, similarity=0.0, contrastive=1.0, teacher=1.0, gold=0.5)
    training, forward = seconds_per_pair(
        teacher.model, tokens.queries, tokens.codes, contrastive_only, compute.bf16
    )
    return (
        training * settings.epochs * min(settings.pairs, len(pairs))
        + 2 * forward * recipe.data.validation_pairs
    )


def _distill_seconds(
    recipe: Recipe,
    compute: Compute,
    teacher: TeacherModel,
    chosen: Chosen,
    pairs: list[Pair],
) -> tuple[float, float | None]:
    """Of distilling; and of training for int8, None where the recipe leaves it out."""
    from codemill.compress.distill.loop import seconds_per_pair
    from codemill.compress.freeze.freeze import freeze_bottom
    from codemill.compress.quantize import rounded
    from codemill.compress.tasks.retrieval import tokenize_pairs

    settings = recipe.distill
    validated = recipe.data.validation_pairs * settings.validations
    longest = min(recipe.data.max_tokens, chosen.architecture.max_tokens)
    tokens = tokenize_pairs(pairs[:128], chosen.tokenizer_json, longest)
    student = cut(teacher, chosen)
    if isinstance(settings.freeze_layers, int):
        # more than there are is refused here
        freeze_bottom(student, settings.freeze_layers, "distill.freeze_layers")
    sides = (tokens.queries, tokens.codes, settings.losses)
    training, forward = seconds_per_pair(student, *sides, compute.bf16)
    qat = None
    if has_qat(recipe) and chosen.architecture.bits != 32:
        # from the start: all layers learn
        student = cut(teacher, chosen)
        with rounded(student, target_named(recipe.target).reduced_range):
            step, pass_ = seconds_per_pair(student, *sides, bf16=False)
        qat = step * len(pairs) * recipe.quantize.epochs + pass_ * validated
    return training * len(pairs) * settings.epochs + forward * validated, qat


def check_prediction(recipe: Recipe, prediction: Prediction) -> None:
    """Refuse now what would be refused after training. Latency is left to the closing benchmark: one
    rehearsal on a busy machine proves nothing, unless it is far off."""
    limits = recipe.budget
    if limits.size_bytes is not None and prediction.size_bytes > limits.size_bytes:
        raise RefusedError(
            f"a student of the searched architecture takes {prediction.size_bytes:,} bytes, over the budget of "
            f"{limits.size_bytes:,}; raise budget.size_bytes or narrow the search"
        )
    if isinstance(limits.latency_ms, float) and prediction.latency_ms > 2 * limits.latency_ms:
        raise RefusedError(
            f"a student of the searched architecture takes {prediction.latency_ms:.1f} ms a function here, far over "
            f"the budget of {limits.latency_ms} ms; lower budget.gflops"
        )


def read_prediction(folder: Path) -> Prediction:
    """What predicted.json says."""
    return Prediction(**json.loads((folder / FACTS).read_text()))
