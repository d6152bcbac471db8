"""What examples/desktop has done in its threads: the newest question, a limit of memory, and what users get wrong."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import codemill
from codemill.errors import MachineError
from codemill.runtime import Encoder

pytest.importorskip("psutil", reason="examples/desktop reads its memory with psutil")

LONG_S = 30.0


class Told:
    """What was told, by whichever thread."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self._more = threading.Condition()

    def __call__(self, event: Any) -> None:
        with self._more:
            self.events.append(event)
            self._more.notify_all()

    def wait(self, wanted: Callable[[Any], bool]) -> Any:
        """The first event like this, once it is there."""

        def found() -> list[Any]:
            return [event for event in self.events if wanted(event)]

        with self._more:
            assert self._more.wait_for(found, LONG_S), self.events
            return found()[0]

    def problem(self) -> str:
        return str(self.wait(lambda event: getattr(event, "problem", False)).text)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def memory(work: ModuleType, told: Told) -> Any:
    return work.Memory(10**12, told)


@pytest.fixture
def searcher(work: ModuleType, told: Told) -> Iterator[Any]:
    found = work.Searcher(told)
    yield found
    found.close()


@pytest.fixture
def completing(work: ModuleType, told: Told) -> Iterator[Any]:
    found = work.Completing(told)
    yield found
    found.close()


@pytest.fixture
def search(work: ModuleType, memory: Any, told: Told, embedder: Path) -> Iterator[Any]:
    model = work.embeds(embedder, memory, told)
    yield lambda folder, query, **rest: work.Search(model, folder, query, **rest)
    model.retire()


class Slow:
    """A completer that gives one piece after another until nobody wants them."""

    fills = False
    manifest = SimpleNamespace(max_tokens=600)
    memory_bytes = 0

    def __init__(self) -> None:
        self.prefixes: list[str] = []
        self.pieces = 0

    def stream(self, prefix: str, suffix: str, *, cancel: Any, **rest: Any) -> Any:
        self.prefixes.append(prefix)
        return _Pieces(self, prefix, cancel)

    def close(self) -> None: ...


class _Pieces:
    def __init__(self, model: Slow, prefix: str, cancel: Any) -> None:
        self._model, self._cancel = model, cancel
        self._end = 1 if prefix == "last" else 10**9
        self.completion = SimpleNamespace(text="", tokens=(), finish_reason="length")

    def __enter__(self) -> _Pieces:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __iter__(self) -> Iterator[str]:
        for _ in range(self._end):
            if self._cancel.is_set():
                self.completion = SimpleNamespace(text="", tokens=(), finish_reason="cancelled")
                return
            self._model.pieces += 1
            yield "x"
            time.sleep(0.001)


def test_a_search_says_what_it_loads_and_finds(
    work: ModuleType, searcher: Any, search: Any, told: Told, code: Path, embedder: Path
) -> None:
    searcher.ask(search(code, "multiply a matrix"))
    found = told.wait(lambda event: isinstance(event, work.Found))
    assert found.hits[0].qualified_name == "product"
    assert (found.functions, found.unreadable) == (3, {})
    assert told.events[0].text.startswith(f"Loading {embedder.name}: 0.0 MB")


def test_a_folder_is_read_once_and_again_when_asked(
    work: ModuleType, searcher: Any, search: Any, told: Told, code: Path
) -> None:
    def functions(question: Any) -> int:
        searcher.ask(question)
        return int(told.wait(lambda event: getattr(event, "search", None) is question).functions)

    assert functions(search(code, "parse")) == 3
    (code / "d.py").write_text("def more():\n    return 1\n")
    assert functions(search(code, "parse json")) == 3
    assert functions(search(code, "parse json", again=True)) == 4


def test_only_the_newest_completion_is_worked_on(
    work: ModuleType, completing: Any, memory: Any, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work.runtime, "bytes_to_load", lambda path: 0)
    slow = Slow()
    model = work.Model("slow", lambda path: slow, memory, told)
    first, last = work.Complete(model, "first"), work.Complete(model, "last")
    completing.ask(first)
    told.wait(lambda event: getattr(event, "complete", None) is first)
    # the second is never begun, or stopped as the first is
    completing.ask(work.Complete(model, "second"))
    completing.ask(last)
    told.wait(lambda event: getattr(event, "complete", None) is last and event.ended)
    assert slow.prefixes[0] == "first"
    assert slow.prefixes[-1] == "last"
    ended = [e.complete.prefix for e in told.events if isinstance(e, work.Completed) and e.ended]
    assert ended == ["last"]


