"""Stage `teacher` of a classifier: who labels. The data themselves, or one model or more, each with the head it came
with or with a new one, fine-tuned on the gold labels with its lower layers frozen (Telly).

Writes teacher.json and, where it was fine-tuned, the weights; of each further teacher the same in a folder of its own.
Only one of them is in memory at a time. How a teacher reads is `teaching.py`'s.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codemill.compress.compute import Compute, on_processor
from codemill.compress.data.labelled import Labelled, read_labelled
from codemill.compress.models.load import fingerprint, resolve_model
from codemill.compress.pipeline import CHECKPOINT, Folders, Report, Stage
from codemill.compress.progress import duration
from codemill.compress.recipe import Recipe
from codemill.compress.rewrite.syntax import libraries_of
from codemill.compress.stages.classify.corpus import labels_of
from codemill.compress.stages.classify.evaluation import truth_of
from codemill.compress.stages.classify.teaching import (
    Teaching,
    folder_name,
    models_of,
    open_teaching,
)
from codemill.errors import DataError, RecipeError
from codemill.runtime.atomic import sync_file, write_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from codemill.compress.models.classifier import Classifier
    from codemill.compress.models.dataflow import FlowInput

__all__ = ["VERSION", "facts", "fine_tuned", "stage", "teaching_classifier", "teaching_of"]

VERSION = 1
_FACTS = "teacher.json"
_WEIGHTS = "finetuned.safetensors"
_VALIDATIONS = 6
_FEWEST_ROWS = 2
"""Of each label: with fewer nothing is learned of it."""
_TIMED_ROWS = 16
_FORWARD_SHARE = 3
"""A training step takes so many times a run that only goes forward."""


def stage(recipe: Recipe) -> Stage:
    """Depends on the models' files, the rows and the sections `teacher` and `teacher.finetune`."""
    # the student alone goes to GPUs
    compute = on_processor(recipe)
    names = models_of(recipe)
    prints = [fingerprint(resolve_model(name)) for name in names]
    settings: dict[str, Any] = {
        "model": prints[0] if names else None,
        "finetune": recipe.teacher.finetune.made_of() if names else None,
        "max_tokens": [recipe.data.max_tokens, recipe.teacher.max_tokens],
        "rows": [recipe.data.train_pairs, recipe.data.validation_pairs],
        "ordered": recipe.data.pair_order,
        "class_weights": recipe.distill.class_weights,
        "seed": recipe.seed,
        "compute": asdict(compute),
    }
    # only where they say something: what was made before they were known stays what it is
    if names and recipe.texts == 2:
        settings["pairs"] = recipe.teacher.pairs
    if names and recipe.teacher.finetune.freeze_layers == "auto":
        settings["freeze_loss"] = recipe.quality.freeze_loss
    if prints[1:]:
        settings["also"] = prints[1:]
    if recipe.teacher.data_flow is not None:
        settings["data_flow"] = recipe.teacher.data_flow

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        if not names:
            _write(folder, {"teaches": "data", "original": None, "finetuned": None})
            return
        corpus = inputs["corpus"]
        if len(names) > 1:
            _check_all(recipe, labels_of(corpus), report)
        for number in range(len(names)):
            own = folder / folder_name(number)
            own.mkdir(exist_ok=True)
            # one that was killed begins again with the first that is not ready
            if not (own / _FACTS).is_file():
                _write(own, _teacher(recipe, compute, corpus, number, own, report))
            # its own files are safe now
            (own / CHECKPOINT).unlink(missing_ok=True)

    libraries: tuple[str, ...] = ("torch", "transformers")
    if recipe.teacher.data_flow is not None:
        libraries = (*libraries, *libraries_of(recipe.teacher.data_flow))
    return Stage(
        "teacher", VERSION, ("corpus",), settings, libraries, work, findings=_said_of(names)
    )


def _write(folder: Path, found: dict[str, Any]) -> None:
    content = json.dumps(found, indent=1).encode()
    write_atomically(folder / _FACTS, lambda file: file.write(content))


