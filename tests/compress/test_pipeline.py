"""The cache of stages: what is kept, what is done again, what a key depends on."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codemill.compress import pipeline
from codemill.compress.pipeline import (
    CHECKPOINT,
    Done,
    Stage,
    keys_of,
    read_done,
    run_stages,
    status,
)
from codemill.compress.progress import Silent
from codemill.errors import MachineError


class Log:
    """Counts how often each stage was worked at."""

    def __init__(self) -> None:
        self.worked: list[str] = []

    def stage(self, name: str, *inputs: str, fails: bool = False, **changes: Any) -> Stage:
        def work(folders: Any, folder: Path, report: Any) -> None:
            self.worked.append(name)
            assert set(folders) == set(inputs)
            assert all((path / "result").is_file() for path in folders.values())
            text = "+".join([name, *((folders[i] / "result").read_text() for i in inputs)])
            report(0.5, "half")
            if fails:
                raise ValueError("no")
            (folder / "result").write_text(text)

        values: dict[str, Any] = {"version": 1, "settings": {}, "libraries": ("numpy",), **changes}
        return Stage(name=name, inputs=inputs, work=work, **values)


@pytest.fixture(autouse=True)
def unreleased_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch in the process a collection takes longer than all these stages."""
    monkeypatch.setattr("codemill.compress.pipeline._release_memory", lambda: None)


@pytest.fixture
def log() -> Log:
    return Log()


def three(log: Log, **changes: Any) -> list[Stage]:
    return [log.stage("a", **changes), log.stage("b", "a"), log.stage("c")]


def run(stages: list[Stage], work: Path) -> dict[str, Done]:
    return run_stages(stages, work, Silent())


def test_stages_run_in_order_on_their_inputs_folders(log: Log, tmp_path: Path) -> None:
    done = run(three(log), tmp_path / "work")
    assert log.worked == ["a", "b", "c"]
    assert (done["b"].folder / "result").read_text() == "b+a"
    assert [d.cached for d in done.values()] == [False] * 3
    assert all(d.folder.parent == tmp_path / "work" for d in done.values())
    assert done["a"].peak_rss_bytes > 1_000_000


def test_finished_stages_are_not_repeated(log: Log, tmp_path: Path) -> None:
    first = run(three(log), tmp_path)
    again = run(three(log), tmp_path)
    assert log.worked == ["a", "b", "c"]
    assert [d.cached for d in again.values()] == [True] * 3
    for name, d in again.items():
        assert (d.folder, d.key, d.seconds) == (
            first[name].folder,
            first[name].key,
            first[name].seconds,
        )


def test_status_looks_and_does_nothing(log: Log, tmp_path: Path) -> None:
    assert status(three(log), tmp_path / "work") == {"a": False, "b": False, "c": False}
    assert not (tmp_path / "work").exists()
    run(three(log)[:1], tmp_path / "work")
    assert status(three(log), tmp_path / "work") == {"a": True, "b": False, "c": False}


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"x": 1}},
        {"version": 2},
        {"libraries": ("numpy", "torch")},
        {"machine": "another"},
    ],
)
def test_a_change_gives_the_stage_and_what_follows_from_it_other_folders(
    log: Log, tmp_path: Path, change: dict[str, Any]
) -> None:
    before = run(three(log), tmp_path)
    log.worked.clear()
    after = run(three(log, **change), tmp_path)
    assert log.worked == ["a", "b"], "c does not depend on a"
    assert after["a"].folder != before["a"].folder
    assert after["b"].folder != before["b"].folder
    assert after["c"].cached
    log.worked.clear()
    run(three(log), tmp_path)
    assert log.worked == [], "the work from before the change is still there"


