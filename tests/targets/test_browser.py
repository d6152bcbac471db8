"""A bundle in headless Chromium: the same tokens, and nearly the same numbers, as the Python runtime's."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from http.server import HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.compress.exits.test_leaving import EXITS
from tests.export.bundles import labelling_bundle
from tests.runtime.conftest import write_labels_bundle

import codemill
from codemill.errors import InputError, MachineError
from codemill.runtime import load_classifier, read_manifest
from codemill.runtime.bundle import Manifest, Variant, update_bundle
from codemill.runtime.engines import OPENVINO, WEB
from codemill.runtime.session import PLAIN
from codemill.targets import browser
from codemill.targets.browser import Browser, browser_engine, browser_variant

from . import devtools

CPU = "CPUExecutionProvider"
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


# as a page does: it says that it is ready, takes a request, and then its browser is gone
DIES = """
import json, os, signal, sys, urllib.request
page = sys.argv[-1].rsplit("/", 1)[0]
urllib.request.urlopen(f"{page}/done", json.dumps({"ready": True}).encode())
assert json.load(urllib.request.urlopen(f"{page}/next"))["op"] == "tokens"
sys.stderr.write("warned\\n" * 500_000 + "out of luck\\n")
sys.stderr.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """A folder of pages whose packages are there by name."""
    for name in browser._MODULES:
        (tmp_path / "pages/node_modules" / name).mkdir(parents=True)
    return tmp_path / "pages"


