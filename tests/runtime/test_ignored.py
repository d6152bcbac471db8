"""What is ignored is what git says is ignored."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codemill.runtime.files import source_files
from codemill.runtime.ignored import Ignored, Patterns

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="compares with git")


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No excludes of whoever runs the tests."""
    settings = tmp_path / "gitconfig"
    settings.write_text("")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    return settings


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    ended = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert ended.returncode in (0, 1), ended.stderr
    return ended.stdout


def repository(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "-q")
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def of_git(folder: Path) -> set[str]:
    listed = git(folder, "ls-files", "-co", "--exclude-standard", "-z").split("\0")
    return {name for name in listed if name.endswith(".py")}


def ours(folder: Path) -> set[str]:
    return set(source_files(folder).files)


TREE = [
    f"{folder}{name}.py"
    for folder in ("", "a/", "a/b/", "a/b/c/", "build/", "a/build/", "x y/", "doc/a/")
    for name in ("a", "b", "build", "test_a", "a.gen", "x y", "é", "[a]", "!a", "#a", "a*b", "ab")
]
LINES = [
    *("*.py", "a", "a/", "/a", "/a/", "b", "build", "build/", "/build/", "a/b", "a/b/", "a/*"),
    *("**/b", "**/b/", "a/**", "a/**/c", "/**/c/", "**/build/*", "**", "*", "!*.py", "!a", "!a/"),
    *("test_*", "test_?.py", "*.gen.py", "!a.gen.py", "[ab].py", "[!a].py", "[^a]*.py", "[a-c]*"),
    *("[[:alpha:]].py", "[]a].py", "[a", "\\#a.py", "\\!a.py", "#a.py", "!!a.py", "\\[a\\].py"),
    *("a\\*b.py", "a*b.py", "a**b.py", "a/**b.py", "x y/", "x?y.py", "é.py", "?.py", " ", "a.py "),
    *(
        "a.py\\ ",
        "a/b/*.py",
        "!a/b/a.py",
        "a/b/c/",
        "/*",
        "!/a",
        "/*.py",
        "*/a.py",
        "*/*/a.py",
        "\\",
    ),
    *(
        "doc/a",
        "doc/**/a.py",
        "***/a.py",
        "a/***/a.py",
        "/",
        "//",
        "!",
        "a//b",
        "./a",
        "[a-]*",
        "[--a].py",
    ),
    *(
        "*a*b*.py",
        "*.p[xy]",
        "[[:digit:][:upper:]a].py",
        "[a/b].py",
        "a[/]b",
        "[\\]a].py",
        "*/",
        "**/",
    ),
]


@needs_git
@pytest.mark.parametrize("line", LINES)
def test_a_pattern_ignores_what_git_ignores_by_it(line: str, tmp_path: Path) -> None:
    folder = repository(tmp_path / "r", dict.fromkeys(TREE, ""))
    (folder / ".gitignore").write_text(line + "\n")
    assert ours(folder) == of_git(folder)


@needs_git
@pytest.mark.parametrize("seed", range(30))
def test_patterns_at_several_levels_ignore_what_git_ignores(seed: int, tmp_path: Path) -> None:
    drawn = random.Random(seed)
    folder = repository(tmp_path / "r", dict.fromkeys(TREE, ""))
    for place in (".gitignore", "a/.gitignore", "a/b/.gitignore", ".git/info/exclude"):
        if drawn.random() < 0.7:
            lines = drawn.choices(LINES, k=drawn.randint(1, 6))
            end = drawn.choice(["\n", "\r\n"])
            (folder / place).write_bytes(("\ufeff" * (seed % 2) + end.join(lines)).encode())
    assert ours(folder) == of_git(folder)


@needs_git
def test_the_users_excludes_file_holds_everywhere(tmp_path: Path, own_settings: Path) -> None:
    folder = repository(tmp_path / "r", {"a.py": "", "mine.py": "", "x/b.py": ""})
    (tmp_path / "excludes").write_text("mine.py\n")
    own_settings.write_text(f"[user]\n\tname = x\n[Core]\n\texcludesFile = {tmp_path}/excludes\n")
    assert ours(folder) == of_git(folder) == {"a.py", "x/b.py"}
    own_settings.write_text("")
    (tmp_path / "settings/git").mkdir(parents=True)
    (tmp_path / "settings/git/ignore").write_text("x/\n")
    assert ours(folder) == of_git(folder) == {"a.py", "mine.py"}


