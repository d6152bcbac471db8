"""The window of examples/desktop, offscreen: what is typed, shown, offered, taken and refused."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from .conftest import DESKTOP

LONG_S = 30.0
# Qt ends the process where it finds no platform: that is tried in another one
_PROBE = "from PySide6.QtWidgets import QApplication; import psutil; QApplication([])"
_SHOWN = """
import sys
from PySide6.QtWidgets import QApplication
import app
application = QApplication([])
window = app.Window("", "code-search", "", 1000)
window.show()
application.processEvents()
print(window.isVisible(), {"numpy", "onnxruntime", "tokenizers"} & set(sys.modules))
"""


@pytest.fixture(scope="module")
def qt() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QT_QPA_PLATFORM", "offscreen")
        probe = [sys.executable, "-c", _PROBE]
        ended = subprocess.run(probe, capture_output=True, encoding="utf-8", check=False)
        if ended.returncode:
            why = ended.stderr.strip().splitlines()[-1:] or [f"exit code {ended.returncode}"]
            pytest.skip(f"PySide6 does not start here: {why[0]}")
        from PySide6.QtWidgets import QApplication

        application = QApplication([])
        yield application
        application.shutdown()


@pytest.fixture
def app(qt: Any, work: ModuleType) -> ModuleType:
    import app

    return app


class Driven:
    """A window, and hands."""

    def __init__(self, window: Any) -> None:
        from PySide6.QtTest import QTest
        from PySide6.QtWidgets import QApplication

        self._application = QApplication.instance()
        self.window = window
        self.hands = QTest

    def wait(self, wanted: Callable[[], object]) -> None:
        deadline = time.monotonic() + LONG_S
        while not wanted():
            assert time.monotonic() < deadline, self.said()
            self.rest()

    def rest(self) -> None:
        """Let the window, and the threads, go on; QTest.qWait would hold Python's lock meanwhile."""
        self._application.processEvents()
        time.sleep(0.005)

    def said(self) -> str:
        labels = [*self.window.messages.values(), self.window.state]
        return "\n".join(label.text() for label in labels if label.text())

    def write(self, text: str) -> None:
        """Put the cursor behind a text, and type its last character."""
        editor = self.window.editor
        editor.setPlainText(text[:-1])
        cursor = editor.textCursor()
        cursor.movePosition(cursor.MoveOperation.End)
        editor.setTextCursor(cursor)
        self.hands.keyClicks(editor, text[-1])


@pytest.fixture
def opened(app: ModuleType) -> Iterator[Callable[..., Driven]]:
    windows = []

    def open_window(
        folder: Path | str = "", search: Path | str = "", complete: Path | str = ""
    ) -> Driven:
        window = app.Window(str(folder), str(search), str(complete), 10**6)
        windows.append(window)
        window.show()
        window.start()
        return Driven(window)

    yield open_window
    for window in windows:
        window.close()
    names = {thread.name for thread in threading.enumerate()}
    assert not names & {"Searcher", "Completing"}


def test_the_window_is_there_before_anything_is_loaded(qt: Any) -> None:
    shown = [sys.executable, "-c", _SHOWN]
    ended = subprocess.run(
        shown, cwd=DESKTOP, capture_output=True, encoding="utf-8", check=False, timeout=60
    )
    assert ended.stdout.split("\n")[0] == "True set()", ended.stderr


def test_a_query_lists_functions_and_shows_the_code_of_the_best(
    opened: Callable[..., Driven], code: Path, embedder: Path
) -> None:
    driven = opened(code, embedder)
    window = driven.window
    driven.wait(lambda: "3 functions" in window.state.text())
    driven.hands.keyClicks(window.query, "multiply a matrix")
    driven.wait(lambda: window.results.count() == 3)
    assert window.code.toPlainText() == "def product(a, b):\n    return matrix(multiply(a, b))"
    assert window.place.text() == f"{code / 'c.py'}:1"
    window.results.setCurrentRow(1)
    assert window.code.toPlainText().startswith("def ")
    assert "product" not in window.code.toPlainText()
    assert embedder.name in window.bundles.text()
    assert "MB" in window.used.text()


def test_tab_takes_what_is_offered_in_grey(opened: Callable[..., Driven], coder: Path) -> None:
    driven = opened(complete=coder)
    editor = driven.window.editor
    driven.write("def add(a, b):\n    return ")
    driven.wait(lambda: "tokens in" in driven.window.state.text())
    offer = editor.offer
    assert offer
    assert editor.toPlainText() == "def add(a, b):\n    return "
    driven.hands.keyClick(editor, _key("Tab"))
    assert editor.toPlainText() == f"def add(a, b):\n    return {offer}"
    assert editor.offer == ""


def test_what_is_typed_as_offered_leaves_the_rest_and_other_text_nothing(
    opened: Callable[..., Driven],
) -> None:
    driven = opened()
    editor = driven.window.editor
    driven.write("x = 1")
    editor.show_offer("x = 1", "", "00 + y")
    driven.hands.keyClicks(editor, "00")
    assert editor.offer == " + y"
    driven.hands.keyClicks(editor, "7")
    assert editor.offer == ""
    driven.hands.keyClick(editor, _key("Backspace"))
    assert editor.offer == ""


