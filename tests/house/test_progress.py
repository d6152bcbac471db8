"""Progress on stderr: few lines in a log, bars on a terminal, the time left once it is known."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from codemill.compress import progress
from codemill.compress.progress import Bars, Lines, Silent, counting, duration, shown_progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What `time.monotonic` says, to be set."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_are_few_and_say_the_time_left(clock: list[float]) -> None:
    stream = io.StringIO()
    lines = Lines(stream, every_s=5)
    report = lines.stage("labels", 2, 3, False)
    for second in range(21):
        clock[0] = 100.0 + second
        report(second / 40, "embedding")
    lines.finished("labels", 40.0)
    assert stream.getvalue().splitlines() == [
        "[2/3] labels: started",
        "[2/3] labels: 12% embedding, 35 s left",
        "[2/3] labels: 25% embedding, 30 s left",
        "[2/3] labels: 37% embedding, 25 s left",
        "[2/3] labels: 50% embedding, 20 s left",
        "[2/3] labels: done in 40 s",
    ]


def test_work_that_continues_half_done_does_not_count_the_first_half(clock: list[float]) -> None:
    stream = io.StringIO()
    report = Lines(stream, every_s=5).stage("distil", 1, 2, False)
    report(0.5, "")
    clock[0] += 10
    report(0.6, "")
    assert stream.getvalue().splitlines()[-1] == "[1/2] distil: 60%, 40 s left"


def test_a_stage_that_is_cached_is_one_line() -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    lines.stage("corpus", 1, 9, True)(0.3, "not said")
    lines.finished("corpus", 3900.0)
    assert stream.getvalue() == "[1/9] corpus: done before, in 1:05:00\n"


def test_bars_end_full_with_the_time_taken() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Bars(console) as bars:
        report = bars.stage("distil", 2, 9, False)
        # a message may hold what rich would take for markup, and a share be out of bounds
        report(1.2, "loss [3]")
        bars.finished("distil", 65.0)
        bars.stage("export", 3, 9, True)
        bars.finished("export", 2.0)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[2/9] distil" in shown
    assert "100%" in shown
    assert "done in 1:05" in shown
    assert "done before, in 2.0 s" in shown


def test_where_stderr_is_no_terminal_it_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress() as shown:
        assert isinstance(shown, Lines)
        shown.stage("corpus", 1, 2, False)
    with shown_progress(quiet=True) as shown:
        assert isinstance(shown, Silent)
        shown.stage("corpus", 1, 2, False)(0.5, "x")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "[1/2] corpus: started\n")


def test_counting_nothing_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with counting("reading", "files") as count:
        count(0, 0)
    assert capsys.readouterr().err == ""
    with counting("reading", "files") as count:
        count(0, 2)
        count(2, 2)
    assert capsys.readouterr().err.splitlines()[0] == "reading: started"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (9.96, "10.0 s"), (42.4, "42 s"), (245, "4:05"), (3723, "1:02:03")],
)
def test_durations_read_well(seconds: float, said: str) -> None:
    assert duration(seconds) == said
