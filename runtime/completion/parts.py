"""The graphs of a bundle that completes, run over one text's keys and values.

`Backend` is all that the loop knows of an inference engine: run a segment, judge at an exit, fill in what was skipped,
ask the head. `StandardParts` does so with graphs of standard operators in any engine that runs from memory, `OnnxParts`
with ONNX Runtime's own on the CPU, each array bound once; `device.py` keeps keys and values on a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from codemill.errors import BundleError
from codemill.runtime.bundle import plain
from codemill.runtime.completion.cache import Cache
from codemill.runtime.completion.decoding import AT_ONCE, DECISIONS, Decoding
from codemill.runtime.engines import ENGINES, OPENVINO
from codemill.runtime.pages import let_go_of_mapped
from codemill.runtime.session import Binding, OnnxSession, Session, open_session

if TYPE_CHECKING:
    from codemill.runtime.completion.document import Document
    from codemill.runtime.opening import Opened

__all__ = ["Backend", "OnnxParts", "StandardParts", "open_parts"]

Row = NDArray[np.float32]
_FLOAT, _HALF = "tensor(float)", "tensor(float16)"
_INT32, _INT64 = "tensor(int32)", "tensor(int64)"
IDS, HIDDEN, PLACES, STATE, NEXT = "input_ids", "hidden", "position_ids", "state", "hidden_out"
_LAST, _TOTAL, DECISION, LOGITS = "seqlens_k", "total_sequence_length", "decision", "logits"


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


class StandardParts:
    """Backend of graphs in standard operators (`export/decoder/standard.py`), which read the whole cache as it lies.

    What they give for their own tokens is written behind it here.
    """

    _kept: type[np.floating[Any]] = np.float32

    def __init__(
        self,
        decoding: Decoding,
        segments: Sequence[Session],
        exits: Sequence[Session],
        projections: Sequence[Session],
        head: Session,
    ) -> None:
        self.decoding = decoding
        self._segments = segments
        self._exits = exits
        self._projections = projections
        self._head = head

    def cache(self) -> Cache:
        """As in `Backend`; so are the others."""
        return Cache(self.decoding)

    def segment(self, number: int, inputs: NDArray[Any], cache: Cache, past: int) -> Row:
        """By the segment's graph, which masks what stands in the cache behind `past`."""
        at = np.arange(past, past + len(inputs), dtype=np.int64)
        given = {IDS if number == 0 else HIDDEN: inputs[None], PLACES: at[None]}
        output = STATE if number == len(self.decoding.exits) else NEXT
        found = self._run(number, given, output, cache)
        check_output(found, (1, len(inputs), self.decoding.width), self._segments[number].path)
        states: Row = found[0]
        return states

    def _layers(self, number: int) -> tuple[int, int]:
        """Of a segment: the first, and the one behind its last."""
        ends = self.decoding.ends
        return ends[number - 1] if number else 0, ends[number]

    def _run(self, number: int, given: dict[str, Any], output: str, cache: Cache) -> Row:
        """What a segment gives as `output`; the rows of its tokens are written into the cache."""
        session, (start, end) = self._segments[number], self._layers(number)
        for layer in range(start, end):
            given.update(zip(past_names(layer), cache.layers[layer], strict=True))
        found, *rows = session.outputs_for(given, [output, *row_names(range(start, end))])
        at = given[PLACES][0]
        cache.write(start, at, self._pairs(rows, len(at), session.path))
        states: Row = found
        return states

    def judge(self, exit: int, hidden: Row) -> tuple[Row, Row]:
        """By the exit's own graph."""
        state, decision = self._exits[exit].outputs_for({HIDDEN: hidden[None]}, (STATE, DECISION))
        check_output(state, (1, 1, self.decoding.width), self._exits[exit].path)
        check_output(decision, (1, 1, DECISIONS), self._exits[exit].path)
        return state[0], decision[0, 0]

    def fill(self, document: Document) -> None:
        """By the exits' projections, many tokens of an exit at once."""
        for number, session in enumerate(self._projections):
            every = [item for item in document.left if item.exit == number]
            first = self.decoding.ends[number]
            names = row_names(range(first, self.decoding.layers))
            for start in range(0, len(every), AT_ONCE):
                left = every[start : start + AT_ONCE]
                at = np.array([item.at for item in left], dtype=np.int64)
                inputs: dict[str, NDArray[Any]] = {
                    HIDDEN: np.stack([item.hidden for item in left])[None]
                }
                if PLACES in session.inputs:
                    inputs[PLACES] = at[None]
                found = session.outputs_for(inputs, names)
                document.cache.write(first, at, self._pairs(found, len(at), session.path))
        document.left.clear()

    def logits(self, state: Row) -> Row:
        """By the head, checked for numbers that are none."""
        (found,) = self._head.outputs_for({STATE: state[None]}, (LOGITS,))
        return self._checked(found, len(state))

    def close(self) -> None:
        """Free all graphs."""
        for session in (*self._segments, *self._exits, *self._projections, self._head):
            session.close()

    def _pairs(self, rows: Sequence[Row], count: int, path: str) -> list[tuple[Row, Row]]:
        """Keys and values of `count` tokens in some layers, checked."""
        shape = (1, self.decoding.kv_heads, count, self.decoding.head_size)
        for found in rows:
            check_output(found, shape, path, self._kept)
        return list(zip(rows[::2], rows[1::2], strict=True))

    def _checked(self, found: Row, count: int) -> Row:
        shape = (1, count, self.decoding.vocab_size)
        # the largest is not finite where any is not a number
        if found.dtype != np.float32 or found.shape != shape or not np.isfinite(found.max()):
            raise BundleError(_said_wrong(found, shape, self._head.path))
        rows: Row = found[0]
        return rows


