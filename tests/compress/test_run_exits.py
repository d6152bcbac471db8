"""A small run that makes a classifier with early exits, every stage real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from codemill.compress.commands import compress
from codemill.compress.pipeline import keys_of
from codemill.compress.progress import Silent
from codemill.compress.recipe import Recipe, parse_recipe
from codemill.compress.run import RunResult, run, stages_of
from codemill.compress.stages.classify.export import shipped
from codemill.compress.stages.quantized import accepted
from codemill.errors import RecipeError
from codemill.runtime import load_classifier, read_manifest, verify_bundle

from .conftest import make_pairs, tiny_bert, train_tokenizer
from .test_run import commanded
from .test_run_classifier import labelled, made, values


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A teacher, and functions with labels."""
    folder = tmp_path_factory.mktemp("files")
    texts = [text for pair in make_pairs(300) for text in (pair.query, pair.code)]
    texts += [row["func"] for row in labelled(300)]
    tokenizer = train_tokenizer(texts)
    tiny_bert(tokenizer.get_vocab_size() + 8).save_pretrained(folder / "teacher")
    tokenizer.save(str(folder / "teacher" / "tokenizer.json"))
    rows = [json.dumps(row) + "\n" for row in labelled(400)]
    (folder / "functions.jsonl").write_text("".join(rows), encoding="utf-8")
    return folder / "teacher", folder / "functions.jsonl"


def recipe_of(files: tuple[Path, Path], **exits: Any) -> Recipe:
    teacher, functions = files
    whole = values(teacher, "classification", {"source": str(functions)})
    return parse_recipe({**whole, "exits": exits} if exits else whole)


@pytest.fixture(scope="module")
def exited(
    files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RunResult]:
    folder = tmp_path_factory.mktemp("exited")
    recipe = recipe_of(files, after=[1], max_loss=0.3)
    return folder, made(recipe, folder)


def folder_of(result: RunResult, stage: str) -> Path:
    return next(done.folder for done in result.stages if done.name == stage)


def test_a_bundle_with_exits_says_how_many_layers_each_row_took(
    exited: tuple[Path, RunResult],
) -> None:
    folder, result = exited
    verify_bundle(folder / "out")
    manifest = read_manifest(folder / "out")
    (exit_,) = manifest.exits
    assert exit_["layer"] == 1
    (variant,) = manifest.variants.values()
    assert len(variant.segments) == 4
    texts = [row["func"] for row in labelled(40, seed=9)]
    with load_classifier(folder / "out") as classifier:
        early = classifier.predict(texts)
        late = classifier.predict(texts, exits=False)
    assert {item.layers_used for item in early} <= {1, 2}
    assert any(item.layers_used == 1 for item in early)
    assert {item.layers_used for item in late} == {2}
    labels = [str(row["target"]) for row in labelled(40, seed=9)]
    assert sum(item.label == label for item, label in zip(early, labels, strict=True)) >= 34
    quality = result.report.student.labelling
    assert quality is not None
    assert quality.layers_used.get("1", 0) > 0
    figures = next(iter(manifest.metrics.values()))
    assert 1 <= figures["layers_used"] < 2
    assert figures["accuracy_without_exits"] > 0.8


def test_exits_keep_the_bound_on_validation_and_their_timings_are_kept(
    exited: tuple[Path, RunResult],
) -> None:
    _, result = exited
    found = accepted(folder_of(result, "export"))["exits"]
    assert found["accepted"]
    # labelled rows of validation, less those that hang together with the other splits
    assert 20 < found["rows"] <= 40
    assert found["accuracy"] == pytest.approx(found["accuracy_of_plain"] - found["loss"])
    assert found["loss"] < found["loss_upper"] <= 0.3 + 1e-6
    # the layers are the student's own; in parts they are quantized apart
    assert abs(found["accuracy_without_exits"] - found["accuracy_of_plain"]) <= 2 / 31
    assert sum(found["left"].values()) == pytest.approx(1)
    assert [item["batch"] for item in found["timings"]] == [1, 8]
    assert all(item["with_ms"] > 0 and item["without_ms"] > 0 for item in found["timings"])
    bundle, _, left = shipped(folder_of(result, "export"))
    assert left is not None
    assert (
        read_manifest(bundle).exits == read_manifest(folder_of(result, "bundle") / "bundle").exits
    )


