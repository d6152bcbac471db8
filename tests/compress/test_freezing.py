"""Freezing where transformers are trained, stage by stage: the teacher, the student, exits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from codemill.compress import pipeline
from codemill.compress.compute import Compute
from codemill.compress.distill.loop import Schedule, fit
from codemill.compress.freeze.freeze import freeze_bottom
from codemill.compress.models.load import load_teacher, resolve_model
from codemill.compress.models.pooling import embed
from codemill.compress.models.surgery import load_student
from codemill.compress.pipeline import CHECKPOINT, Folders, keys_of
from codemill.compress.progress import Silent
from codemill.compress.recipe import Distill, Recipe, parse_recipe
from codemill.compress.run import stages_of
from codemill.compress.stages import finetune
from codemill.compress.stages import student as retrieval_student
from codemill.compress.stages.classify import exits, teacher
from codemill.compress.stages.classify import student as classify_student
from codemill.compress.stages.classify.exits import read_exiting
from codemill.compress.stages.classify.student import read_student
from codemill.compress.stages.search import read_chosen
from codemill.errors import RecipeError

from . import small_run
from .conftest import make_pairs, tiny_bert, train_tokenizer, write_jsonl
from .test_run_classifier import labelled, values

COMPUTE = Compute(1, False)


@dataclass(frozen=True)
class Given:
    """A model and data of both kinds, and what the stages before those under test made."""

    model: Path
    pairs: Path
    functions: Path
    retrieval: Folders
    classification: Folders

    def recipe(self, task: str, *settings: str) -> Recipe:
        if task == "retrieval":
            return small_run.recipe_of(self.model, self.pairs, *settings)
        chosen = values(self.model, task, {"source": str(self.functions)})
        # as many layers as there are to freeze
        chosen["search"]["layers"] = [[0, 1, 2]]
        chosen["distill"] |= {"epochs": 1, "validations": 1}
        return parse_recipe(chosen, settings)


def quiet(fraction: float, message: str) -> None:
    pass


def made(recipe: Recipe, work: Path, *wanted: str) -> Folders:
    stages = [stage for stage in stages_of(recipe) if stage.name in wanted]
    done = pipeline.run_stages(stages, work, Silent())
    return {name: item.folder for name, item in done.items()}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("given")
    pairs = make_pairs(300)
    texts = [text for pair in pairs for text in (pair.query, pair.code)]
    texts += [row["func"] for row in labelled(300)]
    tokenizer = train_tokenizer(texts)
    tiny_bert(tokenizer.get_vocab_size() + 8).save_pretrained(folder / "model")
    tokenizer.save(str(folder / "model/tokenizer.json"))
    functions = folder / "functions.jsonl"
    functions.write_text("".join(json.dumps(row) + "\n" for row in labelled(160)))
    files = Given(folder / "model", write_jsonl(folder / "pairs.jsonl", pairs), functions, {}, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CODEMILL_CACHE", str(folder / "cache"))
        before = ("corpus", "search", "teacher", "teacher-graphs", "labels")
        retrieval = made(files.recipe("retrieval"), folder / "work", *before)
        classification = made(files.recipe("classification"), folder / "work", *before, "student")
    return Given(files.model, files.pairs, files.functions, retrieval, classification)


def tuned(given: Given, task: str, folder: Path, *settings: str) -> dict[str, Any]:
    """What the teacher's stage says of a fine-tuning."""
    recipe = given.recipe(
        task,
        *(f"teacher.finetune.{item}" for item in ("epochs=3", "learning_rate=0.002")),
        *settings,
    )
    folder.mkdir()
    if task == "retrieval":
        finetune.stage(recipe, COMPUTE).work(given.retrieval, folder, quiet)
        return finetune.facts(folder)
    teacher.stage(recipe).work(given.classification, folder, quiet)
    return teacher.facts(folder)


@pytest.mark.parametrize("task", ["retrieval", "classification"])
def test_a_teacher_learns_from_kept_states_what_it_learns_in_plain_training(
    given: Given, task: str, tmp_path: Path
) -> None:
    frozen = "teacher.finetune.freeze_layers=2"
    found = {
        kind: tuned(given, task, tmp_path / kind, frozen, f"teacher.finetune.cache={kind}")
        for kind in ("none", "fp32", "fp16")
    }
    metric = "finetuned_mrr" if task == "retrieval" else "finetuned"
    losses = {kind: [point["loss"] for point in item["points"]] for kind, item in found.items()}
    assert found["none"]["frozen_states"]["kind"] is None
    if task == "retrieval":
        assert found["none"][metric] != found["none"]["original_mrr"]
    else:
        assert losses["none"][-1] < losses["none"][0], "it learns"
    for kind, within in (("fp32", 1e-4), ("fp16", 2e-3)):
        kept = found[kind]["frozen_states"]
        assert kept["kind"] == kind
        assert kept["size_bytes"] > 0
        assert losses[kind] == pytest.approx(losses["none"], rel=within)
        assert found[kind][metric] == pytest.approx(found["none"][metric], rel=2e-3)
        left = {path.name for path in (tmp_path / kind).iterdir()}
        assert not left & {"frozen.bin", "frozen.json"}, "it goes with the training"


