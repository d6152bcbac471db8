"""The map over items: results in files, and what becomes of them when workers or the whole are killed."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from codemill.compress import parallel
from codemill.compress.parallel import Cluster, map_processes, map_to_files
from codemill.errors import CodemillError, MachineError, ModelError
from codemill.runtime.machine import Machine, this_machine

from . import mapped

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers find the functions by the tests' names."""
    monkeypatch.syspath_prepend(ROOT)


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


def make_items(notes: Path, *numbers: int, **more: Any) -> list[dict[str, Any]]:
    return [{"number": number, "notes": str(notes), **more} for number in numbers]


def start(function: str, notes: Path, folder: Path, count: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "tests.compress.mapped", function]
    return subprocess.Popen(
        [*arguments, str(notes), str(folder), str(count)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell that runs the tests in the background has Ctrl-C ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_until(happened: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def is_alive(process: str) -> bool:
    """Whether the process runs; one that is dead and not yet waited for does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_results_come_in_order_duplicates_are_evaluated_once_and_progress_is_told(
    notes: Path, tmp_path: Path
) -> None:
    items = make_items(notes, 3, 1, 3, 2)
    items.append(dict(reversed(items[0].items())))
    told: list[tuple[int, int]] = []
    results = map_to_files(
        mapped.square, items, tmp_path / "out", workers=2, on_done=lambda *now: told.append(now)
    )
    assert [result["square"] for result in results] == [9, 1, 9, 4, 9]
    assert mapped.evaluations(notes) == {1: 1, 2: 1, 3: 1}
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert len([*(tmp_path / "out").iterdir()]) == 3


def test_what_is_there_is_not_evaluated_again_and_other_calls_do_not_mix(
    notes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = map_to_files(mapped.square, make_items(notes, 1, 2), out, workers=1)
    told: list[tuple[int, int]] = []
    again = map_to_files(
        mapped.square,
        make_items(notes, 1, 2),
        out,
        workers=1,
        on_done=lambda *now: told.append(now),
    )
    assert again == first
    assert told == [(2, 2)]
    assert mapped.evaluations(notes) == {1: 1, 2: 1}
    assert map_to_files(mapped.cube, make_items(notes, 1, 2), out, workers=1) == [1, 8]
    assert mapped.evaluations(notes) == {1: 2, 2: 2}
    map_to_files(mapped.square, make_items(notes, 1, 2), out, workers=1, version=2)
    assert mapped.evaluations(notes) == {1: 3, 2: 3}
    assert len([*out.iterdir()]) == 6


def test_a_damaged_file_is_evaluated_again(notes: Path, tmp_path: Path) -> None:
    out, items = tmp_path / "out", make_items(notes, *range(6))
    results = map_to_files(mapped.square, items, out, workers=1)
    files = {json.loads(path.read_text())["item"]["number"]: path for path in out.iterdir()}
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[: len(whole) // 2])
    files[1].write_bytes(b"")
    files[2].write_bytes(files[2].read_bytes().replace(b'"square":4', b'"square":5'))
    files[3].write_bytes(b"\xff\xfe[]")
    files[4].write_bytes(files[5].read_bytes())
    assert map_to_files(mapped.square, items, out, workers=1) == results
    assert mapped.evaluations(notes) == {0: 2, 1: 2, 2: 2, 3: 2, 4: 2, 5: 1}
    assert files[0].read_bytes() == whole


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_an_item_whose_worker_is_killed_twice_is_done_and_no_other_is_repeated(
    notes: Path, tmp_path: Path
) -> None:
    items = make_items(notes, *range(6), deaths=2)
    assert map_to_files(mapped.die_first, items, tmp_path / "out", workers=2) == [
        *(0, 10, 20, 30, 40, 50)
    ]
    assert mapped.evaluations(notes) == {0: 1, 1: 1, 2: 3, 3: 1, 4: 1, 5: 1}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_an_item_that_kills_every_worker_is_named_with_the_signal_and_the_others_are_kept(
    notes: Path, tmp_path: Path
) -> None:
    items = make_items(notes, *range(6), deaths=99)
    with pytest.raises(MachineError, match=r"3 workers died.*'number': 2.*SIGKILL"):
        map_to_files(mapped.die_first, items, tmp_path / "out", workers=2)
    assert mapped.evaluations(notes) == {0: 1, 1: 1, 2: 3, 3: 1, 4: 1, 5: 1}
    assert len([*(tmp_path / "out").iterdir()]) == 5


def test_a_worker_that_leaves_is_named_with_its_exit_code(notes: Path, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"'number': 1.*exit code 7"):
        map_to_files(mapped.leave, make_items(notes, 1), tmp_path / "out", workers=1)


@pytest.mark.parametrize(("kind", "error"), [("model", ModelError), ("key", KeyError)])
def test_an_exception_arrives_with_its_type_and_earlier_results_are_kept(
    notes: Path, tmp_path: Path, kind: str, error: type[Exception]
) -> None:
    out, items = tmp_path / "out", make_items(notes, *range(4), kind=kind)
    with pytest.raises(error, match="no such model") as caught:
        map_to_files(mapped.fail, items, out, workers=1)
    assert "in fail" in "".join(caught.value.__notes__)
    assert mapped.evaluations(notes) == {0: 1, 1: 1, 2: 1}
    assert len([*out.iterdir()]) == 2


def test_an_exception_that_cannot_be_pickled_arrives_as_text(notes: Path, tmp_path: Path) -> None:
    with pytest.raises(CodemillError, match="Picky: one two"):
        map_to_files(mapped.fail_pickily, make_items(notes, 1), tmp_path / "out", workers=1)


def test_what_is_not_json_and_what_cannot_be_imported_is_refused(
    notes: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="JSON"):
        map_to_files(mapped.not_json, make_items(notes, 1), tmp_path / "out", workers=1)
    with pytest.raises(TypeError, match="JSON"):
        map_to_files(mapped.square, [{"number": {1}}], tmp_path / "out", workers=1)
    with pytest.raises(TypeError, match="not a named function"):
        map_to_files(lambda item: 1, make_items(notes, 1), tmp_path / "out", workers=1)
    assert not [*(tmp_path / "out").iterdir()]


def test_threads_are_shared_among_the_workers_and_set_before_numpy_is_there(
    notes: Path, tmp_path: Path
) -> None:
    for threads, workers, share in ((7, 2, "3"), (1, 2, "1")):
        found = map_to_files(
            mapped.environment,
            make_items(notes, 1),
            tmp_path / str(threads),
            workers=workers,
            threads=threads,
        )
        assert found == [[share, False]]


@pytest.mark.parametrize(
    ("available", "workers"), [(None, 8), (10**12, 8), (3_999, 3), (999, 1), (0, 1)]
)
def test_no_more_workers_than_there_is_memory_for(
    monkeypatch: pytest.MonkeyPatch, available: int | None, workers: int
) -> None:
    machine = dataclasses.replace(this_machine(), memory_available_bytes=available)

    def look() -> Machine:
        return machine

    monkeypatch.setattr(parallel, "this_machine", look)
    assert parallel._fitting(8, 1_000) == workers
    assert parallel._fitting(8, None) == 8


def test_memory_bounds_the_processes_that_are_started(
    monkeypatch: pytest.MonkeyPatch, notes: Path, tmp_path: Path
) -> None:
    machine = dataclasses.replace(this_machine(), memory_available_bytes=1_500)
    monkeypatch.setattr(parallel, "this_machine", lambda: machine)
    items = make_items(notes, *range(4))
    map_to_files(mapped.slow_square, items, tmp_path, workers=4, memory_per_item_bytes=1_000)
    assert len(mapped.processes(notes)) == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_map_killed_again_and_again_repeats_nothing_that_was_finished(
    notes: Path, tmp_path: Path
) -> None:
    out, count, chance = tmp_path / "out", 40, random.Random(4)
    kills = sorted(chance.sample(range(1, count - 4), 4))
    finished: dict[str, bytes] = {}
    for kill in kills:
        with start("slow_square", notes, out, count) as process:
            wait_until(lambda kill=kill: len([*out.glob("*.json")]) >= kill)
            process.kill()
        wait_until(lambda: not any(is_alive(worker) for worker in mapped.processes(notes)))
        now = {path.name: path.read_bytes() for path in out.glob("*.json")}
        assert finished.items() <= now.items(), "what was finished is as it was"
        finished = now
        assert len(finished) < count, "killed midway"
    times = mapped.evaluations(notes)
    done = {json.loads(content)["item"]["number"] for content in finished.values()}
    with start("slow_square", notes, out, count) as process:
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert said.strip() == str([number**2 / 7 for number in range(count)])
    after = mapped.evaluations(notes)
    assert {number: after[number] for number in done} == {number: times[number] for number in done}
    # a kill loses at most what the two workers were at, or had just handed over
    assert sum(after.values()) <= count + 2 * 2 * len(kills)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_map(notes: Path, tmp_path: Path, how: signal.Signals) -> None:
    with start("wait_forever", notes, tmp_path / "out", 5) as process:
        wait_until(lambda: len(mapped.processes(notes)) == 2)
        if how == signal.SIGINT:
            os.killpg(process.pid, how)
        else:
            os.kill(process.pid, how)
        try:
            errors = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert ("KeyboardInterrupt" in errors) == (how == signal.SIGINT)
    wait_until(lambda: not any(is_alive(worker) for worker in mapped.processes(notes)))


def test_map_processes_keeps_the_order_over_chunks() -> None:
    numbers = [*range(23)]
    squares = [number**2 for number in numbers]
    assert [*map_processes(mapped.plain_square, numbers, 2, chunk=4)] == squares
    assert [*map_processes(mapped.plain_square, numbers, 1)] == squares
    assert [*map_processes(mapped.plain_square, [], 2)] == []


def test_without_ray_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, notes: Path, tmp_path: Path
) -> None:
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_DEDUP_LOGS_SKIP_REGEX"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MachineError, match=r"pip install 'codemill\[scale\]'"):
        map_to_files(mapped.square, make_items(notes, 1), tmp_path / "out", cluster=Cluster())
    assert mapped.evaluations(notes) == {}
