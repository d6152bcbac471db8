"""Where a command says how far it is: rich bars on a terminal, plain lines in a log, or nowhere.

Everything goes to stderr. The bars need rich, which the base install has not: lines it is then.
The form of a run's progress is `pipeline.Progress`; what the stages are is not known here.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codemill.compress.pipeline import Progress, Report

__all__ = ["Bars", "Lines", "Silent", "counting", "duration", "shown_progress", "shown_stage"]

# a log that is watched says something every few seconds, one that is kept stays short
_LINE_EVERY_S = 5.0
# the time left is worth saying once this much has been seen of a stage
_SEEN_S = 2.0
_SEEN_FRACTION = 0.02


class Silent:
    """Says nothing."""

    def stage(self, name: str, number: int, total: int, cached: bool) -> Report:  # noqa: ARG002
        """A report that goes nowhere."""
        return _nowhere

    def finished(self, name: str, seconds: float) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


class Lines:
    """One line when a stage begins and ends, and at most one every few seconds between."""

    def __init__(self, stream: IO[str], every_s: float = _LINE_EVERY_S) -> None:
        self._stream = stream
        self._every_s = every_s
        self._places: dict[str, tuple[str, bool]] = {}

    def stage(self, name: str, number: int, total: int, cached: bool) -> Report:
        """A stage begins; a cached one has nothing to report."""
        place = f"[{number}/{total}] {name}" if total > 1 else name
        self._places[name] = (place, cached)
        if cached:
            return _nowhere
        self._say(f"{place}: started")
        left = _Left()
        last = time.monotonic()

        def report(fraction: float, message: str) -> None:
            nonlocal last
            now = time.monotonic()
            seconds = left.after(fraction)
            if now - last < self._every_s:
                return
            last = now
            said = f", {duration(seconds)} left" if seconds is not None else ""
            about = f" {message}" if message else ""
            self._say(f"{place}: {_percent(fraction)}{about}{said}")

        return report

    def finished(self, name: str, seconds: float) -> None:
        """A stage has ended, or was found finished: `seconds` is what it took."""
        place, cached = self._places.pop(name, (name, False))
        self._say(f"{place}: " + (_cached(seconds) if cached else f"done in {duration(seconds)}"))

    def say(self, line: str) -> None:
        """What a stage found, on a line of its own."""
        self._say(f"    {line}")

    def _say(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class Bars:
    """A rich bar for each stage, with the time left. Lives in a `with`."""

    def __init__(self, console: Any = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._progress = Progress(
            TextColumn("{task.fields[place]}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[message]}", markup=False),
            console=console or Console(stderr=True),
        )
        self._tasks: dict[str, tuple[Any, bool]] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._progress.stop()

    def stage(self, name: str, number: int, total: int, cached: bool) -> Report:
        """A stage begins: its bar appears."""
        place = f"[{number}/{total}] {name}" if total > 1 else name
        task = self._progress.add_task(name, total=1.0, place=place, message="")
        self._tasks[name] = (task, cached)
        left = _Left()

        def report(fraction: float, message: str) -> None:
            seconds = left.after(fraction)
            parts = [message, f"{duration(seconds)} left" if seconds is not None else ""]
            text = ", ".join(part for part in parts if part)
            self._progress.update(task, completed=_share(fraction), message=text)

        return report

    def finished(self, name: str, seconds: float) -> None:
        """A stage has ended: its bar stays, full, with the time it took."""
        if name in self._tasks:
            task, cached = self._tasks.pop(name)
            message = _cached(seconds) if cached else f"done in {duration(seconds)}"
            self._progress.update(task, completed=1.0, message=message)

    def say(self, line: str) -> None:
        """What a stage found, above the bars."""
        self._progress.console.print(f"  {line}", markup=False, highlight=False)


@contextlib.contextmanager
def shown_progress(quiet: bool = False) -> Iterator[Progress]:
    """Bars where stderr is a terminal and rich is installed, lines where not, silence if asked."""
    if quiet:
        yield Silent()
    elif sys.stderr.isatty() and find_spec("rich") is not None:
        with Bars() as bars:
            yield bars
    else:
        yield Lines(sys.stderr)


@contextlib.contextmanager
def shown_stage(name: str) -> Iterator[Report]:
    """report(fraction, message) of one piece of work that is a command's whole."""
    started = time.monotonic()
    with shown_progress() as shown:
        yield shown.stage(name, 1, 1, False)
        shown.finished(name, time.monotonic() - started)


@contextlib.contextmanager
def counting(name: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """progress(done, total) of one piece of work; nothing is shown while there is nothing to do."""
    with contextlib.ExitStack() as stack:
        started = time.monotonic()
        shown: Progress | None = None
        report: Report | None = None

        def progress(done: int, total: int) -> None:
            nonlocal shown, report
            if total == 0:
                return
            if shown is None or report is None:
                shown = stack.enter_context(shown_progress())
                report = shown.stage(name, 1, 1, False)
            report(done / total, f"{done:,} of {total:,} {unit}")

        yield progress
        if shown is not None:
            shown.finished(name, time.monotonic() - started)


def _nowhere(*_: object) -> None:
    """What a stage that has nothing to say reports to."""


def duration(seconds: float) -> str:
    """As `8.3 s`, `4:05` or `1:02:03`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Left:
    """The time a stage has left if it goes on as it has since its first report.

    Since the first report and not since zero: work that continues after a crash starts half done.
    """

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None

    def after(self, fraction: float) -> float | None:
        """Seconds left at `fraction`; None while that would be a guess."""
        now, share = time.monotonic(), _share(fraction)
        if self._first is None:
            self._first = (now, share)
        seconds, gained = now - self._first[0], share - self._first[1]
        if seconds < _SEEN_S or gained < _SEEN_FRACTION:
            return None
        return seconds / gained * (1 - share)


def _share(fraction: float) -> float:
    return min(1.0, max(0.0, fraction))


def _percent(fraction: float) -> str:
    return f"{int(100 * _share(fraction))}%"


def _cached(seconds: float) -> str:
    return f"done before, in {duration(seconds)}"
