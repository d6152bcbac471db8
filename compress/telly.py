"""`compress telly`: the teacher of a recipe fine-tuned with more and more layers frozen (Telly, 2304.05216), measured.

Each row is the whole fine-tuning of a run, with teacher.finetune.freeze_layers of its own, in a process of its own, so
that its peak memory is its own. A finished row is a file in the work folder; a row that was killed begins again, for a
time that was interrupted is none. What is made of the rows is targets/sweep.py's.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from codemill.compress import pipeline
from codemill.compress.compute import Compute, compute_of
from codemill.compress.lock import working_in
from codemill.compress.models.load import fingerprint, load_teacher, read_shape, resolve_model
from codemill.compress.parallel import map_to_files
from codemill.compress.pipeline import Progress, forget_peak
from codemill.compress.recipe import Recipe
from codemill.compress.run import stages_of
from codemill.compress.stages import finetune
from codemill.compress.stages.classify import teacher as classify_teacher
from codemill.errors import DataError, RecipeError
from codemill.targets.codec import from_json
from codemill.targets.environment import machine_id, this_environment
from codemill.targets.sweep import Sweep, SweepRow, Validation
from codemill.targets.worker import peak_rss_bytes

__all__ = ["asked_layers", "run_row", "sweep"]

_VERSION = 1
_ROWS = "telly"
_SCRATCH = "telly-"
_RANGE = re.compile(r"(\d+|L-1)(?:\.\.(\d+|L-1))?")


def asked_layers(text: str | None, layers: int) -> list[int | None]:
    """The rows that `--sweep` names, for a model of so many layers: `none,0..L-1`, `0,4,8`; None: all there are.

    Raises RecipeError for anything else, and for more layers than can be frozen.
    """
    found: dict[int | None, None] = {}
    for part in ("none,0..L-1" if text is None else text).split(","):
        named = part.strip()
        if named == "none":
            found[None] = None
            continue
        match = _RANGE.fullmatch(named)
        if match is None:
            raise RecipeError(
                f"--sweep {text!r:.100}: {named!r:.50} is neither `none`, a number of layers, nor a range such as 0..5"
            )
        first, last = (
            layers - 1 if end == "L-1" else int(end) for end in (match[1], match[2] or match[1])
        )
        if last >= layers or first > last:
            raise RecipeError(
                f"--sweep {text!r:.100}: {named} is not within 0..{layers - 1}; this model has {layers} layers, one of "
                "which at least is trained"
            )
        found.update(dict.fromkeys(range(first, last + 1)))
    return list(found)


def sweep(
    recipe: Recipe, work: Path, asked: str | None, progress: Progress, wait: bool = False
) -> Sweep:
    """Fine-tune the teacher once for each row that `asked` names (see `asked_layers`).

    Rows that are finished in `work` are not run again. Raises RecipeError where the recipe fine-tunes no teacher.
    """
    name = recipe.teacher.model
    if name is None or not recipe.teacher.finetune.pairs:
        raise RecipeError(
            "compress telly fine-tunes the teacher, and this recipe has none to fine-tune: give teacher.model, and "
            "teacher.finetune.pairs above 0"
        )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    source = resolve_model(name)
    layers = asked_layers(asked, read_shape(source).layers)
    compute = compute_of(recipe)
    stages = [stage for stage in stages_of(recipe) if stage.name == "corpus"]
    with working_in(work, wait, progress.say):
        corpus = pipeline.run_stages(stages, work, progress)["corpus"].folder
        environment = this_environment()
        report = progress.stage("rows", 1, 1, False)
        started = time.monotonic()
        # of rows that were killed; what is kept of frozen layers is large
        for path in work.glob(f"{_SCRATCH}*"):
            shutil.rmtree(path, ignore_errors=True)
        rows: list[dict[str, Any]] = []
        for number, frozen in enumerate(layers):
            report(number / len(layers), f"{_said(frozen)} frozen")
            item = _item(recipe, corpus, fingerprint(source), frozen, compute)
            # one at a time: two would disturb each other, and a new process has a peak of its own
            rows += map_to_files(
                run_row,
                [item],
                work / _ROWS,
                version=_VERSION,
                workers=1,
                threads=compute.threads,
            )
            progress.say(f"{_said(frozen)} frozen: {rows[-1]['row']['metric']:.4f}")
        progress.finished("rows", time.monotonic() - started)
    return Sweep(
        name=recipe.name,
        task=recipe.task,
        model=name,
        metric="MRR" if recipe.task == "retrieval" else "mean recall",
        original_metric=rows[0]["original"],
        epochs=recipe.teacher.finetune.epochs,
        cache=recipe.teacher.finetune.cache,
        freeze_loss=recipe.quality.freeze_loss,
        rows=tuple(from_json(SweepRow, row["row"], "row") for row in rows),
        environment=environment,
    )


def _said(frozen: int | None) -> str:
    return "nothing" if frozen is None else f"{frozen} layers" if frozen else "the embeddings"


def _item(
    recipe: Recipe, corpus: Path, model: str, frozen: int | None, compute: Compute
) -> dict[str, Any]:
    """What `run_row` reads, as plain JSON: all that shapes a row, and no more."""
    values: dict[str, Any] = {
        "name": recipe.name,
        "task": recipe.task,
        "seed": recipe.seed,
        "precision": recipe.precision,
        "device": recipe.device,
        "teacher": {**recipe.teacher.made_of(), "also": []},
        "data": recipe.data.model_dump(mode="json"),
    }
    if recipe.task != "retrieval":
        distill = recipe.distill.made_of()
        values["distill"] = {name: distill[name] for name in ("class_weights", "label_temperature")}
        losses = recipe.distill.losses
        values["distill"]["losses"] = {"teacher": losses.teacher, "gold": losses.gold}
    values["teacher"]["finetune"]["freeze_layers"] = "none" if frozen is None else frozen
    stage = finetune if recipe.task == "retrieval" else classify_teacher
    libraries = {name: version(name) for name in ("torch", "transformers")}
    return {
        "recipe": values,
        "corpus": str(corpus.resolve()),
        "model": model,
        "made_by": {"teacher": stage.VERSION, **libraries},
        "machine": machine_id(),
        "threads": compute.threads,
    }


@dataclass
class _Clock:
    """Seconds of training: validations do not count."""

    started: float = 0.0
    paused: float = 0.0
    marks: list[float] = field(default_factory=list)
    metrics: list[float] = field(default_factory=list)

    def start(self) -> None:
        """Training begins now."""
        self.started = time.monotonic()

    def stopping(self, validate: Callable[[], float]) -> Callable[[], float]:
        """The same validation, noted, in time that does not count."""

        def noted() -> float:
            began = time.monotonic()
            self.marks.append(began - self.started - self.paused)
            self.metrics.append(validate())
            self.paused += time.monotonic() - began
            return self.metrics[-1]

        return noted


def run_row(item: dict[str, Any]) -> dict[str, Any]:
    """Fine-tune once, in this process: {"row": a SweepRow as JSON, "original": the metric before, or null}."""
    import torch

    from codemill.targets.codec import to_json

    recipe = Recipe.model_validate({**item["recipe"], "threads": item["threads"]})
    torch.set_num_threads(item["threads"])
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    corpus = Path(item["corpus"])
    tune = _retrieval if recipe.task == "retrieval" else _classification
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=corpus.parent) as scratch:
        clock = _Clock()
        original, before, found = tune(recipe, compute_of(recipe), corpus, clock, Path(scratch))
    peak = peak_rss_bytes()
    kept = found["frozen_states"]
    best = max(range(len(clock.metrics)), key=lambda at: (clock.metrics[at], -at))
    row = SweepRow(
        frozen_layers=found["frozen_layers"],
        metric=clock.metrics[best],
        trainable_parameters=found["trainable_parameters"],
        parameters=found["parameters"],
        epoch_s=round(_epoch_s(clock.marks, kept["seconds"], recipe.teacher.finetune.epochs), 3),
        converged_s=round(clock.marks[best], 3),
        training_s=round(clock.marks[-1], 3),
        frozen_states_s=kept["seconds"],
        frozen_states_bytes=kept["size_bytes"],
        peak_rss_bytes=peak,
        before_training_rss_bytes=before,
        validations=tuple(
            Validation(round(mark, 3), metric)
            for mark, metric in zip(clock.marks, clock.metrics, strict=True)
        ),
    )
    return {"row": to_json(row), "original": original}


def _epoch_s(marks: Sequence[float], kept_s: float, epochs: float) -> float:
    """Of an epoch: between validations, where these come one an epoch; else of all that is no preparation."""
    if len(marks) > 1 and epochs == round(epochs):
        return float(np.median(np.diff(marks)))
    return (marks[-1] - kept_s) / epochs


def _validations(recipe: Recipe) -> int:
    """One an epoch."""
    return max(1, round(recipe.teacher.finetune.epochs))


def _quiet(fraction: float, message: str) -> None:
    """Nobody listens to a row."""


def _retrieval(
    recipe: Recipe, compute: Compute, corpus: Path, clock: _Clock, folder: Path
) -> tuple[float | None, int, dict[str, Any]]:
    """The metric before, the memory before, and what the fine-tuning says of itself."""
    from codemill.compress.stages.corpus import read_split
    from codemill.compress.tasks.retrieval import tokenize_pairs, validator

    teacher = load_teacher(resolve_model(recipe.model))
    held_out = read_split(corpus, "validation", recipe.data.validation_pairs)
    tokens = tokenize_pairs(held_out, teacher.tokenizer_json, recipe.teacher.max_tokens)
    validate = validator(teacher.model, tokens, compute.bf16)
    original = validate()
    before = _begin(clock)
    found = finetune.fine_tuned(
        recipe,
        compute,
        teacher,
        corpus,
        clock.stopping(validate),
        folder,
        _quiet,
        _validations(recipe),
    )
    return original, before, found


def _classification(
    recipe: Recipe, compute: Compute, corpus: Path, clock: _Clock, folder: Path
) -> tuple[float | None, int, dict[str, Any]]:
    """The same of a classifier."""
    from codemill.compress.data.labelled import read_labelled
    from codemill.compress.stages.classify.corpus import labels_of
    from codemill.compress.stages.classify.evaluation import truth_of
    from codemill.compress.stages.classify.teaching import open_teaching
    from codemill.compress.tasks.classification import validator

    teaching = open_teaching(recipe, labels_of(corpus))
    held_out = read_labelled(corpus, "validation", recipe.data.validation_pairs)
    truth = truth_of(held_out)
    train = read_labelled(corpus, "train", recipe.data.train_pairs)
    chosen = np.flatnonzero(train.labels >= 0)[: recipe.teacher.finetune.pairs]
    if not len(chosen) or not (truth >= 0).any():
        raise DataError(
            "compress telly needs labelled rows in train, to fine-tune with, and in validation, to judge by; found "
            f"{len(chosen):,} and {int((truth >= 0).sum()):,}"
        )
    tokens, rows = teaching.read(held_out.texts, held_out.rows, recipe.teacher.max_tokens)
    validate = validator(teaching.classifier, tokens, rows, truth, compute.bf16)
    original = validate() if teaching.own_head else None
    before = _begin(clock)
    found = classify_teacher.fine_tuned(
        recipe,
        compute,
        teaching,
        train,
        chosen,
        clock.stopping(validate),
        folder,
        _quiet,
        _validations(recipe),
    )
    return original, before, found


def _begin(clock: _Clock) -> int:
    """Start the clock and the peak of memory anew; what is held now."""
    forget_peak()
    before = peak_rss_bytes()
    clock.start()
    return before
