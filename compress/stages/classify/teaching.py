"""One teacher of a classifier: which model it is, with which head, and how it reads a row.

A row of one text is read as it is. Two are read one by one, a head over both, or as one sequence by a cross-encoder
(`models/joined.py`); either may come with its data flow (`models/dataflow.py`). When it is fine-tuned and what
becomes of its labels is `teacher.py`'s and `labels.py`'s.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from codemill.compress.models.load import load_teacher, resolve_model
from codemill.compress.recipe import Recipe
from codemill.errors import ModelError, RecipeError

if TYPE_CHECKING:
    from codemill.compress.models.classifier import Classifier
    from codemill.compress.models.heads import TeacherHead
    from codemill.compress.models.load import TeacherModel

__all__ = ["Teaching", "folder_name", "models_of", "open_teaching", "put_in_order"]

_HEAD_SIZE = 256


@dataclass(frozen=True)
class Teaching:
    """A teacher and how it reads.

    own_head: it labels with the head it came with. joined: two texts are one sequence. language: of the data flow
    that it reads, if any. dropped: why the head that it came with is not used, where it is not.
    """

    model: str
    classifier: Classifier
    tokenizer_json: str
    own_head: bool
    joined: bool
    language: str | None
    dropped: str | None

    def read(
        self, texts: Sequence[str], rows: np.ndarray, max_tokens: int
    ) -> tuple[Any, np.ndarray]:
        """What the classifier takes of rows int [n, 1 | 2] of indices into `texts`: its tokens, and rows of these."""
        if self.joined:
            items: Any = [(texts[first], texts[second]) for first, second in rows.tolist()]
            numbered = np.arange(len(rows))[:, None]
        else:
            used = np.unique(rows)
            items = [texts[index] for index in used.tolist()]
            numbered = np.searchsorted(used, rows)
        if self.language is not None:
            from codemill.compress.models.dataflow import flow_inputs

            return flow_inputs(self.tokenizer_json, items, max_tokens, self.language), numbered
        if self.joined:
            from codemill.compress.models.joined import tokenize_pairs

            return tokenize_pairs(self.tokenizer_json, items, max_tokens), numbered
        from codemill.compress.models.tokenize import tokenize

        return tokenize(self.tokenizer_json, items, max_tokens), numbered


def models_of(recipe: Recipe) -> tuple[str, ...]:
    """The models that teach, the first of which leads; none where the data do."""
    first = recipe.teacher.model
    return () if first is None else (first, *recipe.teacher.also)


def folder_name(number: int) -> str:
    """Where what belongs to the teacher of this number lies in a stage's folder: of the first, in it itself."""
    return f"also-{number}" if number else "."


def open_teaching(recipe: Recipe, labels: tuple[str, ...], number: int = 0) -> Teaching:
    """The teacher of this number with its own head, if it came with one for this task, or a new one, drawn by the seed.

    Raises RecipeError, naming the model, where its head and the data disagree on the labels; ModelError for one that
    cannot be loaded or cannot read what it is asked to.
    """
    name = models_of(recipe)[number]
    loaded = load_teacher(resolve_model(name))
    language = None if number else recipe.teacher.data_flow
    try:
        return _taught(recipe, labels, name, loaded, language)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error


def _taught(
    recipe: Recipe, labels: tuple[str, ...], name: str, loaded: TeacherModel, language: str | None
) -> Teaching:
    head, dropped = loaded.head, None
    joined = recipe.texts == 2 and recipe.teacher.pairs != "separate"
    if head is not None and recipe.texts == 2:
        if recipe.teacher.pairs == "separate":
            head, dropped = None, "teacher.pairs is separate, and its own reads one sequence"
        elif recipe.teacher.pairs == "auto" and len(head.labels) != len(labels):
            dropped = f"it knows {len(head.labels)} labels ({_some(head.labels)}), the data have {len(labels)}"
            head = None
    if head is None and recipe.teacher.pairs == "auto":
        joined = False
    encoder = loaded.model
    if joined:
        from codemill.compress.models.joined import as_joined

        encoder = as_joined(encoder, loaded.tokenizer_json)
    texts = 1 if joined else recipe.texts
    top: Any
    if head is not None:
        put_in_order(name, head, labels)
        top, pooling = head, loaded.pooling
    else:
        ordered = recipe.data.pair_order == "matters"
        top, pooling = _new_head(encoder.config.hidden_size, len(labels), texts, ordered), "mean"
        _draw(top, recipe.seed)
    kind: Any
    if language is not None:
        from codemill.compress.models.dataflow import FlowClassifier as kind
    else:
        from codemill.compress.models.frugal import FrugalClassifier as kind
    classifier = kind(encoder, top, texts, pooling)
    return Teaching(
        name, classifier, loaded.tokenizer_json, head is not None, joined, language, dropped
    )


def _new_head(dim: int, labels: int, texts: int, ordered: bool) -> Any:
    from codemill.compress.models.classifier import Head

    return Head(dim, labels, texts, _HEAD_SIZE, ordered)


def _draw(head: Any, seed: int) -> None:
    """Draw the hidden layer's weights by the seed, whatever random numbers were used before."""
    import torch

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        head.inner.reset_parameters()
        if head.texts == 1:
            head.outer.reset_parameters()


def put_in_order(model: str, head: TeacherHead, data: tuple[str, ...]) -> None:
    """Give the head's outputs the order of the data's labels, by their names. Raises RecipeError naming the model."""
    import torch

    own = head.labels
    if len(own) != len(data):
        raise RecipeError(
            f"the head of {model} knows {len(own)} labels ({_some(own)}), the data have "
            f"{len(data)} ({_some(data)}): give a teacher of these labels, or name data.labels"
        )
    if own == data or all(re.fullmatch(r"LABEL_\d+|\d+", name) for name in own):
        # names that only count: by their place
        return
    if set(own) != set(data):
        raise RecipeError(
            f"the head of {model} names its labels {_some(own)}, the data {_some(data)}: which is "
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
