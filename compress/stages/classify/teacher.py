"""Stage `teacher` of a classifier: who labels. The data themselves, the model with the head it came with, or the
model with a new head, fine-tuned on the gold labels with its lower layers frozen (Telly).

Writes teacher.json and, where it was fine-tuned, the weights.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codemill.compress.compute import Compute
from codemill.compress.data.labelled import read_labelled
from codemill.compress.models.load import fingerprint, load_teacher, resolve_model
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.stages.classify.corpus import labels_of
from codemill.compress.stages.classify.evaluation import truth_of
from codemill.errors import DataError, RecipeError

if TYPE_CHECKING:
    from codemill.compress.models.classifier import Classifier
    from codemill.compress.models.heads import TeacherHead

__all__ = ["VERSION", "facts", "stage", "teaching_classifier"]

VERSION = 1
_FACTS = "teacher.json"
_WEIGHTS = "finetuned.safetensors"
_HEAD_SIZE = 256
_VALIDATIONS = 6


def stage(recipe: Recipe, compute: Compute) -> Stage:
    """Depends on the model's files, the rows and the `teacher.finetune` section."""
    model = recipe.teacher.model
    settings = {
        "model": model and fingerprint(resolve_model(model)),
        "finetune": model and recipe.teacher.finetune.model_dump(),
        "max_tokens": [recipe.data.max_tokens, recipe.teacher.max_tokens],
        "rows": [recipe.data.train_pairs, recipe.data.validation_pairs],
        "ordered": recipe.data.pair_order,
        "class_weights": recipe.distill.class_weights,
        "seed": recipe.seed,
        "compute": asdict(compute),
    }

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        found = {"teaches": "data", "original": None, "finetuned": None}
        if model is not None:
            found = _teacher(recipe, compute, inputs["corpus"], folder, report)
        (folder / _FACTS).write_text(json.dumps(found, indent=1))

    libraries = ("torch", "transformers")
    return Stage("teacher", VERSION, ("corpus",), settings, libraries, work, findings=_findings)


def _findings(folder: Path) -> str:
    found = facts(folder)
    if found["teaches"] == "data":
        return "no model teaches: the labels of the data do"
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
    recipe: Recipe, compute: Compute, corpus: Path, folder: Path, report: Report
) -> dict[str, Any]:
    from safetensors.torch import save_file

    from codemill.compress.distill.labels import LabelTargets, label_loss
    from codemill.compress.distill.loop import Schedule, fit
    from codemill.compress.freeze.freeze import freeze_bottom
    from codemill.compress.models.tokenize import tokenize
    from codemill.compress.tasks.classification import plan_row_batches, validator

    settings = recipe.teacher.finetune
    teacher, own_head, tokenizer_json = _classifier(recipe, corpus)
    held_out = read_labelled(corpus, "validation", recipe.data.validation_pairs)
    truth = truth_of(held_out)
    judged = bool((truth >= 0).any())
    train = read_labelled(corpus, "train", recipe.data.train_pairs)
    gold = train.labels >= 0
    rows, labels = train.rows[gold][: settings.pairs], train.labels[gold][: settings.pairs]
    if len(rows) and not judged:
        raise DataError(
            "no validation row has a label, by which the teacher's fine-tuning could be judged: give labelled rows "
            "as data.validation, or set teacher.finetune.pairs=0 for a teacher that has learned its task"
        )
    validate = validator(
        teacher,
        tokenize(tokenizer_json, held_out.texts, recipe.teacher.max_tokens),
        held_out.rows,
        truth,
        compute.bf16,
    )
    found: dict[str, Any] = {"teaches": "original", "original": None, "finetuned": None}
    if own_head and judged:
        report(0.0, "validating the teacher as it came")
        found["original"] = validate()
    if not settings.pairs:
        if not own_head:
            raise RecipeError(
                f"{recipe.teacher.model} has no classification head for this task, so it has to learn the labels "
                "first: set teacher.finetune.pairs above 0"
            )
        return found
    if not len(rows):
        if own_head:
            return found
        raise RecipeError(
            f"{recipe.teacher.model} has no classification head, and no training row has a label to learn one from"
        )
    trainable, total = freeze_bottom(teacher.encoder, settings.freeze_layers)
    tokens = tokenize(tokenizer_json, train.texts, recipe.data.max_tokens)
    targets = LabelTargets(tokens, rows, labels)
    # the student's alone
    without_hiding = recipe.distill.model_copy(update={"token_dropout": 0.0})
    schedule = Schedule(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup=0.1,
        temperature=settings.temperature,
        losses=recipe.distill.losses,
        validations=_VALIDATIONS,
        patience=_VALIDATIONS,
        bf16=compute.bf16,
    )
    lengths = [len(text) for text in tokens]
    batches = plan_row_batches(rows, lengths, settings.batch_size, settings.epochs, recipe.seed)
    points = fit(
        teacher,
        batches,
        label_loss(teacher, targets, without_hiding, compute.bf16),
        schedule,
        validate,
        folder,
        report,
    )
    found |= {
        "finetuned": max(point.metric for point in points),
        "trainable_parameters": trainable,
        "parameters": total,
        "points": [asdict(point) for point in points],
    }
    if found["original"] is None or found["finetuned"] > found["original"]:
        found["teaches"] = "finetuned"
        # written before the facts that name it
        weights = {name: value.contiguous() for name, value in teacher.state_dict().items()}
        save_file(weights, folder / _WEIGHTS)
    return found