def test_what_nobody_wants_any_more_ends_within_a_piece(
    work: ModuleType, completing: Any, memory: Any, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work.runtime, "bytes_to_load", lambda path: 0)
    slow = Slow()
    model = work.Model("slow", lambda path: slow, memory, told)
    completing.ask(work.Complete(model, "first"))
    told.wait(lambda event: isinstance(event, work.Completed))
    completing.ask(None)
    pieces = slow.pieces
    # let go of as soon as it is not in use
    deadline = time.monotonic() + LONG_S
    while not model.let_go():
        assert time.monotonic() < deadline
    assert slow.pieces <= pieces + 1


def test_a_completion_is_what_the_runtime_completes(
    work: ModuleType, completing: Any, memory: Any, told: Told, coder: Path
) -> None:
    prefix = "def add(a, b):\n    return "
    with codemill.load(coder) as model:
        wanted = model.complete(prefix, mode="line").text
    question = work.Complete(work.completes(coder, memory, told), prefix)
    completing.ask(question)
    found = told.wait(lambda event: isinstance(event, work.Completed) and event.ended)
    assert found.text == wanted
    texts = [event.text for event in told.events if isinstance(event, work.Completed)]
    assert all(after.startswith(before) for before, after in itertools.pairwise(texts))
    question.model.retire()


class Gate(Encoder):
    """An encoder whose first batch waits."""

    reached: threading.Event
    opened: threading.Event

    def encode(self, texts: Sequence[str], batch_size: int = 32) -> NDArray[np.float32]:
        self.reached.set()
        assert self.opened.wait(LONG_S)
        return super().encode(texts, batch_size)


@pytest.fixture
def gate(work: ModuleType, memory: Any, told: Told, embedder: Path) -> Any:
    """A model to search with, whose reading of a folder waits."""
    found = SimpleNamespace(reached=threading.Event(), opened=threading.Event())

    def load(path: Path) -> Encoder:
        encoder = codemill.load(path)
        encoder.__class__ = Gate
        assert isinstance(encoder, Gate)
        encoder.reached, encoder.opened = found.reached, found.opened
        return encoder

    found.model = work.Model(embedder, load, memory, told)
    return found


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """More functions than are embedded at a time."""
    folder = tmp_path / "large"
    folder.mkdir()
    for number in range(30):
        text = "".join(f"def f{number}_{n}():\n    return {n}\n" for n in range(40))
        (folder / f"{number:02}.py").write_text(text)
        # what was written just now is read again in any case
        os.utime(folder / f"{number:02}.py", (1, 1))
    return folder


def test_another_folder_ends_the_reading_of_one(
    work: ModuleType, searcher: Any, told: Told, gate: Any, large: Path, code: Path
) -> None:
    searcher.ask(work.Search(gate.model, large, "parse"))
    assert gate.reached.wait(LONG_S)
    second = work.Search(gate.model, code, "parse json")
    searcher.ask(second)
    gate.opened.set()
    found = told.wait(lambda event: isinstance(event, work.Found))
    assert found.search is second
    assert not any(getattr(event, "problem", False) for event in told.events)
    # of the first folder, what was embedded is kept: less than all, more than nothing
    with gate.model.use() as encoder:
        done: list[int] = []
        work.runtime.Index.open(large, encoder, progress=lambda at, total: done.append(total))
    assert 0 < done[0] < 30


def test_another_query_does_not_end_it_and_is_the_one_that_is_answered(
    work: ModuleType, searcher: Any, told: Told, gate: Any, large: Path
) -> None:
    searcher.ask(work.Search(gate.model, large, "p"))
    assert gate.reached.wait(LONG_S)
    newest = work.Search(gate.model, large, "parse")
    searcher.ask(newest)
    gate.opened.set()
    found = told.wait(lambda event: isinstance(event, work.Found))
    assert found.search is newest
    assert found.functions == 30 * 40


def test_what_has_no_room_is_not_loaded_and_what_it_asks_for_is_said(
    work: ModuleType, searcher: Any, search: Any, memory: Any, told: Told, code: Path
) -> None:
    memory.limit_bytes = 1_000_000
    searcher.ask(search(code, "parse"))
    said = told.problem()
    assert "asks for 0 MB" in said
    assert "of the limit of 1 MB are in use" in said
    assert "--memory" in said