def test_its_bundle_is_quantized_anew_with_exits_that_are_calibrated_for_the_form(
    exited: tuple[Path, RunResult], tmp_path: Path
) -> None:
    folder, _ = exited
    said = commanded(
        *("quantize", folder / "out", "--method", "weights-int8", "--max-loss", "1"),
        *("--rounds", "1", "--threads", "1", "--out", tmp_path / "q", "--json"),
    )
    before, manifest = read_manifest(folder / "out"), read_manifest(tmp_path / "q")
    # half of the rows of so small a run would show nothing
    rows = said["calibrated"]["rows"]
    assert said["calibrated"]["judged_rows"] == rows
    assert not said["calibrated"]["apart"]
    forms = said["calibrated"]["forms"]
    assert set(forms) == {"fp32", "weights-int8"}
    chosen = forms[said["chosen"]]
    assert list(manifest.exits) == chosen["exits"]
    assert [item["layer"] for item in manifest.exits] == [item["layer"] for item in before.exits]
    assert manifest.output["temperature"] == chosen["temperature"]
    assert chosen["loss_upper"] <= 0.3
    assert manifest.provenance == before.provenance
    verify_bundle(tmp_path / "q")
    # and once more of what came of it
    said = CliRunner().invoke(
        compress,
        [
            *("quantize", str(tmp_path / "q"), "--method", "dynamic-int8", "--max-loss", "1"),
            *("--rounds", "1", "--threads", "1", "--out", str(tmp_path / "again")),
        ],
        catch_exceptions=False,
    )
    assert f"calibrated on all {rows} rows of the evaluation, and judged by the same" in said.stdout


def test_what_was_encoded_for_training_is_not_kept(exited: tuple[Path, RunResult]) -> None:
    _, result = exited
    names = {path.name for path in folder_of(result, "exits").iterdir()}
    assert names == {"done.json", "exits.json", "exit-1.safetensors"}


def test_a_training_that_was_stopped_ends_with_the_very_heads_of_one_that_was_not(
    exited: tuple[Path, RunResult], files: tuple[Path, Path], tmp_path: Path
) -> None:
    _, result = exited
    recipe = recipe_of(files, after=[1], max_loss=0.3)
    stage = next(stage for stage in stages_of(recipe) if stage.name == "exits")
    inputs = {name: folder_of(result, name) for name in stage.inputs}
    reports = 0

    def stopped(_: float, message: str) -> None:
        nonlocal reports
        reports += message.startswith("step")
        # behind the second of three validations
        if reports == 70:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.work(inputs, tmp_path, stopped)
    assert not (tmp_path / "exits.json").exists()
    went_on: list[str] = []
    stage.work(inputs, tmp_path, lambda _, message: went_on.append(message))
    steps = [message for message in went_on if message.startswith("step")]
    assert steps
    assert not steps[0].startswith("step 1/")
    name = "exit-1.safetensors"
    assert (tmp_path / name).read_bytes() == (folder_of(result, "exits") / name).read_bytes()


