"""How many layers are frozen, where a recipe says so and where a sweep finds it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from codemill.compress.freeze.choose import (
    Tried,
    brief_steps,
    candidates,
    freeze_as_asked,
    most_within,
)
from codemill.compress.freeze.freeze import freeze_bottom
from codemill.compress.models.load import TeacherModel
from codemill.compress.recipe import FreezeLayers

KEY = "distill.freeze_layers"


def quiet(fraction: float, message: str) -> None:
    pass


def trained_layers(teacher: TeacherModel) -> list[bool]:
    """Of the embeddings and each layer."""
    model = teacher.model
    parts = [model.embeddings, *model.encoder.layer]
    return [any(value.requires_grad for value in part.parameters()) for part in parts]


@pytest.mark.parametrize(
    ("asked", "trained"),
    [
        ("none", [True, True, True, True]),
        (0, [False, True, True, True]),
        (2, [False, False, False, True]),
    ],
)
def test_what_a_recipe_says_is_frozen_without_a_sweep(
    teacher: TeacherModel, asked: FreezeLayers, trained: list[bool], tmp_path: Path
) -> None:
    def never(folder: Path) -> float:
        raise AssertionError

    found = freeze_as_asked(
        asked, teacher.model, key=KEY, bound=0.0, train=never, folder=tmp_path, report=quiet
    )
    assert trained_layers(teacher) == trained
    assert found.layers == (None if asked == "none" else asked)
    assert (found.trainable < found.parameters) == (asked != "none")
    assert not list(tmp_path.iterdir())


class Sweep:
    """Trains by adding to all weights that may be; the metric is what is given for so many frozen parts."""

    def __init__(self, teacher: TeacherModel, metrics: dict[int, float]) -> None:
        self.teacher, self.metrics, self.tried = teacher, metrics, list[int]()

    def __call__(self, folder: Path) -> float:
        (folder / "checkpoint.pt").write_bytes(b"of this one only")
        frozen = trained_layers(self.teacher).count(False)
        self.tried.append(frozen)
        with torch.no_grad():
            for value in self.teacher.model.parameters():
                if value.requires_grad:
                    value.add_(1.0)
        return self.metrics[frozen]


def choose(teacher: TeacherModel, sweep: Sweep, folder: Path, bound: float) -> int | None:
    return freeze_as_asked(
        "auto", teacher.model, key=KEY, bound=bound, train=sweep, folder=folder, report=quiet
    ).layers


@pytest.mark.parametrize(
    ("bound", "layers", "trained"),
    [
        (0.0, None, [True, True, True, True]),
        (0.02, 1, [False, False, True, True]),
        (0.5, 2, [False, False, False, True]),
    ],
)
def test_a_sweep_freezes_the_most_layers_within_the_bound_and_puts_the_weights_back(
    teacher: TeacherModel, bound: float, layers: int | None, trained: list[bool], tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    # frozen parts, embeddings among them
    sweep = Sweep(teacher, {0: 0.80, 1: 0.78, 2: 0.79, 3: 0.50})
    assert choose(teacher, sweep, tmp_path, bound) == layers
    assert sweep.tried == [0, 1, 2, 3]
    assert trained_layers(teacher) == trained
    after = teacher.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert [path.name for path in tmp_path.iterdir()] == ["freeze.json"]


def test_a_sweep_that_was_killed_tries_only_what_is_missing(
    teacher: TeacherModel, tmp_path: Path
) -> None:
    sweep = Sweep(teacher, {0: 0.8, 1: 0.8, 3: 0.1})
    with pytest.raises(KeyError):
        choose(teacher, sweep, tmp_path, 0.01)
    assert len(json.loads((tmp_path / "freeze.json").read_text())) == 2
    sweep.metrics[2] = 0.8
    sweep.tried.clear()
    assert choose(teacher, sweep, tmp_path, 0.01) == 1
    assert sweep.tried == [2, 3]
    sweep.tried.clear()
    assert choose(teacher, sweep, tmp_path, 0.01) == 1
    assert not sweep.tried


@pytest.mark.parametrize(
    ("layers", "expected"),
    [(1, [None, 0]), (3, [None, 0, 1, 2]), (12, [None, 0, 4, 7, 11])],
)
def test_nothing_the_embeddings_alone_and_a_few_layers_are_tried(
    layers: int, expected: list[int | None]
) -> None:
    assert candidates(layers) == expected


def test_where_every_frozen_layer_costs_too_much_nothing_is_frozen() -> None:
    assert most_within([Tried(None, 0.9), Tried(0, 0.5), Tried(3, 0.4)], 0.01) is None
    assert most_within([Tried(None, 0.5), Tried(0, 0.9), Tried(3, 0.895)], 0.01) == 3


def test_a_sweep_takes_a_small_share_of_the_steps() -> None:
    assert [brief_steps(steps) for steps in (5, 100, 640, 10_000)] == [5, 8, 40, 64]


def test_the_error_of_too_many_layers_names_the_key(teacher: TeacherModel) -> None:
    from codemill.errors import RecipeError

    message = f"{KEY} is 3, but the student has 3 layers; freeze at most 2, or set {KEY} to none"
    with pytest.raises(RecipeError, match=message):
        freeze_bottom(teacher.model, 3, KEY)