def _check_all(recipe: Recipe, labels: tuple[str, ...], report: Report) -> None:
    """Raise what is wrong with any of the teachers before the first is trained."""
    for number, name in enumerate(models_of(recipe)):
        report(0.0, f"opening {name}")
        open_teaching(recipe, labels, number)


def _said_of(names: Sequence[str]) -> Callable[[Path], str]:
    def findings(folder: Path) -> str:
        if len(names) < 2:
            return _findings(facts(folder))
        lines = [f"{name}: {_findings(facts(folder, n))}" for n, name in enumerate(names)]
        return "\n    ".join(lines)

    return findings


def _findings(found: dict[str, Any]) -> str:
    if found["teaches"] == "data":
        return "no model teaches: the labels of the data do"
    lines = [_learned(found)]
    if found.get("joined"):
        lines.append("it reads both texts of a pair as one sequence")
    if found.get("dropped"):
        lines.append(f"the head that it came with is not used: {found['dropped']}")
    if "data_flow" in found:
        lines.append(f"it reads data flow, found in {found['data_flow']:.0%} of the held-out code")
    if found.get("few"):
        lines.append(found["few"])
    return "; ".join(lines)


def _learned(found: dict[str, Any]) -> str:
    if found["original"] is None and found["finetuned"] is None:
        return "the model teaches with the head it came with; no validation row has a label to judge it by"
    known = {
        name: f"{found[name]:.3f} {said}"
        for name, said in (("original", "with the head it came with"), ("finetuned", "fine-tuned"))
        if found[name] is not None
    }
    return (
        f"mean recall on validation {', '.join(known.values())}: the {found['teaches']} one teaches"
    )


def _teacher(
    recipe: Recipe, compute: Compute, corpus: Path, number: int, folder: Path, report: Report
) -> dict[str, Any]:
    from codemill.compress.tasks.classification import validator

    settings, labels = recipe.teacher.finetune, labels_of(corpus)
    report(*_part(recipe, number, 0.0, "opening the teacher"))
    teaching = open_teaching(recipe, labels, number)
    held_out = read_labelled(corpus, "validation", recipe.data.validation_pairs)
    truth = truth_of(held_out)
    judged = bool((truth >= 0).any())
    train = read_labelled(corpus, "train", recipe.data.train_pairs)
    chosen = np.flatnonzero(train.labels >= 0)[: settings.pairs]
    if len(chosen) and not judged:
        raise DataError(
            "no validation row has a label, by which the teacher's fine-tuning could be judged: give labelled rows "
            "as data.validation, or set teacher.finetune.pairs=0 for a teacher that has learned its task"
        )
    found: dict[str, Any] = {
        "model": teaching.model,
        "teaches": "original",
        "original": None,
        "finetuned": None,
        "joined": teaching.joined,
        "dropped": teaching.dropped,
        "few": None,
    }
    tokens, rows = teaching.read(held_out.texts, held_out.rows, recipe.teacher.max_tokens)
    if teaching.language is not None:
        found["data_flow"] = _share_with_flow(teaching, tokens)
    validate = validator(teaching.classifier, tokens, rows, truth, compute.bf16)
    if teaching.own_head and judged:
        report(*_part(recipe, number, 0.0, "validating the teacher as it came"))
        found["original"] = validate()
    leave, found["few"] = _too_few(teaching, settings.pairs, train.labels[chosen], labels)
    if leave:
        return found

    def said(fraction: float, message: str) -> None:
        report(*_part(recipe, number, fraction, message))

    held_tokens = tokens if teaching.language is None else ()
    learned = fine_tuned(
        recipe, compute, teaching, train, chosen, validate, folder, said, held_out=held_tokens
    )
    found |= learned
    if found["original"] is None or found["finetuned"] > found["original"]:
        found["teaches"] = "finetuned"
        _save(teaching, folder / _WEIGHTS)
    return found


