"""`compress bench BUNDLE --browser`: which variant Python runs and which the browser, and what is refused for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.conftest import LABELS, write_labels_bundle

from codemill.runtime import read_manifest
from codemill.runtime.bundle import update_bundle
from codemill.runtime.engines import CUDA, OPENVINO, WEB
from codemill.targets.browser import _MODULES, BROWSERS
from codemill.targets.engine import Engine
from codemill.targets.evaluation import LabelledEvaluation, write_evaluation

Compress = Callable[..., Any]
HERE = "CPUExecutionProvider"
PAGES = Path(__file__).resolve().parents[2] / "examples/browser"
TEXTS = ("open the file", "connect a socket", "matrix multiply matrix", "read file " * 20)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose graphs are a variant for the processor, twice, for web pages, and for what is not here."""
    folder = write_labels_bundle(tmp_path_factory.mktemp("several") / "tiny")
    texts = tuple(text + " of the data" * 80 for text in TEXTS)
    rows = tuple((n,) for n in range(4))
    evaluation = LabelledEvaluation("test", tuple(LABELS), texts, rows, (0, 1, 2, 0))
    write_evaluation(folder / "evaluation.jsonl.gz", evaluation)
    made = read_manifest(folder).variants["cpu-fp32"]
    providers = {"browser": WEB, "laptop-intel": OPENVINO, "nvidia": CUDA}
    others = {name: replace(made, provider=provider) for name, provider in providers.items()}
    exact = replace(made, precision="bf16")
    update_bundle(folder, variants={"cpu-fp32": made, "cpu-bf16": exact, **others})
    return folder


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pages that can be served, and a browser that is there: nothing is opened in it."""
    for name in _MODULES:
        (tmp_path / "pages/node_modules" / name).mkdir(parents=True)
    monkeypatch.setattr("codemill.targets.browser.chromium", lambda: ["chromium"])
    return tmp_path / "pages"


class NotMeasuredError(Exception):
    """Instead of measuring."""


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    """What would be measured."""
    found: list[Engine] = []

    def measured(asked: list[Engine], *_: object, **__: object) -> None:
        found.extend(asked)
        raise NotMeasuredError

    monkeypatch.setattr("codemill.targets.benchmark.benchmark", measured)
    return found


def variants(engines: list[Engine]) -> list[str]:
    return [engine.argv[engine.argv.index("--variant") + 1] for engine in engines]


@pytest.mark.parametrize(
    ("asked", "in_browser", "in_python"),
    [
        ((), "browser", "cpu-fp32"),
        (("--variant", "cpu-bf16"), "cpu-bf16", "cpu-bf16"),
        (("--variant", "browser"), "browser", "cpu-fp32"),
        (("--variant", "browser", "--browser-variant", "browser"), "browser", "cpu-fp32"),
        (("--browser-variant", "cpu-bf16"), "cpu-bf16", "cpu-fp32"),
        (("--variant", "cpu-bf16", "--browser-variant", "browser"), "browser", "cpu-bf16"),
    ],
)
def test_each_runs_what_is_named_for_it(
    compress: Compress,
    several: Path,
    pages: Path,
    engines: list[Engine],
    asked: tuple[str, ...],
    in_browser: str,
    in_python: str,
) -> None:
    compress("bench", several, "--browser", pages, *asked)
    assert variants(engines) == [in_browser, in_python]


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [
        (("--variant", "browser"), 1, "runs in a web page, not in Python; give --browser PAGES"),
        (("--variant", "nvidia"), 1, f"'nvidia' is for {CUDA}, which does not run here"),
        (("--browser-variant", "browser"), 2, "--browser-variant goes with --browser"),
        (("--browser", "PAGES", "--variant", "other"), 1, "has no variant 'other'"),
        (("--browser", "PAGES", "--browser-variant", "other"), 1, "has no variant 'other'"),
        (
            ("--browser", "PAGES", "--browser-variant", "laptop-intel"),
            1,
            "'laptop-intel' is for OpenVINO; a browser runs those of onnxruntime-web and CPU",
        ),
        (
            ("--browser", "PAGES", "--variant", "nvidia", "--browser-variant", "browser"),
            1,
            f"'nvidia' is for {CUDA}, which does not run here",
        ),
        (
            ("--browser", "PAGES", "--variant", "browser", "--browser-variant", "cpu-fp32"),
            2,
            "are both for the browser; give one",
        ),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_measured(
    compress: Compress,
    several: Path,
    pages: Path,
    engines: list[Engine],
    monkeypatch: pytest.MonkeyPatch,
    asked: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    # on a machine with a GPU too
    monkeypatch.setattr("codemill.runtime.session.available_providers", lambda: (HERE, OPENVINO))
    ended = compress("bench", several, *(str(pages) if x == "PAGES" else x for x in asked))
    assert (ended.code, said in ended.err) == (code, True), ended.err
    assert engines == []


@pytest.mark.skipif(
    not any(map(shutil.which, BROWSERS)) or not (PAGES / "node_modules").is_dir(),
    reason="needs chromium, and `npm install` in examples/browser",
)
def test_the_report_names_what_each_ran(compress: Compress, several: Path) -> None:
    asked = ("--variant", "browser", "--rounds", 1, "--threads", 1)
    ended = compress("bench", several, "--browser", PAGES, *asked, "--out", "measured", "--json")
    assert ended.code == 0, ended.err
    report = json.loads(Path("measured/report.json").read_text())
    assert report["bundle"]["variant"] == "cpu-fp32"
    assert [(x["provider"], x["variant"]) for x in report["benchmark"]["engines"]] == [
        (WEB, "browser"),
        (HERE, "cpu-fp32"),
    ]
    page = Path("measured/report.html").read_text(encoding="utf-8")
    again = "--variant cpu-fp32 --threads 1 --browser PAGES --browser-variant browser --rounds 1"
    assert f"compress bench BUNDLE {again}" in page
