"""Small runs whose student is trained for int8, every stage real."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from codemill import load
from codemill.compress.data.pairs import Pair
from codemill.compress.pipeline import keys_of
from codemill.compress.progress import Silent
from codemill.compress.run import RunResult, run, stages_of
from codemill.compress.stages.quantized import accepted
from codemill.export.candidates import PLAIN
from codemill.runtime import load_classifier, read_manifest, unpack, verify_bundle

from .small_run import STAGES, recipe_of
from .test_run_classifier import labelled, made
from .test_run_exits import files, folder_of  # noqa: F401
from .test_run_exits import recipe_of as labels_recipe

pytestmark = pytest.mark.slow
TRAINED = ("quantize.method=qat-int8", "quantize.epochs=1", "quantize.learning_rate=0.001")


@pytest.fixture(scope="module")
def trained(
    made_model: Path, pairs: list[Pair], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RunResult]:
    home = tmp_path_factory.mktemp("qat")
    rows = [json.dumps({"query": pair.query, "code": pair.code}) for pair in pairs]
    (home / "pairs.jsonl").write_text("\n".join(rows))
    recipe = recipe_of(made_model, home / "pairs.jsonl", *TRAINED)
    return home, run(recipe, home / "work", home / "out", Silent())


def test_the_trained_student_ships_and_its_own_plain_graphs_lie_beside_it(
    trained: tuple[Path, RunResult],
) -> None:
    home, result = trained
    assert [done.name for done in result.stages] == [
        *STAGES[:7],
        "qat",
        *STAGES[7:],
    ]
    export = folder_of(result, "export")
    found = accepted(export)
    assert [item["variant"] for item in found["tried"]] == ["fp32", "qat-int8"]
    variants = read_manifest(export / "candidates").variants
    assert set(variants) == {PLAIN, "trained-fp32", "fp32", "qat-int8"}
    verify_bundle(home / "out")
    manifest = read_manifest(home / "out")
    (name,) = manifest.variants
    assert manifest.metrics[name]["quantization"] == found["accepted"]
    texts = ["Open the empty file and return it", "def open_file(path):\n    return path"]

    def said(folder: Path, variant: str) -> np.ndarray:
        with load(folder, variant=variant, threads=1) as model:
            return np.stack([model.encode([text])[0] for text in texts])

    before, after = (said(export / "candidates", name) for name in (PLAIN, "trained-fp32"))
    assert np.abs(before - after).max() > 1e-3, "it has learned"
    shipped = "trained-fp32" if found["accepted"] == "qat-int8" else PLAIN
    beside = said(unpack(home / "out/plain.mill"), PLAIN)
    assert np.array_equal(beside, said(export / "candidates", shipped))


def test_training_for_int8_changes_no_other_stage_and_its_settings_train_nothing_else_anew(
    trained: tuple[Path, RunResult], made_model: Path
) -> None:
    home, _ = trained
    usual, asked, longer = (
        keys_of(stages_of(recipe_of(made_model, home / "pairs.jsonl", *settings)))
        for settings in ((), TRAINED, (*TRAINED, "quantize.epochs=2"))
    )
    assert usual["student"] == asked["student"] == longer["student"]
    assert asked["qat"] != longer["qat"]
    # keys that are not asked for leave what was made before as it is
    same = recipe_of(made_model, home / "pairs.jsonl", "quantize.epochs=0.5")
    assert keys_of(stages_of(same))["export"] == usual["export"]


def test_a_training_for_int8_that_was_stopped_ends_with_the_very_weights(
    trained: tuple[Path, RunResult], made_model: Path, tmp_path: Path
) -> None:
    home, result = trained
    recipe = recipe_of(made_model, home / "pairs.jsonl", *TRAINED)
    stage = next(stage for stage in stages_of(recipe) if stage.name == "qat")
    inputs = {name: folder_of(result, name) for name in stage.inputs}
    steps: list[str] = []

    def stopped(_: float, message: str) -> None:
        steps.append(message)
        # behind the first of two validations
        if message.startswith("step") and "best" in message:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.work(inputs, tmp_path, stopped)
    assert not (tmp_path / "qat.json").exists()
    went_on: list[str] = []
    stage.work(inputs, tmp_path, lambda _, message: went_on.append(message))
    assert not went_on[0].startswith("step 1/")
    name = "student/model.safetensors"
    assert (tmp_path / name).read_bytes() == (folder_of(result, "qat") / name).read_bytes()


def test_a_classifier_with_exits_is_trained_for_int8_before_they_are_calibrated(
    files: tuple[Path, Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    recipe = labels_recipe(files, after=[1], max_loss=0.3)
    asked = {"method": "qat-int8", "epochs": 2, "learning_rate": 0.001, "max_loss": 1.0}
    quantize = recipe.quantize.model_copy(update=asked)
    result = made(recipe.model_copy(update={"quantize": quantize}), tmp_path)
    export = folder_of(result, "export")
    found = accepted(export)
    assert found["exits"]["accepted"]
    verify_bundle(tmp_path / "out")
    assert read_manifest(tmp_path / "out").exits
    trained = folder_of(result, "qat")
    facts = json.loads((trained / "qat.json").read_text())
    assert facts["trained"]
    # what is simulated is near what the files say: the mean recall of two labels that are as frequent
    best = max(point["metric"] for point in facts["points"])
    (tried,) = [item for item in found["tried"] if item["variant"] == "qat-int8"]
    assert abs(tried["quality"] - best) < 0.1
    texts = [row["func"] for row in labelled(40, seed=9)]
    with load_classifier(tmp_path / "out", threads=1) as model:
        labels = [item.label for item in model.predict(texts)]
    right = [str(row["target"]) for row in labelled(40, seed=9)]
    assert sum(one == other for one, other in zip(labels, right, strict=True)) >= 34
