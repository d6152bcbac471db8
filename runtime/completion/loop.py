"""One token after another: leaving early where a controller says so, giving up where it does, drafts checked at once.

The method is SEC's (2401.09964): after some layers a controller chooses to stop (what follows will be wrong), to exit
(what is known suffices) or to continue. The first token of a completion is never left early. Nothing here knows what
runs a segment, or what tokens mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from codemill.runtime.completion import lookup
from codemill.runtime.completion.decoding import AT_ONCE, Exit
from codemill.runtime.completion.document import Document, Left
from codemill.runtime.completion.ngrams import Nearby, mixed, parts_of
from codemill.runtime.completion.speculation import Speculation

if TYPE_CHECKING:
    from codemill.runtime.completion.parts import Backend

__all__ = ["Cancel", "Ended", "Settings", "Taken", "generate", "logits_of"]

_FEWEST = 32
"""Tokens of a prompt that are run at once, at least."""
_SCORES = 2**18
"""Of a head, at once: what attention over a long text takes memory for."""

Row = NDArray[np.float32]
Ended = Literal["length", "end", "uncertain", "cancelled"]
_STOP, _EXIT, _CONTINUE = range(3)


class Cancel(Protocol):
    """A threading.Event, or anything like it."""

    def is_set(self) -> bool:
        """Whether the completion is not wanted any more."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A token, the layers it took, and whether it was drafted."""

    id: int
    layers: int
    drafted: bool = False


@dataclass(frozen=True)
class Settings:
    """How to go on. choose: a token of logits [vocab]; exits: bounds of each exit, empty: none is used.

    move: ends of a changed text are moved, not computed again. drafts: None: none are looked for. escapes: of
    `ngrams.mixed`; empty: the model alone says what follows. speculation: None: exits draft nothing; else there are
    exits in the backend, and `exits` is empty. others: texts in which drafts and n-grams are looked up.
    """

    choose: Callable[[Row], int]
    max_tokens: int
    exits: Sequence[Exit] = ()
    move: bool = True
    drafts: lookup.Drafts | None = None
    costs: lookup.Costs | None = None
    escapes: Sequence[float] = ()
    speculation: Speculation | None = None
    others: Sequence[NDArray[np.int64]] = ()
    cancel: Cancel | None = None


def generate(
    backend: Backend, document: Document, prompt: Sequence[int], settings: Settings
) -> Generator[Taken | Ended, None, None]:
    """Tokens that follow `prompt`, each as soon as it is known, and last of all why there are no more.

    The document's keys and values are used where they fit, and are the prompt's and the completion's afterwards. May
    be closed at any point. The prompt has a token at least, and with the completion no more than the model takes.
    """
    steps = _Steps(backend, document, settings)
    try:
        state = steps.read(prompt)
        if state is None:
            yield "cancelled"
            return
        token = steps.choose(backend.logits(state)[0])
        layers, drafted = backend.decoding.layers, 0
        count = 0
        while True:
            if token in backend.decoding.end:
                yield "end"
                return
            yield Taken(token, layers, drafted > 0)
            count += 1
            if count == settings.max_tokens:
                yield "length"
                return
            if settings.cancel is not None and settings.cancel.is_set():
                yield "cancelled"
                return
            if drafted:
                # known since the draft was checked
                token = steps.next_checked()
                drafted -= 1
                continue
            found = steps.step(token, settings.max_tokens - count)
            if found is None:
                yield "uncertain"
                return
            token, layers, drafted = found
    finally:
        steps.settle()


def logits_of(backend: Backend, ids: NDArray[np.int64]) -> Iterator[Row]:
    """After each of a text's tokens, what all layers say, in parts [n, vocab] that together are as long as the text."""
    cache = backend.cache()
    cache.grow(len(ids))
    for start, end in _chunks(0, len(ids)):
        states: NDArray[np.int64] | Row = ids[start:end]
        for number in range(len(backend.decoding.ends)):
            states = backend.segment(number, states, cache, start)
        found = backend.logits(states)  # type: ignore[arg-type]
        # of one token it is valid until the next call only
        yield found.copy() if len(found) == 1 else found


