"""`compress predict`: what it reads, what it prints, what it leaves out, and how it ends."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from codemill.runtime import load_classifier

ROOT = Path(__file__).resolve().parents[2]
Compress = Callable[..., Any]


def _made() -> ModuleType:
    """The module that makes the runtime's tests their bundles."""
    spec = importlib.util.spec_from_file_location("c", ROOT / "tests/runtime/conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    exit_ = {"layer": 2, "temperature": 1.0, "threshold": 0.6}
    folder = tmp_path_factory.mktemp("labels") / "tiny"
    return Path(_made().write_labels_bundle(folder, exits=(exit_,)))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(_made().write_labels_bundle(tmp_path_factory.mktemp("pairs") / "tiny", texts=2))


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joined") / "tiny"
    return Path(_made().write_labels_bundle(folder, texts=2, joined=True))


def rows(path: str, *found: object) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in found)
    content = text.encode()
    Path(path).write_bytes(gzip.compress(content) if path.endswith(".gz") else content)
    return Path(path)


def stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))


def test_a_source_file_is_one_text(compress: Compress, labels: Path) -> None:
    Path("a.c").write_text("file file\nfile name\n")
    Path("b.c").write_text("read the list\n" * 20)
    ended = compress("predict", labels, "a.c", "b.c")
    assert (ended.code, ended.err) == (0, "")
    first, second = ended.out.splitlines()
    assert first.split()[:2] == ["a.c", "file"]
    assert first.endswith("2 layers")
    assert second.startswith("b.c")
    assert second.endswith("6 layers  cut off at 16 tokens")
    assert compress("predict", labels, "b.c", "--long", "split").out.rstrip().endswith("6 layers")