def _part(recipe: Recipe, number: int, fraction: float, message: str) -> tuple[float, str]:
    """What one teacher has done, as a part of what all of them do."""
    names = models_of(recipe)
    said = f"{names[number]}: {message}" if len(names) > 1 else message
    return (number + fraction) / len(names), said


def _too_few(
    teaching: Teaching, pairs: int, gold: np.ndarray, labels: tuple[str, ...]
) -> tuple[bool, str | None]:
    """Whether a teacher is left as it is, and what there is to say of that; gold: the labels it could learn from.

    Raises RecipeError or DataError for one that has no head of its own, and cannot learn one.
    """
    name = teaching.model
    if not pairs:
        if teaching.own_head:
            return True, None
        raise RecipeError(
            f"{name} has no classification head for this task, so it has to learn the labels first: set "
            "teacher.finetune.pairs above 0"
        )
    if not len(gold):
        if teaching.own_head:
            return True, "it was not fine-tuned: no training row has a label"
        raise RecipeError(
            f"{name} has no classification head, and no training row has a label to learn one from: give labelled "
            "rows, or a teacher that has learned the task"
        )
    counts = dict(zip(labels, np.bincount(gold, minlength=len(labels)).tolist(), strict=True))
    rare = [f"{label!r} {count}" for label, count in counts.items() if count < _FEWEST_ROWS]
    if not rare:
        return False, None
    shown = ", ".join(rare[:5]) + (f" and {len(rare) - 5} more" if len(rare) > 5 else "")
    few = (
        f"of the {len(gold):,} labelled training rows that it may learn from fewer than {_FEWEST_ROWS} have these "
        f"labels: {shown}"
    )
    if len(labels) - len(rare) >= 2:
        return False, f"{few}; it cannot learn them"
    if teaching.own_head:
        return True, f"it was not fine-tuned: {few}"
    raise DataError(
        f"{name} has no classification head for this task and has to learn the labels first, but {few}. Give more "
        f"labelled rows, raise teacher.finetune.pairs ({pairs:,}), or give a teacher that has learned the task"
    )


def _share_with_flow(teaching: Teaching, tokens: Sequence[FlowInput]) -> float:
    """The share of held-out texts in which data flow was found. Raises RecipeError where there is none at all."""
    share = float(np.mean([len(item.spans) > 0 for item in tokens]))
    if not share:
        raise RecipeError(
            f"teacher.data_flow is {teaching.language}, and no validation text has any data flow as such: is the code "
            "in another language?"
        )
    return share


