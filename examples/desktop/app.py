"""A window that searches a folder's functions by meaning and completes code, both on this machine.

    python app.py [FOLDER] [--search BUNDLE] [--complete BUNDLE] [--memory MB]

What is in here is the interface: it asks (`work.py` answers, in threads of its own), shows what it is told, and leaves
out what belongs to an older question. Models are loaded once the window is there.
"""

from __future__ import annotations

import argparse
import signal
import sys
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import work
from PySide6.QtCore import QRegularExpression, Qt, QTimer, QUrl, Signal
from PySide6.QtGui import (
    QCloseEvent,
    QColor,
    QDesktopServices,
    QFontDatabase,
    QKeyEvent,
    QKeySequence,
    QPainter,
    QPaintEvent,
    QSyntaxHighlighter,
    QTextCharFormat,
    QTextCursor,
    QTextDocument,
)
from PySide6.QtWidgets import (
    QApplication,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QMainWindow,
    QPlainTextEdit,
    QPushButton,
    QSplitter,
    QVBoxLayout,
    QWidget,
)

if TYPE_CHECKING:
    from codemill.runtime import Completer, Encoder, Hit

_PAUSE_MS = 150
"""Nothing is asked while somebody types faster than this."""
_GREY, _DARK_GREY, _RED = "#8a8f98", "#5b6470", "#b3261e"
_STYLE = """
QWidget { font-size: 11pt; }
QLineEdit, QPushButton { padding: 5px 8px; }
QListWidget::item { border-bottom: 1px solid palette(midlight); }
QStatusBar QLabel { padding: 0 8px; }
"""
# the colours are made for light paper
_PAPER = "QPlainTextEdit { background: #fbfbfd; color: #1f2328; border: 1px solid #d0d4da; }"
_KEYWORDS = (
    "and as assert async await break case catch class const continue def default del do elif else enum except export "
    "extends extern finally fn for from func function global go if impl import in interface is lambda let match mod "
    "mut new nonlocal not or package pass private protected pub public raise return self static struct super switch "
    "this throw trait try type typedef use var void while with yield None True False null true false nil"
)
_HASH_COMMENTS = {".py", ".rb", ".sh"}
_COLOURS = {
    "string": (r"\"([^\"\\]|\\.)*\"|'([^'\\]|\\.)*'", "#0a5db0"),
    "comment": ("{comment}.*$", "#6e7781"),
    "keyword": (rf"\b({'|'.join(_KEYWORDS.split())})\b", "#8250df"),
    "number": (r"\b\d[\w.]*\b", "#0550ae"),
    "call": (r"\b\w+(?=\()", "#116329"),
}


class Colours(QSyntaxHighlighter):
    """Strings, comments, keywords, numbers and calls of the usual languages, by line: cheap, and not exact."""

    def __init__(self, document: QTextDocument) -> None:
        super().__init__(document)
        self._formats = {}
        for name, (_, colour) in _COLOURS.items():
            self._formats[name] = QTextCharFormat()
            self._formats[name].setForeground(QColor(colour))
        self.set_comment("#")

    def set_comment(self, mark: str) -> None:
        """What a comment begins with, in what is shown from now on."""
        parts = (f"(?<{name}>{pattern})" for name, (pattern, _) in _COLOURS.items())
        self._expression = QRegularExpression("|".join(parts).replace("{comment}", mark))

    def highlightBlock(self, text: str) -> None:
        """Called by Qt for each line."""
        found = self._expression.globalMatch(text)
        while found.hasNext():
            match = found.next()
            for name, kind in self._formats.items():
                if match.hasCaptured(name):
                    self.setFormat(match.capturedStart(), match.capturedLength(), kind)


class Code(QPlainTextEdit):
    """Code in colours."""

    def __init__(self) -> None:
        super().__init__()
        self.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        family = QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont).family()
        self.setStyleSheet(f"{_PAPER} QPlainTextEdit {{ font-family: '{family}'; }}")
        self.colours = Colours(self.document())