def pretend(folder: Path, monkeypatch: pytest.MonkeyPatch, python: str) -> None:
    """Let `chromium` be this program."""
    folder.mkdir()
    (folder / "chromium").write_text(f"#!{sys.executable}\n{python}")
    (folder / "chromium").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_a_browser_that_ends_at_once_is_not_waited_for(
    tmp_path: Path, pages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(
        tmp_path / "bin", monkeypatch, "import sys\nprint('no display', file=sys.stderr)\nexit(3)"
    )
    started = time.monotonic()
    said = r"the browser ended with exit code 3; the end of its stderr:\nno display"
    with pytest.raises(MachineError, match=said):
        Browser(write_labels_bundle(tmp_path / "bundle"), pages)
    assert time.monotonic() - started < browser._START_S / 4


def test_a_browser_that_is_killed_while_it_answers_is_not_waited_for(
    tmp_path: Path, pages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(tmp_path / "bin", monkeypatch, DIES)
    with Browser(write_labels_bundle(tmp_path / "bundle"), pages) as page:
        started = time.monotonic()
        with pytest.raises(MachineError, match=r"the browser was ended by SIGKILL") as failed:
            page.tokens(["open"])
        assert time.monotonic() - started < browser._ANSWER_S / 4
        assert str(failed.value).endswith("warned\nout of luck")
        assert len(str(failed.value).splitlines()) == 1 + browser._STDERR_LINES
        with pytest.raises(MachineError, match="was ended by SIGKILL"):
            page.memory_bytes()


def test_a_program_that_cannot_start_is_an_error_of_the_machine(
    tmp_path: Path, pages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(tmp_path / "bin", monkeypatch, "")
    (tmp_path / "bin/chromium").write_text("#!/not/there\n")
    with pytest.raises(MachineError, match="chromium cannot start"):
        Browser(write_labels_bundle(tmp_path / "bundle"), pages)


def test_a_page_that_is_gone_before_its_answer_is_no_error(
    tmp_path: Path, pages: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server, asked, answered = browser._served(write_labels_bundle(tmp_path / "bundle"), pages, 0)
    # each answered in turn by this thread, so that what it prints is there when it is looked for
    server.process_request = partial(HTTPServer.process_request, server)  # type: ignore[method-assign]
    host = f"Host: 127.0.0.1:{server.server_port}\r\n"
    with server:
        asked.put({"op": "tokens"})
        for words in (
            f"GET /next HTTP/1.1\r\n{host}\r\n",
            # half of what it says that it will send
            f"POST /done HTTP/1.1\r\n{host}Content-Length: 100\r\n\r\n{{",
        ):
            with socket.create_connection(server.server_address[:2]) as page:
                page.sendall(words.encode())
                if words.startswith("GET"):
                    # closed with a reset
                    page.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            server.handle_request()
    assert answered.empty()
    assert capfd.readouterr().err == ""


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


# what mill.js opens of each manifest, where it does not know its machine, as in a page
CHOOSES = """
const { openBundle } = await import(process.argv[1]);
const manifests = JSON.parse(process.argv[2]);
delete globalThis.process;
class Tokenizer { token_to_id() {} }
const ort = { InferenceSession: { create: () => null } };
const text = (data) => new TextEncoder().encode(JSON.stringify(data));
const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", text({})));
const sha256 = Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
for (const manifest of manifests) {
  manifest.files = { "tokenizer.json": { sha256, size_bytes: 2 } };
  const files = { "manifest.json": text(manifest), "tokenizer.json": text({}) };
  const opened = openBundle({ ort, Tokenizer, read: (path) => files[path] });
  console.log(await opened.then((model) => model.variant, (error) => error.message.slice(0, 10)));
}
"""
ARM = {"architectures": ["arm64"]}
CHOICES: tuple[tuple[str | None, dict[str, tuple[Any, ...]]], ...] = (
    ("cpu-int8", {"cpu-fp32": (CPU, "fp32"), "cpu-int8": (CPU, "int8")}),
    ("browser", {"cpu-int8": (CPU, "int8"), "browser": (WEB, "fp32")}),
    ("cpu-fp16", {PLAIN: (CPU, "fp32"), "cpu-fp16": (CPU, "fp16")}),
    ("cpu-fp32", {PLAIN: (WEB, "int8"), "cpu-fp32": (CPU, "fp32")}),
    (PLAIN, {"intel": (OPENVINO, "int8"), PLAIN: (CPU, "fp32")}),
    ("any", {"arm": (WEB, "int8", ARM), "any": (CPU, "of another day")}),
    (
        "new",
        {"new": (CPU, "int8", {"instruction_sets": ["avx2"], "systems": []}), "old": (CPU, "int4")},
    ),
    ("z", {"z": (CPU, "int8"), "a": (CPU, "int8")}),
    ("a", {"wide": (CPU, "int8", {"int8_products": True}), "a": (CPU, "fp32")}),
    (None, {"arm": (CPU, "int8", ARM), "intel": (OPENVINO, "int8")}),
)


def choosing(variants: dict[str, tuple[Any, ...]]) -> Manifest:
    return Manifest(
        name="made-up",
        task="retrieval",
        input={"max_tokens": 8},
        output={"kind": "embedding"},
        architecture={},
        files={},
        codemill=codemill.__version__,
        variants={
            name: Variant(provider, precision, (), (), *built_for)
            for name, (provider, precision, *built_for) in variants.items()
        },
    )


@pytest.mark.parametrize(("chosen", "variants"), CHOICES)
def test_a_page_is_given_the_variant_for_pages_then_the_most_rounded(
    chosen: str | None, variants: dict[str, tuple[Any, ...]]
) -> None:
    if chosen is not None:
        assert browser_variant(choosing(variants)) == chosen
        return
    with pytest.raises(InputError, match=r"no variant of made-up runs in a browser.*arm \(CPU"):
        browser_variant(choosing(variants))


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_that_is_the_variant_that_a_page_takes_by_itself() -> None:
    manifests = json.dumps([choosing(variants).to_json() for _, variants in CHOICES])
    mill = (PAGES / "mill.js").absolute().as_uri()
    command = ["node", "--input-type=module", "-e", CHOOSES, mill, manifests]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.stdout.splitlines() == [chosen or "no variant" for chosen, _ in CHOICES], (
        ended.stderr
    )


@in_browser
def test_it_is_an_engine_of_the_benchmark(tmp_path: Path) -> None:
    from codemill.targets.engine import EngineProcess

    folder = labelling(tmp_path, 1)
    manifest = read_manifest(folder)
    web = replace(manifest.variants["cpu-int8"], provider=WEB, precision="int4")
    update_bundle(folder, variants={**manifest.variants, "a page's": web})
    with EngineProcess(browser_engine(folder, PAGES, None)) as process:
        assert process.ready["provider"] == "onnxruntime-web"
        assert (process.ready["variant"], process.ready["precision"]) == ("a page's", "int4")
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
    with pytest.raises(
        InputError, match="'intel' is for OpenVINO; a browser runs those of onnxruntime-web"
    ):
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


@pytest.mark.parametrize("port", ["99999", "-1", "9" * 5000, "http"])
def test_a_port_that_cannot_be_is_wrong_usage(
    port: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        browser.main(["bundle", "--pages", "pages", f"--port={port}"])
    assert ended.value.code == 2
    assert "--port: expected a whole number from 0 to 65535" in capsys.readouterr().err


# a bundle that answers every other time
MILL = """
let asked = 0;
export async function openBundle({ variant }) {
  const predict = async () => {
    asked += 1;
    if (asked % 2) throw new Error(`out of memory at ${asked}`);
    return [{ probabilities: [0.25, 0.75] }];
  };
  return { labels: ["safe", "unsafe"], manifest: { name: `tiny, ${variant}`, input: { texts: 1 } }, predict };
}
"""


@pytest.mark.skipif(not any(map(shutil.which, browser.BROWSERS)), reason="needs chromium")
def test_the_page_says_what_it_could_not_answer_and_is_asked_again(
    tmp_path: Path, pages: Path
) -> None:
    shutil.copy(PAGES / "index.html", pages)
    (pages / "mill.js").write_text(MILL)
    modules = (
        "onnxruntime-web/dist/ort.wasm.min.mjs",
        "@huggingface/tokenizers/dist/tokenizers.mjs",
    )
    for name, content in zip(
        modules, ("export const env = {wasm: {}};", "export class Tokenizer {}"), strict=True
    ):
        (pages / "node_modules" / name).parent.mkdir(parents=True)
        (pages / "node_modules" / name).write_text(content)
    server, _, _ = browser._served(write_labels_bundle(tmp_path / "bundle"), pages, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with devtools.chromium() as page:
            page.open(browser._address(server, "", "cpu-fp32 & more") + "&q=int")
            shown = []
            for _ in range(3):
                until(
                    page,
                    "document.body.dataset.ready === 'yes' && !document.getElementById('ask').disabled",
                )
                shown.append(page.value("document.getElementById('found').innerText"))
                page.value("document.getElementById('ask').click()")
            assert (
                page.value("document.getElementById('name').innerText") == "tiny, cpu-fp32 & more"
            )
    finally:
        server.shutdown()
        server.server_close()
    assert shown[0] == "This could not be answered: out of memory at 1"
    assert "unsafe 75.0 %" in shown[1]
    assert shown[2] == "This could not be answered: out of memory at 3"


def until(page: devtools.Page, condition: str) -> None:
    deadline = time.monotonic() + 30
    while not page.value(condition):
        assert time.monotonic() < deadline, condition
        time.sleep(0.05)


def test_packages_are_of_one_version_each() -> None:
    said = json.loads((PAGES / "package.json").read_text())["dependencies"]
    assert all(version[0].isdigit() for version in said.values())
