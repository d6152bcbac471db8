"""Listing, explaining and clearing what runs keep."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from codemill.compress import cache as module
from codemill.compress.cache import explain, kept, remove
from codemill.compress.lock import working_in
from codemill.compress.pipeline import Stage, run_stages, status
from codemill.compress.progress import Silent
from codemill.errors import MachineError
from codemill.runtime.cache import cache_folder


def stages(fails: bool = False, **settings: Any) -> list[Stage]:
    def write(folders: Any, folder: Path, report: Any) -> None:
        (folder / "result").write_bytes(b"x" * 1000)

    def fail(folders: Any, folder: Path, report: Any) -> None:
        (folder / "half").write_bytes(b"x" * 10)
        raise KeyboardInterrupt

    return [
        Stage("first", 1, (), settings, ("numpy",), write),
        Stage("second-one", 1, ("first",), {}, (), fail if fails else write),
    ]


def test_what_is_kept_is_listed_and_nothing_else(tmp_path: Path) -> None:
    assert kept(tmp_path / "nowhere") == []
    with pytest.raises(KeyboardInterrupt):
        run_stages(stages(fails=True), tmp_path, Silent())
    (tmp_path / "notes-of-mine").mkdir()
    (tmp_path / "first-0123456789ab").touch()
    (cache_folder("bundles") / "one").write_bytes(b"x" * 7)
    cache_folder("indexes")
    first, second, bundles = kept(tmp_path)
    assert (first.name, first.state) == ("first", "finished")
    assert first.size_bytes > 1000
    assert (second.name, second.state) == ("second-one", "unfinished")
    assert (bundles.name, bundles.state, bundles.size_bytes) == ("bundles", "runtime", 7)


def test_what_is_removed_while_it_is_listed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run_stages(stages(), tmp_path, Silent())

    def first_is_removed(folder: Path) -> bool:
        shutil.rmtree(done["first"].folder, ignore_errors=True)
        return True

    monkeypatch.setattr(module, "is_finished", first_is_removed)
    assert [entry.name for entry in kept(tmp_path)] == ["second-one"]


def test_what_is_removed_is_done_again(tmp_path: Path) -> None:
    run_stages(stages(), tmp_path, Silent())
    remove(kept(tmp_path)[1:], tmp_path)
    assert status(stages(), tmp_path) == {"first": True, "second-one": False}


def test_what_a_killed_removal_leaves_is_no_stage_and_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stages(stages(), tmp_path, Silent())

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    chosen = kept(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(module.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove(chosen[:1], tmp_path)
    assert not chosen[0].folder.exists()
    assert len(list(tmp_path.glob(".*"))) > 0
    remove(chosen[1:], tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_nothing_is_removed_under_a_run(tmp_path: Path) -> None:
    run_stages(stages(), tmp_path, Silent())
    with (
        working_in(tmp_path, False, print),
        pytest.raises(MachineError, match="is working in"),
    ):
        remove(kept(tmp_path), tmp_path)
    assert all(status(stages(), tmp_path).values())


def test_an_explanation_says_what_differs(tmp_path: Path) -> None:
    first, second = explain(stages(epochs=1), tmp_path)
    assert (first.cached, first.said) == (False, f"to do; none is kept in {tmp_path}")
    run_stages(stages(epochs=1, rate=[0.5]), tmp_path, Silent())
    assert [item.cached for item in explain(stages(epochs=1, rate=[0.5]), tmp_path)] == [True] * 2
    first, second = explain(stages(epochs=2, rate=[0.5, 0.1]), tmp_path)
    assert first.differences == (
        "settings.epochs: 2, was 1",
        "settings.rate: [0.5, 0.1], was [0.5]",
    )
    assert second.differences == ("its input 'first' differs",)
    assert not second.cached


def test_what_was_begun_is_said_to_be_continued(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_stages(stages(fails=True), tmp_path, Silent())
    _, second = explain(stages(), tmp_path)
    assert second.said.startswith("begun, and will be continued")


def test_what_a_run_finished_since_it_was_listed_is_not_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_stages(stages(fails=True), tmp_path, Silent())
    chosen = [entry for entry in kept(tmp_path) if entry.state == "unfinished"]
    run_stages(stages(), tmp_path, Silent())
    remove(chosen, tmp_path)
    assert status(stages(), tmp_path)["second-one"]


def test_a_spoilt_stage_is_said_to_be_done_again(tmp_path: Path) -> None:
    done = run_stages(stages(), tmp_path, Silent())
    (done["first"].folder / "result").write_bytes(b"short")
    first, _ = explain(stages(), tmp_path)
    assert (first.cached, "done again" in first.said or "do again" in first.said) == (False, True)
