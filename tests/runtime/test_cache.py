from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from codemill.errors import MachineError
from codemill.runtime.atomic import write_atomically
from codemill.runtime.cache import cache_folder, compiled_folder, compiled_in


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.delenv("CODEMILL_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return folder


def test_the_cache_is_the_first_of_its_places(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_folder("bundles") == home / ".cache/codemill/bundles"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder("bundles") == home / ".cache/codemill/bundles"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("bundles") == tmp_path / "xdg/codemill/bundles"
    monkeypatch.setenv("CODEMILL_CACHE", str(tmp_path / "own"))
    assert cache_folder("bundles") == tmp_path / "own/bundles"
    assert (tmp_path / "own/bundles").is_dir()


def test_without_a_home_the_cache_is_a_private_temporary_folder(home: Path, tmp_path: Path) -> None:
    home.rmdir()
    folder = cache_folder("bundles")
    assert folder.is_relative_to(tmp_path)
    assert folder.parent.stat().st_mode & 0o077 == 0
    assert cache_folder("bundles") == folder


def test_a_temporary_folder_that_others_may_write_to_is_not_used(
    home: Path, tmp_path: Path
) -> None:
    home.rmdir()
    shared = cache_folder("bundles").parent
    shared.chmod(0o777)
    assert not cache_folder("bundles").is_relative_to(shared)


def test_a_cache_that_cannot_be_made_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CODEMILL_CACHE", str(tmp_path / "file"))
    with pytest.raises(MachineError, match="Set CODEMILL_CACHE"):
        cache_folder("bundles")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(TypeError):
        write_atomically(tmp_path / "a", lambda file: file.write(None))  # type: ignore[arg-type]
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]
    write_atomically(tmp_path / "a", lambda file: file.write(b"new"))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"new")]


def test_what_is_compiled_goes_where_it_is_told_and_nothing_else_does(
    home: Path, tmp_path: Path
) -> None:
    cached = home / ".cache/codemill/openvino"
    with compiled_in(tmp_path / "apart"):
        assert compiled_folder("openvino") == tmp_path / "apart/openvino"
        assert (tmp_path / "apart/openvino").is_dir()
        assert cache_folder("bundles") == home / ".cache/codemill/bundles"
        with compiled_in(None):
            assert compiled_folder("openvino") == tmp_path / "apart/openvino"
    assert not cached.exists()
    assert compiled_folder("openvino") == cached
    with pytest.raises(ZeroDivisionError), compiled_in(tmp_path / "apart"):
        raise ZeroDivisionError
    assert compiled_folder("openvino") == cached
