"""Which form of a student ships: the quantizations that a recipe asks for, made of its plain graphs and measured.

A student that was trained for int8 (stage `qat`) has plain graphs of its own, of which its form is made. Both kinds of
encoder share this: what is compared is the task's metric on validation, and a call's time on this machine, each form in
processes of its own. The gates are DESIGN.md's: what is slower than fp32, when the confidence interval excludes parity,
or loses more quality than the recipe allows, is refused with the figures.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codemill.compress.architecture import Architecture
from codemill.compress.pipeline import Report
from codemill.compress.recipe import Recipe
from codemill.export.quantize.settings import Method, Quantization
from codemill.runtime.bundle import Manifest, Variant, read_manifest, update_bundle
from codemill.targets.profile import target_named

if TYPE_CHECKING:
    from codemill.targets.evaluation import Evaluation, LabelledEvaluation
    from codemill.targets.profile import Shape

__all__ = [
    "AUTO",
    "FACTS",
    "PLAIN_FORM",
    "QAT_FACTS",
    "accepted",
    "add_trained",
    "copy_variant",
    "forms",
    "has_qat",
    "how_of",
    "is_trained",
    "libraries_of",
    "methods_of",
    "plain_of",
    "rehearsed",
    "said_of",
    "settings_of",
    "shipped_as",
]

FACTS = "export.json"
QAT_FACTS = "qat.json"
PLAIN_FORM = Method.FP32.value
TRAINED = "trained-fp32"
"""The plain graphs of the student that was trained for int8."""
AUTO = (
    Method.DYNAMIC,
    Method.STATIC,
    Method.CONTROLLED,
    Method.WEIGHTS_INT8,
    Method.WEIGHTS_INT4,
)
"""What `auto` tries, of the student as it is."""
_ROUNDS = 5
_REHEARSED = ("def first(items):\n    return items[0]\n", "return the first of some items")
_ROUND_SECONDS = 1.5
"""Of one form in one round of measuring: a process of its own starts, loads, and answers (measured)."""
_MADE_SHARE = 0.5
"""Of the time, that making the forms takes."""


def libraries_of(recipe: Recipe) -> tuple[str, ...]:
    """What an export stage's result depends on."""
    asked = recipe.quantize.method
    by_nncf = asked == "auto" or asked in (Method.STATIC, Method.CONTROLLED)
    libraries = ("torch", "transformers", "optimum-onnx", "onnx", "onnxruntime")
    return (*libraries, "nncf") if by_nncf else libraries


def methods_of(recipe: Recipe, architecture: Architecture) -> tuple[Method, ...]:
    """What is tried beside fp32; nothing for a student that is to stay in float."""
    asked = recipe.quantize.method
    if asked == "none" or architecture.bits == 32:
        return ()
    return AUTO if asked == "auto" else (Method(asked),)


def has_qat(recipe: Recipe) -> bool:
    """Whether a recipe's student may be trained for int8. One whose layers learn with exits is another student."""
    asked = recipe.quantize.method in ("auto", Method.QAT)
    alone = recipe.exits.after == "none" or recipe.exits.train == "heads"
    return asked and alone and recipe.task != "completion"


def is_trained(folders: Mapping[str, Path]) -> bool:
    """Whether the student was trained for int8; folders: a stage's inputs."""
    return "qat" in folders and bool(
        json.loads((folders["qat"] / QAT_FACTS).read_text())["trained"]
    )


def how_of(recipe: Recipe, method: Method) -> Quantization:
    """How a form is made; controlled-int8 keeps to what the recipe allows, half a percent at most."""
    return Quantization(
        method,
        reduced_range=target_named(recipe.target).reduced_range,
        max_loss=min(recipe.quantize.max_loss, Quantization(method).max_loss),
    )


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """What an export stage depends on, of what is in this module."""
    return {
        "quantize": recipe.quantize.made_of(),
        "reduced_range": target_named(recipe.target).reduced_range,
        "size_bytes": recipe.budget.size_bytes,
    }


def shipped_as(variant: str) -> str:
    """What a form is called in the bundle that ships."""
    return f"cpu-{Method(variant).precision}"