def _classifier(recipe: Recipe, corpus: Path) -> tuple[Classifier, bool, str]:
    """The teacher with its own head, if it came with one for these labels, or a new one; and its tokenizer."""
    from codemill.compress.models.classifier import Classifier, Head

    assert recipe.teacher.model is not None
    labels = labels_of(corpus)
    loaded = load_teacher(resolve_model(recipe.teacher.model))
    if loaded.head is not None and recipe.texts == 1:
        _put_in_order(recipe, loaded.head, labels)
        return Classifier(loaded.model, loaded.head, 1, loaded.pooling), True, loaded.tokenizer_json
    head = Head(
        loaded.model.config.hidden_size,
        len(labels),
        recipe.texts,
        _HEAD_SIZE,
        recipe.data.pair_order == "matters",
    )
    _draw(head, recipe.seed)
    return Classifier(loaded.model, head, recipe.texts, "mean"), False, loaded.tokenizer_json


def _draw(head: Any, seed: int) -> None:
    """Draw the hidden layer's weights by the seed, whatever random numbers were used before."""
    import torch

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        head.inner.reset_parameters()
        if head.texts == 1:
            head.outer.reset_parameters()


def _put_in_order(recipe: Recipe, head: TeacherHead, data: tuple[str, ...]) -> None:
    """Give the head's outputs the order of the data's labels, by their names."""
    import torch

    own = head.labels
    if len(own) != len(data):
        raise RecipeError(
            f"the head of {recipe.teacher.model} knows {len(own)} labels ({_some(own)}), the data have "
            f"{len(data)} ({_some(data)}): give a teacher of these labels, or name data.labels"
        )
    if own == data or all(re.fullmatch(r"LABEL_\d+|\d+", name) for name in own):
        # names that only count: by their place
        return
    if set(own) != set(data):
        raise RecipeError(
            f"the head of {recipe.teacher.model} names its labels {_some(own)}, the data {_some(data)}: which is "
            "which? Name them alike: data.labels in the head's order, or id2label in the model's config.json"
        )
    order = [own.index(name) for name in data]
    last = head.layers[-1]
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        last.weight.copy_(last.weight[order].clone())
        last.bias.copy_(last.bias[order].clone())
    head.labels = data


def _some(labels: tuple[str, ...]) -> str:
    return ", ".join(labels[:5]) + (", ..." if len(labels) > 5 else "")


def facts(folder: Path) -> dict[str, Any]:
    """What teacher.json says; `teaches` is data, original or finetuned."""
    value: dict[str, Any] = json.loads((folder / _FACTS).read_text())
    return value


def teaching_classifier(recipe: Recipe, corpus: Path, folder: Path) -> tuple[Classifier, str]:
    """The classifier that teaches, with the fine-tuned weights where those were better, and its tokenizer."""
    from safetensors.torch import load_file

    teacher, _, tokenizer_json = _classifier(recipe, corpus)
    if facts(folder)["teaches"] == "finetuned":
        teacher.load_state_dict(load_file(folder / _WEIGHTS))
    return teacher.eval(), tokenizer_json
