"""One small run from a user's model and pairs to a bundle, every stage real."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from codemill import load
from codemill.compress import pipeline
from codemill.compress.commands import compress
from codemill.compress.data.pairs import Pair
from codemill.compress.preflight import Check
from codemill.compress.progress import Silent
from codemill.compress.recipe import Recipe
from codemill.compress.run import RunResult, plan, run, stages_of
from codemill.compress.stages import bench
from codemill.compress.stages.quantized import accepted
from codemill.errors import InputError, MachineError, RefusedError
from codemill.export.choose import Tried
from codemill.runtime import read_manifest, size_bytes, verify_bundle
from codemill.runtime.bundle import UNSHIPPED

from .small_run import BUDGET, STAGES, recipe_of

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Run:
    """A finished run, and where it worked."""

    recipe: Recipe
    work: Path
    out: Path
    result: RunResult

    def folder(self, stage: str) -> Path:
        (found,) = [done.folder for done in self.result.stages if done.name == stage]
        return found


@pytest.fixture(scope="module")
def finished(
    made_model: Path, pairs: list[Pair], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Run]:
    home = tmp_path_factory.mktemp("run")
    rows = [json.dumps({"query": pair.query, "code": pair.code}) for pair in pairs]
    (home / "pairs.jsonl").write_text("\n".join(rows))
    recipe = recipe_of(made_model, home / "pairs.jsonl")
    result = run(recipe, home / "work", home / "out/tiny", Silent())
    yield Run(recipe, home / "work", home / "out/tiny", result)
    shutil.rmtree(home)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_bundle_loads_verifies_and_finds_code(finished: Run, pairs: list[Pair]) -> None:
    verify_bundle(finished.out)
    with load(finished.out, threads=1) as model:
        assert model.dim == 32
        some = pairs[:40]
        query = model.encode([pair.query for pair in some])
        code = model.encode([pair.code for pair in some])
    assert np.allclose(np.linalg.norm(query, axis=1), 1, atol=1e-5)
    found = (query @ code.T).argmax(axis=1) == np.arange(40)
    assert found.mean() > 5 / 40, "well above chance, which is 1 / 40"


def test_the_bundle_keeps_to_its_budget(finished: Run) -> None:
    manifest = read_manifest(finished.out)
    (variant,) = manifest.variants
    assert size_bytes(finished.out, variant) == finished.result.size_bytes <= BUDGET
    shipped = contents(finished.out).keys() - set(UNSHIPPED)
    assert sum(len(contents(finished.out)[f]) for f in shipped) == finished.result.size_bytes
    assert manifest.license == "MIT"


def test_the_rehearsal_predicted_the_size(finished: Run) -> None:
    predicted = json.loads((finished.folder("rehearsal") / "predicted.json").read_text())
    trained = size_bytes(finished.folder("export") / "candidates", "dynamic-int8")
    # the allowance for what a trained bundle's manifest says more, and little else
    assert trained <= predicted["size_bytes"] < trained + 3_000


def test_the_manifest_says_what_went_in_and_not_where_it_lay(finished: Run) -> None:
    text = (finished.out / "manifest.json").read_text()
    assert str(finished.work.parent) not in text
    assert finished.recipe.teacher.model not in text
    provenance = read_manifest(finished.out).provenance
    assert provenance["recipe"]["data"]["source"] == "pairs.jsonl"
    assert provenance["teacher"]["model"] == "tiny-bert"
    assert provenance["teacher"]["weights"] in ("original", "finetuned")


def test_the_result_has_everything_that_json_promises(finished: Run) -> None:
    said = finished.result.to_json()
    json.dumps(said)
    assert said["bundle"] == str(finished.out)
    assert [stage["name"] for stage in said["stages"]] == STAGES
    assert not any(stage["cached"] for stage in said["stages"])
    for engine in (said["teacher"], said["student"]):
        assert 0 < engine["mrr"] <= 1
        # the headline length is no longer than what the student reads uncut
        assert {(x["tokens"], x["batch"]) for x in engine["latencies"]} == {(16, 1), (40, 1)}
    assert said["quality_kept"] == pytest.approx(said["student"]["mrr"] / said["teacher"]["mrr"])
    assert Path(said["report_html"]).is_file()
    assert Path(said["report_json"]).is_file()
    shape = said["architecture"]
    assert shape["vocab_size"] in (200, 260)
    assert tuple(shape["copied_layers"]) in ((0, 2), (1,))


def test_no_stage_is_run_twice_and_the_result_is_the_same(finished: Run, tmp_path: Path) -> None:
    planned = plan(finished.recipe, finished.work)
    assert planned.stages == [(name, True) for name in STAGES]
    again = run(finished.recipe, finished.work, tmp_path / "again", Silent())
    assert all(done.cached for done in again.stages)
    assert contents(tmp_path / "again") == contents(finished.out)
    assert again.report == finished.result.report


def test_a_moved_model_and_data_file_take_the_same_stages(finished: Run, tmp_path: Path) -> None:
    model = shutil.copytree(finished.recipe.teacher.model, tmp_path / "tiny-bert")
    data = shutil.copy(finished.recipe.data.source, tmp_path / "pairs.jsonl")
    moved = pipeline.status(stages_of(recipe_of(model, Path(data))), finished.work)
    assert all(moved[name] for name in STAGES[:8])


@pytest.mark.parametrize(
    ("setting", "first"),
    [
        ("seed=1", "corpus"),
        ("student.max_tokens=32", "search"),
        ("teacher.max_tokens=50", "teacher"),
        ("teacher.finetune.pairs=32", "rehearsal"),
        ("teacher.label_precision=int8", "rehearsal"),
        ("distill.temperature=0.1", "rehearsal"),
        ("quantize.max_loss=0.5", "export"),
        ("license=Apache-2.0", "bundle"),
        ("quality.min_kept=0.1", "bundle"),
    ],
)
def test_a_changed_setting_does_again_what_depends_on_it(
    finished: Run, setting: str, first: str
) -> None:
    recipe = finished.recipe
    changed = recipe_of(Path(recipe.teacher.model), Path(recipe.data.source), setting)
    cached = pipeline.status(stages_of(changed), finished.work)
    assert next(name for name in STAGES if not cached[name]) == first


def test_the_same_recipe_elsewhere_gives_the_same_bundle(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # which variant is accepted hangs on a race against the clock; the rest must not
    said = accepted(finished.folder("export"))
    measured = [Tried(**item) for item in said["tried"]]
    monkeypatch.setattr("codemill.export.choose.measured", lambda *_, **__: measured)
    stages = stages_of(finished.recipe)[:-1]
    done = pipeline.run_stages(stages, tmp_path / "elsewhere", Silent())
    for stage, name in (
        ("corpus", "train.jsonl.gz"),
        ("search", "architecture.json"),
        ("labels", "codes-00000.npy"),
        ("student", "student/model.safetensors"),
    ):
        theirs = (finished.folder(stage) / name).read_bytes()
        assert (done[stage].folder / name).read_bytes() == theirs, f"{stage}: {name}"
    theirs, ours = (
        contents(f / "bundle") for f in (finished.folder("bundle"), done["bundle"].folder)
    )
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


def test_a_bound_that_is_missed_is_refused_and_nothing_is_shipped(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # measured once: the figures of the first run
    monkeypatch.setattr(bench, "benchmark", lambda *_, **__: finished.result.report.benchmark)
    recipe = finished.recipe.model_copy(
        update={"quality": finished.recipe.quality.model_copy(update={"min_kept": 5.0})}
    )
    with pytest.raises(
        RefusedError, match=r"quality_kept is .*, at least 5 was asked for"
    ) as caught:
        run(recipe, finished.work, tmp_path / "out", Silent())
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()
    assert "report.html" in str(caught.value)


def test_a_budget_that_nothing_fits_is_refused_before_any_training(
    finished: Run, tmp_path: Path
) -> None:
    recipe = finished.recipe.model_copy(
        update={"budget": finished.recipe.budget.model_copy(update={"size_bytes": 5_000})}
    )
    with pytest.raises(RefusedError, match="5,000") as caught:
        run(recipe, tmp_path / "work", tmp_path / "out", Silent())
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()
    worked = {p.name.rpartition("-")[0] for p in (tmp_path / "work").iterdir() if p.is_dir()}
    assert worked == {"corpus", "search"}


def test_a_bundle_can_be_one_file_with_its_report_beside_it(finished: Run, tmp_path: Path) -> None:
    result = run(finished.recipe, finished.work, tmp_path / "out/tiny.mill", Silent())
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"tiny.mill", "tiny.report.html", "tiny.report.json"}
    with load(result.bundle, threads=1) as model:
        assert model.encode(["open the file"]).shape == (1, 32)


def test_a_bundle_is_replaced_and_nothing_else_ever_is(finished: Run, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.tex").write_text("years")
    (tmp_path / "file").touch()
    (tmp_path / "folder.mill").mkdir()
    for out in ("precious", "file", "folder.mill", "file/below", ".."):
        with pytest.raises(InputError, match=r"--out"):
            run(finished.recipe, finished.work, tmp_path / out, Silent())
    assert (tmp_path / "precious/thesis.tex").read_text() == "years"
    for _ in range(2):
        run(finished.recipe, finished.work, tmp_path / "bundle", Silent())
    verify_bundle(tmp_path / "bundle")
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == [], (
        "nothing half-done is left"
    )


def test_a_bundle_stays_where_it_was_if_the_new_one_cannot_be_put_there(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    run(finished.recipe, finished.work, out, Silent())
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(finished.recipe, finished.work, out, Silent())
    verify_bundle(out)
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_a_file_that_is_no_bundle_is_never_replaced(finished: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.mill").write_text("precious")
    (tmp_path / "x.report.html").mkdir()
    for out in ("notes.mill", "x.mill"):
        with pytest.raises(InputError, match=r"--out"):
            run(finished.recipe, finished.work, tmp_path / out, Silent())
    assert (tmp_path / "notes.mill").read_text() == "precious"


def test_a_finished_run_needs_no_room(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Check("disk", False, "full")
    monkeypatch.setattr("codemill.compress.preflight._disk", lambda *_: full)
    run(finished.recipe, finished.work, tmp_path / "again", Silent())
    with pytest.raises(MachineError, match="full"):
        run(finished.recipe, tmp_path / "elsewhere", tmp_path / "other", Silent())


def commanded(*arguments: object) -> Any:
    """What a command printed as JSON."""
    ended = CliRunner().invoke(compress, list(map(str, arguments)), catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return json.loads(ended.stdout)


def test_its_bundle_is_quantized_otherwise(finished: Run, tmp_path: Path) -> None:
    said = commanded(
        *("quantize", finished.out, "--method", "weights-int8", "--max-loss", "1"),
        *("--rounds", "1", "--threads", "1", "--out", tmp_path / "q", "--json"),
    )
    assert [row["variant"] for row in said["tried"]] == ["fp32", "weights-int8"]
    assert said["chosen"] in ("fp32", "weights-int8")
    manifest = read_manifest(tmp_path / "q")
    (name,) = manifest.variants
    assert manifest.metrics[name]["quantization"] == said["chosen"]
    assert manifest.provenance == read_manifest(finished.out).provenance
    assert verify_bundle(tmp_path / "q") == said["digest"]
    with load(tmp_path / "q") as model:
        assert model.encode(["def f(): pass"]).shape[0] == 1
    # what it was made of is there once more
    assert commanded(
        *("export", tmp_path / "q", "--target", "windows", "--out", tmp_path / "w", "--json")
    )["targets"][0]["not_run"].startswith("it is for windows")


def test_its_bundle_gets_variants_for_other_machines(finished: Run, tmp_path: Path) -> None:
    targets = ["laptop-cpu", "apple-silicon", "windows", "browser"]
    for package, target in (("openvino", "laptop-intel"), ("tensorrt_rtx", "laptop-rtx")):
        if find_spec(package) is not None:
            targets.append(target)
    asked = [item for target in targets for item in ("--target", target)]
    # what so small a model loses by rounding is a matter of chance
    asked += ["--max-loss", "1", "--out", tmp_path / "all", "--json"]
    said = commanded("export", finished.out, *asked)
    found = {row["target"]: row for row in said["targets"]}
    manifest = read_manifest(tmp_path / "all")
    assert set(manifest.variants) == {*read_manifest(finished.out).variants, *targets}
    assert verify_bundle(tmp_path / "all") == said["digest"]
    assert found["windows"]["agreement"] is None
    assert found["windows"]["covered"] == 1.0
    assert found["apple-silicon"]["missing"]["Gather"] > 0
    assert found["browser"]["not_run"].startswith("it runs in a browser")
    for row in said["targets"]:
        if row["not_run"] is None:
            assert row["agreement"] > 0.5
            assert row["lost"] < 0.5
            with load(tmp_path / "all", variant=row["variant"], threads=1) as model:
                assert model.encode(["def f(): pass"]).shape[0] == 1


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--target", "abacus"), "no target is called 'abacus'"),
        (("--target", "gpu-datacenter"), "cannot be built here"),
        (("--target", "windows", "--precision", "int8"), "--precision does not go with --target"),
    ],
)
def test_a_target_that_cannot_be_is_refused(
    finished: Run, tmp_path: Path, arguments: tuple[str, ...], why: str
) -> None:
    asked = ["export", str(finished.out), *arguments, "--out", str(tmp_path / "x")]
    ended = CliRunner().invoke(compress, asked)
    assert why in (str(ended.exception) + ended.output)
    assert not list(tmp_path.iterdir())


def test_a_bundle_without_its_plain_graphs_is_not_quantized(finished: Run, tmp_path: Path) -> None:
    shutil.copytree(finished.out, tmp_path / "bare")
    (tmp_path / "bare/plain.mill").unlink()
    asked = ["quantize", str(tmp_path / "bare"), "--out", str(tmp_path / "q")]
    with pytest.raises(InputError, match=r"has no plain.mill, the graphs that others are made of"):
        CliRunner().invoke(compress, asked, catch_exceptions=False)
    (tmp_path / "bare/validation.jsonl.gz").unlink()
    shutil.copyfile(finished.out / "plain.mill", tmp_path / "bare/plain.mill")
    with pytest.raises(InputError, match=r"no validation.jsonl.gz .* give --evaluation"):
        CliRunner().invoke(compress, asked, catch_exceptions=False)
    assert not (tmp_path / "q").exists()