def test_an_offer_goes_when_the_cursor_does(opened: Callable[..., Driven]) -> None:
    editor = (driven := opened()).window.editor
    driven.write("x = 1")
    editor.show_offer("x = 1", "", "00")
    driven.hands.keyClick(editor, _key("Left"))
    assert editor.offer == ""
    driven.hands.keyClick(editor, _key("Right"))
    assert editor.offer == ""


def test_escape_refuses_what_is_offered_and_ends_what_is_on_its_way(
    opened: Callable[..., Driven], coder: Path
) -> None:
    driven = opened(complete=coder)
    window = driven.window
    asked: list[Any] = []
    ask = window._completing.ask
    window._completing.ask = lambda question: (asked.append(question), ask(question))
    driven.write("x = ")
    driven.wait(lambda: window.editor.offer)
    driven.hands.keyClick(window.editor, _key("Escape"))
    assert window.editor.offer == ""
    assert asked[-1] is None
    assert window.editor.toPlainText() == "x = "


def test_what_belongs_to_an_older_question_is_not_shown(
    opened: Callable[..., Driven], work: ModuleType, code: Path, embedder: Path
) -> None:
    driven = opened(code, embedder)
    window = driven.window
    driven.wait(lambda: "3 functions" in window.state.text())
    hit = SimpleNamespace(path=code / "a.py", line=1, qualified_name="old", score=1.0, code="old")
    window.told.emit("search", work.Found(work.Search(None, code, "old"), [hit], 1, {}, 0.0))
    driven.write("x = ")
    stale = work.Complete(None, "x =")
    window.told.emit("complete", work.Completed(stale, " stale", 1, 0.0, True))
    driven.rest()
    assert window.results.count() == 0
    assert window.editor.offer == ""


def test_no_completion_inside_of_a_line(opened: Callable[..., Driven], coder: Path) -> None:
    driven = opened(complete=coder)
    window = driven.window
    window.editor.setPlainText("f(x)\n")
    cursor = window.editor.textCursor()
    cursor.setPosition(2)
    window.editor.setTextCursor(cursor)
    window.complete()
    assert window._offered is None
    cursor.setPosition(4)
    window.editor.setTextCursor(cursor)
    window.complete()
    assert (window._offered.prefix, window._offered.suffix) == ("f(x)", "\n")


def test_the_window_answers_while_a_model_works(
    opened: Callable[..., Driven],
    code: Path,
    embedder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from codemill.runtime import Encoder

    reached, go_on = threading.Event(), threading.Event()
    encode = Encoder.encode

    def waits(self: Any, *arguments: Any) -> Any:
        reached.set()
        assert go_on.wait(LONG_S)
        return encode(self, *arguments)

    monkeypatch.setattr(Encoder, "encode", waits)
    driven = opened(code, embedder)
    driven.wait(reached.is_set)
    driven.hands.keyClicks(driven.window.editor, "y = 2")
    assert driven.window.editor.toPlainText() == "y = 2"
    go_on.set()
    driven.wait(lambda: "3 functions" in driven.window.state.text())


def test_an_offer_behind_a_character_of_two_units_is_in_its_place(
    opened: Callable[..., Driven],
) -> None:
    editor = (driven := opened()).window.editor
    driven.write("s = '\U0001f600' + ")
    assert editor.around() == ("s = '\U0001f600' + ", "")
    editor.show_offer(*editor.around(), "t")
    assert editor.offer == "t"


def test_return_keeps_the_indentation(opened: Callable[..., Driven]) -> None:
    editor = (driven := opened()).window.editor
    driven.write("    x")
    driven.hands.keyClick(editor, _key("Return"))
    assert editor.toPlainText() == "    x\n    "


def test_mistakes_are_said_in_the_window(
    opened: Callable[..., Driven], code: Path, embedder: Path, coder: Path, tmp_path: Path
) -> None:
    driven = opened("", "", embedder)
    window = driven.window
    assert "Choose a folder" in driven.said()
    driven.write("x = ")
    driven.wait(lambda: "is made for 'retrieval'" in driven.said())
    window.folder.setText(str(tmp_path / "gone"))
    window.search()
    assert "Name a bundle to search with" in driven.said()
    window.use("search", str(embedder))
    driven.wait(lambda: "there is no folder" in driven.said())
    (tmp_path / "empty").mkdir()
    window.folder.setText(str(tmp_path / "empty"))
    window.search()
    driven.wait(lambda: "There are no functions in" in driven.said())
    (code / "huge.py").write_text("x = 1\n" * 1_000_000)
    window.folder.setText(str(code))
    window.search()
    driven.wait(lambda: "1 file was left out: huge.py" in driven.said())
    window.use("search", str(tmp_path / "no-bundle"))
    driven.wait(lambda: "no-bundle" in window.messages["search"].text())
    window.use("search", str(coder))
    driven.wait(lambda: "is made for 'completion'" in window.messages["search"].text())
    # a right one, and all is well
    window.use("search", str(embedder))
    driven.wait(lambda: "3 functions" in window.state.text())
    assert "made for" not in window.messages["search"].text()


def _key(name: str) -> Any:
    from PySide6.QtCore import Qt

    return getattr(Qt.Key, f"Key_{name}")
