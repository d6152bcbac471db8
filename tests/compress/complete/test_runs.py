"""A model that completes, from a folder and a file of code to a bundle and its report: whole, and as a student."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from codemill.compress import pipeline
from codemill.compress.commands.bundle import inspect_command
from codemill.compress.compute import Compute
from codemill.compress.exits.controller import EXIT
from codemill.compress.models.causal import open_causal
from codemill.compress.models.decoders import load_whole
from codemill.compress.preflight import preflight
from codemill.compress.recipe import Recipe
from codemill.compress.run import RunResult, plan, run, stages_of
from codemill.compress.stages.complete import bundle as bundle_stage
from codemill.compress.stages.complete.student import _by_teacher
from codemill.errors import RecipeError, RefusedError
from codemill.export.decoder import mixed
from codemill.export.decoder.bundle import calibrated
from codemill.runtime import load_completer, read_manifest, verify_bundle
from codemill.targets import completion
from codemill.targets.completion import Completed, CompletionEvaluation
from codemill.targets.completion_benchmark import CompletionReport, read_completion_report

from .small import SMALL, recipe_of, write_code, write_decoder_folder


class Quiet:
    def __init__(self) -> None:
        self.said: list[str] = []

    def stage(self, name: str, number: int, total: int, cached: bool) -> pipeline.Report:
        return lambda *_: None

    def finished(self, name: str, seconds: float) -> None:
        pass

    def say(self, line: str) -> None:
        self.said.append(line)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("complete")
    return write_decoder_folder(folder / "tiny-llama"), write_code(folder / "code.jsonl")


@pytest.fixture(scope="module")
def whole(
    given: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Recipe, Path, RunResult]:
    folder = tmp_path_factory.mktemp("whole")
    recipe = recipe_of(*given)
    return recipe, folder / "work", run(recipe, folder / "work", folder / "out", Quiet())


@pytest.mark.slow
def test_a_whole_model_gets_exits_and_a_bundle(whole: tuple[Recipe, Path, RunResult]) -> None:
    _, _, result = whole
    verify_bundle(result.bundle)
    manifest = read_manifest(result.bundle)
    assert [item["layer"] for item in manifest.exits] == [1, 3]
    assert manifest.task == "completion"
    assert set(manifest.variants) == {"cpu-int4"}
    with load_completer(result.bundle) as model:
        found = model.complete("def total_1(total, count):\n    count = ", max_tokens=4)
        assert len(found.tokens) <= 4
        # every bound at 0: whatever the controllers find likeliest is done
        model.complete("import os\n", max_tokens=4, exits=[(0.0, None), (0.0, None)])
    report = read_completion_report(result.report_json)
    assert report.bundle_engine.startswith("bundle, as it ships: ")
    assert "drafts, n-grams" in report.bundle_engine
    assert report.engine("bundle, full depth").figures.layers == {"4": 1.0}
    fitted = json.loads((next(whole[1].glob("bundle-*")) / "ngrams.json").read_text())
    assert fitted["tokens"] > 100
    # a model without sense: counting what is there says more
    assert fitted["right"] > fitted["right_alone"]
    assert manifest.output["ngrams"] == {"escapes": fitted["escapes"]}
    alone, counted = (
        report.engine("bundle, full depth"),
        report.engine("bundle, full depth, n-grams"),
    )
    assert alone.next_token_accuracy is not None
    assert counted.next_token_accuracy is not None
    assert alone.next_token_accuracy < counted.next_token_accuracy
    page = result.report_html.read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    text = json.dumps(result.to_json())
    assert report.bundle_engine in text


@pytest.mark.slow
def test_bounds_are_set_without_touching_the_graphs(
    whole: tuple[Recipe, Path, RunResult], tmp_path: Path
) -> None:
    made = next(whole[1].glob("bundle-*")) / "bundle"
    folder = tmp_path / "copy"
    shutil.copytree(made, folder, ignore=shutil.ignore_patterns("evaluation*"))
    before = read_manifest(folder)
    calibrated(folder, before, bounds=[(0.5, None), (0.75, 0.9)])
    verify_bundle(folder)
    after = read_manifest(folder)
    assert [(item["exit"], item["stop"]) for item in after.exits] == [(0.5, None), (0.75, 0.9)]
    assert replace(after, exits=before.exits) == before
    shown = CliRunner().invoke(inspect_command, [str(folder)]).output
    assert (
        "after layer 1: leaves from 0.5, after layer 3: leaves from 0.75 and stops from 0.9"
        in shown
    )
    calibrated(folder, after, bounds=[(None, None), (None, None)])
    shown = CliRunner().invoke(inspect_command, [str(folder)]).output
    assert "after layer 1: unused, after layer 3: unused" in shown


@pytest.mark.slow
def test_the_same_run_again_computes_nothing(whole: tuple[Recipe, Path, RunResult]) -> None:
    recipe, work, _ = whole
    assert all(cached for _, cached in plan(recipe, work).stages)
    names = [stage.name for stage in stages_of(recipe)]
    assert names == ["corpus", "labels", "exits", "bundle", "benchmark"]


@pytest.mark.slow
def test_a_whole_model_with_fewer_tokens_is_held_against_the_teacher(
    given: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a model without sense loses nothing by rounding
    monkeypatch.setattr(
        mixed._Losses, "of", lambda _, how: 1.0 if how.bits == 8 or "words" in how.eight else 2.0
    )
    fewer = ("complete.vocab_size=300", "complete.rounding_loss=0", "exits.after=none")
    recipe = recipe_of(*given, *fewer)
    said = Quiet()
    result = run(recipe, tmp_path / "work", tmp_path / "out", said)
    manifest = read_manifest(result.bundle)
    assert manifest.architecture["vocab_size"] == 300
    assert manifest.architecture["layers"] == 4
    assert manifest.provenance["eight_bits"] == ["words"]
    report = result.report
    assert isinstance(report, CompletionReport)
    assert report.baseline == "teacher, full depth"
    assert [stage.name for stage in stages_of(recipe)][:3] == ["corpus", "tokens", "labels"]
    assert any("300 of 400 tokens kept" in line for line in said.said)
    assert any("at 8 bits: words" in line for line in said.said)
    with load_completer(result.bundle) as model:
        assert model.complete("import os\n", max_tokens=2).tokens


@pytest.mark.slow
def test_the_upper_layers_of_a_whole_model_learn_with_its_exits(
    given: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = recipe_of(*given, "complete.tune_above=1", "distill.learning_rate=0.01")
    said = Quiet()
    result = run(recipe, tmp_path / "work", tmp_path / "out", said)
    assert [stage.name for stage in stages_of(recipe)][:4] == [
        *("corpus", "tokens", "student", "labels")
    ]
    assert any("400 of 400 tokens kept" in line for line in said.said)
    folder = next((tmp_path / "work").glob("student-*")) / "student"
    before, after = open_causal(given[0]), open_causal(folder)
    assert after.weights.shape.vocab_size == 400
    # tokens are in another order
    for number, same in enumerate((True, False, False, False)):
        old, new = before.weights.layer(number), after.weights.layer(number)
        assert np.array_equal(old.down.weight, new.down.weight) is same
    assert sorted(map(tuple, before.weights.words().tolist())) == sorted(
        map(tuple, after.weights.words().tolist())
    )
    manifest = read_manifest(result.bundle)
    assert [item["layer"] for item in manifest.exits] == [1, 3]
    report = result.report
    assert isinstance(report, CompletionReport)
    assert report.baseline == "teacher, full depth"
    assert report.training
    assert not list(folder.parent.glob("labels"))


@pytest.mark.slow
def test_a_student_is_cut_out_and_learns_with_its_exits(
    given: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = recipe_of(*given, *SMALL)
    said = Quiet()
    result = run(recipe, tmp_path / "work", tmp_path / "out", said)
    manifest = read_manifest(result.bundle)
    assert manifest.architecture["layers"] in (2, 3)
    assert manifest.architecture["vocab_size"] in (300, 350)
    assert result.size_bytes <= 150_000
    report = result.report
    assert isinstance(report, CompletionReport)
    assert report.baseline == "teacher, full depth"
    assert report.training
    assert [stage.name for stage in stages_of(recipe)][:3] == ["corpus", "search", "student"]
    assert any("held-out" in line for line in said.said)
    made = next((tmp_path / "work").glob("student-*"))
    facts = json.loads((made / "student.json").read_text())
    # the first layer stands for itself, the last one for those that are left out too
    assert facts["blocks"]["layers"] == [manifest.architecture["layers"] - 1]
    assert facts["blocks"]["points"][-1]["metric"] > 0
    assert not list(made.glob("blocks"))
    assert not list(made.glob("labels"))


class Ended(Quiet):
    """Ends a run where it says `words` for the `times`th time."""

    def __init__(self, words: str, times: int) -> None:
        super().__init__()
        self.words, self.left = words, times

    def stage(self, name: str, number: int, total: int, cached: bool) -> pipeline.Report:
        def said(_: float, what: str) -> None:
            self.left -= self.words in what
            if not self.left:
                raise KeyboardInterrupt

        return said


def student_of(recipe: Recipe, work: Path) -> tuple[dict[str, Any], bytes]:
    """What the student's stage found, and its weights; a run that is ended behind it is enough."""
    with pytest.raises(KeyboardInterrupt):
        run(recipe, work, work / "out", Ended("writing the decoder's graphs", 1))
    made = next(work.glob("student-*"))
    return json.loads((made / "student.json").read_text()), (
        made / "student/model.safetensors"
    ).read_bytes()


