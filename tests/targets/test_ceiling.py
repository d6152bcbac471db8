"""What a processor can do at most, and when times are to be doubted."""

from __future__ import annotations

import subprocess

import pytest

from codemill.targets import ceiling
from codemill.targets.benchmark import _doubts, _Measured, _uneven
from codemill.targets.ceiling import Ceiling, best_of, measured_ceiling
from codemill.targets.engine import Engine
from codemill.targets.profile import Shape
from codemill.targets.worker import MOST_WARMUP, _warmed_up


def test_it_is_measured_in_a_process_of_its_own() -> None:
    (found,) = measured_ceiling(1)
    assert found.threads == 1
    assert found.gemm_gflops > 1
    assert found.read_gb_per_s > 0.1


def test_a_process_that_fails_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("x", 1)

    monkeypatch.setattr(ceiling.subprocess, "run", fail)
    assert measured_ceiling(1) == []
    assert best_of([]) is None


def test_the_best_of_the_rounds_counts_and_uneven_ones_are_a_doubt() -> None:
    calm, slow = Ceiling(120.0, 10.0, 2), Ceiling(3.0, 12.0, 2)
    assert best_of([slow, calm]) == Ceiling(120.0, 12.0, 2)
    assert list(_uneven([])) == list(_uneven([calm, calm])) == []
    (said,) = _uneven([calm, slow])
    assert "came to 3 GFLOP/s after one round and to 120 after another" in said


def measured(rounds: list[float], settled: bool | None = True) -> _Measured:
    found = _Measured(Engine("bundle", (), "bundle", 1))
    found.calls[Shape(128)] = [{"ms": [ms] * 3, "settled": settled} for ms in rounds]
    return found


def test_rounds_that_differ_calls_that_did_not_settle_and_a_falling_clock_are_doubts() -> None:
    shapes = [Shape(128)]
    assert list(_doubts([measured([10.0, 10.5, 11.0])], shapes, [3000.0, 2990.0])) == []
    (said,) = _doubts([measured([10.0, 10.5, 15.0])], shapes, [])
    assert "its rounds differ by 48% of their median" in said
    (said,) = _doubts([measured([10.0], settled=False)], shapes, [])
    assert "had not become alike" in said
    (said,) = _doubts([measured([10.0], settled=None)], shapes, [3000.0, 2600.0])
    assert "clock fell from 3,000 to 2,600 MHz" in said


def test_warming_up_goes_on_until_calls_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    took: list[float] = []

    def encode(_: object) -> None:
        nonlocal now
        now += took.pop(0) if took else 1.0

    monkeypatch.setattr("codemill.targets.worker.time.perf_counter", lambda: now)
    took[:] = [9.0, 3.0, 1.0, 1.0, 1.05, 7.0]
    assert _warmed_up(encode, [["a"]], 2, 1e9) is True
    assert took == [7.0]
    took[:] = [1.0, 2.0] * 50
    assert _warmed_up(encode, [["a"]], 2, 1e9) is False
    assert len(took) == 100 - 2 - MOST_WARMUP
    assert _warmed_up(encode, [["a"]], 0, 1e9) is None
    took[:] = [1.0, 2.0] * 50
    assert _warmed_up(encode, [["a"]], 2, 13.0) is False
    assert len(took) > 90
    # two calls say nothing of whether they are alike
    took[:] = [9.0] * 50
    assert _warmed_up(encode, [["a"]], 2, 8.0) is None
    assert len(took) == 48
