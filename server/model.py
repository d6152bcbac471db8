"""A bundle of the settings, loaded and run in a thread of its own, so that the protocol is never kept waiting.

One thread a model: what it is asked is answered in the order in which it was asked, its loading first of all.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

from codemill.errors import CodemillError, InputError
from codemill.server.settings import Bundle

__all__ = ["Model", "NotLoaded", "State", "in_loop", "place"]

State = Literal["off", "loading", "ready", "failed"]


class NotLoaded(InputError):
    """There is no model to ask; the user was told why when it was loaded."""


class _Closes(Protocol):
    def close(self) -> None: ...


M = TypeVar("M", bound=_Closes)
T = TypeVar("T")


class Model(Generic[M]):
    """A model that may be off, exchanged for another, or not to be had. Used from the event loop.

    failed: called in the event loop with what to tell the user where a bundle cannot be loaded.
    """

    def __init__(self, name: str, failed: Callable[[str], None]) -> None:
        self._name = name
        self._failed = failed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"codemill-{name}")
        # of the thread alone
        self._model: M | None = None
        self._reason = "it is not loaded"
        self._asked = 0
        self.state: State = "off"
        self.reason = ""

    def exchange(self, load: Callable[[], M] | None) -> None:
        """Close the model that is loaded, and load another; None: none. Returns at once."""
        self._asked += 1
        self.state, self.reason = ("off" if load is None else "loading"), ""
        loop, asked = asyncio.get_running_loop(), self._asked
        future = self._thread.submit(self._exchange, load)
        future.add_done_callback(
            lambda ended: in_loop(loop, lambda: self._exchanged(ended, asked, load is not None))
        )

    def submit(self, function: Callable[[M], T]) -> Future[T]:
        """Have the thread call `function` with the model; NotLoaded where there is none."""
        return self._thread.submit(self._run, function)

    def close(self) -> None:
        """Close the model and end the thread; what is still waiting is dropped. Waits for what is running."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        model, self._model = self._model, None
        if model is not None:
            model.close()

    def _exchange(self, load: Callable[[], M] | None) -> None:
        model, self._model = self._model, None
        if model is not None:
            model.close()
        if load is None:
            self._reason = "it is not loaded"
            return
        try:
            self._model = load()
        except BaseException as error:
            self._reason = _said(error)
            raise

    def _exchanged(self, ended: Future[None], asked: int, on: bool) -> None:
        if asked != self._asked or ended.cancelled():
            return
        error = ended.exception()
        if error is None:
            self.state = "ready" if on else "off"
            return
        self.state, self.reason = "failed", _said(error)
        self._failed(f"codemill.{self._name}: {self.reason}")

    def _run(self, function: Callable[[M], T]) -> T:
        if self._model is None:
            raise NotLoaded(f"codemill.{self._name}: {self._reason}")
        try:
            return function(self._model)
        except Exception:
            raise
        except BaseException as error:
            # a panic inside the tokenizers library is no Exception, and nobody would answer
            raise RuntimeError(_said(error)) from error


def place(bundle: Bundle, root: Path | None) -> str:
    """The path to load: `~` is the home, and a relative one is in the first workspace folder where it is there."""
    path = os.path.expanduser(bundle.path)  # noqa: PTH111
    if root is not None and not os.path.isabs(path) and (root / path).exists():  # noqa: PTH117
        return os.fspath(root / path)
    return path


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, CodemillError) else f"{type(error).__name__}: {error}"


def in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    """Call in the event loop, from another thread; not at all where the loop has ended."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call)