class OnnxParts(StandardParts):
    """Backend of ONNX Runtime sessions."""

    _segments: Sequence[OnnxSession]
    _head: OnnxSession

    def __init__(
        self,
        decoding: Decoding,
        segments: Sequence[OnnxSession],
        exits: Sequence[OnnxSession],
        projections: Sequence[OnnxSession],
        head: OnnxSession,
    ) -> None:
        super().__init__(decoding, segments, exits, projections, head)
        # arrays of one token's head; each thread has its own
        self._bound = threading.local()

    def segment(self, number: int, inputs: NDArray[Any], cache: Cache, past: int) -> Row:
        """Through one binding of arrays for each text."""
        bound = cache.bound.get(number)
        if bound is None:
            bound = cache.bound[number] = _BoundSegment(
                self._segments[number], self.decoding, number, cache
            )
        found: Row = bound.run(inputs, cache, past)
        return found

    def logits(self, state: Row) -> Row:
        """By the head, of one token through arrays that stay."""
        return self._checked(self._one(state), 1) if len(state) == 1 else super().logits(state)

    def _one(self, state: Row) -> Row:
        """Of one token, through arrays that stay: what is given is valid until the next call of this thread."""
        bound = getattr(self._bound, "head", None)
        if bound is None:
            taken = np.zeros((1, 1, self.decoding.width), np.float32)
            given = np.zeros((1, 1, self.decoding.vocab_size), np.float32)
            binding = self._head.bind()
            binding.takes(STATE, taken)
            binding.gives(LOGITS, given)
            bound = self._bound.head = binding, taken, given
        binding, taken, given = bound
        taken[0] = state
        binding.run()
        found: Row = given
        return found


class _BoundSegment:
    """A segment's graph bound to one cache, for one token at a time and for several."""

    def __init__(self, session: OnnxSession, decoding: Decoding, number: int, cache: Cache) -> None:
        self._session = session
        self._decoding = decoding
        self._number = number
        self._output = STATE if number == len(decoding.exits) else NEXT
        self._input = HIDDEN if number else IDS
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
        if PLACES in self._session.inputs:
            places = np.zeros((1, count), np.int64)
            binding.takes(PLACES, places)
        start = decoding.ends[self._number - 1] if self._number else 0
        for layer in range(start, decoding.ends[self._number]):
            for kind, buffer in zip(("key", "value"), cache.layers[layer], strict=True):
                binding.takes(f"past_key_values.{layer}.{kind}", buffer)
                binding.gives(f"present.{layer}.{kind}", buffer)
        return binding, taken, given, places


