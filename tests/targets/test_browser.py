"""A bundle in headless Chromium: the same tokens, and nearly the same numbers, as the Python runtime's."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.compress.exits.test_leaving import EXITS
from tests.export.bundles import labelling_bundle

from codemill.errors import InputError, MachineError
from codemill.runtime import load_classifier, read_manifest
from codemill.runtime.bundle import update_bundle
from codemill.runtime.engines import OPENVINO
from codemill.targets import browser
from codemill.targets.browser import Browser, browser_engine

PAGES = Path("examples/browser")
TEXTS = ["open a file", "close the socket and the file", "def read(path):\n    return 1", ""]

in_browser = pytest.mark.skipif(
    not any(map(shutil.which, browser.BROWSERS)) or not (PAGES / "node_modules").is_dir(),
    reason="needs chromium, and `npm install` in examples/browser",
)


def labelling(home: Path, texts: int) -> Path:
    folder = labelling_bundle(home, texts, ("int8",), max_tokens=24)
    exits = [{**item, "threshold": 0.6} for item in read_manifest(folder).exits]
    update_bundle(folder, exits=exits)
    return folder


def test_its_memory_is_the_most_that_was_seen_while_it_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("codemill.targets.browser._LOOK_S", 0.001)
    page, seen, held = Browser.__new__(Browser), threading.Event(), [5, 9, 7]
    page._most_bytes, page._looking, page._closed = 0, threading.Lock(), threading.Event()

    def now() -> int:
        if len(held) == 1:
            seen.set()
            return held[0]
        return held.pop(0)

    monkeypatch.setattr(page, "_held_bytes", now)
    looks = threading.Thread(target=page._look)
    looks.start()
    assert seen.wait(10)
    page._closed.set()
    looks.join(10)
    assert not looks.is_alive()
    assert page.memory_bytes() == 9


@in_browser
@pytest.mark.parametrize("texts", [1, 2])
def test_it_decides_as_the_python_runtime_does(texts: int, tmp_path: Path) -> None:
    folder = labelling(tmp_path, texts)
    long = [*TEXTS, "a file " * 60]
    items: Any = long if texts == 1 else [[a, b] for a, b in zip(long, long[::-1], strict=True)]
    with Browser(folder, PAGES) as page:
        found = page.predict(items)
        rows = page.encode(long)
        ids = page.tokens(long)
        assert page.memory_bytes() > 10_000_000
    pairs: Any = [tuple(item) if texts == 2 else item for item in items]
    with load_classifier(folder, threads=1) as model:
        # one by one: what is int8 scales its activations over a batch
        expected = [model.run([item]) for item in pairs]
        embedded = np.concatenate([model.encode([text]) for text in long])
        counted = model.count_tokens(long)
    assert [len(item) for item in ids] == [min(count, 24) for count in counted]
    for mine, other in zip(found, expected, strict=True):
        assert mine["layersUsed"] in (*EXITS, 4)
        assert mine["layersUsed"] == other.layers_used[0]
        assert mine["truncated"] == other.truncated[0]
        assert np.abs(np.array(mine["probabilities"]) - other.probabilities[0]).max() < 0.02
    assert np.abs(rows - embedded).max() < 0.02


@in_browser
def test_it_is_an_engine_of_the_benchmark(tmp_path: Path) -> None:
    from codemill.targets.engine import EngineProcess

    folder = labelling(tmp_path, 1)
    with EngineProcess(browser_engine(folder, PAGES, "cpu-int8")) as process:
        assert process.ready["provider"] == "onnxruntime-web"
        out = tmp_path / "answers.npz"
        request = {"op": "predict", "rows": [[text] for text in TEXTS], "out": str(out)}
        assert process.ask(request)["rows"] == len(TEXTS)
        assert process.ask({"op": "info"})["peak_rss_bytes"] > 10_000_000


@in_browser
def test_it_runs_a_variant_that_a_browser_can_run(tmp_path: Path) -> None:
    folder = labelling(tmp_path, 1)
    manifest = read_manifest(folder)
    (name, made) = next(iter(manifest.variants.items()))
    update_bundle(folder, variants={"intel": replace(made, provider=OPENVINO), name: made})
    assert name in browser_engine(folder, PAGES, None).argv
    with pytest.raises(InputError, match="'intel' is for OpenVINO; a browser runs those of CPU"):
        browser_engine(folder, PAGES, "intel")


def test_what_is_missing_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browser.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr("codemill.runtime.bundle.read_manifest", lambda _: None)
    monkeypatch.setattr("codemill.runtime.bundle.check_files", lambda *_: None)
    with pytest.raises(InputError, match=r"has no onnxruntime-web and no @huggingface/tokenizers"):
        browser_engine(tmp_path, tmp_path, "cpu-int8")
    monkeypatch.setattr(browser.shutil, "which", lambda _: None)
    with pytest.raises(MachineError, match=r"none of chromium.* is here; install chromium"):
        browser_engine(tmp_path, PAGES, "cpu-int8")


def test_packages_are_of_one_version_each() -> None:
    said = json.loads((PAGES / "package.json").read_text())["dependencies"]
    assert all(version[0].isdigit() for version in said.values())
