"""The graphs of a bundle that completes, run over one text's keys and values.

`Backend` is all that the loop knows of an inference engine: run a segment, judge at an exit, fill in what was skipped,
ask the head. `OnnxParts` does so with ONNX Runtime on the CPU, each array bound once.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from codemill.errors import BundleError
from codemill.runtime.bundle import plain
from codemill.runtime.completion.cache import Cache
from codemill.runtime.completion.decoding import DECISIONS, Decoding
from codemill.runtime.pages import let_go_of_mapped
from codemill.runtime.session import Binding, OnnxSession

if TYPE_CHECKING:
    from codemill.runtime.completion.document import Document
    from codemill.runtime.opening import Opened

__all__ = ["Backend", "OnnxParts", "open_parts"]

Row = NDArray[np.float32]
_FLOAT, _INT32, _INT64 = "tensor(float)", "tensor(int32)", "tensor(int64)"
_IDS, _HIDDEN, _PLACES, _STATE, _NEXT = "input_ids", "hidden", "position_ids", "state", "hidden_out"
_LAST, _TOTAL, _DECISION, _LOGITS = "seqlens_k", "total_sequence_length", "decision", "logits"


class Backend(Protocol):
    """What runs a decoder. One text is used by one thread at a time; several texts may be run at once."""

    decoding: Decoding

    def cache(self) -> Cache:
        """Room for a text's keys and values."""

    def segment(self, number: int, inputs: NDArray[Any], cache: Cache, past: int) -> Row:
        """Hidden states [n, width] of n tokens after a segment, or, after the last one, what the head takes.

        inputs: int64 [n] ids for segment 0, else float32 [n, width]. Their keys and values are written behind the
        first `past`; the cache has room for them. What is given is valid until the next call for this text.
        """

    def judge(self, exit: int, hidden: Row) -> tuple[Row, Row]:
        """What the head takes, [1, width], and probabilities [3] to stop, exit, continue; of hidden [1, width]."""

    def fill(self, document: Document) -> None:
        """Give the tokens that left early keys and values in all layers."""

    def logits(self, state: Row) -> Row:
        """Logits [n, vocab] of what a last segment, or an exit, gave: [n, width]; valid till the thread's next call."""

    def close(self) -> None:
        """Let go of the graphs; calling it twice is fine."""


class OnnxParts:
    """Backend of ONNX Runtime sessions."""

    def __init__(
        self,
        decoding: Decoding,
        segments: list[OnnxSession],
        exits: list[OnnxSession],
        projections: list[OnnxSession],
        head: OnnxSession,
    ) -> None:
        self.decoding = decoding
        self._segments = segments
        self._exits = exits
        self._projections = projections
        self._head = head
        # arrays of one token's head; each thread has its own
        self._bound = threading.local()

    def cache(self) -> Cache:
        """As in `Backend`; so are the others."""
        return Cache(self.decoding)

    def segment(self, number: int, inputs: NDArray[Any], cache: Cache, past: int) -> Row:
        """Through one binding of arrays for each text."""
        bound = cache.bound.get(number)
        if bound is None:
            bound = cache.bound[number] = _BoundSegment(
                self._segments[number], self.decoding, number, cache
            )
        found: Row = bound.run(inputs, cache, past)
        return found

    def judge(self, exit: int, hidden: Row) -> tuple[Row, Row]:
        """By the exit's own graph."""
        state, decision = self._exits[exit].outputs_for(
            {_HIDDEN: hidden[None]}, (_STATE, _DECISION)
        )
        _check(state, (1, 1, self.decoding.width), self._exits[exit].path)
        _check(decision, (1, 1, DECISIONS), self._exits[exit].path)
        return state[0], decision[0, 0]

    def fill(self, document: Document) -> None:
        """By the exits' projections, all tokens of an exit at once."""
        for number, session in enumerate(self._projections):
            left = [item for item in document.left if item.exit == number]
            if not left:
                continue
            at = np.array([item.at for item in left], dtype=np.int64)
            inputs: dict[str, NDArray[Any]] = {
                _HIDDEN: np.stack([item.hidden for item in left])[None]
            }
            if _PLACES in session.inputs:
                inputs[_PLACES] = at[None]
            first = self.decoding.ends[number]
            names = [
                f"{kind}.{layer}"
                for layer in range(first, self.decoding.layers)
                for kind in ("key", "value")
            ]
            found = session.outputs_for(inputs, names)
            shape = (1, self.decoding.kv_heads, len(at), self.decoding.head_size)
            for rows in found:
                _check(rows, shape, session.path)
            document.cache.write(first, at, list(zip(found[::2], found[1::2], strict=True)))
        document.left.clear()

    def logits(self, state: Row) -> Row:
        """By the head, checked for numbers that are none."""
        shape = (1, len(state), self.decoding.vocab_size)
        if len(state) == 1:
            found = self._one(state)
        else:
            (found,) = self._head.outputs_for({_STATE: state[None]}, (_LOGITS,))
        # the largest is not finite where any is not a number
        if found.dtype != np.float32 or found.shape != shape or not np.isfinite(found.max()):
            raise BundleError(_said_wrong(found, shape, self._head.path))
        rows: Row = found[0]
        return rows

    def _one(self, state: Row) -> Row:
        """Of one token, through arrays that stay: what is given is valid until the next call of this thread."""
        bound = getattr(self._bound, "head", None)
        if bound is None:
            taken = np.zeros((1, 1, self.decoding.width), np.float32)
            given = np.zeros((1, 1, self.decoding.vocab_size), np.float32)
            binding = self._head.bind()
            binding.takes(_STATE, taken)
            binding.gives(_LOGITS, given)
            bound = self._bound.head = binding, taken, given
        binding, taken, given = bound
        taken[0] = state
        binding.run()
        found: Row = given
        return found

    def close(self) -> None:
        """Free all graphs."""
        for session in (*self._segments, *self._exits, *self._projections, self._head):
            session.close()


