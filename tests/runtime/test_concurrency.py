"""Processes and threads that use one bundle, one cache and one index, some of them killed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codemill.runtime import Index, archive, find, load, pack, unpack, verify_bundle
from codemill.runtime.lock import held

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kills processes and reads /proc")

CHILDREN = Path(__file__).with_name("children.py")


@pytest.fixture
def mill(built: Path, tmp_path: Path) -> Path:
    return pack(built, tmp_path / "tiny.mill")


@contextlib.contextmanager
def child(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process that is gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, str(CHILDREN), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait(process: subprocess.Popen[str], line: str = "ready") -> None:
    assert process.stdout is not None
    for found in process.stdout:
        if found.strip() == line:
            return
    pytest.fail(f"the process ended with {process.wait()} before it said {line!r}")


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def last(process: subprocess.Popen[str]) -> str:
    """The last line of a process that ends well."""
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return out.splitlines()[-1]


def run(*arguments: object) -> Any:
    with child(*arguments) as process:
        return json.loads(last(process))


# ------------------------------------------------------------------ the lock


def test_a_lock_is_held_by_one_at_a_time_and_free_again_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held(path) as first, held(path, timeout_s=0) as second:
        assert (first, second) == (True, False)
    with held(path, timeout_s=0) as third:
        assert third


def test_where_no_lock_can_be_made_it_is_not_held(tmp_path: Path) -> None:
    with held(tmp_path / "none" / "lock") as alone:
        assert not alone


# ------------------------------------------------------------------ unpacking


def test_ten_processes_that_load_one_mill_at_once_all_get_the_model(
    mill: Path, built: Path, cache: Path
) -> None:
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(child("load", mill)) for _ in range(10)]
        for process in processes:
            wait(process)
        for process in processes:
            go(process)
        answers = {last(process) for process in processes}
    with child("load", built) as process:
        go(process)
        assert answers == {last(process)}
    assert [path.name[:7] for path in (cache / "bundles").iterdir()] == ["sha256-"]


def test_what_a_killed_unpacking_left_is_swept_by_the_next(mill: Path, cache: Path) -> None:
    with child("stopped_unpack", mill) as process:
        wait(process)
        assert [path.name[:4] for path in (cache / "bundles").iterdir()] == ["tmp-"]
    folder = unpack(mill)
    verify_bundle(folder)
    assert list((cache / "bundles").iterdir()) == [folder]


def test_one_of_those_waiting_takes_over_from_a_killed_one(mill: Path, cache: Path) -> None:
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(child("load", mill)) for _ in range(3)]
        for other in others:
            wait(other)
        with child("stopped_unpack", mill) as first:
            wait(first)
            for other in others:
                go(other)
            time.sleep(0.2)
            # they wait for the one that unpacks, rather than each unpack as well
            assert [path.name[:4] for path in (cache / "bundles").iterdir()] == ["tmp-"]
        assert len({last(other) for other in others}) == 1
    assert [path.name[:7] for path in (cache / "bundles").iterdir()] == ["sha256-"]


def test_without_the_lock_unpacking_works_as_well(
    mill: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir()
    (cache / "bundles").mkdir()
    for name in ("tmp-theirs", "own-theirs", "own-old", "tmp-old"):
        (cache / "bundles" / name).mkdir()
    for name in ("own-old", "tmp-old"):
        os.utime(cache / "bundles" / name, (1e9, 1e9))
    monkeypatch.setattr(archive, "held", lambda path: held(path, timeout_s=0))
    with held(cache / "bundles.lock") as alone:
        assert alone
        folder = unpack(mill)
    verify_bundle(folder)
    # what another process may be writing is let be
    assert sorted(path.name for path in (cache / "bundles").iterdir()) == [
        *("own-theirs", folder.name, "tmp-theirs")
    ]


# ------------------------------------------------------------------ one model


def test_threads_that_share_a_model_get_its_answers_and_take_no_more_memory(built: Path) -> None:
    first, second = run("threads", built, 5, 20)
    assert first["same"]
    assert second["same"]
    assert second["rss_bytes"] < 1.05 * first["rss_bytes"]


@pytest.mark.parametrize("packed", [False, True])
def test_loading_and_closing_leaves_no_file_open_and_gives_the_memory_back(
    built: Path, mill: Path, packed: bool
) -> None:
    first, second = run("cycles", mill if packed else built, 20, 100)
    assert second["files"] == first["files"]
    assert second["answer"] == first["answer"]
    assert second["rss_bytes"] < 1.05 * first["rss_bytes"]


def test_a_bundle_that_is_refused_leaves_no_file_open(bundle: Path, tmp_path: Path) -> None:
    (bundle / "tokenizer.json").write_bytes(b"{}")
    (tmp_path / "bad.mill").write_bytes(b"PK\5\6")
    files = len(list(Path("/proc/self/fd").iterdir()))
    for path in (bundle, tmp_path / "bad.mill") * 10:
        with pytest.raises(archive.BundleError):
            load(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == files


# ------------------------------------------------------------------ one index


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    words = ["parse", "json", "open", "socket", "matrix", "sort", "read", "write"]
    for number in range(40):
        first, second = words[number % 8], words[number // 8]
        text = f"def {first}_{number}(data):\n    return {second}(data, {number})\n"
        (folder / f"m{number:02}.py").write_text(text)
        os.utime(folder / f"m{number:02}.py", (1e9, 1e9 + number))
    return folder


def contents(cache: Path) -> dict[str, tuple[Any, Any]]:
    """What the one index in the cache holds, by file; nothing else may lie beside it."""
    (table,) = cache.glob("indexes/*/index.json")
    data = json.loads(table.read_bytes())
    assert {path.name for path in table.parent.iterdir()} == {table.name, *data["segments"]}
    segments = [np.load(table.parent / name) for name in data["segments"]]
    found, start = {}, 0
    for name, *_, count, segment, first in data["files"]:
        names = data["names"][start : start + count]
        found[name] = (names, segments[segment][first : first + count].tolist())
        start += count
    assert start == len(data["names"])
    return found


@pytest.fixture
def undisturbed(
    code: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, tuple[Any, Any]]:
    with monkeypatch.context() as patch, load(built, threads=1) as model:
        patch.setenv("CODEMILL_CACHE", str(tmp_path / "other"))
        patch.setattr(find, "_CHUNK", 4)
        Index.open(code, model)
    return contents(tmp_path / "other")


@pytest.mark.parametrize("done", [0, 5, 39])
def test_an_index_whose_making_was_killed_continues_and_is_as_if_nothing_had_been(
    code: Path, built: Path, cache: Path, undisturbed: Any, done: int
) -> None:
    with child("index", code, built, 4, 0.005) as process:
        go(process)
        wait(process, f"{done}/40")
    with child("index", code, built, 4) as process:
        go(process)
        found = json.loads(last(process))
    assert found["functions"] == 40
    # the rest of a chunk is embedded again
    assert found["embedded"] <= 40 - done // 4 * 4
    assert contents(cache) == undisturbed


@pytest.mark.parametrize("at", ["in .npy", "after .npy", "in .json", "after .json"])
def test_an_index_killed_while_it_was_saved_is_whole_and_leaves_nothing_behind(
    code: Path, built: Path, cache: Path, undisturbed: Any, at: str
) -> None:
    with child("stopped_index", code, built, at) as process:
        wait(process)
    with child("index", code, built, 4) as process:
        go(process)
        found = json.loads(last(process))
    assert found["embedded"] == (0 if at == "after .json" else 40)
    (code / "m00.py").touch()
    with child("index", code, built, 4) as process:
        go(process)
        assert json.loads(last(process))["embedded"] == 0
    assert contents(cache) == undisturbed


def test_processes_that_update_one_index_at_once_leave_a_whole_one(
    code: Path, built: Path, cache: Path, undisturbed: Any
) -> None:
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(child("index", code, built, 4)) for _ in range(3)]
        for process in processes:
            wait(process)
        for process in processes:
            go(process)
        assert {json.loads(last(process))["functions"] for process in processes} == {40}
    assert contents(cache) == undisturbed
