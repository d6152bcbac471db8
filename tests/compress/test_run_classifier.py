"""Small runs that make classifiers, every stage real."""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from codemill.compress.commands.output import report_rows
from codemill.compress.models.load import load_teacher
from codemill.compress.progress import Silent
from codemill.compress.recipe import Recipe, parse_recipe
from codemill.compress.run import RunResult, run
from codemill.compress.stages.classify.teaching import put_in_order
from codemill.errors import DataError, RecipeError, RefusedError
from codemill.runtime import load_classifier, read_manifest, verify_bundle

from .conftest import FILLERS, make_pairs, tiny_bert, train_tokenizer


def labelled(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Functions that delete (1) or count (0) what they are given."""
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        one, two, three, four = chance.sample(FILLERS, 4)
        verb = "count" if number % 2 else "delete"
        code = (
            f"def {one}_{number}({two}, {three}):\n    for {four} in {two}:\n        {verb}({four})\n"
            f"        {three}.append({verb}({four}) + {chance.randrange(100)})\n    return {verb}({three})\n"
        )
        rows.append({"func": code, "target": 0 if number % 2 else 1, "project": f"p{number % 13}"})
    return rows


def values(model: Path, task: str, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "tiny",
        "task": task,
        "threads": 1,
        "precision": "fp32",
        "teacher": {
            "model": str(model),
            "max_tokens": 60,
            "finetune": {
                "freeze_layers": 0,
                "pairs": 200,
                "epochs": 4,
                "batch_size": 16,
                "learning_rate": 0.002,
            },
            "label_precision": "fp32",
        },
        "data": {"max_tokens": 56, "validation_pairs": 40, "test_pairs": 60, **data},
        "student": {"max_tokens": 56, "head_size": 16},
        "budget": {"size_bytes": 400_000, "gflops": None},
        "search": {
            "vocab_sizes": [200],
            "embedding_ranks": [16],
            "layers": [[0, 2]],
            "heads": [4],
            "intermediate_sizes": [64],
        },
        "distill": {"batch_size": 16, "validations": 3, "epochs": 6, "learning_rate": 0.003},
        "quantize": {"max_loss": 1.0},
        "bench": {"rounds": 2, "tokens": [16], "batches": [1, 2]},
    }


def made(recipe: Recipe, folder: Path) -> RunResult:
    return run(recipe, folder / "work", folder / "out", Silent())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    texts = [text for pair in make_pairs(300) for text in (pair.query, pair.code)]
    texts += [row["func"] for row in labelled(300)]
    tokenizer = train_tokenizer(texts)
    tiny_bert(tokenizer.get_vocab_size() + 8).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def single(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    folder = tmp_path_factory.mktemp("single")
    source = folder / "functions.jsonl"
    rows = labelled(400)
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = parse_recipe(values(model, "classification", {"source": str(source)}))
    return folder, made(recipe, folder)


def test_a_classifier_learns_what_its_teacher_learned(single: tuple[Path, RunResult]) -> None:
    _, result = single
    student = result.report.student.labelling
    teacher = result.report.teacher
    assert student is not None
    assert teacher is not None
    assert teacher.labelling is not None
    assert teacher.labelling.accuracy > 0.9
    assert student.accuracy > 0.9
    assert student.agreement is not None
    assert student.agreement > 0.9
    assert student.majority < 0.7
    assert sum(map(sum, student.confusion)) == student.rows
    assert {item.label for item in student.per_label} == {"0", "1"}


def test_a_bundle_of_labels_is_whole_and_labels_without_torch(
    single: tuple[Path, RunResult],
) -> None:
    folder, result = single
    verify_bundle(folder / "out")
    manifest = read_manifest(folder / "out")
    assert manifest.task == "classification"
    assert manifest.output["labels"] == ["0", "1"]
    assert result.size_bytes <= 400_000
    with load_classifier(folder / "out") as classifier:
        found = classifier.predict([row["func"] for row in labelled(40, seed=9)])
    right = [
        item.label == str(row["target"])
        for item, row in zip(found, labelled(40, seed=9), strict=True)
    ]
    assert sum(right) >= 36


def test_the_report_of_a_classifier_shows_accuracy_with_its_interval(
    single: tuple[Path, RunResult],
) -> None:
    folder, result = single
    rows = {row[0]: row[1:] for row in report_rows(result.report)}
    assert any("accuracy" in name for name in rows)
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "accuracy" in page
    assert not re.search(r"\bnan\b", page.lower())
    json_text = json.loads((folder / "out" / "report.json").read_text())
    assert json_text["benchmark"]["engines"][-1]["labelling"]["clusters"] in ("rows", "groups")


def test_a_second_run_does_nothing_again(single: tuple[Path, RunResult], model: Path) -> None:
    folder, _ = single
    source = folder / "functions.jsonl"
    recipe = parse_recipe(values(model, "classification", {"source": str(source)}))
    again = made(recipe, folder)
    assert all(stage.cached for stage in again.stages)


def test_pairs_are_learned_from_the_labels_that_a_teacher_left_in_a_file(
    model: Path, tmp_path: Path
) -> None:
    functions = {str(1000 + number): row for number, row in enumerate(labelled(120))}
    with gzip.open(tmp_path / "functions.jsonl.gz", "wt", encoding="utf-8") as file:
        for name, row in functions.items():
            file.write(json.dumps({"idx": name, "func": row["func"]}) + "\n")
    chance, names = random.Random(0), list(functions)
    for split, count in (("train", 500), ("test", 80)):
        with gzip.open(tmp_path / f"{split}.tsv.gz", "wt", encoding="utf-8") as file:
            for _ in range(count):
                first, second = chance.sample(names, 2)
                same = int(functions[first]["target"] == functions[second]["target"])
                # the third column is wrong in train: only the teacher's is to be learned
                shown = 1 - same if split == "train" else same
                file.write(f"{first}\t{second}\t{shown}\t{same}\n")
    data = {
        "functions": str(tmp_path / "functions.jsonl.gz"),
        "train": [
            {
                "file": str(tmp_path / "train.tsv.gz"),
                "label_field": None,
                "teacher_field": "teacher",
            }
        ],
        "test": [{"file": str(tmp_path / "test.tsv.gz")}],
        "labels": ["0", "1"],
    }
    recipe = values(model, "pair-classification", data)
    recipe["teacher"] = {"model": None}
    recipe["student"] |= {"init": str(model)}
    result = made(parse_recipe(recipe), tmp_path)
    found = result.report.student.labelling
    assert found is not None
    assert found.accuracy > 0.85
    assert found.clusters == "functions"
    with load_classifier(tmp_path / "out") as classifier:
        one, other = (row["func"] for row in labelled(2, seed=5))
        assert classifier.predict([(one, one)])[0].label == "1"
        assert classifier.predict([(one, other)])[0].label == "0"


def test_a_bound_on_quality_that_is_missed_ships_nothing(
    single: tuple[Path, RunResult], model: Path, tmp_path: Path
) -> None:
    folder, _ = single
    chosen = values(model, "classification", {"source": str(folder / "functions.jsonl")})
    chosen["quality"] = {"min_accuracy": 0.5, "min_kept": 5.0}
    with pytest.raises(RefusedError, match=r"quality kept|quality_kept"):
        run(parse_recipe(chosen), folder / "work", tmp_path / "out", Silent())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": {"source": "installed"}}, "installed code has no labels"),
        ({"data": {}}, "needs labelled data"),
        ({"data": {"source": "a.jsonl", "train": [{"file": "b.jsonl"}]}}, "found both"),
        ({"data": {"source": "a.jsonl"}, "teacher": {"model": None}}, "student.init has to name"),
    ],
)
def test_a_recipe_that_cannot_label_says_why(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe({"name": "x", "task": "classification", **changed})


def headed(folder: Path, model: Path, names: dict[int, str]) -> Path:
    """The model with a head that knows: it says the last of `names` for what deletes."""
    loaded = load_teacher(model)
    config = BertConfig(**{**loaded.model.config.to_dict(), "id2label": names})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = BertForSequenceClassification(config)
    whole.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(loaded.tokenizer_json, encoding="utf-8")
    return folder


def test_a_teachers_labels_are_known_by_their_names_and_not_by_their_place(
    model: Path, tmp_path: Path
) -> None:
    folder = headed(tmp_path / "teacher", model, {0: "risky", 1: "fine"})
    own = load_teacher(folder).head
    turned = load_teacher(folder).head
    assert own is not None
    assert turned is not None
    put_in_order("teacher", turned, ("fine", "risky"))
    pooled = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(own.eval()(pooled)[:, [1, 0]], turned.eval()(pooled), atol=1e-6)
    with pytest.raises(RecipeError, match="which is which"):
        put_in_order("teacher", own, ("safe", "vulnerable"))
    with pytest.raises(RecipeError, match="knows 2 labels"):
        put_in_order("teacher", own, ("a", "b", "c"))


def test_a_teacher_with_a_head_labels_data_that_have_no_labels(model: Path, tmp_path: Path) -> None:
    folder = headed(tmp_path / "teacher", model, {0: "0", 1: "1"})
    rows = labelled(240)
    for name, some, keep in (("train", rows[:180], False), ("test", rows[180:], True)):
        lines = [row if keep else {"func": row["func"]} for row in some]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    data = {
        "train": [{"file": str(tmp_path / "train.jsonl"), "label_field": None}],
        "test": [{"file": str(tmp_path / "test.jsonl")}],
        "labels": ["0", "1"],
    }
    chosen = values(folder, "classification", data)
    chosen["teacher"]["finetune"] = {"pairs": 0}
    result = made(parse_recipe(chosen), tmp_path)
    student = result.report.student.labelling
    assert student is not None
    # an untrained head is a poor teacher, and followed all the same
    assert student.agreement is not None
    assert student.agreement > 0.8


def test_data_that_nobody_labels_are_refused_before_anything_is_trained(
    model: Path, tmp_path: Path
) -> None:
    lines = [json.dumps({"func": row["func"]}) + "\n" for row in labelled(60)]
    (tmp_path / "train.jsonl").write_text("".join(lines))
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled(40, 1)))
    data = {
        "train": [{"file": str(tmp_path / "train.jsonl"), "label_field": None}],
        "test": [{"file": str(tmp_path / "test.jsonl")}],
    }
    chosen = values(model, "classification", data)
    chosen["teacher"] = {"model": None}
    chosen["student"] |= {"init": str(model)}
    with pytest.raises(DataError, match=r"no row of train has a label|labels"):
        made(parse_recipe(chosen), tmp_path)
