"""Teachers of classifiers, stage by stage: cross-encoders, several of them, data flow, and what goes wrong."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaForSequenceClassification,
    RobertaModel,
)

from codemill.compress.data.labelled import read_labelled
from codemill.compress.models.dataflow import flow_batch, flow_inputs
from codemill.compress.models.load import resolve_model
from codemill.compress.pipeline import CHECKPOINT, Folders
from codemill.compress.preflight import preflight
from codemill.compress.progress import Silent
from codemill.compress.recipe import Recipe, parse_recipe
from codemill.compress.run import run
from codemill.compress.stages.classify import corpus, labels, teacher
from codemill.compress.stages.classify.evaluation import items_of
from codemill.compress.stages.classify.labels import read_probabilities
from codemill.compress.stages.classify.teacher import facts
from codemill.compress.tasks.classification import mean_recall
from codemill.errors import CodemillError, DataError, ModelError, RecipeError
from codemill.runtime import load_classifier, read_manifest

from .conftest import train_tokenizer
from .models.families import SHAPE, noisy, roberta_config, train_bpe
from .test_run_classifier import labelled, values

PAIRS = "pair-classification"


@cache
def byte_pairs() -> Tokenizer:
    return train_bpe([row["func"] for row in labelled(200)])


def saved(model: Any, tokenizer: Tokenizer, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def roberta(folder: Path, names: dict[int, str], seed: int = 0) -> Path:
    """A random RobertaForSequenceClassification, which says more than one thing."""
    tokenizer = byte_pairs()
    config = roberta_config(tokenizer.get_vocab_size(), id2label=names)
    return saved(noisy(RobertaForSequenceClassification(config), seed), tokenizer, folder)


def bert(folder: Path, names: dict[int, str]) -> Path:
    """The same of a BERT, whose second text has a token type of its own."""
    tokenizer = train_tokenizer([row["func"] for row in labelled(200)])
    special = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    rows = tokenizer.get_vocab_size()
    config = BertConfig(vocab_size=rows, max_position_embeddings=60, id2label=names, **SHAPE)
    return saved(noisy(BertForSequenceClassification(config)), tokenizer, folder)


BINARY = {0: "LABEL_0", 1: "LABEL_1"}


def write_pairs(path: Path, count: int = 60) -> Path:
    rows = labelled(2 * count, seed=3)
    random.Random(0).shuffle(rows)
    lines = [
        {
            "code1": first["func"],
            # some pairs fit into 60 tokens, most are cut
            "code2": second["func"] if number % 3 else f"count({number})",
            "label": int(first["target"] == second["target"]),
        }
        for number, (first, second) in enumerate(zip(rows[:count], rows[count:], strict=True))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def write_functions(path: Path, count: int = 60) -> Path:
    lines = [json.dumps(row) + "\n" for row in labelled(count, seed=3)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def recipe_of(model: Path, task: str, source: Path, **of_teacher: Any) -> Recipe:
    chosen = values(model, task, {"source": str(source), "test_pairs": 15, "validation_pairs": 15})
    chosen["teacher"] |= {"finetune": {"pairs": 0}, **of_teacher}
    return parse_recipe(chosen)


@dataclass
class Taught:
    """The folders of the stages up to the labels, and all that they reported."""

    folders: dict[str, Path]
    reports: list[tuple[str, float, str]]

    def probabilities(self, split: str = "train") -> np.ndarray:
        found = read_probabilities(self.folders["labels"], split)
        assert found is not None
        return found

    def texts(self, recipe: Recipe, split: str = "train") -> Any:
        return items_of(read_labelled(self.folders["corpus"], split, recipe.data.train_pairs))


def taught(recipe: Recipe, work: Path, upto: str = "labels") -> Taught:
    stages = [
        corpus.stage(recipe),
        teacher.stage(recipe),
        labels.graphs_stage(recipe),
        labels.stage(recipe, 1),
    ]
    folders: dict[str, Path] = {}
    reports: list[tuple[str, float, str]] = []
    for stage in stages:
        inputs: Folders = {name: folders[name] for name in stage.inputs}
        folders[stage.name] = work / stage.name
        folders[stage.name].mkdir(parents=True, exist_ok=True)
        name = stage.name
        stage.work(
            inputs, folders[name], lambda done, said, name=name: reports.append((name, done, said))
        )
        if stage.name == upto:
            break
    return Taught(folders, reports)


def of_transformers(folder: Path, pairs: list[tuple[str, str]], most: int = 60) -> np.ndarray:
    """What transformers' own classes make of joined pairs, one by one: float32 [n, labels]."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    headed = (BertForSequenceClassification, RobertaForSequenceClassification)
    named = json.loads((folder / "config.json").read_text())["architectures"][0]
    kind = next(item for item in headed if item.__name__ == named)
    model = kind.from_pretrained(folder).eval()
    found = []
    with torch.inference_mode():
        for first, second in pairs:
            given = tokenizer(first, second, truncation=True, max_length=most, return_tensors="pt")
            if kind is RobertaForSequenceClassification:
                given.pop("token_type_ids")
            found.append(model(**given).logits.softmax(-1)[0].numpy())
    return np.stack(found)


