"""The stage that distils a classifier: what of a recipe reaches the student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from codemill.compress import pipeline
from codemill.compress.compute import Compute, OnGpus, compute_of
from codemill.compress.distill import origin as origin_module
from codemill.compress.models.load import load_teacher, resolve_model
from codemill.compress.progress import Silent
from codemill.compress.recipe import Recipe, parse_recipe
from codemill.compress.run import stages_of
from codemill.compress.stages.classify import student
from codemill.compress.stages.classify.teacher import teaching_classifier
from codemill.compress.stages.search import read_chosen
from codemill.errors import DataError, MachineError

from .conftest import make_pairs, tiny_bert, train_tokenizer
from .distill.together import TwoProcesses
from .test_run_classifier import labelled, values

EVERY_LOSS = {"embedding": 1.0, "relations": 1.0, "hidden": 1.0}


def quiet(_fraction: float, _note: str) -> None:
    pass


class Given:
    """What the stages before the student made, once for all tests."""

    def __init__(self, folder: Path) -> None:
        texts = [text for pair in make_pairs(300) for text in (pair.query, pair.code)]
        texts += [row["func"] for row in labelled(300)]
        tokenizer = train_tokenizer(texts)
        self.model = folder / "model"
        tiny_bert(tokenizer.get_vocab_size() + 8).save_pretrained(self.model)
        tokenizer.save(str(self.model / "tokenizer.json"))
        self.source = folder / "functions.jsonl"
        self.source.write_text("".join(json.dumps(row) + "\n" for row in labelled(160)))
        stages = stages_of(self.recipe({}))
        upto = [stage.name for stage in stages].index("student")
        chosen = [stage for stage in stages[:upto] if stage.name != "rehearsal"]
        done = pipeline.run_stages(chosen, folder / "work", Silent())
        self.folders = {name: item.folder for name, item in done.items()}

    def recipe(self, distill: dict[str, Any]) -> Recipe:
        chosen = values(self.model, "classification", {"source": str(self.source)})
        chosen["distill"] |= {"epochs": 2, **distill}
        return parse_recipe(chosen)

    def student(
        self, folder: Path, distill: dict[str, Any], compute: Compute | None = None
    ) -> dict[str, np.ndarray]:
        """The weights that the stage leaves in `folder`."""
        recipe = self.recipe(distill)
        folder.mkdir(exist_ok=True)
        made = student.stage(recipe, compute or Compute(1, False))
        made.work(self.folders, folder, quiet)
        if made.findings is not None:
            (folder / "said").write_text(made.findings(folder))
        (weights,) = (folder / "student").glob("*.safetensors")
        return {**load_file(weights), **load_file(folder / "head.safetensors")}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("given")
        patch.setenv("CODEMILL_CACHE", str(folder / "cache"))
        return Given(folder)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray], atol: float = 0.0) -> bool:
    return all(np.allclose(one[name], other[name], rtol=0, atol=atol) for name in one)


def test_a_student_that_learns_from_its_origin_comes_nearer_to_it(
    given: Given, tmp_path: Path
) -> None:
    plain = given.student(tmp_path / "plain", {})
    losses = {"teacher": 0.1, "gold": 0.1, "embedding": 10.0}
    taught = given.student(tmp_path / "taught", {"losses": losses})
    assert not same(plain, taught)

    def apart(folder: Path) -> float:
        import torch

        from codemill.compress.distill.losses import cosine_distance
        from codemill.compress.models.pooling import embed, pad
        from codemill.compress.models.tokenize import tokenize

        recipe = given.recipe({"losses": losses})
        chosen = read_chosen(given.folders["search"])
        origin = student.origin_of(
            recipe, chosen, given.folders["corpus"], given.folders["teacher"]
        )
        assert origin is not None
        ids, mask = pad(tokenize(chosen.tokenizer_json, [r["func"] for r in labelled(20, 7)], 56))
        with torch.inference_mode():
            mine = embed(student.read_student(recipe, folder).encoder, ids, mask)
            theirs = embed(origin.encoder, origin.kept[ids], mask)
        return float(cosine_distance(mine, theirs))

    assert apart(tmp_path / "taught") < 0.8 * apart(tmp_path / "plain")


def test_with_all_losses_and_rewritten_texts_a_second_run_makes_the_very_same_student(
    given: Given, tmp_path: Path
) -> None:
    every = {"losses": EVERY_LOSS, "augment": 0.5, "token_dropout": 0.1}
    first, second = (given.student(tmp_path / name, every) for name in ("a", "b"))
    assert same(first, second)
    assert not same(first, given.student(tmp_path / "c", {**every, "augment": 0.0}))
    said = (tmp_path / "a" / "said").read_text()
    assert "training texts (python) are seen rewritten too" in said
    assert not list((tmp_path / "a").glob("rewritten-*")), "only the student is kept"


def test_two_processes_make_the_student_of_one(given: Given, tmp_path: Path) -> None:
    # all texts in the one variant: which are is drawn for each part of a batch
    chosen = {"augment": 1.0, "variants": 1, "epochs": 1}
    one = given.student(tmp_path / "one", chosen)
    two = given.student(tmp_path / "two", chosen, TwoProcesses(1, False))
    assert same(one, two, atol=2e-3)
    assert not same(one, two), "gradients are summed in another order"
    assert not same(one, given.student(tmp_path / "plain", {"epochs": 1}), atol=2e-3)


def test_the_origin_is_the_fine_tuned_model_where_that_one_teaches(given: Given) -> None:
    recipe = given.recipe({"losses": EVERY_LOSS})
    chosen = read_chosen(given.folders["search"])
    corpus, teacher = given.folders["corpus"], given.folders["teacher"]
    teaching, _ = teaching_classifier(recipe, corpus, teacher)
    tuned = student.origin_of(recipe, chosen, corpus, teacher)
    as_it_came = student.origin_of(recipe, chosen, corpus, None)
    assert tuned is not None
    assert as_it_came is not None
    expected = teaching.encoder.state_dict()
    assert all((expected[k] == v).all() for k, v in tuned.encoder.state_dict().items())
    plain = load_teacher(resolve_model(str(given.model))).model.state_dict()
    assert all((plain[k] == v).all() for k, v in as_it_came.encoder.state_dict().items())
    assert any((expected[k] != v).any() for k, v in plain.items())


def test_without_these_losses_no_origin_is_loaded(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("an origin was made")

    monkeypatch.setattr(origin_module, "Origin", refuse)
    given.student(tmp_path / "a", {"epochs": 0.2})
    with pytest.raises(AssertionError, match="was made"):
        given.student(tmp_path / "b", {"epochs": 0.2, "losses": EVERY_LOSS})


def test_texts_of_no_known_language_are_refused_only_where_they_are_to_be_rewritten(
    given: Given,
) -> None:
    prose = ["Dear all, the meeting is moved (again) to Tuesday!"] * 3
    with pytest.raises(DataError, match=r"distill\.language"):
        student.check_rewritable(given.recipe({"augment": 0.5}), prose)
    student.check_rewritable(given.recipe({"augment": 0.5, "language": "c"}), prose)
    student.check_rewritable(given.recipe({}), prose)


def test_on_a_processor_a_stages_key_says_nothing_of_gpus(given: Given) -> None:
    recipe = given.recipe({})
    settings = student.stage(recipe, Compute(1, False)).settings
    assert settings["compute"] == {"threads": 1, "bf16": False}
    on_gpus = student.stage(recipe, OnGpus(1, True, "H100", 8)).settings
    assert on_gpus["compute"] == {"threads": 1, "bf16": True, "gpu": "H100", "count": 8}


def fake_gpus(patch: pytest.MonkeyPatch, count: int) -> None:
    import torch

    patch.setattr(torch.cuda, "is_available", lambda: count > 0)
    patch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    patch.setattr(torch.cuda, "device_count", lambda: count)
    patch.setattr(torch.cuda, "get_device_name", lambda index: f"card {index}")


def test_a_classifier_takes_every_gpu_there_is_and_the_processor_where_there_is_none(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = given.recipe({})
    fake_gpus(monkeypatch, 0)
    assert compute_of(recipe) == Compute(1, False)
    fake_gpus(monkeypatch, 8)
    found = compute_of(recipe.model_copy(update={"precision": "auto"}))
    assert found == OnGpus(1, True, "card 0", 8)
    assert (found.device, found.processes) == ("cuda:0", 8)
    on_cpu = compute_of(recipe.model_copy(update={"device": "cpu"}))
    assert (on_cpu, on_cpu.device, on_cpu.processes) == (Compute(1, False), "cpu", 1)


def test_a_gpu_that_is_asked_for_and_not_there_is_an_error(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpus(monkeypatch, 0)
    with pytest.raises(MachineError, match=r"device: cuda was asked for.* or set device: auto"):
        compute_of(given.recipe({}).model_copy(update={"device": "cuda"}))


def test_retrieval_stays_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpus(monkeypatch, 8)
    plain = parse_recipe({"name": "x", "threads": 1, "precision": "fp32"})
    assert compute_of(plain) == Compute(1, False)
    with pytest.raises(MachineError, match="of classifiers"):
        compute_of(plain.model_copy(update={"device": "cuda"}))
