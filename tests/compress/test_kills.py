"""A run that is killed, interrupted or out of disk, and then goes on. scripts/campaign/ does it at length."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from codemill.runtime import verify_bundle

from .small_run import STAGES, prepare, stages_begun, start

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


# what the estimate would refuse at once is what is to be met here
NO_ESTIMATE = """
import codemill.compress.preflight as p; p._disk = lambda needed, work: p.Check('disk', True, '')
from codemill.cli import main
"""
ON_A_SMALL_DISK = """
set -e
mount -t tmpfs -o size=300k none "$1"
shift
for size in 300k 1m 64m; do
    mount -o remount,size=$size "$DISK"
    "$@" && code=0 || code=$?
    echo "ended with $code, $(find "$DISK/work" -name done.json | wc -l) finished" >&2
done
find "$DISK" -name '*.partial-*' >&2
"""


def can_mount() -> bool:
    unshare = shutil.which("unshare")
    if unshare is None:
        return False
    with_mount = [unshare, "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(with_mount, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs to mount a small disk in a namespace")
def test_a_full_disk_is_said_and_the_run_goes_on_once_there_is_room(
    recipe: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    code = f"import sys; exec({NO_ESTIMATE!r}); sys.exit(main())"
    run = [sys.executable, "-c", code, "run", str(recipe), "--work", str(disk / "work")]
    run += ["--out", str(disk / "out")]
    shell = ["sh", "-c", ON_A_SMALL_DISK, "sh", str(disk), *run]
    ended = subprocess.run(
        ["unshare", "--map-root-user", "--mount", *shell],
        env={**os.environ, "DISK": str(disk)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = ended.stderr.splitlines()
    codes = [line for line in lines if line.startswith("ended with")]
    assert [line.split(",")[0] for line in codes] == [
        "ended with 1",
        "ended with 1",
        "ended with 0",
    ]
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 2, ended.stderr
    assert all("the disk is full" in line and "same command again" in line for line in errors)
    assert "Traceback" not in ended.stderr
    assert codes[-1].endswith("10 finished")
    assert not lines[-1].endswith("partial"), "no leftovers"