@pytest.mark.parametrize("make", [roberta, bert])
def test_a_cross_encoder_labels_pairs_as_transformers_does(make: Any, tmp_path: Path) -> None:
    model = make(tmp_path / "model", BINARY)
    recipe = recipe_of(model, PAIRS, write_pairs(tmp_path / "pairs.jsonl"))
    found = taught(recipe, tmp_path / "work")
    pairs = found.texts(recipe)
    expected = of_transformers(model, pairs)
    # neither constant nor certain: the comparison says something
    assert expected[:, 0].std() > 0.01
    np.testing.assert_allclose(found.probabilities(), expected, atol=1e-4)
    manifest = read_manifest(found.folders["teacher-graphs"] / "teaching")
    assert manifest.input["joined"] is True
    said = teacher.stage(recipe).findings
    assert said is not None
    assert "as one sequence" in said(found.folders["teacher"])
    with load_classifier(found.folders["teacher-graphs"] / "teaching", variant="cpu-fp32") as graph:
        again = graph.probabilities(pairs[:5])
    np.testing.assert_allclose(again, expected[:5], atol=1e-4)


def test_a_head_that_is_not_used_is_said_so(tmp_path: Path) -> None:
    model = roberta(tmp_path / "model", {0: "a", 1: "b", 2: "c"})
    source = write_pairs(tmp_path / "pairs.jsonl")
    learning = {"pairs": 30, "epochs": 1, "batch_size": 8, "freeze_layers": 1}
    recipe = recipe_of(model, PAIRS, source, finetune=learning)
    found = taught(recipe, tmp_path / "work", upto="teacher")
    said = teacher.stage(recipe).findings
    assert said is not None
    line = said(found.folders["teacher"])
    assert "the head that it came with is not used" in line
    assert "3 labels (a, b, c), the data have 2" in line
    joined = recipe_of(model, PAIRS, source, pairs="joined")
    with pytest.raises(RecipeError, match="knows 3 labels"):
        taught(joined, tmp_path / "joined", upto="teacher")


def test_a_cross_encoder_is_made_of_a_model_without_a_head(tmp_path: Path) -> None:
    tokenizer = byte_pairs()
    model = noisy(RobertaModel(roberta_config(tokenizer.get_vocab_size())))
    folder = saved(model, tokenizer, tmp_path / "model")
    learning = {"pairs": 40, "epochs": 2, "batch_size": 8, "freeze_layers": 0}
    recipe = recipe_of(
        folder, PAIRS, write_pairs(tmp_path / "p.jsonl"), pairs="joined", finetune=learning
    )
    folders = taught(recipe, tmp_path / "work", upto="teacher").folders
    known = facts(folders["teacher"])
    assert (known["teaches"], known["joined"], known["dropped"]) == ("finetuned", True, None)
    # what is opened again is what was fine-tuned
    teaching = teacher.teaching_of(recipe, folders["corpus"], folders["teacher"])
    rows = read_labelled(folders["corpus"], "validation", 15)
    again = teaching.classifier.probabilities(*teaching.read(rows.texts, rows.rows, 60))
    assert again.shape == (len(rows.rows), 2)
    assert mean_recall(again, rows.labels) == known["finetuned"]