class Editor(Code):
    """Code that is written, with a completion in grey behind the cursor: Tab takes it, Esc refuses it."""

    paused = Signal()
    """Nobody has typed for a moment, and nothing is offered."""
    refused = Signal()
    """What is offered, or on its way, is not wanted, or does not fit any more."""

    def __init__(self) -> None:
        super().__init__()
        self._offered = ""
        # the texts before and behind the cursor that the offer was made for
        self._place: tuple[str, str] | None = None
        self._pause = QTimer(self, singleShot=True, interval=_PAUSE_MS)
        self._pause.timeout.connect(self.paused)
        self.textChanged.connect(self._typed)
        self.cursorPositionChanged.connect(self._moved)

    def around(self) -> tuple[str, str]:
        """The text before the cursor, and behind it."""
        cursor = QTextCursor(self.document())
        cursor.setPosition(self.textCursor().position(), QTextCursor.MoveMode.KeepAnchor)
        # not by the position: Qt counts UTF-16 units
        at, text = len(cursor.selectedText()), self.toPlainText()
        return text[:at], text[at:]

    @property
    def offer(self) -> str:
        """What is shown in grey: of what was offered, what was not typed since."""
        if self._place is None:
            return ""
        (before, behind), (now, after) = self._place, self.around()
        fits = (
            after == behind
            and now.startswith(before)
            and self._offered.startswith(now[len(before) :])
        )
        return self._offered[len(now) - len(before) :] if fits else ""

    def show_offer(self, before: str, behind: str, text: str) -> None:
        """Show `text` in grey, which was made for this place."""
        self._place, self._offered = (before, behind), text
        self.viewport().update()

    def refuse(self) -> None:
        """Offer nothing, until more is typed."""
        self._pause.stop()
        self._place, self._offered = None, ""
        self.viewport().update()
        self.refused.emit()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Tab, Esc and Return are ours."""
        if event.key() == Qt.Key.Key_Tab:
            self.insertPlainText(self.offer or "    ")
        elif event.key() == Qt.Key.Key_Escape:
            self.refuse()
        elif event.key() == Qt.Key.Key_Return:
            line = self.around()[0].rsplit("\n", 1)[-1]
            self.insertPlainText("\n" + line[: len(line) - len(line.lstrip())])
        else:
            super().keyPressEvent(event)

    def paintEvent(self, event: QPaintEvent) -> None:
        """The text, and behind the cursor what is offered."""
        super().paintEvent(event)
        painter = QPainter(self.viewport())
        painter.setFont(self.font())
        painter.setPen(QColor(_GREY))
        at = self.cursorRect()
        x, y = at.left(), at.top() + self.fontMetrics().ascent()
        for line in self.offer.split("\n"):
            painter.drawText(x, y, line.expandtabs(4))
            x = int(self.contentOffset().x() + self.document().documentMargin())
            y += self.fontMetrics().lineSpacing()

    def _typed(self) -> None:
        # what was typed may be what was offered: the rest of it still is
        if not self.offer:
            self.refuse()
            self._pause.start()

    def _moved(self) -> None:
        if self._place is not None and not self.offer:
            self.refuse()


class Window(QMainWindow):
    """The window. `start` begins the work; closing it ends it."""

    told = Signal(str, object)
    """Who, and what: from the threads of work.py to that of the interface."""

    def __init__(self, folder: str, search: str, complete: str, memory_mb: int) -> None:
        super().__init__()
        self.setWindowTitle("codemill")
        self.resize(1120, 760)
        self.setStyleSheet(_STYLE)
        self._names = {"search": search, "complete": complete}
        self._memory = work.Memory(memory_mb * work.MB, partial(self.told.emit, "memory"))
        self._encoder: work.Model[Encoder] | None = None
        self._completer: work.Model[Completer] | None = None
        self._searcher: work.Searcher | None = None
        self._completing: work.Completing | None = None
        # what is told of older questions is left out
        self._searched: work.Search | None = None
        self._offered: work.Complete | None = None
        self._hits: list[Hit] = []
        self.told.connect(self._told)
        self._build(folder)

    def _build(self, folder: str) -> None:
        self.folder = QLineEdit(folder, placeholderText="A folder with code")
        self.folder.returnPressed.connect(self.search)
        choose = QPushButton("Folder…")
        choose.clicked.connect(self._choose_folder)
        self.query = QLineEdit(
            placeholderText="What does the function do?", clearButtonEnabled=True
        )
        self._pause = QTimer(self, singleShot=True, interval=_PAUSE_MS)
        self._pause.timeout.connect(self.search)
        self.query.textEdited.connect(lambda _: self._pause.start())
        self.query.returnPressed.connect(self.search)
        self.messages = {"search": _message(), "complete": _message()}
        self.results = QListWidget()
        self.results.currentRowChanged.connect(self._show_hit)
        self.results.itemActivated.connect(self._open_file)
        self.place = QLabel("")
        self.code = Code()
        self.code.setReadOnly(True)
        self.editor = Editor()
        self.editor.paused.connect(self.complete)
        self.editor.refused.connect(lambda: self._ask_to_complete(None))
        top = QHBoxLayout()
        top.addWidget(self.folder)
        top.addWidget(choose)
        left = _column(top, self.query, self.messages["search"], self.results)
        hint = QLabel("Write code here: <b>Tab</b> takes what is offered, <b>Esc</b> refuses it")
        right = QSplitter(Qt.Orientation.Vertical)
        right.addWidget(_column(self.place, self.code))
        right.addWidget(_column(hint, self.messages["complete"], self.editor))
        whole = QSplitter()
        whole.addWidget(left)
        whole.addWidget(right)
        whole.setSizes([400, 720])
        self.setCentralWidget(whole)
        self.state, self.bundles, self.used = QLabel(), QLabel(), QLabel()
        self.statusBar().addWidget(self.state, 1)
        self.statusBar().addPermanentWidget(self.bundles)
        self.statusBar().addPermanentWidget(self.used)
        menu = self.menuBar().addMenu("&File")
        for text, keys, then in (
            ("&Folder…", "Ctrl+O", self._choose_folder),
            ("&Read the folder again", "F5", lambda: self.search(again=True)),
            ("&Search with the bundle…", "", lambda: self._choose_bundle("search")),
            ("&Complete with the bundle…", "", lambda: self._choose_bundle("complete")),
            ("&Quit", "Ctrl+Q", self.close),
        ):
            menu.addAction(text, QKeySequence(keys), then)
        self.query.setFocus()

    def start(self) -> None:
        """Load the models and read the folder, in their threads."""
        self._searcher = work.Searcher(partial(self.told.emit, "search"))
        self._completing = work.Completing(partial(self.told.emit, "complete"))
        for kind, name in self._names.items():
            self.use(kind, name)

    def use(self, kind: str, bundle: str) -> None:
        """Search, or complete, with this bundle from now on; "": with none."""
        self._names[kind] = bundle
        tell = partial(self.told.emit, kind)
        self._say(kind, "")
        if kind == "search":
            if self._encoder is not None:
                self._encoder.retire()
            self._encoder = work.embeds(bundle, self._memory, tell) if bundle else None
            self.search()
        else:
            if self._completer is not None:
                self._completer.retire()
            self._completer = work.completes(bundle, self._memory, tell) if bundle else None
            self.editor.setPlaceholderText(
                "" if bundle else "Name a bundle that completes: --complete BUNDLE, or in the menu"
            )
            self.complete()

    def search(self, again: bool = False) -> None:
        """Ask for what is in the two lines."""
        self._pause.stop()
        if self._searcher is None:
            return
        folder = self.folder.text().strip()
        if not folder:
            self._say("search", "Choose a folder to search")
        elif self._encoder is None:
            self._say("search", "Name a bundle to search with: --search BUNDLE, or in the menu")
        else:
            question = work.Search(
                self._encoder, Path(folder).expanduser(), self.query.text(), again
            )
            self._searched = question
            self._searcher.ask(question)

    def complete(self) -> None:
        """Ask for what may follow the cursor, where that is the end of a line; of nothing only the model is loaded."""
        before, behind = self.editor.around()
        if self._completer is None or behind.split("\n", 1)[0].strip():
            return
        before = before if before.strip() else ""
        # more than a line is shown where nothing is below it
        mode: Literal["line", "block"] = "line" if behind.strip() else "block"
        others = tuple(hit.code for hit in self._hits[:8])
        self._ask_to_complete(work.Complete(self._completer, before, behind, mode, others))

    def _ask_to_complete(self, question: work.Complete | None) -> None:
        self._offered = question
        if self._completing is not None:
            self._completing.ask(question)

    def _told(self, who: str, event: work.Event) -> None:
        match event:
            case work.Said(text, problem=True) if who in self.messages:
                self._say(who, text, problem=True)
                self.state.clear()
                if who == "search":
                    self._list([])
            case work.Said(text):
                self.state.setText(text)
            case work.Reading(done, total, left_s):
                left = "" if left_s is None else f", {left_s:,.0f} s left"
                self.state.setText(f"Reading the folder: {done:,} of {total:,} files{left}")
            case work.Found() if event.search is self._searched:
                self._show(event)
            case work.Completed(question, text) if question is self._offered:
                self._say("complete", "")
                self.editor.show_offer(question.prefix, question.suffix, text)
                if event.ended:
                    self.state.setText(f"{event.tokens} tokens in {event.seconds:.2f} s")
        limit = self._memory.limit_bytes / work.MB
        self.used.setText(f"{self._memory.used_bytes() / work.MB:,.0f} of {limit:,.0f} MB")
        models = (self._encoder, self._completer)
        self.bundles.setText(
            " · ".join(item.name for item in models if item is not None and item.loaded is not None)
        )

    def _show(self, found: work.Found) -> None:
        left_out = [f"{path.name} ({why})" for path, why in found.unreadable.items()]
        said = ""
        if not found.functions:
            said = f"There are no functions in {found.search.folder}. "
        if left_out:
            files = "1 file was" if len(left_out) == 1 else f"{len(left_out)} files were"
            more = ", ..." if len(left_out) > 3 else ""
            said += f"{files} left out: {', '.join(left_out[:3])}{more}"
        self._say("search", said)
        self.state.setText(
            f"{found.functions:,} functions, searched in {found.seconds * 1000:.0f} ms"
        )
        self._list(found.hits, found.search.folder)

    def _list(self, hits: list[Hit], folder: Path = Path()) -> None:
        self._hits = hits
        self.results.clear()
        for hit in hits:
            where = hit.path.relative_to(folder)
            text = QLabel(
                f"<b>{escape(hit.qualified_name)}</b><br><span style='color: {_DARK_GREY}; font-size: 10pt'>"
                f"{escape(f'{where}:{hit.line}')} · {hit.score:.2f}</span>",
                self.results,
                margin=4,
            )
            # its size is that of its style
            text.ensurePolished()
            item = QListWidgetItem(self.results)
            item.setSizeHint(text.sizeHint())
            self.results.setItemWidget(item, text)
        self.results.setCurrentRow(0)

    def _show_hit(self, row: int) -> None:
        hit = self._hits[row] if 0 <= row < len(self._hits) else None
        self.place.setText(f"{hit.path}:{hit.line}" if hit else "")
        if hit:
            self.code.colours.set_comment("#" if hit.path.suffix in _HASH_COMMENTS else "//")
        self.code.setPlainText(hit.code if hit else "")

    def _open_file(self, item: QListWidgetItem) -> None:
        hit = self._hits[self.results.row(item)]
        QDesktopServices.openUrl(QUrl.fromLocalFile(str(hit.path.absolute())))

    def _say(self, who: str, text: str, problem: bool = False) -> None:
        label = self.messages[who]
        label.setText(text)
        label.setStyleSheet(f"color: {_RED}" if problem else "")
        label.setVisible(bool(text))

    def _choose_folder(self) -> None:
        if found := QFileDialog.getExistingDirectory(self, "Folder", self.folder.text()):
            self.folder.setText(found)
            self.search()

    def _choose_bundle(self, kind: str) -> None:
        if found := QFileDialog.getExistingDirectory(self, f"A bundle to {kind} with"):
            self.use(kind, found)

    def closeEvent(self, event: QCloseEvent) -> None:
        """End the threads and free the models."""
        self.hide()
        for worker in (self._searcher, self._completing):
            if worker is not None:
                worker.close()
        for model in (self._encoder, self._completer):
            if model is not None:
                model.retire()
        super().closeEvent(event)


def _message() -> QLabel:
    label = QLabel(wordWrap=True)
    label.hide()
    # names of files are in it
    label.setTextFormat(Qt.TextFormat.PlainText)
    return label


def _column(*items: QWidget | QHBoxLayout) -> QWidget:
    column = QWidget()
    layout = QVBoxLayout(column)
    for item in items:
        if isinstance(item, QWidget):
            layout.addWidget(item)
        else:
            layout.addLayout(item)
    return column


def main() -> int:
    """Show the window, then load the models."""
    parser = argparse.ArgumentParser(description="search a folder's functions, complete code")
    parser.add_argument("folder", nargs="?", default="", help="the code to search")
    parser.add_argument("--search", default="code-search", metavar="BUNDLE")
    parser.add_argument("--complete", default="", metavar="BUNDLE")
    parser.add_argument(
        "--memory", type=int, default=1000, metavar="MB", help="limit of the whole process"
    )
    asked = parser.parse_args()
    app = QApplication(sys.argv[:1])
    # Ctrl-C in the terminal ends it
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    window = Window(asked.folder, asked.search, asked.complete, asked.memory)
    window.show()
    QTimer.singleShot(0, window.start)
    return app.exec()


if __name__ == "__main__":
    sys.exit(main())