def _chunks(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Parts of [start, end) that are run at once: shorter ones the more there is before them."""
    while start < end:
        count = max(_FEWEST, min(AT_ONCE, _SCORES // (start + AT_ONCE)))
        yield start, min(start + count, end)
        start += count


class _Steps:
    """The state of one completion: what is in the cache, and which checked tokens are still to be given."""

    def __init__(self, backend: Backend, document: Document, settings: Settings) -> None:
        self._backend = backend
        self._document = document
        self._settings = settings
        self._checked: list[int] = []
        self._nearby: Nearby | None = None
        self._whole = True

    def read(self, prompt: Sequence[int]) -> Row | None:
        """What the head takes for the last token of the prompt, [1, width]; None where it was cancelled."""
        backend, document, settings = self._backend, self._document, self._settings
        if settings.escapes:
            text, behind = parts_of(prompt, backend.decoding)
            self._nearby = Nearby(text, len(settings.escapes), [behind, *settings.others])
        self._whole = False
        spans = document.reuse(prompt, backend, self._settings.move)
        document.cache.grow(len(prompt))
        state: Row | None = None
        for start, end in spans:
            for first, last in _chunks(start, end):
                cancel = self._settings.cancel
                if cancel is not None and cancel.is_set():
                    document.rewind(first)
                    # of the rest nothing is there: it is known again by what was read
                    document.prompt = first
                    self._whole = True
                    return None
                state = self._through(np.asarray(prompt[first:last], np.int64), first)[-1:].copy()
                if last > len(document.tokens):
                    document.tokens.extend(prompt[len(document.tokens) : last])
        self._whole = True
        return state

    def step(self, token: int, left: int) -> tuple[int, int, int] | None:
        """Of the token that follows `token`: its id, the layers, how many more are known; None: give up."""
        document, settings = self._document, self._settings
        past = len(document.tokens)
        draft = self._draft(token, left)
        document.cache.grow(past + 1 + len(draft))
        if draft:
            return self._check(token, draft)
        if settings.speculation is not None:
            exit, length = settings.speculation.plan(left - 1)
            if length:
                return self._speculate(settings.speculation, token, exit, length)
        started = time.perf_counter()
        found = self._early(token, past)
        if found is None:
            return None
        state, layers = found
        document.tokens.append(token)
        logits = self._backend.logits(state)[0]
        seconds = time.perf_counter() - started
        chosen = self.choose(logits)
        if layers == self._backend.decoding.layers:
            if settings.costs is not None:
                settings.costs.saw(1, seconds)
            if settings.speculation is not None:
                settings.speculation.saw_one(seconds)
        return chosen, layers, 0

    def choose(self, logits: Row) -> int:
        """The token that follows what was chosen up to now, by the model's logits [vocab] and what is nearby."""
        nearby, settings = self._nearby, self._settings
        if nearby is None:
            return settings.choose(logits)
        end = self._backend.decoding.end
        chosen = settings.choose(mixed(logits, nearby.followers(), settings.escapes, end))
        nearby.say(chosen)
        return chosen

    def next_checked(self) -> int:
        """The next token that a draft was right about, or the one behind it."""
        return self._checked.pop(0)

    def settle(self) -> None:
        """Leave the document with what is really in its cache."""
        if not self._whole:
            # interrupted between two graphs: what is behind the prompt's beginning may be half written
            self._document.rewind(0)

    def _draft(self, token: int, left: int) -> list[int]:
        settings = self._settings
        if settings.drafts is None or left < 2:
            return []
        most = settings.drafts.length(left - 1)
        return lookup.find([*self._document.tokens, token], settings.others, most)

    def _check(self, token: int, draft: list[int]) -> tuple[int, int, int]:
        """Run a token and its draft at once; the tokens that are right, and one more, are known then."""
        settings = self._settings
        started = time.perf_counter()
        state = self._through(np.array([token, *draft], np.int64), len(self._document.tokens))
        logits = self._backend.logits(state)
        if settings.costs is not None:
            settings.costs.saw(1 + len(draft), time.perf_counter() - started)
        found = self._take(token, draft, logits)
        assert settings.drafts is not None
        settings.drafts.saw(len(draft), found[2])
        return found

    def _speculate(
        self, speculation: Speculation, token: int, exit: int, length: int
    ) -> tuple[int, int, int]:
        """Draft by the layers up to an exit, and run the others over a token and its draft at once."""
        backend, document = self._backend, self._document
        cache, past = document.cache, len(document.tokens)
        cache.grow(past + 1 + length)
        started = time.perf_counter()
        draft: list[int] = []
        hidden: list[Row] = []
        for at in range(length + 1):
            ids = np.array([draft[-1] if draft else token], np.int64)
            states = self._segments(ids, past + at, 0, exit + 1)
            hidden.append(states[0].copy())
            if at < length:
                # the likeliest, however tokens are chosen: it is only a draft
                draft.append(int(backend.logits(backend.judge(exit, states)[0])[0].argmax()))
        drafted = time.perf_counter()
        whole = self._segments(np.stack(hidden), past, exit + 1, len(backend.decoding.ends))
        found = self._take(token, draft, backend.logits(whole))
        ended = time.perf_counter()
        speculation.saw(exit, length, found[2], drafted - started, ended - drafted)
        return found

    def _take(self, token: int, draft: Sequence[int], logits: Row) -> tuple[int, int, int]:
        """What a draft is right about, by the logits [1 + draft, vocab] of the token and the draft."""
        document = self._document
        chosen: list[int] = []
        for row, drafted in zip(logits, [*draft, None], strict=True):
            chosen.append(self.choose(row))
            if chosen[-1] != drafted:
                break
        right = len(chosen) - 1
        document.tokens += [token, *draft[:right]]
        self._checked = chosen[1:]
        return chosen[0], self._backend.decoding.layers, right

    def _through(self, ids: NDArray[np.int64], past: int) -> Row:
        """What the head takes for these tokens, [n, width], through all layers."""
        self._fill()
        return self._segments(ids, past, 0, len(self._backend.decoding.ends))

    def _segments(self, inputs: NDArray[np.int64] | Row, past: int, start: int, end: int) -> Row:
        found = inputs
        for number in range(start, end):
            found = self._backend.segment(number, found, self._document.cache, past)
        states: Row = found  # type: ignore[assignment]
        return states

    def _early(self, token: int, past: int) -> tuple[Row, int] | None:
        """What the head takes for one token, and after how many layers; None: what follows would be wrong."""
        backend, document, exits = self._backend, self._document, self._settings.exits
        ends = backend.decoding.ends
        ids = np.array([token], np.int64)
        if not exits:
            return self._through(ids, past), ends[-1]
        hidden: NDArray[np.int64] | Row = ids
        for number, end in enumerate(ends):
            if number:
                self._fill()
            states: Row = backend.segment(number, hidden, document.cache, past)
            if number == len(exits):
                return states, end
            if exits[number].exit is None and exits[number].stop is None:
                # never followed, and so not asked
                hidden = states
                continue
            state, chances = backend.judge(number, states)
            decision = int(chances.argmax())
            bound = (exits[number].stop, exits[number].exit, None)[decision]
            if bound is not None and chances[decision] >= bound:
                if decision == _STOP:
                    return None
                document.left.append(Left(past, number, states[0].copy()))
                return state, end
            hidden = states.copy()
        raise AssertionError("the last segment always answers")

    def _fill(self) -> None:
        if self._document.left:
            self._backend.fill(self._document)