@needs_git
@pytest.mark.parametrize(
    "text",
    [
        "[core]\n\texcludesfile = {at} # mine\n",
        '[core]\n\texcludesfile = "{at}" ; mine\n',
        "[core] excludesfile = {at}\n",
        "[core]\n\texcludesfile={at}  \n",
        "[core]\n\texcludesfile = {odd}\n",
        "[core]\n\texcludesfile = ~nosuchuser/x\n",
        "[core]\n\texcludesfile = {head}\\\n{tail}\n",
        '[core]\n\texcludesfile = "{head}\\\n{tail}" # mine\n',
        "[include]\n\tpath = more\n",
        "[core]\n\texcludesfile = nowhere\n[include]path = ./more\n",
        '[core "own"]\n\texcludesfile = {at}\n',
        "[include]\n\tpath = gitconfig\n[core] excludesfile = {at}\n",
        "[include]\n" + "\tpath = ./gitconfig\n" * 9 + "[core] excludesfile = {at}\n",
    ],
)
def test_the_users_excludes_file_is_named_as_git_reads_it(
    text: str, tmp_path: Path, own_settings: Path
) -> None:
    folder = repository(tmp_path / "r", {"a.py": "", "mine.py": ""})
    (tmp_path / "excludes").write_text("mine.py\n")
    (tmp_path / 'ex"cludes').symlink_to(tmp_path / "excludes")
    # what is meant to be a quote, in a file that is a link
    odd = str(tmp_path / 'ex"cludes').replace('"', '\\"')
    at = str(tmp_path / "excludes")
    own_settings.write_text(text.format(at=at, odd=odd, head=at[:-3], tail=at[-3:]))
    own_settings.with_name("more").write_text(f"[core]\n\texcludesfile = {at}\n")
    expected = {"a.py", "mine.py"} if "nosuchuser" in text or "own" in text else {"a.py"}
    assert ours(folder) == expected
    # git ends with an error at a stranger's home, and at files that include each other
    if "nosuchuser" not in text and "gitconfig" not in text:
        assert of_git(folder) == expected


@needs_git
def test_a_second_work_tree_has_the_excludes_of_the_first(tmp_path: Path) -> None:
    folder = repository(tmp_path / "r", {"a.py": "", "mine.py": ""})
    git(folder, "add", "a.py")
    git(folder, "-c", "user.name=x", "-c", "user.email=x", "commit", "-qm", "x")
    (folder / ".git/info/exclude").write_text("mine.py\n")
    git(folder, "worktree", "add", "-q", str(tmp_path / "second"))
    (tmp_path / "second/mine.py").write_text("")
    assert ours(tmp_path / "second") == {"a.py"}


def test_rules_above_the_searched_folder_hold_down_from_the_root_of_its_work_tree(
    tmp_path: Path,
) -> None:
    (tmp_path / ".gitignore").write_text("b.py\n")
    folder = tmp_path / "r"
    for name in ("in/a.py", "in/b.py", "in/c.py", "out/a.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    (folder / ".git").mkdir()
    (folder / ".gitignore").write_text("/in/c.py\nout/\n")
    assert ours(folder / "in") == {"a.py", "b.py"}
    # asked for
    assert ours(folder / "out") == {"a.py"}


def test_a_work_tree_inside_has_rules_of_its_own_alone(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("a.py\n")
    (tmp_path / "inner/.git/info").mkdir(parents=True)
    (tmp_path / "inner/.git/info/exclude").write_text("b.py\n")
    for name in ("a.py", "b.py", "inner/a.py", "inner/b.py"):
        (tmp_path / name).write_text("")
    assert ours(tmp_path) == {"b.py", "inner/a.py"}


def test_a_folder_that_is_no_work_tree_is_read_by_its_gitignore(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("a.py\n")
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("")
    assert ours(tmp_path) == {"b.py"}


@pytest.mark.skipif(sys.platform == "win32", reason="makes links")
def test_a_file_of_patterns_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "patterns").write_text("a.py\n")
    (tmp_path / "a.py").write_text("")
    (tmp_path / ".gitignore").symlink_to(tmp_path / "patterns")
    assert ours(tmp_path) == {"a.py"}


def test_no_pattern_takes_long() -> None:
    patterns = Patterns(["*a" * 30 + "b", "/" + "*a" * 30 + "b/x", "**/" * 30 + "b"])
    began = time.process_time()
    assert patterns.verdict("a" * 200, folder=False) is None
    assert patterns.verdict("a/" * 20 + "a", folder=False) is None
    assert time.process_time() - began < 1


def test_nothing_is_ignored_where_there_is_no_rule(tmp_path: Path) -> None:
    assert not Ignored.of(tmp_path).ignores("a.py", folder=False)