@pytest.mark.slow
def test_a_student_that_was_ended_anywhere_becomes_the_same(
    given: tuple[Path, Path], tmp_path: Path
) -> None:
    # four steps by block, of which the second is kept
    recipe = recipe_of(*given, *SMALL, "complete.block_tokens=2000")
    expected = student_of(recipe, tmp_path / "whole")
    work = tmp_path / "ended"
    for words, times in (
        ("labelled", 2),
        ("layer by layer", 3),
        ("layer by layer", 1),
        ("loss", 7),
    ):
        with pytest.raises(KeyboardInterrupt):
            run(recipe, work, work / "out", Ended(words, times))
        assert not list(work.glob("student-*/student.json"))
    assert student_of(recipe, work) == expected


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["complete.block_tokens=0", "search.layers=[[0, 1, 2, 3]]"])
def test_where_nothing_is_to_be_learned_alone_nothing_is(
    given: tuple[Path, Path], tmp_path: Path, setting: str
) -> None:
    recipe = recipe_of(*given, *SMALL, "budget.size_bytes=250000", setting)
    facts, _ = student_of(recipe, tmp_path)
    assert "blocks" not in facts
    assert facts["before"] == facts["cut"]


def test_a_teacher_gives_its_states_before_layers_and_behind_the_last(
    given: tuple[Path, Path],
) -> None:
    teacher: Any = load_whole(given[0])
    label = _by_teacher(teacher, range(400), 8, (1, 4), True, Compute(1, False))
    pieces = [np.arange(5), np.arange(40, 52)]
    found = label(pieces)
    seen: dict[int, torch.Tensor] = {}
    for number in (0, 3):
        teacher.model.layers[number].register_forward_hook(
            lambda _, __, out, number=number: seen.update({number: out[0]})
        )
    rows = 0
    for piece in pieces:
        with torch.inference_mode():
            teacher(torch.tensor(piece)[None])
        states = torch.stack([seen[0].reshape(-1, 64), seen[3].reshape(-1, 64)], 1).numpy()
        assert found["hidden"][rows : rows + len(piece)] == pytest.approx(states, abs=1e-5)
        rows += len(piece)
    assert rows == len(found["hidden"]) == len(found["likeliest"])


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["auto", "[1, 3]"])
def test_exits_that_save_no_time_ship_only_where_they_are_listed(
    given: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    found: dict[str, Any] = {}

    def slower(*arguments: Any) -> dict[str, Any]:
        with_exits, without = arguments[3]
        found["layers"] = [len(read_manifest(path).exits) for path in (with_exits, without)]
        return {"full": {}, "curve": [], "chosen": None, "stop": None}

    monkeypatch.setattr(bundle_stage, "_chosen", slower)
    said = Quiet()
    result = run(
        recipe_of(*given, f"exits.after={asked}"), tmp_path / "work", tmp_path / "out", said
    )
    listed = asked != "auto"
    assert found["layers"][0] > 0
    assert found["layers"][1] == 0
    verify_bundle(result.bundle)
    manifest = read_manifest(result.bundle)
    assert len(manifest.exits) == (found["layers"][0] if listed else 0)
    assert any(
        ("exits ship unused" if listed else "the bundle has no exits") in x for x in said.said
    )
    with load_completer(result.bundle) as model:
        assert model.complete("import os\n", max_tokens=2).layers_used[0] == 4
    assert [path.name for path in (tmp_path / "work").glob("bundle-*/*/")] == ["bundle"]
    report = read_completion_report(result.report_json)
    assert {engine.name for engine in report.engines} >= {"bundle, full depth"}
    assert len(report.exits) == found["layers"][0]


@pytest.mark.slow
def test_exits_that_only_give_up_ship(
    given: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        bundle_stage,
        "_chosen",
        lambda *_: {"full": {}, "curve": [], "chosen": None, "stop": [0.9, None]},
    )
    recipe = recipe_of(
        *given,
        "exits.after=auto",
        "exits.epochs=0.1",
        "complete.stop_right=0.5",
        "complete.tokens=2000",
    )
    said = Quiet()
    result = run(recipe, tmp_path / "work", tmp_path / "out", said)
    found = [(item["exit"], item["stop"]) for item in read_manifest(result.bundle).exits]
    assert found[0] == (None, 0.9)
    assert all(item == (None, None) for item in found[1:])
    assert any("exits only give up" in line for line in said.said)


@pytest.mark.parametrize(
    ("times", "chosen"),
    # by chance alone one of several is above 1
    [((0.9, 1.08), None), ((0.9, 0.95), 0.01), ((1.1, 1.2), None)],
)
def test_time_is_saved_where_an_interval_says_so(
    given: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    times: tuple[float, float],
    chosen: float | None,
) -> None:
    """At every second line an exit takes the one time, at the others the other; lines without it take 1 second."""
    monkeypatch.setattr(bundle_stage, "_RATES", (0.01,))
    monkeypatch.setattr(bundle_stage, "load_completer", lambda *_, **__: nullcontext(object()))
    lines = tuple(f"x = {number}" for number in range(12))
    places = CompletionEvaluation("", ("import os\n",) * len(lines), lines)
    monkeypatch.setattr(bundle_stage, "evaluation_of", lambda *_: places)

    def completed(evaluation: object, settings: dict[str, Any], *_: object) -> dict[str, Any]:
        return {
            name: [
                Completed(line, 1.0 if name == "full" else times[at % 2], 0.1, (4,), 0, "stop")
                for at, line in enumerate(lines)
            ]
            for name in settings
        }

    monkeypatch.setattr(completion, "complete_places", completed)
    generator = np.random.default_rng(0)
    chances = generator.dirichlet(np.ones(3), (1, 500)).astype(np.float32)
    sure = chances[..., EXIT] > 0.3
    np.savez(tmp_path / "chances.npz", chances=chances, agrees=sure, right=sure)
    found = bundle_stage._chosen(
        recipe_of(*given),
        1,
        {"exits": tmp_path, "corpus": tmp_path},
        (tmp_path, tmp_path),
        lambda *_: None,
    )
    assert len(found["curve"]) == 1
    assert found["chosen"] == chosen


@pytest.mark.slow
def test_a_students_layers_are_chosen_by_what_they_change(
    given: tuple[Path, Path], tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(given[0], teacher)
    weights = load_file(teacher / "model.safetensors")
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        weights[f"model.layers.1.{name}.weight"] *= 20
    save_file(weights, teacher / "model.safetensors", metadata={"format": "pt"})
    recipe = recipe_of(
        *(teacher, given[1], *SMALL, "search.layers=[3]", "complete.block_tokens=2000"),
        "budget.size_bytes=200000",
    )
    until = tmp_path / "work"
    run(recipe, until, tmp_path / "out", Quiet())
    shape = json.loads((next(until.glob("search-*")) / "architecture.json").read_text())
    copied = shape["architecture"]["copied_layers"]
    # evenly spread ones would leave out either the second or the first
    assert copied == [0, 1, 3]
    facts = json.loads((next(until.glob("student-*")) / "student.json").read_text())
    blocks = [tuple(block) for block in facts["blocks"]["blocks"]]
    assert blocks == [(0, 1), (1, 2), (2, 4)]
    assert facts["blocks"]["layers"] == [2]
    # whole pieces of 64 tokens
    assert 2000 <= facts["blocks"]["tokens"] < 2064


def test_states_that_layers_learn_from_are_reckoned_with(
    given: tuple[Path, Path], tmp_path: Path
) -> None:
    def disk(*settings: str) -> int:
        return preflight(recipe_of(*given, *SMALL, *settings), tmp_path).disk_bytes

    none = disk("complete.block_tokens=0")
    # 2 bytes, the width, the most layers that a student may have
    assert disk("complete.block_tokens=3000") - none == 3000 * 2 * 64 * 3
    # no more than there is to learn from
    assert disk() - none == 8000 * 2 * 64 * 3


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("[2, 5]", "asks for 5 of them; the teacher has 4 layers"),
        ("[[0, 4]]", "asks for layer 4; the teacher has 4 layers"),
        ("[[0, 3, 1]]", r"lists \[0, 3, 1\]; a decoder's layers are copied in their order"),
        ("[[0, 0, 3]]", "each once"),
        ("[[]]", "an empty list"),
        ("[[0, 3], [1, 3]]", "two choices of 2 layers"),
        ("[2, 3, 2]", "two choices of 2 layers"),
    ],
)
def test_layers_that_are_not_there_are_refused(
    given: tuple[Path, Path], tmp_path: Path, layers: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        plan(recipe_of(*given, *SMALL, "exits.after=none", f"search.layers={layers}"), tmp_path)


@pytest.mark.slow
def test_a_student_that_cannot_fit_is_refused(given: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = recipe_of(*given, *SMALL, "budget.size_bytes=50000")
    with pytest.raises(RefusedError, match="none of the 12 architectures"):
        run(recipe, tmp_path / "work", tmp_path / "out", Quiet())


def test_an_exit_above_the_model_is_said_before_anything_is_done(
    given: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"exits\.after: an exit after layer 9 of 4"):
        plan(recipe_of(*given, "exits.after=[9]"), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("complete.vocab_size=100",), r"complete\.vocab_size: a vocabulary of 100"),
        (("complete.piece_tokens=600",), "the decoder takes 512 tokens"),
        (("complete.tune_above=4",), "the decoder has 4 layers: none would learn"),
        (("complete.tune_above=2",), r"exits\.after begins at layer 1, below complete\.tune_above"),
    ],
)
def test_layers_that_cannot_learn_are_said_before_anything_is_done(
    given: tuple[Path, Path], tmp_path: Path, settings: tuple[str, ...], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        plan(recipe_of(*given, *settings), tmp_path)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("teacher.model=null", "needs teacher.model"),
        ("data.train=[{file: a.jsonl}]", r"takes data\.source"),
        ("complete.labels=sometimes", "agrees"),
        ("student.init=fresh", "takes `whole`"),
        ("search.layers=[2]", "student.init: whole keeps all layers; set search.layers: null"),
        ("exits.train=all", "exits.train: all"),
        ("complete.max_new_tokens=400", "more than half"),
        ("student.init=teacher; complete.vocab_size=300", "student's tokens are searched"),
        ("student.init=teacher; complete.tune_above=2", "layers learn"),
        ("complete.precision=int8; complete.rounding_loss=0.1", "rounding_loss is of int4"),
        ("complete.precision=int8; complete.ranges=symmetric", "symmetric is of int4"),
        ("student.max_tokens=100", "needs 128 or more"),
        ("complete.stop_right=2", "less than or equal to 1"),
    ],
)
def test_recipes_that_say_what_cannot_be(
    given: tuple[Path, Path], setting: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe_of(*given, *setting.split("; "))
