"""The sweep over frozen layers: what is asked for, what is kept, what comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.compress.conftest import make_pairs, tiny_bert, train_tokenizer, write_jsonl
from tests.compress.small_run import recipe_of
from tests.compress.test_run_classifier import labelled, values

from codemill.compress.progress import Silent
from codemill.compress.recipe import parse_recipe
from codemill.compress.telly import _epoch_s, asked_layers, sweep
from codemill.errors import DataError, RecipeError
from codemill.targets.sweep import Sweep


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, [None, 0, 1, 2, 3]),
        ("0..L-1", [0, 1, 2, 3]),
        ("none, 0,2", [None, 0, 2]),
        ("L-1", [3]),
        ("1..2,2,none,none", [1, 2, None]),
    ],
)
def test_rows_are_named_by_numbers_and_ranges(text: str | None, expected: list[int | None]) -> None:
    assert asked_layers(text, 4) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is neither `none`"),
        ("all", "'all' is neither"),
        ("1-3", "'1-3' is neither"),
        ("4", r"4 is not within 0\.\.3; this model has 4 layers"),
        ("0..9", r"0\.\.9 is not within"),
        ("3..1", r"3\.\.1 is not within"),
    ],
)
def test_rows_that_cannot_be_are_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        asked_layers(text, 4)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("files")
    pairs = make_pairs(300)
    texts = [text for pair in pairs for text in (pair.query, pair.code)]
    texts += [row["func"] for row in labelled(100)]
    tokenizer = train_tokenizer(texts)
    tiny_bert(tokenizer.get_vocab_size() + 8).save_pretrained(folder / "model")
    tokenizer.save(str(folder / "model/tokenizer.json"))
    functions = folder / "functions.jsonl"
    functions.write_text("".join(json.dumps(row) + "\n" for row in labelled(100)))
    return folder / "model", write_jsonl(folder / "pairs.jsonl", pairs), functions


def times(work: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (work / "telly").iterdir()}


@pytest.mark.parametrize(
    ("marks", "kept_s", "epochs", "expected"),
    [
        ([3.0, 5.0, 7.0], 1.0, 3.0, 2.0),
        # two validations of 2.5 epochs are not one an epoch
        ([3.5, 6.0], 1.0, 2.5, 2.0),
        ([3.0], 1.0, 1.0, 2.0),
    ],
)
def test_seconds_of_an_epoch_are_of_one_epoch(
    marks: list[float], kept_s: float, epochs: float, expected: float
) -> None:
    assert _epoch_s(marks, kept_s, epochs) == pytest.approx(expected)


@pytest.mark.slow
def test_a_sweep_has_a_row_for_each_and_keeps_what_is_finished(
    files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    model, pairs, _ = files
    settings = ("teacher.finetune.epochs=2", "teacher.finetune.cache=fp16")
    recipe = recipe_of(model, pairs, *settings)
    (tmp_path / "telly-killed").mkdir()
    (tmp_path / "telly-killed/frozen.bin").write_bytes(b"much")
    found = sweep(recipe, tmp_path, "none,2", Silent())
    assert not list(tmp_path.glob("telly-*")), "a row that was killed leaves nothing for good"
    full, frozen = found.rows
    assert (full.frozen_layers, frozen.frozen_layers) == (None, 2)
    assert full.trainable_parameters == full.parameters > frozen.trainable_parameters
    assert (full.frozen_states_bytes, frozen.frozen_states_bytes > 0) == (0, True)
    for row in found.rows:
        assert len(row.validations) == 2
        assert row.metric == max(item.metric for item in row.validations)
        assert 0 < row.converged_s <= row.training_s
        assert row.peak_rss_bytes >= row.before_training_rss_bytes > 0
    before = times(tmp_path)
    # another key of the recipe, another bound: what is there is not run again
    other = recipe_of(model, pairs, *settings, "distill.epochs=9", "quality.freeze_loss=1")
    again = sweep(other, tmp_path, "2,none", Silent())
    assert again.rows == (frozen, full)
    assert times(tmp_path) == before


@pytest.mark.slow
def test_a_classifiers_sweep_is_judged_by_mean_recall(
    files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    model, _, functions = files
    chosen = values(model, "classification", {"source": str(functions)})
    chosen["teacher"]["finetune"] |= {"epochs": 2}
    found: Sweep = sweep(parse_recipe(chosen), tmp_path, "0", Silent())
    assert (found.metric, found.original_metric) == ("mean recall", None)
    assert found.rows[0].frozen_layers == 0
    assert 0 <= found.rows[0].metric <= 1


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("retrieval", {"finetune": {"pairs": 0}}),
        ("classification", {"model": None}),
    ],
)
def test_a_recipe_that_fine_tunes_no_teacher_is_refused(
    files: tuple[Path, Path, Path], task: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    model, pairs, functions = files
    if task == "retrieval":
        recipe = recipe_of(model, pairs, "teacher.finetune.pairs=0")
    else:
        chosen = values(model, task, {"source": str(functions)})
        chosen["teacher"]["model"] = None
        chosen["student"]["init"] = str(model)
        recipe = parse_recipe(chosen)
    with pytest.raises(RecipeError, match="has none to fine-tune"):
        sweep(recipe, tmp_path, None, Silent())
    assert not list(tmp_path.iterdir())


def test_rows_without_labels_are_refused(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    from codemill.compress.stages.classify.corpus import stage
    from codemill.compress.telly import run_row

    model, _, functions = files
    others = tmp_path / "others.jsonl"
    others.write_text("".join(json.dumps(row) + "\n" for row in labelled(40, seed=5)))
    data = {
        "train": [{"file": str(functions), "label_field": None}],
        "test": [{"file": str(others)}],
    }
    recipe = parse_recipe(values(model, "classification", data))
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    stage(recipe).work({}, corpus, lambda *_: None)
    item = {"recipe": recipe.model_dump(mode="json"), "corpus": str(corpus), "threads": 1}
    with pytest.raises(DataError, match="needs labelled rows in train"):
        run_row(item)
