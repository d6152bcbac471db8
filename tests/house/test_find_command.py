"""`compress find`: what it prints, what it searches with, and how it goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Ended

    Compress = Callable[..., Ended]


def test_place_score_name_and_code_are_printed(
    compress: Compress, bundle: Path, code: Path
) -> None:
    ended = compress("find", "connect socket", code, "--bundle", bundle, "--top", "1")
    first, second, *_ = ended.out.splitlines()
    place, score, name = first.split()
    assert place == f"{code / 'sockets.py'}:1"
    assert name == "connect"
    assert second == "    def connect(name):"
    document = compress("find", "connect socket", code, "--bundle", bundle, "--json").document
    assert document["functions"] == 2
    assert document["hits"][0]["qualified_name"] == "connect"
    assert document["hits"][0]["language"] == "python"
    assert document["hits"][0]["score"] == pytest.approx(float(score), abs=0.001)


def test_the_current_folder_is_searched_where_none_is_named(
    compress: Compress, bundle: Path, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(code.parent)
    ended = compress("find", "connect socket", "--bundle", bundle, "--top", "1")
    assert ended.out.startswith(f"{Path('code', 'sockets.py')}:1 ")


def test_the_bundle_that_codemill_brings_is_used_where_none_is_named(
    compress: Compress, code: Path
) -> None:
    ended = compress("find", "connect to a server by name", code, "--top", "1")
    assert (ended.code, "sockets.py:1" in ended.out) == (0, True)


def test_how_far_it_is_is_said_only_while_there_is_something_to_read(
    compress: Compress, bundle: Path, code: Path
) -> None:
    assert "reading functions" in compress("find", "sort", code, "--bundle", bundle).err
    assert compress("find", "sort", code, "--bundle", bundle).err == ""


def test_files_that_were_not_read_are_told(compress: Compress, bundle: Path, code: Path) -> None:
    (code / "broken.py").write_text("def broken(:\n")
    ended = compress("find", "sort", code, "--bundle", bundle)
    assert (ended.code, "broken.py" in ended.err) == (0, True)


def test_one_language_alone_may_be_asked_for(compress: Compress, bundle: Path, code: Path) -> None:
    pytest.importorskip("tree_sitter_go", reason="the extra `find`")
    (code / "read.go").write_text("package a\n\nfunc Read() {}\n")
    found = compress("find", "socket", code, "--bundle", bundle, "--language", "go", "--json")
    assert [hit["qualified_name"] for hit in found.document["hits"]] == ["Read"]
    none = compress("find", "socket", code, "--bundle", bundle, "--language", "rust")
    assert (none.code, none.out) == (0, "")
    assert f"no function below {code} is in Rust" in none.err


def test_what_git_ignores_and_what_is_excluded_is_not_found(
    compress: Compress, bundle: Path, code: Path
) -> None:
    (code / ".gitignore").write_text("matrices.py\n")
    arguments = ("find", "sort", code, "--bundle", bundle, "--json")
    assert [hit["line"] for hit in compress(*arguments).document["hits"]] == [1]
    assert compress(*arguments, "--exclude", "*.py").document["hits"] == []


def test_code_cannot_tell_the_terminal_anything(
    compress: Compress, bundle: Path, code: Path
) -> None:
    (code / "odd.py").write_text("def odd():\n\treturn '\x1b[2J'  # \x07\n")
    ended = compress("find", "odd", code, "--bundle", bundle)
    assert "return '\ufffd[2J'" in ended.out
    assert not set(ended.out) & {"\x1b", "\x07", "\t"}


INTERRUPTED = """
import os, runpy, signal
from codemill.runtime.find import Index
embed = Index._embed
def first(self, waiting):
    found = embed(self, waiting)
    os.kill(os.getpid(), signal.SIGINT)
    return found
Index._embed = first
# whoever started the tests may have it ignored, which is handed down
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("codemill", run_name="__main__", alter_sys=True)
"""
"""`compress`, with a ctrl-C once the first functions are embedded."""


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_a_ctrl_c_keeps_what_was_done(compress: Compress, bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(400):
        path = folder / f"m{number:03}.py"
        path.write_text("".join(f"def f{number}_{n}(x):\n    return x\n" for n in range(40)))
        os.utime(path, (1e9, 1e9))
    command = [sys.executable, "-c", INTERRUPTED, "find", "sort", folder, "--bundle", bundle]
    with subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert "run the same command again to continue" in said
    # the next one has less to read, all of it is there, and nothing is said twice
    ended = compress("find", "sort", folder, "--bundle", bundle, "--json")
    assert (ended.code, ended.document["functions"]) == (0, 16_000)