def forms(
    recipe: Recipe,
    candidates: Path,
    architecture: Architecture,
    evaluation: Evaluation | LabelledEvaluation,
    calibration: Sequence[tuple[str, ...]],
    shape: Shape,
    threads: int,
    report: Report,
) -> dict[str, Any]:
    """Add the forms to the bundle `candidates`, which has a plain one, and say which is accepted, and why.

    evaluation: the validation's; calibration: rows of the data the student learned from.
    """
    from codemill.export.choose import chosen, measured
    from codemill.export.derive import derive

    tried = methods_of(recipe, architecture)
    if TRAINED in read_manifest(candidates).variants:
        tried = tuple(dict.fromkeys((*tried, Method.QAT)))
    made = (Method.FP32, *tried)
    for number, method in enumerate(made):
        derive(
            candidates,
            how_of(recipe, method),
            plain=plain_of(candidates, method.value),
            validation=evaluation,
            calibration=calibration,
            report=lambda at, what, number=number: report(  # type: ignore[misc]
                _MADE_SHARE * (number + at) / len(made), what
            ),
        )
    if not tried:
        return {"accepted": PLAIN_FORM, "tried": None}
    found = measured(
        candidates,
        PLAIN_FORM,
        [method.value for method in tried],
        evaluation,
        shape,
        threads=threads,
        rounds=_ROUNDS,
        max_loss=recipe.quantize.max_loss,
        most_bytes=recipe.budget.size_bytes,
        say=lambda at, what: report(_MADE_SHARE + (1 - _MADE_SHARE) * at, what),
    )
    best = chosen(found, PLAIN_FORM)
    return {
        "accepted": PLAIN_FORM if best is None else best.variant,
        "tokens": shape.tokens,
        "tried": [item.to_json() for item in found],
    }


def plain_of(candidates: Path, form: str) -> str:
    """The variant of the bundle `candidates` with the plain graphs that a form is made of.

    Of a bundle with exits, and outside a run, there is one such variant, trained or not.
    """
    from codemill.export.candidates import PLAIN

    trained = form == Method.QAT and TRAINED in read_manifest(candidates).variants
    return TRAINED if trained else PLAIN


def copy_variant(source: Path, name: str, folder: Path, to: str) -> Variant:
    """Copy the files of the variant `name` of the bundle in `source` into `folder`; what it is there, called `to`."""
    found = read_manifest(source).variant(name)
    renamed = {path: path.replace(f"/{name}/", f"/{to}/", 1) for path in found.files}
    for path, copied in renamed.items():
        (folder / copied).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, folder / copied)
    segments = tuple(renamed[path] for path in found.segments)
    return replace(found, segments=segments, files=tuple(renamed.values()))


def add_trained(candidates: Path, write: Callable[[Path], None]) -> None:
    """Add the plain graphs of the student that was trained for int8 to the bundle `candidates`.

    write: writes a bundle of them.
    """
    from codemill.export.candidates import PLAIN

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "trained")
        write(folder)
        made = copy_variant(folder, PLAIN, candidates, TRAINED)
    update_bundle(candidates, variants={**read_manifest(candidates).variants, TRAINED: made})


def rehearsed(recipe: Recipe, architecture: Architecture, folder: Path, reading: float) -> float:
    """Make the forms that a recipe asks for of an untrained student, whose bundle in `folder` has a plain one.

    So that what a method cannot do is known before hours of training. Accuracy control sees all of its way but giving
    products back, for any loss is allowed. Returns the seconds that making and measuring them will take at the least,
    where reading what is compared on takes `reading`.
    """
    from codemill.export.derive import derive

    methods, manifest = methods_of(recipe, architecture), read_manifest(folder)
    began = time.perf_counter()
    for method in methods:
        derive(
            folder,
            replace(how_of(recipe, method), max_loss=1.0),
            validation=_rehearsed_on(manifest),
            calibration=[(text,) for text in _REHEARSED],
        )
    if not methods:
        return 0.0
    # float32 and the quantized graphs are scored once more where accuracy is controlled
    read = len(methods) + 1 + 2 * (Method.CONTROLLED in methods)
    made = time.perf_counter() - began
    return made + (len(methods) + 1) * _ROUNDS * _ROUND_SECONDS + read * reading


def _rehearsed_on(manifest: Manifest) -> Evaluation | LabelledEvaluation:
    """Two texts, of which something is right whatever a student says: it is one label's share."""
    from codemill.runtime.labels import LABEL_TASKS, labelling_of
    from codemill.targets.evaluation import Evaluation, LabelledEvaluation

    if manifest.task not in LABEL_TASKS:
        return Evaluation("rehearsal", _REHEARSED, _REHEARSED[::-1])
    labelling = labelling_of(manifest)
    row, labels = (0, 1)[: labelling.texts], labelling.labels
    truth = tuple(range(len(labels)))
    return LabelledEvaluation("rehearsal", labels, _REHEARSED, (row,) * len(labels), truth)


def accepted(folder: Path) -> dict[str, Any]:
    """What export.json says."""
    value: dict[str, Any] = json.loads((folder / FACTS).read_text())
    return value


def said_of(folder: Path, metric: str = "MRR") -> str:
    """Which form ships and why, for people; `metric` is what was compared on validation."""
    found = accepted(folder)
    if found["tried"] is None:
        return f"{found['accepted']} ships: no quantization was asked for"
    lines = []
    for item in found["tried"][1:]:
        between = "" if item["low"] is None else f" ({item['low']:.2f} to {item['high']:.2f})"
        lost = f"loses {item['lost']:.1%} of validation {metric}"
        line = f"{item['variant']} is {item['times_faster']:.2f} times as fast as fp32{between} and {lost}"
        lines.append(line if item["why"] is None else f"{line}; refused: {item['why']}")
    return f"{found['accepted']} ships: {'; '.join(lines)}"