def test_another_version_of_a_library_is_a_change(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys_of(three(log))
    monkeypatch.setattr("codemill.compress.pipeline.metadata.version", lambda name: "0.0")
    assert keys_of(three(log)) != before


def test_keys_do_not_depend_on_the_work_path(log: Log, tmp_path: Path) -> None:
    here, there = run(three(log), tmp_path / "here"), run(three(log), tmp_path / "there")
    assert {n: d.key for n, d in here.items()} == {n: d.key for n, d in there.items()}
    assert [d.folder.name for d in here.values()] == [d.folder.name for d in there.values()]


def test_settings_in_another_order_are_the_same_settings(log: Log) -> None:
    one = log.stage("a", settings={"x": 1, "y": [1, 2]})
    other = replace(one, settings={"y": (1, 2), "x": 1})
    assert keys_of([one]) == keys_of([other])


@pytest.mark.parametrize(
    "spoil",
    [
        Path.unlink,
        lambda path: path.write_text(""),
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text("{}"),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.write_text(path.read_text().replace('"key": "', '"key": "0')),
        lambda path: path.write_text(
            path.read_text().replace('"seconds": ', '"seconds": null, "x":')
        ),
    ],
)
def test_a_folder_without_a_whole_done_json_is_done_again(
    log: Log, tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    done = run(three(log), tmp_path)
    spoil(done["a"].folder / "done.json")
    assert status(three(log), tmp_path) == {"a": False, "b": True, "c": True}
    log.worked.clear()
    again = run(three(log), tmp_path)
    assert log.worked == ["a"], "what followed from it is what it would be again"
    assert again["a"].folder == done["a"].folder
    assert status(three(log), tmp_path)["a"]


def test_unfinished_work_is_handed_to_the_stage_again(tmp_path: Path) -> None:
    found: list[list[str]] = []

    def work(folders: Any, folder: Path, report: Any) -> None:
        found.append([path.name for path in folder.iterdir() if path.name != "spent.json"])
        (folder / "half").touch()
        if len(found) == 1:
            raise KeyboardInterrupt

    stages = [Stage("a", 1, (), {}, (), work)]
    with pytest.raises(KeyboardInterrupt):
        run(stages, tmp_path)
    run(stages, tmp_path)
    assert found == [[], ["half"]]


def test_a_stage_that_raises_leaves_nothing_that_looks_finished(log: Log, tmp_path: Path) -> None:
    stages = [log.stage("a"), log.stage("b", "a", fails=True), log.stage("c", "b")]
    with pytest.raises(ValueError, match="no"):
        run(stages, tmp_path)
    assert log.worked == ["a", "b"]
    assert status(stages, tmp_path) == {"a": True, "b": False, "c": False}
    assert [path.parent.name[:1] for path in tmp_path.rglob("done.json")] == ["a"]


def test_done_json_says_what_was_done(log: Log, tmp_path: Path) -> None:
    stage = log.stage("a", settings={"x": [1]}, version=7)
    folder = run([stage], tmp_path)["a"].folder
    said = read_done(folder)
    made_of = said["made_of"]
    assert (made_of["name"], made_of["version"], made_of["settings"]) == ("a", 7, {"x": [1]})
    assert said["files"] == {"result": 1}
    assert said["key"] == keys_of([stage])["a"]
    assert said["seconds"] >= 0


@pytest.mark.parametrize(
    "spoil",
    [
        Path.unlink,
        lambda path: path.write_text("longer than before"),
        lambda path: path.write_text(""),
    ],
)
def test_a_stage_whose_files_are_not_those_it_finished_with_is_done_again(
    log: Log, tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    done = run(three(log), tmp_path)
    spoil(done["a"].folder / "result")
    assert not status(three(log), tmp_path)["a"]
    log.worked.clear()
    run(three(log), tmp_path)
    assert log.worked == ["a"]
    assert (done["a"].folder / "result").read_text() == "a"


def test_a_stage_that_is_damaged_begins_with_nothing(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def work(folders: Any, folder: Path, report: Any) -> None:
        seen.append([path.name for path in folder.iterdir()])
        (folder / "part").mkdir()
        (folder / "part" / "weights").write_text("all of them")
        # what a stage goes by when it was killed just before its end
        (folder / "facts").write_text("{}")

    stage = Stage("a", 1, (), {}, (), work)
    folder = run([stage], tmp_path)["a"].folder
    (folder / "part" / "weights").write_text("some")
    run([stage], tmp_path)
    assert seen == [[], []]
    assert (folder / "part" / "weights").read_text() == "all of them"


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    seen: list[str] = []

    def work(folders: Any, folder: Path, report: Any) -> None:
        seen.extend(sorted(path.name for path in folder.iterdir()))

    stage = Stage("a", 1, (), {}, (), work)
    folder = tmp_path / f"a-{keys_of([stage])['a'][:12]}"
    folder.mkdir()
    for name in (".result.0123456789abcdef", ".hidden", "result", CHECKPOINT):
        (folder / name).touch()
    done = run([stage], tmp_path)
    assert seen == sorted([".hidden", "result", CHECKPOINT])
    assert done["a"].folder == folder
    assert not (folder / CHECKPOINT).exists(), "removed once the stage is finished"


def test_the_time_of_interrupted_attempts_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(pipeline.time, "monotonic", lambda: clock[0])
    attempts = [0]

    def work(folders: Any, folder: Path, report: Any) -> None:
        clock[0] += 30
        report(0.5, "half")  # a kill from here on would lose nothing of this
        clock[0] += 5
        attempts[0] += 1
        if attempts[0] == 1:
            raise KeyboardInterrupt

    stages = [Stage("a", 1, (), {}, (), work)]
    with pytest.raises(KeyboardInterrupt):
        run(stages, tmp_path)
    (spent,) = tmp_path.rglob("spent.json")
    assert json.loads(spent.read_text())["seconds"] == 35
    assert run(stages, tmp_path)["a"].seconds == 70
    assert run(stages, tmp_path)["a"].seconds == 70
    assert not list(tmp_path.rglob("spent.json"))


def full_disk_of_a_library() -> Exception:
    error = RuntimeError("write failed")
    error.__context__ = OSError(errno.ENOSPC, "No space left on device")
    return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "weights"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
        full_disk_of_a_library(),
    ],
)
def test_a_full_disk_is_said_whatever_met_it(tmp_path: Path, error: Exception) -> None:
    def work(folders: Any, folder: Path, report: Any) -> None:
        raise error

    with pytest.raises(MachineError, match=r"the disk is full: stage 'a'.*same command again") as e:
        run([Stage("a", 1, (), {}, (), work)], tmp_path)
    assert e.value.__cause__ is error