def test_a_fine_tuning_that_is_killed_goes_on_from_what_was_kept(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("teacher.finetune.freeze_layers=2", "teacher.finetune.cache=fp16")
    whole = tuned(given, "classification", tmp_path / "whole", *settings)
    recipe = given.recipe(
        "classification",
        "teacher.finetune.epochs=3",
        "teacher.finetune.learning_rate=0.002",
        *settings,
    )
    folder = tmp_path / "killed"
    folder.mkdir()
    said: list[str] = []

    def killed(fraction: float, message: str) -> None:
        said.append(message)
        if message.startswith("step 20/"):
            raise KeyboardInterrupt

    stage = teacher.stage(recipe)
    with pytest.raises(KeyboardInterrupt):
        stage.work(given.classification, folder, killed)
    assert "running the frozen layers once" in said
    assert (folder / "frozen.bin").is_file()
    assert (folder / CHECKPOINT).is_file()
    said.clear()
    stage.work(given.classification, folder, lambda fraction, message: said.append(message))
    assert "running the frozen layers once" not in said
    assert teacher.facts(folder)["points"] == whole["points"]


@pytest.mark.parametrize("task", ["retrieval", "classification"])
@pytest.mark.parametrize(("asked", "frozen"), [("none", None), ("0", 0), ("2", 2)])
def test_a_teacher_is_frozen_as_the_recipe_says(
    given: Given, task: str, asked: str, frozen: int | None, tmp_path: Path
) -> None:
    setting = f"teacher.finetune.freeze_layers={asked}"
    found = tuned(given, task, tmp_path / "teacher", setting, "teacher.finetune.epochs=0.2")
    assert found["frozen_layers"] == frozen
    assert (found["trainable_parameters"] == found["parameters"]) == (frozen is None)


@pytest.mark.parametrize("task", ["retrieval", "classification"])
def test_auto_tries_and_takes_the_most_layers_within_the_bound(
    given: Given, task: str, tmp_path: Path
) -> None:
    settings = ("teacher.finetune.freeze_layers=auto", "teacher.finetune.epochs=0.5")
    any_loss = tuned(given, task, tmp_path / "any", *settings, "quality.freeze_loss=1")
    assert [item["layers"] for item in any_loss["tried"]] == [None, 0, 1, 2]
    assert any_loss["frozen_layers"] == 2
    none = tuned(given, task, tmp_path / "none", *settings, "quality.freeze_loss=0")
    best = max(none["tried"], key=lambda item: (item["metric"], item["layers"] or -1))
    assert none["frozen_layers"] == best["layers"]
    assert none["tried"] == any_loss["tried"], "the same for the same seed"


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The parts, embeddings or a layer, whose weights are others."""
    names = {name for name, value in before.items() if not torch.equal(value, after[name])}
    return {
        name.split(".")[2] if name.startswith("encoder.layer.") else "embeddings" for name in names
    }


@pytest.mark.parametrize(
    ("asked", "parts"),
    [("none", {"embeddings", "0", "1", "2"}), ("0", {"0", "1", "2"}), ("2", {"2"})],
)
def test_a_classifiers_student_keeps_its_frozen_layers_as_they_were_cut(
    given: Given, asked: str, parts: set[str], tmp_path: Path
) -> None:
    recipe = given.recipe("classification", f"distill.freeze_layers={asked}")
    classify_student.stage(recipe, COMPUTE).work(given.classification, tmp_path, quiet)
    chosen = read_chosen(given.classification["search"])
    before = classify_student.untrained(recipe, chosen, 2).encoder.state_dict()
    after, _ = load_student(tmp_path / "student")
    assert moved(before, after.state_dict()) == parts


def test_a_retrieval_student_keeps_its_frozen_layers_as_they_were_cut(
    given: Given, tmp_path: Path
) -> None:
    chosen = read_chosen(given.retrieval["search"])
    layers = chosen.architecture.layers
    recipe = given.recipe(
        "retrieval",
        f"distill.freeze_layers={layers - 1}",
        "search.layers=[[0, 1], [1, 2]]",
        "distill.epochs=0.5",
    )
    retrieval_student.stage(recipe, COMPUTE).work(given.retrieval, tmp_path, quiet)
    teaching = finetune.teaching_model(recipe, given.retrieval["teacher"])
    before = retrieval_student.cut(teaching, chosen, recipe.seed).state_dict()
    after, _ = load_student(tmp_path / "student")
    assert moved(before, after.state_dict()) == {str(layers - 1)}


def test_a_students_sweep_says_what_it_tried(given: Given, tmp_path: Path) -> None:
    recipe = given.recipe("classification", "distill.freeze_layers=auto", "quality.freeze_loss=1")
    stage = classify_student.stage(recipe, COMPUTE)
    stage.work(given.classification, tmp_path, quiet)
    tried = json.loads((tmp_path / "freeze.json").read_text())
    assert [item["layers"] for item in tried] == [None, 0, 1, 2]
    chosen = read_chosen(given.classification["search"])
    before = classify_student.untrained(recipe, chosen, 2).encoder.state_dict()
    after, _ = load_student(tmp_path / "student")
    assert moved(before, after.state_dict()) == {"2"}


@pytest.mark.parametrize(
    ("asked", "parts"),
    [("none", {"embeddings", "0", "1", "2"}), ("1", {"1", "2"}), ("auto", {"2"})],
)
def test_exits_train_no_frozen_layer_of_the_student(
    given: Given, asked: str, parts: set[str], tmp_path: Path
) -> None:
    recipe = given.recipe(
        "classification",
        *("exits.after=[1]", "exits.train=all", "exits.epochs=0.5"),
        *(f"exits.freeze_layers={asked}", "quality.freeze_loss=1"),
    )
    exits.stage(recipe, COMPUTE).work(given.classification, tmp_path, quiet)
    before = read_student(recipe, given.classification["student"]).encoder.state_dict()
    exiting = read_exiting(recipe, given.classification["student"], tmp_path)
    assert exiting is not None
    assert moved(before, exiting.whole.encoder.state_dict()) == parts


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("retrieval", ["distill.freeze_layers=1"], r"search\.layers allows a student of 1"),
        (
            "classification",
            ["distill.freeze_layers=3"],
            r"distill\.freeze_layers is 3, and search\.layers allows a student of 3",
        ),
        ("retrieval", ["distill.freeze_layers=-1"], r"distill\.freeze_layers"),
        ("retrieval", ["teacher.finetune.freeze_layers=some"], r"'none' or 'auto'"),
        (
            "classification",
            ["exits.after=[1]", "exits.freeze_layers=1"],
            r"train: heads leaves all of the student as it is",
        ),
        (
            "classification",
            ["student.init=fresh", "search=null", "distill.freeze_layers=0"],
            r"student\.init is fresh: random layers would stay random",
        ),
    ],
)
def test_what_cannot_be_frozen_is_refused_with_the_key(
    given: Given, task: str, settings: list[str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        given.recipe(task, *settings)


@pytest.mark.parametrize("task", ["retrieval", "classification"])
def test_stages_made_before_a_recipe_knew_of_this_are_found_again(given: Given, task: str) -> None:
    plain = given.recipe(task)
    for stage in stages_of(plain):
        text = json.dumps(stage.settings)
        assert "cache_gb" not in text, stage.name
        assert "freeze_loss" not in text, stage.name
    said = given.recipe(
        task,
        *("teacher.finetune.cache=none", "distill.freeze_layers=none"),
        "quality.freeze_loss=0.005",
    )
    assert keys_of(stages_of(said)) == keys_of(stages_of(plain))
    if task == "classification":
        exits = given.recipe(task, "exits.after=[1]", "exits.train=all")
        for stage in stages_of(exits):
            assert "freeze_layers" not in json.dumps(stage.settings.get("exits", {})), stage.name
    other = given.recipe(task, "teacher.finetune.cache=fp16")
    before, after = keys_of(stages_of(plain)), keys_of(stages_of(other))
    assert before["teacher"] != after["teacher"]
    assert before["corpus"] == after["corpus"]


def test_training_switches_dropout_off_in_frozen_and_trained_layers(
    given: Given, tmp_path: Path
) -> None:
    model = load_teacher(resolve_model(str(given.model))).model.train()
    freeze_bottom(model, 1)
    seen: list[bool] = []

    def loss_of(batch: np.ndarray) -> Tensor:
        seen.append(any(module.training for module in model.modules()))
        ids = torch.arange(24).view(2, 12)
        return embed(model, ids, torch.ones_like(ids)).sum()

    schedule = Schedule.of(Distill(validations=1), False)
    fit(model, [np.arange(2)], loss_of, schedule, lambda: 1.0, tmp_path, quiet)
    assert seen == [False]
