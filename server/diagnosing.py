"""Labels of functions as diagnostics: of what is open, in the background, when typing pauses.

What a function was labelled is kept by its code, so that an edit asks the model about the function it is in.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeAlias

from lsprotocol import types

from codemill.errors import InputError
from codemill.runtime import functions_of, load_classifier
from codemill.server import settings
from codemill.server.documents import Document, Documents
from codemill.server.model import Model, NotLoaded, in_loop

if TYPE_CHECKING:
    from codemill.runtime import Classifier, Function, Prediction

__all__ = ["Diagnosing", "load_for"]

_KEPT = 4096
"""Functions whose labels are kept."""
_AT_A_TIME = 16
"""Functions the model is asked about at once; between two it may be stopped."""
_Labelled: TypeAlias = "list[tuple[Function, Prediction]]"
_SEVERITIES = {
    "error": types.DiagnosticSeverity.Error,
    "warning": types.DiagnosticSeverity.Warning,
    "information": types.DiagnosticSeverity.Information,
    "hint": types.DiagnosticSeverity.Hint,
}


def load_for(asked_for: settings.Diagnostics, path: str) -> Classifier:
    """The classifier of these settings; InputError where it is of pairs, or has not the labels that are named."""
    bundle = asked_for.bundle
    model = load_classifier(path, bundle.variant, bundle.threads)
    unknown = [label for label in asked_for.labels if label not in model.labels]
    if model.labelling.texts != 1 or unknown:
        model.close()
        if not unknown:
            raise InputError(
                f"bundle {model.manifest.name!r} labels pairs of texts; expected one that labels functions"
            )
        raise InputError(
            f"codemill.diagnostics.labels names {unknown[0]!r}; bundle {model.manifest.name!r} has the labels "
            f"{', '.join(map(repr, model.labels))}"
        )
    return model


class Diagnosing:
    """Labels what is open. Used from the event loop.

    publish: sends a text's diagnostics; tell: shows the user a message.
    """

    def __init__(
        self,
        model: Model[Classifier],
        documents: Callable[[], Documents],
        publish: Callable[[types.PublishDiagnosticsParams], None],
        tell: Callable[[str], None],
    ) -> None:
        self._model = model
        self._documents = documents
        self._publish = publish
        self._tell = tell
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._stops: dict[str, threading.Event] = {}
        self._shown: set[str] = set()
        # of the model's thread alone
        self._known: OrderedDict[str, Prediction] = OrderedDict()
        self.settings: settings.Diagnostics | None = None

    def begin(self) -> None:
        """Another model or other settings: label all that is open again."""
        self.stop()
        for uri in list(self._shown):
            self._show(uri, [])
        self._model.submit(lambda _: self._known.clear())
        for document in self._documents().all_open():
            self.saved(document.uri)

    def saved(self, uri: str) -> None:
        """A text was opened or saved: label it now."""
        self._after(uri, 0)

    def changed(self, uri: str) -> None:
        """A text was changed: what runs for it is stopped, and it is labelled when no more follows."""
        self._end(uri)
        if self.settings is not None and self.settings.on == "change":
            self._after(uri, self.settings.debounce_ms / 1000)

    def closed(self, uri: str) -> None:
        """A text was closed: nothing is shown for it."""
        self._end(uri)
        if uri in self._shown:
            self._show(uri, [])

    def stop(self) -> None:
        """Stop whatever runs or waits."""
        for uri in [*self._timers, *self._stops]:
            self._end(uri)

    def _after(self, uri: str, seconds: float) -> None:
        self._end(uri)
        if self.settings is not None:
            loop = asyncio.get_running_loop()
            self._timers[uri] = loop.call_later(seconds, self._diagnose, uri)

    def _end(self, uri: str) -> None:
        timer, stop = self._timers.pop(uri, None), self._stops.pop(uri, None)
        if timer is not None:
            timer.cancel()
        if stop is not None:
            stop.set()

    def _diagnose(self, uri: str) -> None:
        """Have the thread label a text's functions; shown once it has, where the text is still the same."""
        self._timers.pop(uri, None)
        document, asked_for = self._documents().opened(uri), self.settings
        if document is None or asked_for is None:
            return
        if document.refusal is not None or not document.python:
            self._show(uri, [])
            return
        stop = self._stops[uri] = threading.Event()
        source, loop = document.source, asyncio.get_running_loop()

        def ended(future: Future[_Labelled | None]) -> None:
            if future.cancelled() or stop.is_set():
                return
            self._stops.pop(uri, None)
            error = future.exception()
            if error is None:
                labelled = future.result()
                # of a text that does not parse, what is shown stays
                if labelled is not None:
                    shown = [
                        item
                        for function, prediction in labelled
                        for item in _diagnostics(function, prediction, document, asked_for)
                    ]
                    self._show(uri, shown, document.version)
            elif not isinstance(error, NotLoaded):
                self._tell(f"codemill.diagnostics: {error}")

        future = self._model.submit(lambda model: self._labelled(model, source, stop))
        future.add_done_callback(lambda found: in_loop(loop, lambda: ended(found)))

    def _labelled(self, model: Classifier, source: str, stop: threading.Event) -> _Labelled | None:
        """The functions of a text and what they are labelled; None where it does not parse, or is not wanted."""
        try:
            functions = functions_of(source)
        except (SyntaxError, ValueError):
            return None
        found: dict[str, Prediction] = {}
        for function in functions:
            if (known := self._known.get(function.code)) is not None:
                self._known.move_to_end(function.code)
                found[function.code] = known
        wanted = [
            code for code in dict.fromkeys(item.code for item in functions) if code not in found
        ]
        for start in range(0, len(wanted), _AT_A_TIME):
            if stop.is_set():
                return None
            codes = wanted[start : start + _AT_A_TIME]
            found.update(zip(codes, model.predict(codes), strict=True))
        self._known.update(found)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return [(function, found[function.code]) for function in functions]

    def _show(
        self, uri: str, diagnostics: list[types.Diagnostic], version: int | None = None
    ) -> None:
        if not diagnostics and uri not in self._shown:
            return
        self._shown.add(uri)
        if not diagnostics:
            self._shown.discard(uri)
        self._publish(types.PublishDiagnosticsParams(uri, diagnostics, version))


def _diagnostics(
    function: Function, prediction: Prediction, document: Document, asked_for: settings.Diagnostics
) -> list[types.Diagnostic]:
    """What is told of one function: nothing, or its label, on the line of its `def`."""
    severity = asked_for.labels.get(prediction.label)
    if (asked_for.labels and severity is None) or prediction.score < asked_for.least_score:
        return []
    number = function.line - 1
    lines = document.lines
    line = lines[number].rstrip() if number < len(lines) else ""
    codec = document.position_codec
    start, end = (
        codec.client_num_units(text) for text in (line[: len(line) - len(line.lstrip())], line)
    )
    cut = ", judged by its beginning" if prediction.truncated else ""
    return [
        types.Diagnostic(
            range=types.Range(types.Position(number, start), types.Position(number, end)),
            message=f"{prediction.label} ({prediction.score:.2f}): {function.qualified_name}{cut}",
            severity=_SEVERITIES[severity or "information"],
            code=prediction.label,
            source="codemill",
            data={"label": prediction.label, "score": round(prediction.score, 4)},
        )
    ]