def test_several_teachers_teach_their_mean_and_each_labels_once(tmp_path: Path) -> None:
    first, second = (roberta(tmp_path / f"model{n}", BINARY, seed=n) for n in (0, 1))
    source = write_pairs(tmp_path / "pairs.jsonl")
    recipe = recipe_of(first, PAIRS, source, also=[str(second)])
    found = taught(recipe, tmp_path / "work")
    pairs = found.texts(recipe)
    both = [of_transformers(model, pairs) for model in (first, second)]
    assert abs(both[0] - both[1]).max() > 0.05
    np.testing.assert_allclose(found.probabilities(), np.mean(both, axis=0), atol=1e-4)
    assert (found.folders["teacher-graphs"] / "also-1" / "teaching").is_dir()
    # killed while the second labelled: what the first said is not said again
    mine, others = (found.folders["labels"] / name for name in (".", "also-1"))
    (others / "train-00000.npy").unlink()
    before = (mine / "train-00000.npy").stat().st_mtime_ns
    again = taught(recipe, tmp_path / "work")
    assert (mine / "train-00000.npy").stat().st_mtime_ns == before
    np.testing.assert_array_equal(again.probabilities(), found.probabilities())
    said = labels.stage(recipe, 1).findings
    assert said is not None
    assert "by 2 teachers" in said(found.folders["labels"])


def test_a_second_teacher_goes_on_where_the_first_was_ready(tmp_path: Path) -> None:
    first, second = (roberta(tmp_path / f"model{n}", BINARY, seed=n) for n in (0, 1))
    learning = {"pairs": 30, "epochs": 2, "batch_size": 8, "freeze_layers": 0}
    source = write_functions(tmp_path / "functions.jsonl")
    recipe = recipe_of(first, "classification", source, also=[str(second)], finetune=learning)
    folder = taught(recipe, tmp_path / "work", upto="teacher").folders["teacher"]
    for number in (0, 1):
        assert facts(folder, number)["original"] is not None
    assert not list(folder.rglob(CHECKPOINT))
    known = (folder / "teacher.json").read_bytes()
    (folder / "also-1" / "teacher.json").unlink()
    (folder / "teacher.json").write_bytes(known)
    reports = taught(recipe, tmp_path / "work", upto="teacher").reports
    trained = {said.split(":")[0] for name, _, said in reports if "step" in said}
    assert trained == {str(second)}
    assert facts(folder, 1)["model"] == str(second)


def test_a_teacher_of_other_labels_is_named_before_any_is_trained(tmp_path: Path) -> None:
    first = roberta(tmp_path / "first", BINARY)
    other = roberta(tmp_path / "other", {0: "a", 1: "b", 2: "c"})
    source = write_functions(tmp_path / "functions.jsonl")
    recipe = recipe_of(first, "classification", source, also=[str(other)])
    with pytest.raises(RecipeError, match=r"head of \S+other knows 3 labels .* the data have 2"):
        taught(recipe, tmp_path / "work", upto="teacher")
    assert not list((tmp_path / "work" / "teacher").iterdir())