def test_auto_ships_exits_or_says_why_not(
    files: tuple[Path, Path], exited: tuple[Path, RunResult], tmp_path: Path
) -> None:
    folder, _ = exited
    recipe = recipe_of(files, after="auto", max_loss=0.3)
    result = run(recipe, folder / "work", tmp_path / "out", Silent())
    found = accepted(folder_of(result, "export"))["exits"]
    # which of the two is the clock's to say
    faster = found["timings"][0]["low"] > 1 and found["timings"][1]["times_faster"] > 1
    assert found["accepted"] is faster
    assert found["reason"] == (None if faster else "not faster on this machine")
    verify_bundle(tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert [exit_["layer"] for exit_ in manifest.exits] == ([1] if faster else [])
    stage = next(stage for stage in stages_of(recipe) if stage.name == "export")
    assert stage.findings is not None
    said = stage.findings(folder_of(result, "export"))
    assert ("exits ship" if faster else "exits do not ship (not faster") in said


def test_a_training_of_all_layers_that_was_stopped_ends_with_the_very_weights(
    files: tuple[Path, Path], exited: tuple[Path, RunResult], tmp_path: Path
) -> None:
    _, result = exited
    recipe = recipe_of(files, after=[1], max_loss=0.3, train="all", epochs=1, learning_rate=0.0005)
    stage = next(stage for stage in stages_of(recipe) if stage.name == "exits")
    inputs = {name: folder_of(result, name) for name in stage.inputs}
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    steps: list[str] = []

    def counted(_: float, message: str) -> None:
        if message.startswith("step"):
            steps.append(message)
            if len(steps) == stop_at:
                raise KeyboardInterrupt

    stop_at = 0
    for made_in in (whole, parted):
        made_in.mkdir()
    stage.work(inputs, whole, counted)
    # behind the second of three validations
    stop_at, steps = 3 * len(steps) // 4, []
    with pytest.raises(KeyboardInterrupt):
        stage.work(inputs, parted, counted)
    stop_at, steps = 0, []
    stage.work(inputs, parted, counted)
    assert steps
    assert not steps[0].startswith("step 1/")
    written = [
        path.relative_to(whole)
        for path in whole.rglob("*.safetensors")
        if "checkpoint" not in path.name
    ]
    assert len(written) >= 3
    for name in written:
        assert (whole / name).read_bytes() == (parted / name).read_bytes()
    assert stage.findings is not None
    assert "the mean of the exits and the last head" in stage.findings(whole)


def test_layers_that_learn_with_their_exits_make_a_bundle_too(
    files: tuple[Path, Path], exited: tuple[Path, RunResult]
) -> None:
    folder, before = exited
    recipe = recipe_of(files, after=[1], max_loss=0.3, train="all", epochs=1, learning_rate=0.0005)
    result = made(recipe, folder)
    cached = {done.name for done in result.stages if done.cached}
    assert {"corpus", "search", "student"} <= cached
    assert not cached & {"exits", "export", "bundle"}
    weights = [folder_of(item, "exits") / "student" for item in (before, result)]
    assert [path.is_dir() for path in weights] == [False, True]
    assert read_manifest(folder / "out").exits


def test_a_recipe_without_exits_has_no_stage_for_them_and_its_keys_do_not_change(
    files: tuple[Path, Path],
) -> None:
    plain, none = recipe_of(files), recipe_of(files, after="none", epochs=7)
    assert "exits" not in [stage.name for stage in stages_of(plain)]
    before, after = (keys_of(stages_of(recipe)) for recipe in (plain, none))
    assert before["export"] == after["export"]
    # the recipe itself is in the bundle
    assert before["bundle"] != after["bundle"]


def test_the_bound_on_the_loss_of_exits_trains_nothing_anew(files: tuple[Path, Path]) -> None:
    one, other = (
        keys_of(stages_of(recipe_of(files, after=[1], max_loss=loss))) for loss in (0.01, 0.02)
    )
    assert one["exits"] == other["exits"]
    assert one["export"] != other["export"]


def test_exits_that_ship_are_costed_anew(files: tuple[Path, Path]) -> None:
    plain, listed = (keys_of(stages_of(recipe_of(files, after=after))) for after in ("none", [1]))
    assert plain["corpus"] == listed["corpus"]
    assert plain["search"] != listed["search"], "their heads count against the budget"
    heads, whole = (
        keys_of(stages_of(recipe_of(files, after="auto", train=train)))
        for train in ("heads", "all")
    )
    assert plain["search"] == heads["search"]
    assert heads["rehearsal"] != whole["rehearsal"], "it says how long all takes"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"exits": {"after": [2, 1]}}, "the lowest first"),
        ({"exits": {"after": [2]}}, "an exit is below the last layer"),
        ({"exits": {"after": "auto"}, "student": {"long": "split"}}, "student.long is split"),
        ({"exits": {"after": [1]}, "task": "retrieval"}, "exits are of a classifier"),
    ],
)
def test_exits_where_none_can_be_are_refused_with_the_reason(
    files: tuple[Path, Path], changed: dict[str, Any], message: str
) -> None:
    teacher, functions = files
    whole = values(teacher, "classification", {"source": str(functions)})
    with pytest.raises(RecipeError, match=message):
        parse_recipe({**whole, **changed})


def test_no_more_layers_are_frozen_under_exits_than_leave_one_to_train(
    files: tuple[Path, Path],
) -> None:
    teacher, functions = files
    whole = values(teacher, "classification", {"source": str(functions)})
    exits = {"after": [1], "train": "all", "freeze_layers": 2}
    with pytest.raises(RecipeError, match=r"exits.freeze_layers is 2, .* freeze at most 1"):
        parse_recipe({**whole, "exits": exits})