def open_parts(opened: Opened, decoding: Decoding, threads: int | None) -> Backend:
    """The graphs of the opened variant.

    Raises ProviderError where what runs them is not here, BundleError for other interfaces.
    """
    paths = list(opened.variant.segments)
    provider = opened.variant.provider
    # ONNX Runtime's graphs are of its own operators, all others' of standard ones
    on_device = provider in ENGINES
    standard = on_device or provider == OPENVINO
    sessions: list[Any] = []

    def graph(path: str) -> Any:
        built_for = opened.variant.built_for
        sessions.append(
            open_session(
                opened.folder / path, provider=provider, threads=threads, built_for=built_for
            )
        )
        # after each, so that no more than one graph's weights are there twice
        let_go_of_mapped(opened.folder)
        return sessions[-1]

    count = len(decoding.exits)
    segments: list[Any] = []
    exits: list[Any] = []
    projections: list[Any] = []
    kept = _FLOAT
    try:
        start = 0
        for number, end in enumerate(decoding.ends):
            segments.append(graph(paths.pop(0)))
            if number == 0 and on_device:
                kept = _kept_as(segments[0])
            _check_segment(segments[-1], decoding, start, end, kept if standard else None)
            if number < count:
                exits.append(graph(paths.pop(0)))
                _check_inputs(exits[-1], {HIDDEN: _FLOAT}, {STATE: _FLOAT, DECISION: _FLOAT})
                projections.append(graph(paths.pop(0)))
                _check_projection(projections[-1], decoding, end, kept)
            start = end
        head = graph(paths.pop(0))
        _check_inputs(head, {STATE: _FLOAT}, {LOGITS: _FLOAT})
        if on_device:
            from codemill.runtime.completion.device import DeviceParts

            half = kept == _HALF
            return DeviceParts(decoding, segments, exits, projections, head, half=half)
    except BaseException:
        for session in sessions:
            session.close()
        raise
    kind = StandardParts if standard else OnnxParts
    return kind(decoding, segments, exits, projections, head)


def past_names(layer: int) -> tuple[str, str]:
    """What a segment's graph calls a layer's cache."""
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def row_names(layers: Iterable[int]) -> list[str]:
    """What graphs call the keys and values that they give for their own tokens."""
    return [f"{kind}.{layer}" for layer in layers for kind in ("key", "value")]


def _kept_as(session: Session) -> str:
    """The type of keys and values on a GPU: float32 or float16."""
    return _HALF if session.inputs.get(past_names(0)[0]) == _HALF else _FLOAT


def _check_segment(
    session: Session, decoding: Decoding, start: int, end: int, kept: str | None
) -> None:
    """kept: the type of keys and values of a graph in standard operators; None: it has ONNX Runtime's own."""
    layers = range(start, end)
    past = [name for layer in layers for name in past_names(layer)]
    places = kept is not None or (PLACES in session.inputs and not start)
    expected = {
        **({HIDDEN: _FLOAT} if start else {IDS: _INT64}),
        **({PLACES: _INT64} if places else {}),
        **({_LAST: _INT32, _TOTAL: _INT32} if kept is None else {}),
        **dict.fromkeys(past, kept or _FLOAT),
    }
    rows = [name.replace("past_key_values", "present") for name in past]
    given = {
        (STATE if end == decoding.layers else NEXT): _FLOAT,
        **dict.fromkeys(rows if kept is None else row_names(layers), kept or _FLOAT),
    }
    _check_inputs(session, expected, given)


def _check_projection(session: Session, decoding: Decoding, start: int, kept: str) -> None:
    given = dict.fromkeys(row_names(range(start, decoding.layers)), kept)
    places = {PLACES: _INT64} if PLACES in session.inputs else {}
    _check_inputs(session, {HIDDEN: _FLOAT, **places}, given)


def _check_inputs(session: Session, expected: dict[str, str], given: dict[str, str]) -> None:
    if session.inputs != expected:
        raise BundleError(f"{session.path} takes {plain(session.inputs)}; expected {expected}")
    found = {name: kind for name, (kind, _) in session.outputs.items()}
    if found != given:
        raise BundleError(f"{session.path} gives {plain(found)}; expected {given}")


def check_output(
    found: Row, shape: tuple[int, ...], path: str, kind: type[np.floating[Any]] = np.float32
) -> None:
    """Raise BundleError for what a graph gave that is of another type or shape, or not finite."""
    if found.dtype != kind or found.shape != shape or not np.isfinite(found).all():
        raise BundleError(_said_wrong(found, shape, path))


def _said_wrong(found: Row, shape: tuple[int, ...], path: str) -> str:
    return f"{path} gave numbers of shape {list(found.shape)}, or some that are not finite; expected {list(shape)}"
