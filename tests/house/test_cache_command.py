"""`compress cache`, as a user types it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codemill.compress.pipeline import Stage, run_stages
from codemill.compress.progress import Silent
from codemill.runtime.cache import cache_folder

Compress = Callable[..., Any]


def keep(work: Path) -> None:
    def write(folders: Any, folder: Path, report: Any) -> None:
        (folder / "result").write_bytes(b"x" * 1000)

    run_stages([Stage("corpus", 1, (), {"seed": 0}, (), write)], work, Silent())


def test_a_list_makes_nothing(
    compress: Compress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("CODEMILL_CACHE", "kept"), ("XDG_CACHE_HOME", "xdg"), ("HOME", "home")):
        monkeypatch.setenv(name, str(tmp_path / value))
        before = sorted(tmp_path.rglob("*"))
        assert compress("cache", "list", "--json").document == []
        assert compress("cache", "clear", "--runtime").err == "there is nothing to remove\n"
        assert sorted(tmp_path.rglob("*")) == before
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert compress("cache", "list", "--json").document == []
    assert sorted(tmp_path.rglob("*")) == before
    (cache_folder("bundles") / "one").write_bytes(b"x")
    (found,) = compress("cache", "list", "--json").document
    assert found["folder"].startswith(str(tmp_path / "codemill-"))


def test_a_list_names_what_is_kept_with_its_size(compress: Compress) -> None:
    assert compress("cache", "list", "--json").document == []
    keep(Path(".codemill"))
    (cache_folder("bundles") / "one").write_bytes(b"x" * 7)
    stage, bundles = compress("cache", "list", "--json").document
    assert (stage["name"], stage["state"]) == ("corpus", "finished")
    assert (bundles["name"], bundles["size_bytes"]) == ("bundles", 7)
    shown = compress("cache", "list").out
    assert stage["folder"] in shown
    assert "in all" in shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_clear_says_what_to_choose_from_and_asks(
    compress: Compress, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = compress("cache", "clear")
    assert ended.code == 2
    assert "--unfinished, --finished, --runtime" in ended.err
    assert compress("cache", "clear", "--unfinished").err == "there is nothing to remove\n"
    keep(Path(".codemill"))
    (folder,) = Path(".codemill").glob("corpus-*")
    ended = compress("cache", "clear", "--finished")
    assert ended.code == 2
    assert "nobody is there to be asked; add --yes" in ended.err
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    ended = compress("cache", "clear", "--finished")
    assert ended.code == 0
    assert ended.err.endswith("nothing was removed\n")
    assert (folder / "result").is_file()
    monkeypatch.setattr("sys.stdin", None)
    ended = compress("cache", "clear", "--finished")
    assert (ended.code, "nobody is there to be asked" in ended.err) == (2, True)
    ended = compress("cache", "clear", "--finished", "--yes")
    assert ended.code == 0
    assert "removed 0.00 MB (1," in ended.err
    assert not folder.exists()


def test_an_explanation_names_every_stage(compress: Compress) -> None:
    found = compress("cache", "explain", "code-search", "--json").document
    assert found[0]["stage"] == "corpus"
    assert not any(item["cached"] for item in found)
    assert compress("cache", "explain", "code-serch").code == 1


def test_a_work_folder_that_is_a_file_is_an_input_error(compress: Compress) -> None:
    Path("file").touch()
    for command in (("list",), ("clear", "--finished")):
        ended = compress("cache", *command, "--work", "file")
        assert (ended.code, ended.err) == (
            1,
            "error: file is not a folder to work in; choose another --work\n",
        )
