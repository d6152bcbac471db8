"""One run at a time in a work folder."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from codemill.compress.lock import working_in
from codemill.errors import InputError, MachineError
from codemill.runtime import lock as runtime_lock

HOLD = """
import sys
from pathlib import Path
from codemill.compress.lock import working_in
with working_in(Path(sys.argv[1]), False, print):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(work: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds `work` until its stdin is closed."""
    argv = [sys.executable, "-c", HOLD, str(work)]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_and_told_who_works_there(tmp_path: Path) -> None:
    with (
        held_elsewhere(tmp_path / "work") as other,
        pytest.raises(MachineError, match=rf"process {other.pid}, since .*--wait.*another --work"),
        working_in(tmp_path / "work", False, print),
    ):
        pass


def test_a_run_that_waits_goes_on_when_the_other_ends(tmp_path: Path) -> None:
    said: list[str] = []
    with held_elsewhere(tmp_path) as other:

        def end(line: str) -> None:
            said.append(line)
            assert other.stdin is not None
            threading.Timer(0.1, other.stdin.close).start()

        with working_in(tmp_path, True, end):
            assert other.wait(10) == 0
    assert said == [line for line in said if f"process {other.pid}" in line]
    assert len(said) == 1


def test_the_lock_of_a_killed_run_is_free(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path) as other:
        other.kill()
        other.wait()
        assert (tmp_path / "running.json").is_file(), "what it could not remove"
        with working_in(tmp_path, False, print):
            pass
    assert not (tmp_path / "running.json").exists()


def test_a_work_folder_that_cannot_be_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"cannot be made.*another --work"),
        working_in(tmp_path / "file" / "work", False, print),
    ):
        pass


@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL])
def test_where_files_cannot_be_locked_nobody_is_said_to_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, wait: bool
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, "no locks")

    monkeypatch.setattr(runtime_lock, "_try", refuse)
    with (
        pytest.raises(MachineError, match=r"lies where files cannot be locked.*another --work"),
        working_in(tmp_path, wait, pytest.fail),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_lock_that_cannot_be_opened_is_not_one_that_is_held(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with (
        pytest.raises(InputError, match=r"cannot be written to .*another --work"),
        working_in(tmp_path, False, print),
    ):
        pass
