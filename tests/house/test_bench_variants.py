"""`compress bench BUNDLE --variants` from end to end: real processes and answers; only milliseconds are made up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.export.bundles import embedding_bundle
from tests.export.conftest import tiny_bert

import codemill
from codemill.export.derive import derive
from codemill.export.quantize.settings import Method, Quantization
from codemill.runtime import read_manifest
from codemill.runtime.bundle import update_bundle
from codemill.runtime.engines import OPENVINO
from codemill.targets.engine import EngineProcess
from codemill.targets.evaluation import Evaluation, write_evaluation

pytest.importorskip("openvino")
Compress = Callable[..., Any]
TEXTS = ("open file", "close the file", "open", "file close open open", "close", "open close")
CODES = tuple(text + " file close" * 20 for text in TEXTS)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with its plain graphs, fused ones, and the same numbers for OpenVINO."""
    folder = embedding_bundle(tmp_path_factory.mktemp("several"), tiny_bert(), 4, ("plain", "fp32"))
    derive(folder, Quantization(Method.FP32), name="laptop-intel", provider=OPENVINO)
    write_evaluation(folder / "evaluation.jsonl.gz", Evaluation("made up", TEXTS, CODES))
    return folder


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, float]], list[str]]:
    """times({"cpu-fp32": 4.0, ..}): every call of a variant takes so long; the variants as they were timed."""

    def take(ms_of: Mapping[str, float]) -> list[str]:
        real, timed = EngineProcess.ask, []

        def ask(self: EngineProcess, request: Mapping[str, Any], *rest: Any) -> dict[str, Any]:
            found = real(self, request, *rest)
            if request["op"] == "time":
                variant = self.ready["variant"]
                timed.append(variant)
                # never the same twice, as clocks are
                noise = 1 + 0.001 * len(timed)
                found["ms"] = [ms_of[variant] * noise for _ in found["ms"]]
            return found

        monkeypatch.setattr(EngineProcess, "ask", ask)
        return timed

    return take


@pytest.mark.parametrize(
    ("ms", "best"),
    [
        ({"plain-fp32": 9.0, "cpu-fp32": 4.0, "laptop-intel": 1.0}, "laptop-intel"),
        ({"plain-fp32": 9.0, "cpu-fp32": 1.0, "laptop-intel": 4.0}, "cpu-fp32"),
    ],
)
def test_the_fastest_is_noted_and_loaded_from_then_on(
    compress: Compress,
    several: Path,
    times: Callable[[Mapping[str, float]], list[str]],
    tmp_path: Path,
    ms: dict[str, float],
    best: str,
) -> None:
    with codemill.load(several) as model:
        assert model.variant == "cpu-fp32"
    timed = times(ms)
    ended = compress("bench", several, "--variants", "--rounds", 2, "--threads", 1, "--json")
    assert ended.code == 0, ended.err
    document = ended.document
    assert document["chosen"] == best
    assert {item["variant"]: item["latency_ms"] for item in document["tried"]} == {
        name: pytest.approx(value, rel=0.01) for name, value in ms.items()
    }
    # every one of them was asked, and found what the others found
    assert sorted(timed) == sorted([*ms] * 2)
    assert {item["quality"] for item in document["tried"]} == {document["tried"][0]["quality"]}
    notes = list((tmp_path / "cache/preferred").iterdir())
    assert [json.loads(note.read_text()) for note in notes] == [
        {"bundle": "made-up", "variant": best}
    ]
    with codemill.load(several) as model:
        assert model.variant == best
        assert model.encode(["open"]).shape == (1, 64)


def test_a_bundle_that_was_changed_since_is_chosen_for_anew(
    compress: Compress,
    several: Path,
    times: Callable[[Mapping[str, float]], list[str]],
    tmp_path: Path,
) -> None:
    times({"plain-fp32": 9.0, "cpu-fp32": 4.0, "laptop-intel": 1.0})
    assert compress("bench", several, "--variants", "--rounds", 2, "--threads", 1).code == 0
    copy = Path(shutil.copytree(several, tmp_path / "copy"))
    with codemill.load(copy) as model:
        assert model.variant == "laptop-intel"
    update_bundle(copy, license="MIT")
    with codemill.load(copy) as model:
        assert model.variant == "cpu-fp32"


def test_a_choice_that_cannot_be_noted_is_not_said_to_be(
    compress: Compress,
    several: Path,
    times: Callable[[Mapping[str, float]], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times({"plain-fp32": 9.0, "cpu-fp32": 4.0, "laptop-intel": 1.0})
    monkeypatch.setattr("codemill.runtime.preferred.prefer", lambda *_: False)
    ended = compress("bench", several, "--variants", "--rounds", 2, "--threads", 1)
    assert ended.code == 0, ended.err
    assert "from now on" not in ended.out
    assert "takes laptop-intel only where it is named" in ended.out


def test_what_is_compiled_for_comparing_is_not_kept(
    compress: Compress,
    several: Path,
    times: Callable[[Mapping[str, float]], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import tempfile

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    times({"plain-fp32": 9.0, "cpu-fp32": 4.0, "laptop-intel": 1.0})
    ended = compress("bench", several, "--variants", "--rounds", 1, "--threads", 1)
    assert ended.code == 0, ended.err
    # of one round nothing is told apart, and so nothing is noted
    assert "one round: nothing says whether their times differ" in ended.out
    assert "from now on" not in ended.out
    assert not (tmp_path / "cache").exists()
    assert list(scratch.iterdir()) == []
    # what is loaded is
    with codemill.load(several, variant="laptop-intel") as model:
        model.encode(["open"])
    assert list((tmp_path / "cache/openvino").iterdir())


def test_what_is_compiled_for_an_export_is_not_kept(
    compress: Compress, several: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(several, tmp_path / "bundle"))
    (bundle / "evaluation.jsonl.gz").rename(bundle / "validation.jsonl.gz")
    out = tmp_path / "out"
    asked = ("--target", "laptop-intel", "--max-loss", "1", "--out", out, "--json")
    ended = compress("export", bundle, *asked)
    assert ended.code == 0, ended.err
    (made,) = ended.document["targets"]
    # it ran here, in OpenVINO
    assert made["agreement"] is not None
    assert read_manifest(out).variants["laptop-intel"].provider == OPENVINO
    assert not (tmp_path / "cache/openvino").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "here", "out"]


def test_a_bundle_that_goes_while_it_is_measured_is_an_error(
    compress: Compress, several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(several, tmp_path / "bundle"))
    real = EngineProcess.ask

    def ask(self: EngineProcess, request: Mapping[str, Any], *rest: Any) -> dict[str, Any]:
        shutil.rmtree(bundle, ignore_errors=True)
        return real(self, request, *rest)

    monkeypatch.setattr(EngineProcess, "ask", ask)
    ended = compress("bench", bundle, "--variants", "--rounds", 2, "--threads", 1)
    assert ended.code == 1
    assert "there is no bundle at" in ended.err
    assert "Traceback" not in ended.err
    # nothing is noted
    assert not (tmp_path / "cache/preferred").exists()
