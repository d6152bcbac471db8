from __future__ import annotations

import sys
from pathlib import Path

import pytest

from codemill.runtime.files import source_files
from codemill.runtime.languages import LANGUAGES, language_of, readable_languages


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")


def test_files_come_in_order_with_their_sizes(tmp_path: Path) -> None:
    make(tmp_path, "b.py", "a.py", "b/a.py", "a/b.py", "text.txt", "noext")
    (tmp_path / "a.py").write_text("12345")
    found = source_files(tmp_path).files
    assert list(found) == ["a.py", "b.py", "a/b.py", "b/a.py"]
    assert found["a.py"].st_size == 5


def test_environments_hidden_folders_and_other_peoples_code_are_not_looked_into(
    tmp_path: Path,
) -> None:
    make(tmp_path, "a.py", ".tox/b.py", "__pycache__/b.py", "x/node_modules/b.py", "x/venv/b.py")
    make(tmp_path, "env/pyvenv.cfg", "env/b.py", "conda/conda-meta/history", "conda/b.py")
    make(tmp_path, "lib/site-packages/b.py", ".hidden.py")
    assert list(source_files(tmp_path).files) == [".hidden.py", "a.py"]


def test_an_environment_that_is_asked_for_is_looked_into(tmp_path: Path) -> None:
    make(tmp_path, "pyvenv.cfg", "lib/a.py")
    assert list(source_files(tmp_path).files) == ["lib/a.py"]


@pytest.mark.skipif(sys.platform == "win32", reason="makes links")
def test_links_are_not_followed(tmp_path: Path) -> None:
    make(tmp_path, "a/a.py")
    (tmp_path / "a/link.py").symlink_to(tmp_path / "a/a.py")
    (tmp_path / "a/round").symlink_to(tmp_path)
    assert list(source_files(tmp_path).files) == ["a/a.py"]


def test_a_deep_tree_is_no_recursion(tmp_path: Path) -> None:
    make(tmp_path, "d/" * 400 + "a.py")
    assert len(source_files(tmp_path).files) == 1


@pytest.mark.parametrize(
    ("name", "language"),
    [
        *(
            ("a.py", "python"),
            ("a.JSX", "javascript"),
            ("a.d.ts", "typescript"),
            ("A.java", "java"),
        ),
        *(("a.h", "c"), ("a.hpp", "cpp"), ("a.go", "go"), ("a.rs", "rust")),
        *((".py", None), ("py", None), ("a.txt", None), ("a.py.bak", None)),
    ],
)
def test_the_suffix_tells_the_language(name: str, language: str | None) -> None:
    assert language_of(name) == language


def test_python_can_always_be_read() -> None:
    assert {"python"} <= readable_languages() <= set(LANGUAGES)
