"""Inline completion: the newest request of a text wins, and none is answered for a text that has changed.

What was read is kept by the runtime, which knows a text again by its beginning and end, and layers are skipped there
where the bundle has exits. Here is who waits, who is stopped, and what becomes an item.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lsprotocol import types

from codemill.server import settings
from codemill.server.documents import Document, Documents
from codemill.server.model import Model
from codemill.server.protocol import modified, refused

if TYPE_CHECKING:
    from codemill.runtime import Completer, Completion, Stream

__all__ = ["Completing", "first_read"]

_BUFFERS = 8
"""Other open texts in which drafts are looked up, and whose n-grams count."""


_STEPS = 4
"""Of a context: what is too long is cut in such shares of it."""


def first_read(at: int, most: int) -> int:
    """From where on a text is read before the place `at`, `most` characters at most.

    In steps, so that the next keystroke begins at the same place and what was read stays of use.
    """
    step = max(1, most // _STEPS)
    return max(0, -(-(at - most) // step) * step)


class _Asked:
    """A request that is not answered yet. `stream`: what it has completed, once it began."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._moved = asyncio.Event()
        self.stream: Stream | None = None

    def end(self) -> None:
        """Nobody wants it any more."""
        self.stop.set()
        self._moved.set()

    async def settle(self, seconds: float) -> None:
        """Wait so long, or until nobody wants it any more."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._moved.wait(), seconds)

    @property
    def tokens(self) -> int:
        """Tokens up to now."""
        return 0 if self.stream is None else len(self.stream.completion.tokens)


class Completing:
    """Answers requests for inline completion. Used from the event loop."""

    def __init__(self, model: Model[Completer], documents: Callable[[], Documents]) -> None:
        self._model = model
        self._documents = documents
        # by address, the one used last comes last
        self._used: dict[str, None] = {}
        self._newest: dict[str, _Asked] = {}
        self._running: set[_Asked] = set()
        self._tokens = 0
        # another one for each model
        self._begun = object()
        self.kept_bytes = 0
        self.settings: settings.Completion | None = None

    @property
    def tokens(self) -> int:
        """Tokens computed since the server was started."""
        return self._tokens + sum(asked.tokens for asked in self._running)

    def changed(self, uri: str) -> None:
        """A text is another one now: what is asked for it is stopped."""
        asked = self._newest.pop(uri, None)
        if asked is not None:
            asked.end()

    def closed(self, uri: str) -> None:
        """A text was closed."""
        self.changed(uri)
        self._used.pop(uri, None)

    def stop(self) -> None:
        """Stop whatever runs: the model goes, with what it keeps."""
        self._begun, self.kept_bytes = object(), 0
        for uri in list(self._newest):
            self.changed(uri)

    async def complete(
        self, document: Document, position: types.Position, automatic: bool
    ) -> list[types.InlineCompletionItem] | None:
        """Items for a place in a text; None where completion is off.

        Raises JsonRpcException where the text moved on meanwhile or is not one to complete, InputError where there is
        no model, and CancelledError, once the model has stopped, where the request was cancelled.
        """
        asked_for = self.settings
        if asked_for is None:
            return None
        if document.refusal is not None:
            raise refused(document.refusal)
        uri = document.uri
        self.changed(uri)
        self._used.pop(uri, None)
        self._used[uri] = None
        asked = self._newest[uri] = _Asked()
        try:
            if automatic and asked_for.debounce_ms:
                await asked.settle(asked_for.debounce_ms / 1000)
            completion = None
            if not asked.stop.is_set():
                completion = await self._run(asked, asked_for, document, position)
            if asked.stop.is_set():
                raise modified("the text has changed, or something newer was asked for it")
        finally:
            if self._newest.get(uri) is asked:
                del self._newest[uri]
        if completion is None or not completion.text.strip():
            return []
        place = types.Range(position, position)
        return [types.InlineCompletionItem(insert_text=completion.text, range=place)]

    async def _run(
        self,
        asked: _Asked,
        asked_for: settings.Completion,
        document: Document,
        position: types.Position,
    ) -> Completion | None:
        """What the model completes; None where it cannot complete there."""
        source = document.source
        at = document.offset_at_position(position)
        prefix = source[first_read(at, asked_for.context_chars) : at]
        suffix = source[at : at + asked_for.context_chars // 4]
        buffers = self._buffers(document)

        def run(model: Completer) -> tuple[Completion | None, int]:
            if asked.stop.is_set() or (not model.fills and suffix.partition("\n")[0].strip()):
                # a model that does not see what follows would write it once more
                return None, model.kept_bytes
            with model.stream(
                prefix,
                suffix if model.fills else "",
                max_tokens=asked_for.max_tokens,
                mode=None if asked_for.mode == "none" else asked_for.mode,
                exits=asked_for.exits,
                buffers=buffers,
                cancel=asked.stop,
            ) as stream:
                asked.stream = stream
                for _ in stream:
                    pass
            return stream.completion, model.kept_bytes

        begun = self._begun
        future = self._model.submit(run)
        self._running.add(asked)
        try:
            waiting = asyncio.wrap_future(future)
            try:
                completion, kept_bytes = await asyncio.shield(waiting)
                if begun is self._begun:
                    self.kept_bytes = kept_bytes
            except asyncio.CancelledError:
                asked.end()
                # a token later at most; what is still in the queue is dropped
                if not future.cancel():
                    await asyncio.wait([waiting])
                raise
        finally:
            self._running.discard(asked)
            self._tokens += asked.tokens
        return completion

    def _buffers(self, document: Document) -> Sequence[str]:
        """Other open texts, those used last first."""
        texts = {item.uri: item for item in self._documents().all_open()}
        others = [texts[uri] for uri in reversed(self._used) if uri in texts]
        return [item.source for item in others if item.uri != document.uri][:_BUFFERS]
