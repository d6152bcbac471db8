"""The graphs of a bundle with labels: each encoder part with its head, and what they take and give.

Opens them, feeds them, and believes nothing they answer before its shape and its numbers are
checked. Which rows go through which part is `classifier.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codemill.errors import BundleError
from codemill.runtime.bundle import plain
from codemill.runtime.labels import Labelling
from codemill.runtime.opening import Opened
from codemill.runtime.session import Graph, Session

__all__ = ["Part", "open_parts"]

_IDS, _MASK, _HIDDEN = "input_ids", "attention_mask", "hidden"
# of a part that takes `hidden`: no graph can give what has the name of something it takes
_NEXT_HIDDEN = "next_hidden"
_EMBEDDING, _LOGITS = "embedding", "logits"
_FIRST, _SECOND = "first", "second"
_INT, _FLOAT = "tensor(int64)", "tensor(float)"

Row = NDArray[np.float32]


@dataclass(frozen=True)
class Part:
    """Some consecutive layers, and the head that judges what comes out of them.

    A row leaves after this part when its largest probability is `threshold` or more; the last part
    has None, and every row leaves. `hands_on` is the output that the next part takes. `layers` counts
    those up to here.
    """

    encoder: Graph
    head: Graph
    dim: int
    labels: int
    layers: int
    temperature: float
    threshold: float | None
    hands_on: str | None
    # what error messages call it
    name: str

    def start(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> tuple[Row, Row | None]:
        """Embeddings [batch, dim] of ids [batch, tokens], and what the next part takes."""
        return self._encode({_IDS: ids, _MASK: mask}, ids.shape)

    def go_on(self, hidden: Row, mask: NDArray[np.int64]) -> tuple[Row, Row | None]:
        """The same, from what the part before gave: [batch, tokens, width]."""
        return self._encode({_HIDDEN: hidden, _MASK: mask}, mask.shape)

    def logits(self, sides: Sequence[Row]) -> NDArray[np.float64]:
        """Calibrated logits [n, labels] of embeddings, one array [n, dim] for each text."""
        names = (_FIRST, _SECOND)[: len(sides)]
        (rows,) = self.head.outputs_for(dict(zip(names, sides, strict=True)), (_LOGITS,))
        self._check(rows, (len(sides[0]), self.labels), "head", _LOGITS)
        scaled: NDArray[np.float64] = rows.astype(np.float64) / self.temperature
        return scaled

    def close(self) -> None:
        """Free both graphs."""
        self.encoder.close()
        self.head.close()

    def _encode(
        self, inputs: dict[str, NDArray[np.int64] | Row], shape: tuple[int, ...]
    ) -> tuple[Row, Row | None]:
        names = (_EMBEDDING,) if self.hands_on is None else (_EMBEDDING, self.hands_on)
        embedding, *more = self.encoder.outputs_for(inputs, names)
        self._check(embedding, (shape[0], self.dim), "encoder", _EMBEDDING)
        if not more:
            return embedding, None
        (hidden,) = more
        width = hidden.shape[-1] if hidden.ndim == 3 else self.dim
        self._check(hidden, (*shape, width), "encoder", names[-1])
        return embedding, hidden

    def _check(
        self, found: NDArray[np.float32], expected: tuple[int, ...], kind: str, output: str
    ) -> None:
        if found.dtype != np.float32 or found.shape != expected or not np.isfinite(found).all():
            raise BundleError(
                f"{self.name}: the {kind} gave {output} of shape {list(found.shape)}, or some that "
                f"are not numbers; expected {list(expected)} finite numbers"
            )


def open_parts(opened: Opened, labelling: Labelling, threads: int | None) -> tuple[Part, ...]:
    """The parts of the opened variant, the first layers first; BundleError for other interfaces."""
    segments = opened.variant.segments
    exits = labelling.exits
    separate = labelling.texts == 2 and not labelling.joined
    head_inputs = {_FIRST: _FLOAT, **({_SECOND: _FLOAT} if separate else {})}
    parts: list[Part] = []
    opened_graphs: list[Session] = []

    def graph(path: str, threads: int | None) -> Session:
        session = opened.session(path, threads)
        opened_graphs.append(session)
        return session

    try:
        for i in range(len(exits) + 1):
            last = i == len(exits)
            encoder = graph(segments[2 * i], threads)
            takes = {_HIDDEN: _FLOAT, _MASK: _INT} if i else {_IDS: _INT, _MASK: _INT}
            _check_inputs(encoder, takes, "an encoder part")
            _check_output(encoder, _EMBEDDING, (None, labelling.dim))
            hands_on = None if last else _NEXT_HIDDEN if i else _HIDDEN
            if hands_on is not None:
                _check_output(encoder, hands_on, (None, None, None))
            # a few small products: threads cost more than they bring
            head = graph(segments[2 * i + 1], 1)
            _check_inputs(head, head_inputs, "a head")
            _check_output(head, _LOGITS, (None, len(labelling.labels)))
            parts.append(
                Part(
                    encoder=encoder,
                    head=head,
                    dim=labelling.dim,
                    labels=len(labelling.labels),
                    layers=labelling.layers if last else exits[i].layer,
                    temperature=labelling.temperature if last else exits[i].temperature,
                    threshold=None if last else exits[i].threshold,
                    hands_on=hands_on,
                    name=f"variant {opened.name!r} of bundle {opened.manifest.name!r}, part {i}",
                )
            )
    except BaseException:
        for session in opened_graphs:
            session.close()
        raise
    return tuple(parts)


def _check_inputs(session: Session, expected: dict[str, str], what: str) -> None:
    if session.inputs != expected:
        raise BundleError(
            f"{session.path} takes {plain(session.inputs)}; {what} here takes {expected}"
        )


def _check_output(session: Session, name: str, shape: tuple[int | None, ...]) -> None:
    """The graph says it gives float32 of this shape; None is any size, and so is a name."""
    if name not in session.outputs:
        raise BundleError(
            f"{session.path} has no output {name!r}; it has: {plain(', '.join(session.outputs))}"
        )
    kind, found = session.outputs[name]
    fits = len(found) == len(shape) and all(
        size is None or not isinstance(there, int) or there == size
        for size, there in zip(shape, found, strict=True)
    )
    if kind != _FLOAT or not fits:
        raise BundleError(
            f"{session.path} gives {name} as {kind} of shape {plain(list(found))}; expected {_FLOAT} of "
            f"shape {['any' if size is None else size for size in shape]}"
        )
