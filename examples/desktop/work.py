"""What the window has done for it, without Qt: two threads, each with a model, and a limit of memory for both.

A thread answers the newest question. One that waits is dropped when a newer one comes, and one that is being answered
ends as soon as it can: a completion within a token, the reading of a folder between two files. What happens is told by
a callback, which is called in the thread: whoever has an interface hands it on to the thread of that.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

# what its classes need is imported when they are first used, which is after the window is there
from codemill import runtime
from codemill.errors import CodemillError, MachineError

if TYPE_CHECKING:
    from codemill.runtime import Completer, Encoder, Hit, Index

MB = 1_000_000
_TELL_EVERY_S = 0.1
_CODE_TOKENS, _PROMPT_TOKENS = 64, 1024


@dataclass(frozen=True)
class Said:
    """A line for the user."""

    text: str
    problem: bool = False


@dataclass(frozen=True)
class Reading:
    """A folder is being read: files done, and to do; left_s is None as long as nothing can be said."""

    done: int
    total: int
    left_s: float | None


@dataclass(frozen=True, eq=False)
class Search:
    """A question: what a function does, and where to look; again: the folder has to be looked through once more.

    An empty query only reads the folder.
    """

    model: Model[Encoder]
    folder: Path
    query: str
    again: bool = False


@dataclass(frozen=True)
class Found:
    """The answer: functions and files that were searched, files that were left out and why."""

    search: Search
    hits: list[Hit]
    functions: int
    unreadable: dict[Path, str]
    seconds: float


@dataclass(frozen=True, eq=False)
class Complete:
    """A question: what comes between two texts; an empty prefix only loads. others: code to look in."""

    model: Model[Completer]
    prefix: str
    suffix: str = ""
    mode: Literal["line", "block"] = "line"
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completed:
    """A completion up to now; ended: there is no more of it."""

    complete: Complete
    text: str
    tokens: int
    seconds: float
    ended: bool


Event = Said | Reading | Found | Completed
Tell = Callable[[Event], None]
M = TypeVar("M", bound="Encoder | Completer")
Q = TypeVar("Q", Search, Complete)


class Memory:
    """A limit for the whole process: a model is loaded where it has room, and let go of where there is none."""

    def __init__(self, limit_bytes: int, tell: Tell) -> None:
        self.limit_bytes = limit_bytes
        self.loading = threading.Lock()
        self._tell = tell
        self._lock = threading.Lock()
        # the one used last comes last
        self._models: list[Model[Any]] = []

    def used_bytes(self) -> int:
        """What the process takes now."""
        import psutil

        return int(psutil.Process().memory_info().rss)

    def make_room(self, model: Model[M], asked: int) -> None:
        """Let go of other models until there is room for `asked` bytes; MachineError where there is none."""
        for other in [item for item in self._models if item is not model]:
            if self.used_bytes() + asked <= self.limit_bytes:
                break
            other.let_go()
        used = self.used_bytes()
        if used + asked > self.limit_bytes:
            raise MachineError(
                f"{model.name} asks for {asked / MB:,.0f} MB, and {used / MB:,.0f} of the limit of "
                f"{self.limit_bytes / MB:,.0f} MB are in use. Raise the limit (--memory), or take a smaller bundle"
            )

    def forget(self, model: Model[M]) -> None:
        """A model that is not used any more."""
        with self._lock:
            self._models = [item for item in self._models if item is not model]

    def used_now(self, model: Model[M]) -> None:
        """Note that a model was used; what is above the limit is let go of, the models used longest ago first."""
        with self._lock:
            self._models = [*(item for item in self._models if item is not model), model]
        for other in self._models:
            used = self.used_bytes()
            if used <= self.limit_bytes:
                return
            if other.let_go():
                self._tell(
                    Said(
                        f"{used / MB:,.0f} MB are in use, above the limit of {self.limit_bytes / MB:,.0f}: "
                        f"{other.name} was let go of, and is loaded again when it is needed",
                        problem=True,
                    )
                )


class Model(Generic[M]):
    """A bundle that is loaded when it is first used, and may be let go of when nobody uses it."""

    def __init__(
        self, bundle: str | os.PathLike[str], load: Callable[..., M], memory: Memory, tell: Tell
    ) -> None:
        self.bundle = bundle
        self.name = Path(bundle).name
        self._load = load
        self._memory = memory
        self._tell = tell
        self._lock = threading.Lock()
        self._loaded: M | None = None
        self._retired = False

    @property
    def loaded(self) -> M | None:
        """The model while it is loaded."""
        return self._loaded

    @contextmanager
    def use(self) -> Iterator[M]:
        """The model, loaded if it is not; it is not let go of in here."""
        with self._lock:
            if self._loaded is None:
                with self._memory.loading:
                    asked = runtime.bytes_to_load(self.bundle)
                    self._memory.make_room(self, asked)
                    self._tell(Said(f"Loading {self.name}: {asked / MB:,.1f} MB"))
                    self._loaded = self._load(self.bundle)
            yield self._loaded
        if self._retired:
            self.let_go()
        else:
            self._memory.used_now(self)

    def retire(self) -> None:
        """Free the model for good, as soon as nobody uses it."""
        self._retired = True
        self._memory.forget(self)
        self.let_go()

    def let_go(self) -> bool:
        """Free the model, unless it is in use; whether it was freed."""
        if self._loaded is None or not self._lock.acquire(blocking=False):
            return False
        try:
            loaded, self._loaded = self._loaded, None
            if loaded is not None:
                loaded.close()
            return loaded is not None
        finally:
            self._lock.release()


def embeds(bundle: str | os.PathLike[str], memory: Memory, tell: Tell) -> Model[Encoder]:
    """A bundle to search with."""
    return Model(bundle, runtime.load_encoder, memory, tell)


def completes(bundle: str | os.PathLike[str], memory: Memory, tell: Tell) -> Model[Completer]:
    """A bundle to complete with; the texts that it keeps take a quarter of the limit at most."""

    def load(path: str | os.PathLike[str]) -> Completer:
        model = runtime.load_completer(path)
        model.memory_bytes = min(model.memory_bytes, memory.limit_bytes // 4)
        return model

    return Model(bundle, load, memory, tell)


class Worker(Generic[Q]):
    """A thread that answers the newest question. Subclasses say how, in `answer`."""

    def __init__(self, tell: Tell) -> None:
        self.tell = tell
        self._newest: Q | None = None
        self._waiting: Q | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)
        self._thread.start()

    def ask(self, question: Q | None) -> None:
        """Answer this from now on, and nothing else; None: nothing is wanted any more."""
        with self._changed:
            self._newest = self._waiting = question
            self._changed.notify()

    def newest(self) -> Q | None:
        """The question that is to be answered; None where none is."""
        return None if self._closed else self._newest

    def close(self) -> None:
        """End the thread, and what it is doing."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def answer(self, question: Q) -> None:
        """Answer, and leave as soon as `newest` is another question."""
        raise NotImplementedError

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting is not None)
                question, self._waiting = self._waiting, None
            if self._closed or question is None:
                return
            try:
                self.answer(question)
            except CodemillError as error:
                if self.newest() is question:
                    self.tell(Said(str(error), problem=True))
            except Exception as error:
                # a bug, which should neither end the thread nor pass in silence
                traceback.print_exc()
                self.tell(Said(f"{type(error).__name__}: {error}", problem=True))


