"""`compress export BUNDLE --target`, on a bundle that is made up: what it takes, refuses and says."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.export.bundles import embedding_bundle, labelling_bundle
from tests.export.conftest import tiny_bert

import codemill
from codemill.compress.commands import export_targets
from codemill.compress.commands.plain import calibration_of
from codemill.errors import BundleError
from codemill.runtime import read_manifest
from codemill.runtime.bundle import update_bundle
from codemill.runtime.machine import ARCHITECTURES
from codemill.targets.evaluation import Evaluation, LabelledEvaluation, write_evaluation

Compress = Callable[..., Any]
TEXTS = ("open file", "close the file", "open", "file close open open", "close", "open close")
CODES = tuple(text + " file close" * 20 for text in TEXTS)
SHIPPED = "variants/cpu-fp32/encoder.onnx"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with its plain graphs and fused ones, and what variants are compared on."""
    folder = embedding_bundle(tmp_path_factory.mktemp("made"), tiny_bert(), 4, ("plain", "fp32"))
    write_evaluation(folder / "validation.jsonl.gz", Evaluation("made up", TEXTS, CODES))
    return folder


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path / "bundle"))


@pytest.mark.parametrize("command", [("export", "--target", "browser"), ("quantize",)])
def test_a_bundle_that_was_changed_is_not_signed_anew(
    compress: Compress, bundle: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    content = bytearray((bundle / SHIPPED).read_bytes())
    content[len(content) // 2] ^= 255
    (bundle / SHIPPED).write_bytes(content)
    ended = compress(command[0], bundle, *command[1:], "--out", tmp_path / "out")
    assert ended.code == 1
    assert f"{bundle / SHIPPED} was changed" in ended.err
    assert not (tmp_path / "out").exists()


def test_variants_for_another_processor_are_passed_over(
    compress: Compress, bundle: Path, tmp_path: Path
) -> None:
    here = ARCHITECTURES.get(platform.machine(), platform.machine())
    mine, other = ("laptop-arm", "laptop-cpu") if here == "arm64" else ("laptop-cpu", "laptop-arm")
    names = [item for name in (mine, other, "browser") for item in ("--target", name)]
    out = tmp_path / "out"
    ended = compress("export", bundle, *names, "--out", out)
    assert ended.code == 0, ended.err
    variants = read_manifest(out).variants
    assert variants[mine].built_for["architectures"] == [here]
    assert not variants["browser"].built_for
    with codemill.load(out) as model:
        assert model.variant == mine
    with codemill.load(out, variant=other) as model:
        assert model.variant == other
    found = compress("inspect", out, "--json").document["variants"]
    assert {name for name, item in found.items() if item["runs_here"]} == {
        *(mine, "cpu-fp32", "plain-fp32")
    }
    assert f"this machine is {here}" in compress("inspect", out).out
    write_evaluation(out / "evaluation.jsonl.gz", Evaluation("made up", TEXTS, CODES))
    ended = compress("bench", out, "--variants", "--rounds", 1, "--threads", 1, "--json")
    assert ended.code == 0, ended.err
    assert {item["variant"] for item in ended.document["tried"]} == {
        *(mine, "cpu-fp32", "plain-fp32")
    }


@pytest.mark.parametrize("name", ["shipped", "cpu-fp32", "cpu-int8", "CPU-int4"])
def test_a_target_does_not_take_the_place_of_what_shipped(
    compress: Compress, bundle: Path, tmp_path: Path, name: str
) -> None:
    metrics = {"shipped": {"mrr": 0.5}} if name == "shipped" else {}
    variants = read_manifest(bundle).variants
    update_bundle(bundle, metrics=metrics, variants={**variants, "shipped": variants["cpu-fp32"]})
    profile = tmp_path / "mine.yaml"
    profile.write_text(
        f"name: {name}\ndescription: mine\nprovider: CPUExecutionProvider\nprecision: int8\n"
        "threads: 1\nmemory_bytes: null\n"
    )
    ended = compress("export", bundle, "--target", profile, "--out", tmp_path / "out")
    assert ended.code == 1
    what = "which no target made" if metrics else "as a run or an export makes it"
    assert f"{name.lower()!r} is the name of a variant {what}" in ended.err


@pytest.mark.parametrize("option", [("--name", "zz"), ("--task", "encode")])
def test_what_is_of_a_model_is_refused_with_a_bundle(
    compress: Compress, bundle: Path, option: tuple[str, str]
) -> None:
    ended = compress("export", bundle, "--target", "browser", *option)
    assert ended.code == 2
    assert f"{option[0]} is of a model" in ended.err


def test_activations_are_seen_on_queries_and_codes() -> None:
    found = calibration_of(Evaluation("made up", ("q", "r"), ("c", "d")))
    assert found == [("q",), ("c",), ("r",), ("d",)]


def judged(folder: Path, variant: str, asked: Any) -> Any:
    with codemill.load(folder, variant=variant) as model:
        return export_targets._judged(model, asked)


def test_what_a_variant_loses_is_told_and_refused_beyond_a_bound(
    compress: Compress, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ARCHITECTURES.get(platform.machine(), platform.machine())
    name = "laptop-arm" if here == "arm64" else "laptop-cpu"
    out = tmp_path / "out"
    command = ("export", bundle, "--target", name, "--out", out)
    found = compress(*command, "--json").document["targets"][0]
    asked = Evaluation("made up", TEXTS, CODES)
    whole, own = judged(bundle, "plain-fp32", asked), judged(out, name, asked)
    assert whole.quality > 0
    assert found["lost"] == pytest.approx(1 - own.quality / whole.quality)
    assert found["agreement"] == (own.decisions == whole.decisions).mean()
    shutil.rmtree(out)
    real = export_targets._judged

    def worse(model: Any, asked: Any) -> Any:
        found = real(model, asked)
        return replace(found, quality=0.9 * whole.quality) if model.variant == name else found

    monkeypatch.setattr(export_targets, "_judged", worse)
    for most in ("0.02", "0.0999"):
        ended = compress(*command, "--max-loss", most)
        assert ended.code == 3
        assert f"{name} loses 0.1 of fp32's quality as a share, more than {most}" in ended.err
        assert not out.exists()
    # just what is allowed
    assert "10.00%" in compress(*command, "--max-loss", "0.1").out
    shutil.rmtree(out)

    def broken(model: Any, asked: Any) -> Any:
        if model.variant == name:
            raise BundleError("some are not numbers")
        return real(model, asked)

    monkeypatch.setattr(export_targets, "_judged", broken)
    ended = compress(*command, "--max-loss", "1")
    assert ended.code == 3
    assert f"nothing was written: {name} does not answer: some are not numbers" in ended.err
    assert not out.exists()
    assert compress(*command, "--max-loss", "nan").code == 2
    ended = compress("export", "nowhere", "--max-loss", "0.2")
    assert (ended.code, "--max-loss goes with --target" in ended.err) == (2, True)


@pytest.mark.parametrize("known", [True, False])
def test_what_labels_is_judged_by_rows_whose_label_is_known(tmp_path: Path, known: bool) -> None:
    folder = labelling_bundle(tmp_path, 1)
    rows = tuple((number,) for number in range(len(TEXTS)))
    truth = (0, 1, 2, -1, -1, -1) if known else (-1,) * 6
    asked = LabelledEvaluation("made up", ("a", "b", "c"), TEXTS, rows, truth)
    found = judged(folder, "plain-fp32", asked)
    right = sum(found.decisions[:3] == (0, 1, 2))
    assert found.quality == (right / 3 if known else 0)
    with codemill.load(folder, variant="plain-fp32") as model:
        beside = export_targets.judged_beside(
            lambda: model, lambda model: export_targets._judged(model, asked), found
        )
    assert beside["agreement"] == 1
    assert beside["lost"] == (0 if found.quality else None)