class _BoundSegment:
    """A segment's graph bound to one cache, for one token at a time and for several."""

    def __init__(self, session: OnnxSession, decoding: Decoding, number: int, cache: Cache) -> None:
        self._session = session
        self._decoding = decoding
        self._number = number
        self._output = _STATE if number == len(decoding.exits) else _NEXT
        self._input = _HIDDEN if number else _IDS
        # both are read by the graph, and written here before each run
        self._last = np.zeros(1, np.int32)
        self._total = np.zeros(1, np.int32)
        # not the cache itself, which holds this: a ring is freed late
        self._one = self._bind(1, cache)

    def run(self, inputs: NDArray[Any], cache: Cache, past: int) -> Row:
        count = len(inputs)
        # arrays of other lengths are bound for one run
        binding, taken, given, places = self._one if count == 1 else self._bind(count, cache)
        taken[0] = inputs
        self._last[0] = past + count - 1
        self._total[0] = past + count
        if places is not None:
            places[0] = np.arange(past, past + count)
        binding.run()
        row: Row = given[0]
        return row

    def _bind(
        self, count: int, cache: Cache
    ) -> tuple[Binding, NDArray[Any], Row, NDArray[np.int64] | None]:
        decoding, binding = self._decoding, self._session.bind()
        shape = (1, count, decoding.width)
        taken: NDArray[Any] = (
            np.zeros(shape, np.float32) if self._number else np.zeros((1, count), np.int64)
        )
        given = np.zeros(shape, np.float32)
        binding.takes(self._input, taken)
        binding.gives(self._output, given)
        binding.takes(_LAST, self._last)
        binding.takes(_TOTAL, self._total)
        places = None
        if _PLACES in self._session.inputs:
            places = np.zeros((1, count), np.int64)
            binding.takes(_PLACES, places)
        start = decoding.ends[self._number - 1] if self._number else 0
        for layer in range(start, decoding.ends[self._number]):
            for kind, buffer in zip(("key", "value"), cache.layers[layer], strict=True):
                binding.takes(f"past_key_values.{layer}.{kind}", buffer)
                binding.gives(f"present.{layer}.{kind}", buffer)
        return binding, taken, given, places


def open_parts(opened: Opened, decoding: Decoding, threads: int | None) -> OnnxParts:
    """The graphs of the opened variant; BundleError for other interfaces."""
    paths = list(opened.variant.segments)
    sessions: list[OnnxSession] = []

    def graph(path: str) -> OnnxSession:
        session = OnnxSession(
            opened.folder / path, provider=opened.variant.provider, threads=threads
        )
        sessions.append(session)
        # after each, so that no more than one graph's weights are there twice
        let_go_of_mapped(opened.folder)
        return session

    count = len(decoding.exits)
    segments: list[OnnxSession] = []
    exits: list[OnnxSession] = []
    projections: list[OnnxSession] = []
    try:
        start = 0
        for number, end in enumerate(decoding.ends):
            segments.append(graph(paths.pop(0)))
            _check_segment(segments[-1], decoding, start, end)
            if number < count:
                exits.append(graph(paths.pop(0)))
                _check_inputs(exits[-1], {_HIDDEN: _FLOAT}, {_STATE, _DECISION})
                projections.append(graph(paths.pop(0)))
                _check_projection(projections[-1], decoding, end)
            start = end
        head = graph(paths.pop(0))
        _check_inputs(head, {_STATE: _FLOAT}, {_LOGITS})
    except BaseException:
        for session in sessions:
            session.close()
        raise
    return OnnxParts(decoding, segments, exits, projections, head)


def _check_segment(session: OnnxSession, decoding: Decoding, start: int, end: int) -> None:
    names = [f"{layer}.{kind}" for layer in range(start, end) for kind in ("key", "value")]
    expected = {
        **({_HIDDEN: _FLOAT} if start else {_IDS: _INT64}),
        **{_LAST: _INT32, _TOTAL: _INT32},
        **{f"past_key_values.{name}": _FLOAT for name in names},
    }
    if _PLACES in session.inputs and not start:
        expected[_PLACES] = _INT64
    given = {_STATE if end == decoding.layers else _NEXT, *(f"present.{name}" for name in names)}
    _check_inputs(session, expected, given)


def _check_projection(session: OnnxSession, decoding: Decoding, start: int) -> None:
    given = {f"{kind}.{n}" for n in range(start, decoding.layers) for kind in ("key", "value")}
    places = {_PLACES: _INT64} if _PLACES in session.inputs else {}
    _check_inputs(session, {_HIDDEN: _FLOAT, **places}, given)


def _check_inputs(session: OnnxSession, expected: dict[str, str], given: set[str]) -> None:
    if session.inputs != expected:
        raise BundleError(f"{session.path} takes {plain(session.inputs)}; expected {expected}")
    found = {name: kind for name, (kind, _) in session.outputs.items()}
    if found != dict.fromkeys(given, _FLOAT):
        raise BundleError(
            f"{session.path} gives {plain(found)}; expected {', '.join(sorted(given))} as {_FLOAT}"
        )


def _check(found: Row, shape: tuple[int, ...], path: str) -> None:
    if found.dtype != np.float32 or found.shape != shape or not np.isfinite(found).all():
        raise BundleError(_said_wrong(found, shape, path))


def _said_wrong(found: Row, shape: tuple[int, ...], path: str) -> str:
    return f"{path} gave numbers of shape {list(found.shape)}, or some that are not finite; expected {list(shape)}"