def test_above_the_limit_a_model_is_let_go_of_and_loaded_again_when_there_is_room(
    work: ModuleType, searcher: Any, search: Any, memory: Any, told: Told, code: Path
) -> None:
    question = search(code, "parse")
    used = 100_000_000
    memory.used_bytes = lambda: used
    memory.limit_bytes = 200_000_000
    searcher.ask(question)
    told.wait(lambda event: isinstance(event, work.Found))
    used = 300_000_000
    searcher.ask(search(code, "parse json"))
    assert "300 MB are in use, above the limit of 200" in told.problem()
    assert question.model.loaded is None
    used = 100_000_000
    again = search(code, "multiply a matrix")
    searcher.ask(again)
    found = told.wait(lambda event: getattr(event, "search", None) is again)
    assert found.hits[0].qualified_name == "product"


def test_the_model_used_longest_ago_makes_room(
    work: ModuleType, memory: Any, told: Told, embedder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [work.embeds(embedder, memory, told) for _ in range(3)]
    monkeypatch.setattr(work.runtime, "bytes_to_load", lambda path: 100)
    memory.used_bytes = lambda: 100 * sum(model.loaded is not None for model in models)
    memory.limit_bytes = 200

    def use(model: Any) -> None:
        with model.use():
            pass

    def loaded() -> list[bool]:
        return [model.loaded is not None for model in models]

    for model in models:
        use(model)
    assert loaded() == [False, True, True]
    memory.limit_bytes = 100
    # what is in use stays
    with models[1].use(), pytest.raises(MachineError, match="asks for"):
        use(models[0])
    assert loaded() == [False, True, False]
    for model in models:
        model.retire()


def test_a_model_that_is_replaced_while_it_works_is_freed_behind_it(
    work: ModuleType, memory: Any, told: Told, embedder: Path
) -> None:
    model = work.embeds(embedder, memory, told)
    with model.use():
        model.retire()
        assert model.loaded is not None
    assert model.loaded is None


def test_a_bundle_made_for_something_else_is_refused(
    work: ModuleType, searcher: Any, memory: Any, told: Told, code: Path, coder: Path
) -> None:
    searcher.ask(work.Search(work.embeds(coder, memory, told), code, "parse"))
    assert "is made for 'completion'" in told.problem()


def test_a_bundle_that_is_not_there_is_said(
    work: ModuleType, completing: Any, memory: Any, told: Told, tmp_path: Path
) -> None:
    completing.ask(work.Complete(work.completes(tmp_path / "gone", memory, told), "x = "))
    assert "gone" in told.problem()


def test_a_folder_that_is_deleted_is_said_and_forgotten(
    work: ModuleType, searcher: Any, search: Any, told: Told, code: Path, tmp_path: Path
) -> None:
    searcher.ask(search(code, "parse"))
    told.wait(lambda event: isinstance(event, work.Found))
    moved = code.rename(tmp_path / "moved")
    searcher.ask(search(code, "parse json"))
    assert f"there is no folder {str(code)!r}" in told.problem()
    moved.rename(code)
    again = search(code, "parse")
    searcher.ask(again)
    assert told.wait(lambda event: getattr(event, "search", None) is again).functions == 3


def test_an_empty_folder_has_nothing_to_search(
    work: ModuleType, searcher: Any, search: Any, told: Told, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    searcher.ask(search(tmp_path / "empty", "parse"))
    found = told.wait(lambda event: isinstance(event, work.Found))
    assert (found.functions, found.hits) == (0, [])


def test_a_huge_file_is_left_out_and_named(
    work: ModuleType, searcher: Any, search: Any, told: Told, code: Path
) -> None:
    (code / "huge.py").write_text("x = 1\n" * 1_000_000)
    searcher.ask(search(code, "parse"))
    found = told.wait(lambda event: isinstance(event, work.Found))
    assert found.functions == 3
    assert [path.name for path in found.unreadable] == ["huge.py"]


def test_a_bug_neither_ends_the_thread_nor_passes_in_silence(
    work: ModuleType,
    searcher: Any,
    search: Any,
    told: Told,
    code: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    searcher.ask(work.Search(None, code, "parse"))
    assert "AttributeError" in told.problem()
    assert "Traceback" in capfd.readouterr().err
    searcher.ask(search(code, "parse"))
    assert told.wait(lambda event: isinstance(event, work.Found)).functions == 3
