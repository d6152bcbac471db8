"""Which form of a student ships: the quantizations that a recipe asks for, made of its plain graphs and measured.

Both kinds of encoder share this: what is compared is the task's metric on validation, and a call's time on this
machine, each form in processes of its own. The gates are DESIGN.md's: what is slower than fp32, when the confidence
interval excludes parity, or loses more quality than the recipe allows, is refused with the figures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codemill.compress.architecture import Architecture
from codemill.compress.pipeline import Report
from codemill.compress.recipe import Recipe
from codemill.export.quantize.settings import Method, Quantization
from codemill.targets.profile import target_named

if TYPE_CHECKING:
    from codemill.targets.evaluation import Evaluation, LabelledEvaluation
    from codemill.targets.profile import Shape

__all__ = [
    "AUTO",
    "FACTS",
    "PLAIN_FORM",
    "accepted",
    "forms",
    "how_of",
    "libraries_of",
    "methods_of",
    "rehearsed",
    "said_of",
    "settings_of",
    "shipped_as",
]

FACTS = "export.json"
PLAIN_FORM = Method.FP32.value
AUTO = (
    Method.DYNAMIC,
    Method.STATIC,
    Method.CONTROLLED,
    Method.WEIGHTS_INT8,
    Method.WEIGHTS_INT4,
)
"""What `auto` tries."""
_ROUNDS = 5
_REHEARSED = [("def first(items):\n    return items[0]\n",), ("return the first of some items",)]
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
        "quantize": recipe.quantize.model_dump(),
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
    made = (Method.FP32, *tried)
    for number, method in enumerate(made):
        derive(
            candidates,
            how_of(recipe, method),
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


def rehearsed(recipe: Recipe, architecture: Architecture, folder: Path) -> None:
    """Make the forms that a recipe asks for of an untrained student, whose bundle in `folder` has a plain one.

    So that what a method cannot do is known before hours of training. Accuracy control has nothing to control here.
    """
    from codemill.export.derive import derive

    for method in methods_of(recipe, architecture):
        if method is not Method.CONTROLLED:
            derive(folder, how_of(recipe, method), calibration=_REHEARSED)


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
