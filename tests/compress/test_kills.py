"""A run that is killed, interrupted or out of disk, and then goes on. scripts/campaign/ does it at length."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from codemill.runtime import verify_bundle

from .small_run import STAGES, can_mount, prepare, run_on_a_small_disk, stages_begun, start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("killed"))


def wait_for(stage: str, process: subprocess.Popen[str]) -> None:
    """Read what the run says until it begins `stage`."""
    said: list[str] = []
    assert stage in stages_begun(process, said), "".join(said)


def done_files(work: Path) -> dict[str, tuple[int, bytes]]:
    """What says that stages are finished: when it was written, and its content."""
    return {
        path.parent.name.rpartition("-")[0]: (path.stat().st_mtime_ns, path.read_bytes())
        for path in work.glob("*/done.json")
    }


def test_a_run_killed_in_stage_after_stage_finishes_and_repeats_none(
    recipe: Path, tmp_path: Path
) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    for stage in ("corpus", "teacher", "student", "benchmark"):
        before = done_files(work)
        with start(recipe, work, out) as process:
            wait_for(stage, process)
            process.kill()
        after = done_files(work)
        assert {name: after[name] for name in before} == before, "nothing finished is repeated"
        assert stage not in after
        assert not out.exists(), "nothing half-made looks finished"
    before = done_files(work)
    with start(recipe, work, out, "--json") as process:
        said = json.loads(process.communicate()[0])
    assert process.returncode == 0
    assert {name: done_files(work)[name] for name in before} == before
    assert [stage["cached"] for stage in said["stages"]] == [True] * 9 + [False]
    verify_bundle(out)
    assert not [path for path in work.rglob(".*") if path.name != ".lock"], "no leftovers"
    # an undisturbed run of the stages that no clock has a say in gives the same student
    with start(recipe, tmp_path / "other", tmp_path / "other-out") as process:
        wait_for("export", process)
        process.kill()
    ours, theirs = (
        next(path.glob("student-*/student/model.safetensors")).read_bytes()
        for path in (work, tmp_path / "other")
    )
    assert ours == theirs


@pytest.mark.parametrize("stage", ["corpus", "teacher", "benchmark"])
def test_ctrl_c_ends_a_run_with_a_word_on_how_to_go_on(
    recipe: Path, tmp_path: Path, stage: str
) -> None:
    with start(recipe, tmp_path / "work", tmp_path / "out") as process:
        wait_for(stage, process)
        # as a terminal does it: to every process of the group
        os.killpg(process.pid, signal.SIGINT)
        rest = process.communicate()[1]
    assert process.returncode == 130
    assert rest.endswith("interrupted; run the same command again to continue\n")
    assert "Traceback" not in rest
    assert set(done_files(tmp_path / "work")) == set(STAGES[: STAGES.index(stage)])


@pytest.mark.skipif(not can_mount(), reason="needs to mount a small disk in a namespace")
def test_a_full_disk_is_said_and_the_run_goes_on_once_there_is_room(
    recipe: Path, tmp_path: Path
) -> None:
    ended = run_on_a_small_disk(recipe, tmp_path / "disk", ["300k", "1m", "64m"])
    assert [attempt.code for attempt in ended] == [1, 1, 0]
    for attempt in ended[:-1]:
        (error,) = (line for line in attempt.said if line.startswith("error: "))
        assert "the disk is full" in error
        assert "same command again" in error
        assert not any("Traceback" in line for line in attempt.said)
    assert [attempt.finished for attempt in ended][-1] == 10
    assert not any(attempt.left for attempt in ended)
