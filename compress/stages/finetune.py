"""Stage `teacher`: fine-tune the teacher's upper layers on the pairs; the better of both teaches.

Writes teacher.json and, where the fine-tuned one is better on validation, its weights. `compress telly` fine-tunes with
the same function (`fine_tuned`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from codemill.compress.compute import Compute
from codemill.compress.models.load import TeacherModel, fingerprint, load_teacher, resolve_model
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Losses, Recipe
from codemill.compress.stages.corpus import read_split

__all__ = ["VERSION", "facts", "fine_tuned", "stage", "teaching_model"]

VERSION = 1
_FACTS = "teacher.json"
_WEIGHTS = "finetuned.safetensors"


def stage(recipe: Recipe, compute: Compute) -> Stage:
    """Depends on the teacher's files, the pairs and the `teacher.finetune` section."""
    source = resolve_model(recipe.model)
    settings = {
        "model": fingerprint(source),
        "finetune": recipe.teacher.finetune.made_of(),
        "max_tokens": [recipe.data.max_tokens, recipe.teacher.max_tokens],
        "validation_pairs": recipe.data.validation_pairs,
        "seed": recipe.seed,
        "compute": asdict(compute),
    }
    if recipe.teacher.finetune.freeze_layers == "auto":
        settings["freeze_loss"] = recipe.quality.freeze_loss

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        _finetune(recipe, compute, load_teacher(source), inputs["corpus"], folder, report)

    libraries = ("torch", "transformers")
    return Stage("teacher", VERSION, ("corpus",), settings, libraries, work, findings=_findings)


def _findings(folder: Path) -> str:
    found = facts(folder)
    tuned = "not fine-tuned"
    if found["finetuned_mrr"] is not None:
        tuned = f"{found['finetuned_mrr']:.3f} fine-tuned"
    return f"validation MRR {found['original_mrr']:.3f} as it was, {tuned}: the {found['teaches']} one teaches"


def _finetune(
    recipe: Recipe,
    compute: Compute,
    teacher: TeacherModel,
    corpus: Path,
    folder: Path,
    report: Report,
) -> None:
    from safetensors.torch import save_file

    from codemill.compress.tasks.retrieval import tokenize_pairs, validator

    held_out = read_split(corpus, "validation", recipe.data.validation_pairs)
    validate = validator(
        teacher.model,
        tokenize_pairs(held_out, teacher.tokenizer_json, recipe.teacher.max_tokens),
        compute.bf16,
    )
    report(0.0, "validating the original teacher")
    found: dict[str, Any] = {
        "original_mrr": validate(),
        "finetuned_mrr": None,
        "teaches": "original",
    }
    if recipe.teacher.finetune.pairs:
        found |= fine_tuned(recipe, compute, teacher, corpus, validate, folder, report)
        if found["finetuned_mrr"] > found["original_mrr"]:
            found["teaches"] = "finetuned"
            # written before the facts that name it
            save_file(teacher.model.state_dict(), folder / _WEIGHTS)
    (folder / _FACTS).write_text(json.dumps(found, indent=1))


def fine_tuned(
    recipe: Recipe,
    compute: Compute,
    teacher: TeacherModel,
    corpus: Path,
    validate: Callable[[], float],
    folder: Path,
    report: Report,
    validations: int = 1,
) -> dict[str, Any]:
    """Fine-tune the teacher in place, and leave it with the weights that validated best; what there is to say of it.

    validations: so often `validate` is asked, evenly over the training. A checkpoint in `folder` is continued from.
    """
    from codemill.compress.distill.loop import Schedule, Targets, train
    from codemill.compress.freeze.choose import brief_schedule, freeze_as_asked
    from codemill.compress.freeze.resume import computed_once, learned
    from codemill.compress.tasks.retrieval import tokenize_pairs

    settings, model = recipe.teacher.finetune, teacher.model
    pairs = read_split(corpus, "train", settings.pairs)
    tokens = tokenize_pairs(pairs, teacher.tokenizer_json, recipe.data.max_tokens)
    schedule = Schedule(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup=0.1,
        temperature=settings.temperature,
        losses=Losses(cosine=0.0, similarity=0.0, contrastive=1.0, teacher=1.0, gold=0.5),
        validations=validations,
        patience=validations,
        bf16=compute.bf16,
    )
    targets = Targets(tokens.queries, tokens.codes)

    def trained_briefly(scratch: Path) -> float:
        brief = brief_schedule(schedule, len(pairs))
        points = train(model, targets, brief, recipe.seed, validate, scratch, lambda *_: None)
        return points[-1].metric

    frozen = freeze_as_asked(
        settings.freeze_layers,
        model,
        key="teacher.finetune.freeze_layers",
        bound=recipe.quality.freeze_loss,
        train=trained_briefly,
        folder=folder,
        report=report,
    )
    texts, runs = [*tokens.queries, *tokens.codes], round(2 * len(pairs) * settings.epochs)
    with computed_once(
        model, frozen.layers, texts, runs, settings, folder, compute.bf16, report
    ) as kept:
        points = train(model, targets, schedule, recipe.seed, validate, folder, report)
    return {
        "finetuned_mrr": max(point.metric for point in points),
        **learned(frozen, kept, points),
    }


def facts(folder: Path) -> dict[str, Any]:
    """What teacher.json says."""
    value: dict[str, Any] = json.loads((folder / _FACTS).read_text())
    return value


def teaching_model(recipe: Recipe, folder: Path) -> TeacherModel:
    """The teacher that teaches: the original, with the fine-tuned weights where those were better."""
    from safetensors.torch import load_file

    teacher = load_teacher(resolve_model(recipe.model))
    if facts(folder)["teaches"] == "finetuned":
        teacher.model.load_state_dict(load_file(folder / _WEIGHTS))
    return teacher