def test_a_teacher_labels_with_its_data_flow(tmp_path: Path) -> None:
    model = roberta(tmp_path / "model", BINARY)
    source = write_functions(tmp_path / "functions.jsonl")
    recipe = recipe_of(model, "classification", source, data_flow="python")
    found = taught(recipe, tmp_path / "work")
    texts = found.texts(recipe)
    tokenizer_json = (model / "tokenizer.json").read_text()
    (given,) = flow_inputs(tokenizer_json, texts[:1], 60, "python")
    assert len(given.spans) > 4
    own = RobertaForSequenceClassification.from_pretrained(model, attn_implementation="eager")
    table = own.roberta.embeddings.word_embeddings.weight
    words = [table[index] for index in given.ids.tolist()]
    words += [table[given.ids[start:end].tolist()].mean(0) for start, end in given.spans.tolist()]
    places = [*range(2, 2 + len(given.ids)), *([0] * len(given.spans))]
    seen = flow_batch([given]).attention[:, : len(given), : len(given)].long()
    with torch.inference_mode():
        expected = own.eval()(
            inputs_embeds=torch.stack(words)[None],
            position_ids=torch.tensor([places]),
            attention_mask=seen,
        ).logits.softmax(-1)
    np.testing.assert_allclose(found.probabilities()[:1], expected.numpy(), atol=1e-5)
    # no graph reads data flow, so none is there to be measured
    assert not (found.folders["teacher-graphs"] / "teaching").exists()
    assert facts(found.folders["teacher"])["data_flow"] == 1.0
    wrong = recipe_of(model, "classification", source, data_flow="go")
    with pytest.raises(RecipeError, match="in another language"):
        taught(wrong, tmp_path / "wrong", upto="teacher")


def test_what_is_reported_begins_with_how_long_it_takes_and_only_grows(tmp_path: Path) -> None:
    first, second = (roberta(tmp_path / f"model{n}", BINARY, seed=n) for n in (0, 1))
    learning = {"pairs": 30, "epochs": 2, "batch_size": 8, "freeze_layers": 0}
    source = write_functions(tmp_path / "functions.jsonl")
    recipe = recipe_of(first, "classification", source, also=[str(second)], finetune=learning)
    reports = taught(recipe, tmp_path / "work").reports
    for name in ("teacher", "labels"):
        done = [fraction for stage, fraction, _ in reports if stage == name]
        assert done == sorted(done)
        assert max(done) <= 1
    said = [text for stage, _, text in reports if stage == "labels"]
    assert "rows to label, about" in said[0]
    assert max(fraction for stage, fraction, _ in reports if stage == "labels") == 1
    steps = [text for stage, _, text in reports if stage == "teacher" and "step" in text]
    assert "8 steps, about" in steps[0]


def test_too_few_labelled_rows_are_said_so(tmp_path: Path) -> None:
    lines = []
    for number, row in enumerate(labelled(80, seed=3)):
        # one labelled row of the second label, in train
        known = {"target": row["target"]} if row["target"] == 0 or number == 2 else {}
        lines.append({"func": row["func"], **known, "split": "train" if number < 50 else "test"})
    for number in range(10):
        lines.append({**labelled(10, seed=8)[number], "split": "validation"})
    for line in lines:
        line.pop("project", None)
    rows = [json.dumps(line) + "\n" for line in lines if "target" in line]
    source = tmp_path / "functions.jsonl"
    source.write_text("".join(rows), encoding="utf-8")
    learning = {"pairs": 60, "epochs": 1, "batch_size": 8, "freeze_layers": 0}
    tokenizer = byte_pairs()
    bare = noisy(RobertaModel(roberta_config(tokenizer.get_vocab_size())))

    def few(model: Path) -> Recipe:
        data = {"source": str(source), "split_field": "split"}
        chosen = values(model, "classification", data)
        chosen["teacher"]["finetune"] = learning
        return parse_recipe(chosen)

    model = saved(bare, tokenizer, tmp_path / "bare")
    with pytest.raises(DataError, match=r"fewer than 2 have these labels: '1' 1"):
        taught(few(model), tmp_path / "bare-work", upto="teacher")
    headed = few(roberta(tmp_path / "headed", BINARY))
    found = taught(headed, tmp_path / "headed-work", upto="teacher")
    said = teacher.stage(headed).findings
    assert said is not None
    assert "it was not fine-tuned: of the" in said(found.folders["teacher"])
    assert facts(found.folders["teacher"])["teaches"] == "original"


