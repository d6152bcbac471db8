"""One architecture, distilled for a while: what a candidate of the search is worth, by doing it."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codemill.compress.architecture import Architecture, Tokens
from codemill.compress.compute import compute_of
from codemill.compress.stages import student
from codemill.compress.stages.classify import student as classify_student

if TYPE_CHECKING:
    from codemill.compress.models.vocabulary import Vocabulary
    from codemill.compress.recipe import Recipe

__all__ = ["run_trial", "trial"]


def trial(
    recipe: Recipe, folders: dict[str, Path], architecture: Architecture, pairs: int, threads: int
) -> dict[str, Any]:
    """What `run_trial` reads, as plain JSON. `folders`: of the finished stages corpus, teacher and labels."""
    schedule = {
        "epochs": recipe.distill.epochs if pairs >= recipe.data.train_pairs else 1.0,
        "validations": recipe.distill.validations if pairs >= recipe.data.train_pairs else 1,
    }
    whole = recipe.model_dump(mode="json")
    # all that distilling reads, and no more: another key of the recipe leaves the trials as they are
    values = {
        key: whole[key] for key in ("name", "seed", "precision", "teacher", "data", "student")
    }
    values |= {"teacher": recipe.teacher.made_of(), "distill": recipe.distill.made_of()}
    if recipe.task != "retrieval":
        values |= {key: whole[key] for key in ("task", "device")}
    values["student"]["tokenizer"] = architecture.tokenizer
    values["data"]["train_pairs"] = min(pairs, recipe.data.train_pairs)
    values["distill"] |= schedule
    if recipe.distill.freeze_layers == "auto":
        values["quality"] = {"freeze_loss": recipe.quality.freeze_loss}
    stage = student if recipe.task == "retrieval" else classify_student
    return {
        "recipe": values,
        "folders": {name: str(folders[name].resolve()) for name in ("corpus", "teacher", "labels")},
        "made_by": {"student": stage.VERSION, "torch": version("torch")},
        "compute": asdict(compute_of(recipe)),
        "vocabulary_pairs": recipe.data.train_pairs,
        "architecture": architecture.to_json(),
        "threads": threads,
    }


def run_trial(item: dict[str, Any]) -> dict[str, Any]:
    """Cut a student of the architecture, distil it on the first so many pairs or rows, validate it.

    Returns its best validation `metric` (MRR; of a classifier the mean recall), the `pairs` seen an epoch and the
    `seconds` taken.
    """
    import torch

    from codemill.compress.distill.team import ALONE
    from codemill.compress.recipe import Recipe
    from codemill.compress.stages.search import Chosen

    started = time.monotonic()
    recipe = Recipe.model_validate({**item["recipe"], "threads": item["threads"]})
    torch.set_num_threads(item["threads"])
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    architecture = Architecture.from_json(item["architecture"])
    folders = {name: Path(path) for name, path in item["folders"].items()}
    vocabulary = _vocabulary(
        recipe, architecture.tokenizer, folders["corpus"], item["vocabulary_pairs"]
    )
    tokens = vocabulary.at(architecture.vocab_size)
    chosen = Chosen(architecture, tokens.tokenizer_json, tokens.kept, tokens.counts, tokens.parts)
    with tempfile.TemporaryDirectory() as scratch:
        asked = (recipe, compute_of(recipe), folders, chosen, Path(scratch), lambda *_: None)
        if recipe.task == "retrieval":
            _, points = student.distil(*asked)
        else:
            _, points = classify_student.distil(*asked, ALONE)
    return {
        "metric": max(point.metric for point in points),
        "pairs": recipe.data.train_pairs,
        "seconds": round(time.monotonic() - started, 1),
    }


@lru_cache(maxsize=2)
def _vocabulary(recipe: Recipe, kind: Tokens, corpus: Path, pairs: int) -> Vocabulary:
    from codemill.compress.models.load import load_teacher, resolve_model
    from codemill.compress.stages.search import training_texts, vocabulary_of

    origin = recipe.origin
    tokenizer_json = origin and load_teacher(resolve_model(origin)).tokenizer_json
    # the whole corpus, so that every trial's vocabulary is a run's
    data = recipe.data.model_copy(update={"train_pairs": pairs})
    texts, _, _ = training_texts(recipe.model_copy(update={"data": data}), corpus)
    return vocabulary_of(recipe, kind, tokenizer_json, texts)