def fine_tuned(
    recipe: Recipe,
    compute: Compute,
    teaching: Teaching,
    train: Labelled,
    chosen: np.ndarray,
    validate: Callable[[], float],
    folder: Path,
    report: Report,
    validations: int = _VALIDATIONS,
    held_out: Sequence[np.ndarray] = (),
) -> dict[str, Any]:
    """Fine-tune a teacher in place, and leave it with the weights that validated best; what there is to say of it.

    chosen: the rows of `train` that it learns from. validations: so often `validate` is asked, evenly over the
    training; held_out: the texts that it runs. A checkpoint in `folder` is continued from.
    """
    from codemill.compress.distill.labels import LabelTargets, label_loss
    from codemill.compress.distill.loop import Schedule, fit
    from codemill.compress.freeze.choose import brief_steps, freeze_as_asked
    from codemill.compress.freeze.resume import computed_once, learned
    from codemill.compress.tasks.classification import plan_row_batches

    settings, teacher = recipe.teacher.finetune, teaching.classifier
    tokens, rows = teaching.read(train.texts, train.rows[chosen], recipe.data.max_tokens)
    targets = LabelTargets(tokens, rows, train.labels[chosen])
    # the student's alone
    plain = {"token_dropout": 0.0, "augment": 0.0}
    loss_of = label_loss(teacher, targets, recipe.distill.model_copy(update=plain), compute.bf16)
    schedule = Schedule(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup=0.1,
        temperature=settings.temperature,
        losses=recipe.distill.losses,
        validations=validations,
        patience=validations,
        bf16=compute.bf16,
    )
    lengths = [len(text) for text in tokens]
    batches = plan_row_batches(rows, lengths, settings.batch_size, settings.epochs, recipe.seed)

    def trained_briefly(scratch: Path) -> float:
        some, brief = batches[: brief_steps(len(batches))], replace(schedule, validations=1)
        return fit(teacher, some, loss_of, brief, validate, scratch, lambda *_: None)[-1].metric

    frozen = freeze_as_asked(
        settings.freeze_layers,
        teacher.encoder,
        key="teacher.finetune.freeze_layers",
        bound=recipe.quality.freeze_loss,
        train=trained_briefly,
        folder=folder,
        report=report,
        model=teacher,
    )
    # what reads data flow takes no ids alone
    texts = [] if teaching.language is not None else [*tokens, *held_out]
    runs = sum(len(np.unique(rows[batch])) for batch in batches) if texts else 0
    runs += validations * len(held_out)
    with computed_once(
        teacher.encoder, frozen.layers, texts, runs, settings, folder, compute.bf16, report
    ) as kept:
        weights = [value for value in teacher.parameters() if value.requires_grad]
        report(0.0, "timing a few training rows")
        seconds = _expected_seconds(loss_of, weights, batches, recipe.data.validation_pairs)
        report(0.0, f"{len(batches):,} steps, about {duration(seconds)} in all")
        points = fit(teacher, batches, loss_of, schedule, validate, folder, report)
    return {
        "finetuned": max(point.metric for point in points),
        **learned(frozen, kept, points),
    }


def _expected_seconds(
    loss_of: Callable[[np.ndarray], Tensor],
    weights: Sequence[Tensor],
    batches: Sequence[np.ndarray],
    validation_rows: int,
) -> float:
    """What the fine-tuning will take, by a few rows of a batch of middling length; changes no weights."""
    import torch

    batch = batches[len(batches) // 2]
    some = batch[:_TIMED_ROWS]
    taken = []
    # the first compiles kernels
    for rows in (some[:2], some):
        start = time.perf_counter()
        torch.autograd.grad(loss_of(rows), weights, allow_unused=True)
        taken.append(time.perf_counter() - start)
    per_row = taken[-1] / len(some)
    steps = sum(len(rows) for rows in batches)
    validated = min(_VALIDATIONS, len(batches)) * validation_rows
    return per_row * (steps + validated / _FORWARD_SHARE)


def _save(teaching: Teaching, path: Path) -> None:
    """Written, and on the disk, before the facts that name it."""
    from safetensors.torch import save_file

    weights = {name: value.contiguous() for name, value in teaching.classifier.state_dict().items()}
    save_file(weights, path)
    sync_file(path)


def facts(folder: Path, number: int = 0) -> dict[str, Any]:
    """What teacher.json says of the teacher of this number; `teaches` is data, original or finetuned."""
    value: dict[str, Any] = json.loads((folder / folder_name(number) / _FACTS).read_text())
    return value


def teaching_of(recipe: Recipe, corpus: Path, folder: Path, number: int = 0) -> Teaching:
    """The teacher of this number, with the fine-tuned weights where those were better."""
    from safetensors.torch import load_file

    teaching = open_teaching(recipe, labels_of(corpus), number)
    if facts(folder, number)["teaches"] == "finetuned":
        path = folder / folder_name(number) / _WEIGHTS
        teaching.classifier.load_state_dict(load_file(path))
    teaching.classifier.eval()
    return teaching


def teaching_classifier(recipe: Recipe, corpus: Path, folder: Path) -> tuple[Classifier, str]:
    """The first teacher's classifier, as `teaching_of` gives it, and its tokenizer."""
    teaching = teaching_of(recipe, corpus, folder)
    return teaching.classifier, teaching.tokenizer_json