@pytest.mark.parametrize(
    ("task", "of_teacher", "more", "message"),
    [
        ("classification", {"pairs": "joined"}, {}, "joined is of two texts"),
        ("classification", {"also": ["a"], "model": None}, {}, "teacher.also is given, and"),
        ("classification", {"model": "a", "also": ["b", "a"]}, {}, "names a again"),
        (
            "classification",
            {"model": "a", "data_flow": "c"},
            {"quality": {"min_kept": 0.9}},
            "reads data flow",
        ),
        ("retrieval", {"also": ["b"]}, {}, "teacher.also: of classifiers only"),
        ("classification", {"data_flow": "cobol"}, {}, "'python'"),
    ],
)
def test_a_recipe_of_teachers_that_cannot_be_says_why(
    task: str, of_teacher: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    chosen = {"name": "x", "task": task, "teacher": of_teacher, **more}
    if task != "retrieval":
        chosen["data"] = {"source": "a.jsonl"}
        chosen["student"] = {"init": "somewhere"}
    with pytest.raises(RecipeError, match=message):
        parse_recipe(chosen)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("RepositoryNotFoundError", "no model of this name, or it is private"),
        ("GatedRepoError", "only to those who asked"),
        ("HfHubHTTPError", "the hub refused"),
        ("LocalEntryNotFoundError", "cannot be reached"),
    ],
)
def test_a_hub_id_that_cannot_be_fetched_says_why(
    status: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    import requests
    from huggingface_hub import errors

    kind = getattr(errors, status)
    answer = requests.Response()
    answer.status_code, answer.request = 404, requests.Request("GET", "https://x").prepare()
    given = ("no",) if kind is errors.LocalEntryNotFoundError else ("no", answer)

    def refuse(*_: object, **__: object) -> str:
        raise kind(*given)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=message) as caught:
        resolve_model("owner/name")
    assert "owner/name" in str(caught.value)


def test_a_bert_whose_tokenizer_has_no_pairs_is_named(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([row["func"] for row in labelled(200)])
    rows = tokenizer.get_vocab_size()
    config = BertConfig(vocab_size=rows, max_position_embeddings=60, id2label=BINARY, **SHAPE)
    model = noisy(BertForSequenceClassification(config))
    folder = saved(model, tokenizer, tmp_path / "lonely")
    recipe = recipe_of(folder, PAIRS, write_pairs(tmp_path / "pairs.jsonl"))
    with pytest.raises(CodemillError, match=r"lonely: .*nothing between them"):
        taught(recipe, tmp_path / "work", upto="teacher")


def test_a_further_teacher_is_looked_at_before_anything_starts(tmp_path: Path) -> None:
    first = roberta(tmp_path / "first", BINARY)
    short = roberta_config(600, id2label=BINARY)
    short.max_position_embeddings = 42
    second = saved(RobertaForSequenceClassification(short), byte_pairs(), tmp_path / "short")
    source = write_functions(tmp_path / "functions.jsonl")
    missing = recipe_of(first, "classification", source, also=["./nowhere"])
    with pytest.raises(ModelError, match="nowhere"):
        teacher.stage(missing)
    with pytest.raises(RecipeError, match="inputs of 40 tokens at most"):
        preflight(recipe_of(first, "classification", source, also=[str(second)]), tmp_path / "w")


def test_a_student_learns_from_a_cross_encoder_and_is_compared_with_it(tmp_path: Path) -> None:
    model = roberta(tmp_path / "model", BINARY)
    source = write_pairs(tmp_path / "pairs.jsonl", 120)
    chosen = recipe_of(model, PAIRS, source).model_dump(exclude_unset=True)
    chosen["search"] |= {"vocab_sizes": [400], "intermediate_sizes": [48]}
    recipe = parse_recipe(chosen)
    result = run(recipe, tmp_path / "work", tmp_path / "out", Silent())
    assert result.report.teacher is not None
    assert result.report.teacher.labelling is not None
    assert {item.tokens for item in result.report.teacher.latencies} >= {16}
    student = result.report.student.labelling
    assert student is not None
    assert student.agreement is not None
    # what ships reads the texts one by one, whatever taught it
    assert read_manifest(tmp_path / "out").input["joined"] is False
    with load_classifier(tmp_path / "out") as classifier:
        one, other = (row["func"] for row in labelled(2, seed=5))
        assert classifier.predict([(one, other)])[0].label in ("0", "1")
