"""Finding functions by meaning: an index for each workspace folder, made and kept current in the background.

The index is the runtime's. Here is when it is brought up to date, how far that is, and who waits for it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from codemill.errors import CodemillError
from codemill.server import settings
from codemill.server.model import Model, NotLoaded, in_loop
from codemill.server.protocol import modified, refused

if TYPE_CHECKING:
    from codemill.runtime import Encoder, Hit, Index

__all__ = ["Finding", "Progress"]

_SETTLE_S = 0.5
"""After a file was changed: others follow as a rule."""
_WAIT_S = 5.0
"""How long a question waits for an index that is being brought up to date."""
_REPORT_EVERY_S = 0.25


@dataclass(frozen=True)
class Progress:
    """How far an update is: files read, of those to read. ended: there is no more to come."""

    done: int
    total: int
    ended: bool = False


class _Stopped(Exception):
    """Raised inside an update that is to stop."""


class Finding:
    """Answers questions for functions. Used from the event loop.

    tell: shows the user a message; report: called with `Progress` of updates that read files.
    """

    def __init__(
        self,
        model: Model[Encoder],
        tell: Callable[[str], None],
        report: Callable[[Progress], None],
    ) -> None:
        self._model = model
        self._tell = tell
        self._report = report
        self._folders: tuple[Path, ...] = ()
        # of the model's thread alone
        self._indexes: dict[Path, Index] = {}
        self._reasons: dict[Path, str] = {}
        self._stop = threading.Event()
        self._begun: object = None
        self._timer: asyncio.TimerHandle | None = None
        self._newest: object = None
        self.settings: settings.Search | None = None
        self.progress = Progress(0, 0, ended=True)
        self.functions = 0
        self.problem = ""
        """Why folders have no index, or an old one."""

    def begin(self, folders: Sequence[Path]) -> None:
        """Other folders, another model or other settings: make the indexes, from what is kept on disk."""
        self.stop()
        self._folders = tuple(folders)
        # an update that runs looks at its own
        self._stop = threading.Event()
        self._begun = object()
        self.functions, self.problem = 0, ""
        self._model.submit(lambda _: self._forget())
        if self.settings is not None:
            self._update()

    def changed(self) -> None:
        """A file was saved, made or removed: bring the indexes up to date when no more follow."""
        if self.settings is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(_SETTLE_S, self._update)

    def stop(self) -> None:
        """Stop an update that runs; it continues with the next one."""
        self._stop.set()
        if self._timer is not None:
            self._timer.cancel()

    def pause(self) -> None:
        """Stop an update that runs, until a file is changed."""
        self.stop()
        self._stop = threading.Event()

    async def find(self, query: str, top: int, newest: bool = False) -> list[Hit]:
        """The functions nearest in meaning, of all folders, the best first. newest: of several such, the last counts.

        Raises JsonRpcException where search is off, an index is not ready in time, or no folder has one;
        CodemillError where there is no model or the query is empty.
        """
        if self.settings is None:
            raise refused("search is off: codemill.search.bundle names no bundle")
        if not self._folders:
            raise refused("no folder is open that could be searched")
        mark = object()
        if newest:
            self._newest = mark

        def search(_: Encoder) -> list[Hit] | None:
            if newest and self._newest is not mark:
                return None
            if not self._indexes:
                raise refused("; ".join(self._reasons.values()) or "there is no index")
            hits: list[Hit] = []
            places: set[tuple[Path, int, str]] = set()
            for index in self._indexes.values():
                # a folder inside another one gives its hits once more
                new = [hit for hit in index.search(query, top) if _place(hit) not in places]
                places.update(map(_place, new))
                hits += new
            return sorted(hits, key=lambda hit: -hit.score)[:top]

        future = self._model.submit(search)
        try:
            hits = await asyncio.wait_for(asyncio.wrap_future(future), _WAIT_S)
        except TimeoutError:
            raise refused(f"{self._busy()}; ask again later") from None
        if hits is None:
            raise modified("something newer was searched for")
        return hits

    def _update(self) -> None:
        """Have the thread bring all indexes up to date."""
        asked_for, folders, stop, begun = self.settings, self._folders, self._stop, self._begun
        if asked_for is None or not folders:
            return
        loop = asyncio.get_running_loop()

        def update(model: Encoder) -> tuple[int, list[str], list[str]]:
            # here, in the thread: it brings numpy
            from codemill.runtime import Index

            failed = []
            for folder in folders:
                counted = _Counted(
                    stop, lambda progress: in_loop(loop, lambda: self._see(progress))
                )
                try:
                    if stop.is_set():
                        raise _Stopped
                    if folder in self._indexes:
                        self._indexes[folder].update(counted)
                    else:
                        self._indexes[folder] = Index.open(
                            folder, model, counted, asked_for.exclude
                        )
                    self._reasons.pop(folder, None)
                except _Stopped:
                    self._reasons[folder] = (
                        f"the index of {folder} was stopped, and continues when a file is saved"
                    )
                except Exception as error:
                    self._indexes.pop(folder, None)
                    said = str(error)
                    if not isinstance(error, CodemillError):
                        said = (
                            f"the index of {folder} cannot be made: {type(error).__name__}: {error}"
                        )
                    self._reasons[folder] = said
                    failed.append(said)
                finally:
                    counted.end()
            functions = sum(len(index) for index in self._indexes.values())
            return functions, failed, list(self._reasons.values())

        future = self._model.submit(update)

        def ended() -> None:
            # one that was stopped by the user counts, one of other folders or settings does not
            if future.cancelled() or begun is not self._begun:
                return
            error = future.exception()
            if error is None:
                self.functions, failed, reasons = future.result()
                self.problem = "; ".join(reasons)
                for problem in failed:
                    self._tell(f"codemill.search: {problem}")
            elif not isinstance(error, NotLoaded):
                self.problem = f"the index cannot be made: {error}"
                self._tell(f"codemill.search: {self.problem}")

        future.add_done_callback(lambda _: in_loop(loop, ended))

    def _forget(self) -> None:
        self._indexes.clear()
        self._reasons.clear()

    def _busy(self) -> str:
        if self._model.state == "loading":
            return "the bundle is being loaded"
        done, total = self.progress.done, self.progress.total
        return f"the index is being brought up to date, {done:,} of {total:,} files"

    def _see(self, progress: Progress) -> None:
        self.progress = progress
        self._report(progress)


class _Counted:
    """The progress of one index's update, told of now and then; raises _Stopped where it is to stop."""

    def __init__(self, stop: threading.Event, tell: Callable[[Progress], None]) -> None:
        self._stop = stop
        self._tell = tell
        self._told = 0.0
        self._last = Progress(0, 0)

    def __call__(self, done: int, total: int) -> None:
        if self._stop.is_set():
            raise _Stopped
        self._last = Progress(done, total)
        now = time.monotonic()
        if total and done < total and now - self._told >= _REPORT_EVERY_S:
            self._told = now
            self._tell(self._last)

    def end(self) -> None:
        """The update has ended, one way or another."""
        if self._told:
            self._tell(Progress(self._last.done, self._last.total, ended=True))


def _place(hit: Hit) -> tuple[Path, int, str]:
    return hit.path.resolve(), hit.line, hit.qualified_name