def test_stdin_is_one_text(
    compress: Compress, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in ((), ("-",)):
        stdin(monkeypatch, b"socket\nsocket\n")
        ended = compress("predict", labels, *arguments)
        assert ended.code == 0
        assert ended.out.split()[:2] == ["stdin", "socket"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_each_line_of_json_is_one_text(compress: Compress, labels: Path, name: str) -> None:
    rows(name, {"code": "file"}, {"code": "socket", "x": 1}, "", {"code": "matrix\nmatrix"})
    ended = compress("predict", labels, name, "--json")
    assert (ended.code, ended.err) == (0, "")
    found = ended.document
    assert [item["item"] for item in found["predictions"]] == [f"{name}:{i}" for i in (1, 2, 4)]
    assert [item["label"] for item in found["predictions"]] == ["file", "socket", "matrix"]
    assert (found["items"], found["skipped"], found["skipped_first"]) == (3, 0, [])
    assert found["labels"] == ["file", "socket", "matrix"]
    assert set(found["predictions"][0]) == {"item", "label", "score", "layers_used", "truncated"}


def test_json_lines_come_from_stdin_and_from_other_fields(
    compress: Compress, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin(monkeypatch, b'\xef\xbb\xbf{"func": "socket"}\n{"func": "file"}')
    ended = compress("predict", labels, "--jsonl", "--field", "func", "--json")
    assert [item["item"] for item in ended.document["predictions"]] == ["stdin:1", "stdin:2"]


def test_pairs_are_two_files_or_lines_with_two_fields(compress: Compress, pairs: Path) -> None:
    Path("a.py").write_text("file")
    Path("b.py").write_text("file name")
    ended = compress("predict", pairs, "a.py", "b.py")
    assert ended.code == 0
    assert ended.out.startswith("a.py b.py  file")
    rows("p.jsonl", {"code": "file", "code2": "file"}, {"code": "socket", "code2": "socket"})
    found = compress("predict", pairs, "p.jsonl", "--json").document["predictions"]
    assert [item["item"] for item in found] == ["p.jsonl:1", "p.jsonl:2"]
    with load_classifier(pairs) as model:
        expected = model.predict([("file", "file"), ("socket", "socket")])
    assert [item["score"] for item in found] == [item.score for item in expected]
    rows("q.jsonl", {"l": "file", "r": "file"})
    assert compress("predict", pairs, "q.jsonl", "--field", "l", "--second", "r").code == 0


def test_rows_that_cannot_be_used_are_left_out_counted_and_told_of(
    compress: Compress, labels: Path
) -> None:
    rows("r.jsonl", {"code": "file"}, "{", [1], {"body": "x"}, {"code": " "}, {"code": 3}, "\xff")
    ended = compress("predict", labels, "r.jsonl")
    assert ended.code == 0
    assert len(ended.out.splitlines()) == 1
    told = ended.err.splitlines()
    assert told[0].startswith("skipped r.jsonl:2: not JSON")
    assert told[1] == "skipped r.jsonl:3: expected a JSON object, found list"
    assert told[2] == "skipped r.jsonl:4: expected text under 'code', found fields ['body']"
    assert told[3] == "skipped r.jsonl:5: expected text under 'code', found ' '"
    assert told[4] == "skipped r.jsonl:6: expected text under 'code', found 3"
    assert told[-1] == "skipped 6 of 7 rows"
    found = compress("predict", labels, "r.jsonl", "--json")
    assert (found.err, found.document["skipped"]) == ("", 6)
    assert found.document["skipped_first"][1]["item"] == "r.jsonl:3"


def test_of_many_bad_rows_the_first_twenty_are_told(compress: Compress, labels: Path) -> None:
    rows("r.jsonl", *[{"no": 1}] * 1500, {"code": "file"}, *[{"no": 1}] * 1500)
    ended = compress("predict", labels, "r.jsonl")
    assert len(ended.err.splitlines()) == 21
    assert ended.err.splitlines()[-1] == "skipped 3,000 of 3,001 rows"
    assert len(compress("predict", labels, "r.jsonl", "--json").document["skipped_first"]) == 20


def test_a_line_of_megabytes_is_left_out_and_the_next_is_read(
    compress: Compress, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codemill.compress.commands.predict._MOST_BYTES", 100)
    rows("r.jsonl", {"code": "x" * 350}, {"code": "file"})
    ended = compress("predict", labels, "r.jsonl", "--json")
    assert ended.document["skipped_first"] == [
        {"item": "r.jsonl:1", "problem": "longer than 100 bytes"}
    ]
    assert [item["item"] for item in ended.document["predictions"]] == ["r.jsonl:2"]


def test_a_source_in_another_encoding_is_read_all_the_same(
    compress: Compress, labels: Path
) -> None:
    Path("a.c").write_bytes("/* größe */ file file".encode("latin-1"))
    assert compress("predict", labels, "a.c").out.split()[1] == "file"


def test_exits_may_be_switched_off(compress: Compress, labels: Path) -> None:
    Path("a.c").write_text("file file file")
    assert "2 layers" in compress("predict", labels, "a.c").out
    assert "6 layers" in compress("predict", labels, "a.c", "--no-exits").out


def test_without_one_usable_row_it_fails_and_says_why(compress: Compress, labels: Path) -> None:
    rows("bad.jsonl", {"body": "x"})
    Path("empty.c").write_text("  \n")
    Path("none.jsonl").write_text("")
    for name, message in (
        ("bad.jsonl", "bad.jsonl:1: expected text under 'code', found fields ['body']"),
        ("empty.c", "empty.c: it is empty"),
        ("none.jsonl", "no rows"),
    ):
        ended = compress("predict", labels, name, "--json")
        assert (ended.code, ended.out) == (1, "")
        assert f"error: there is nothing to label in {name}: {message}" in ended.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("labels", "nowhere.c"), 1, "nowhere.c does not exist"),
        (("labels", "."), 1, "is a folder"),
        (("labels", "cut.jsonl.gz"), 1, "cut.jsonl.gz cannot be read"),
        (("labels", "-", "-"), 2, "stdin can be read once"),
        (("labels", "a.c", "--batch", "0"), 2, "--batch"),
        (("labels", "a.c", "--long", "cut"), 2, "--long"),
        (("labels", "a.c", "--variant", "gpu"), 1, "has no variant 'gpu'"),
        (("bundle", "a.c"), 1, "is made for 'retrieval' with output 'embedding'; expected class"),
        (("nowhere", "a.c"), 1, "there is no bundle"),
        (("pairs", "a.c"), 2, "this bundle labels pairs: give two files"),
        (("pairs", "a.c", "a.c", "a.c"), 2, "this bundle labels pairs"),
        (("pairs", "a.c", "ok.jsonl"), 2, "this bundle labels pairs"),
        (("joined", "a.c", "a.c", "--long", "split"), 2, "use --long truncate"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(
    compress: Compress,
    request: pytest.FixtureRequest,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    Path("a.c").write_text("file")
    rows("ok.jsonl", {"code": "file", "code2": "file"})
    rows("cut.jsonl.gz", *[{"code": f"file {i}"} for i in range(99)])
    Path("cut.jsonl.gz").write_bytes(Path("cut.jsonl.gz").read_bytes()[:-30])
    name, *rest = arguments
    bundle = name if name == "nowhere" else request.getfixturevalue(name)
    ended = compress("predict", bundle, *rest, "--json")
    assert (ended.code, ended.out) == (code, "")
    assert message in " ".join(ended.err.split())


def test_inspect_shows_what_a_bundle_labels(compress: Compress, labels: Path, joined: Path) -> None:
    shown = " ".join(compress("inspect", labels).out.split())
    assert "labels file, socket, matrix" in shown
    assert "exits after layer 2 from 0.6" in shown
    assert "texts one" in shown
    shown = " ".join(compress("inspect", joined).out.split())
    assert "texts two, joined" in shown
    assert "exits none" in shown