class _NotWanted(Exception):
    """The folder that is being read is not the one that is asked for any more."""


class Searcher(Worker[Search]):
    """Keeps the index of the last folder."""

    def __init__(self, tell: Tell) -> None:
        self._index: Index | None = None
        self._of: tuple[Encoder, Path] | None = None
        super().__init__(tell)

    def answer(self, question: Search) -> None:
        """Read the folder unless it was read, then search it."""
        if not os.path.isdir(question.folder):  # noqa: PTH112
            # deleted, perhaps: opening it again says so
            self._index = self._of = None
        with question.model.use() as encoder:
            try:
                index = self._index_of(encoder, question)
            except _NotWanted:
                return
            if self.newest() is not question:
                # asked while the folder was read: the next turn answers it
                return
            started = time.perf_counter()
            hits = index.search(question.query, top=30) if question.query.strip() else []
            seconds = time.perf_counter() - started
        self.tell(Found(question, hits, len(index), index.unreadable, seconds))

    def _index_of(self, encoder: Encoder, question: Search) -> Index:
        if self._index is None or self._of != (encoder, question.folder):
            self._index = self._of = None
            self._index = runtime.Index.open(
                question.folder, encoder, progress=self._progress(question)
            )
            self._of = encoder, question.folder
        elif question.again:
            self._index.update(self._progress(question))
        return self._index

    def _progress(self, question: Search) -> Callable[[int, int], None]:
        started = told = time.perf_counter()

        def progress(done: int, total: int) -> None:
            nonlocal told
            newest = self.newest()
            # another query may wait until the folder is read; another folder or model may not
            if newest is None or (newest.model, newest.folder) != (question.model, question.folder):
                raise _NotWanted
            now = time.perf_counter()
            if total and now - told > _TELL_EVERY_S:
                told = now
                left = (now - started) / done * (total - done) if done else None
                self.tell(Reading(done, total, left))

        return progress


class _Cancel:
    """What the runtime asks after each token: is the question still the newest?"""

    def __init__(self, worker: Worker[Complete], question: Complete) -> None:
        self._worker = worker
        self._question = question

    def is_set(self) -> bool:
        return self._worker.newest() is not self._question


class Completing(Worker[Complete]):
    """Completes, a piece of text at a time."""

    def answer(self, question: Complete) -> None:
        """Tell of each piece, and of the end."""
        with question.model.use() as model:
            if not question.prefix:
                self.tell(Said(f"{question.model.name} is ready"))
                return
            started = time.perf_counter()
            stream = model.stream(
                question.prefix,
                question.suffix if model.fills else "",
                mode=question.mode,
                max_tokens=min(_CODE_TOKENS, model.manifest.max_tokens // 4),
                max_prompt_tokens=_PROMPT_TOKENS,
                buffers=question.others,
                cancel=_Cancel(self, question),
            )

            def tell(ended: bool) -> None:
                made, seconds = stream.completion, time.perf_counter() - started
                self.tell(Completed(question, made.text, len(made.tokens), seconds, ended))

            with stream:
                for _ in stream:
                    tell(ended=False)
            if stream.completion.finish_reason != "cancelled":
                tell(ended=True)
