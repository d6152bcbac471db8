"""A decoder's graphs, just written, run over pieces of text: without a tokenizer, controllers or a manifest."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codemill.export.candidates import PROVIDER
from codemill.export.decoder.shape import DecoderShape
from codemill.export.decoder.write import HEAD, segment_file
from codemill.runtime.completion.decoding import Decoding, Exit
from codemill.runtime.completion.parts import LOGITS, NEXT, STATE, OnnxParts
from codemill.runtime.session import OnnxSession, Session

__all__ = ["open_graphs", "segment_inputs", "text_loss"]

_ROWS = 64
"""Of logits in double precision, at once."""


def open_graphs(
    folder: Path, shape: DecoderShape, after: Sequence[int], threads: int | None
) -> OnnxParts:
    """The segments and the head that `write_decoder` wrote into `folder`, ready to run; without controllers."""
    graphs = [segment_file(number) for number in range(len(after) + 1)]
    sessions: list[OnnxSession] = []
    try:
        for name in (*graphs, HEAD):
            sessions.append(OnnxSession(folder / name, provider=PROVIDER, threads=threads))
    except BaseException:
        for session in sessions:
            session.close()
        raise
    decoding = Decoding(
        vocab_size=shape.vocab_size,
        layers=shape.layers,
        width=shape.width,
        kv_heads=shape.kv_heads,
        head_size=shape.head_size,
        max_tokens=shape.max_tokens,
        begin=(),
        end=(),
        fill=None,
        rotary=None,
        exits=tuple(Exit(layer, None, None) for layer in after),
    )
    return OnnxParts(decoding, sessions[:-1], [], [], sessions[-1])


def segment_inputs(session: Session, state: NDArray[Any], shape: DecoderShape) -> dict[str, Any]:
    """What a segment of `write_decoder` takes for a whole text: ids [1, tokens], or states [1, tokens, width]."""
    count = state.shape[1]
    empty = np.zeros((1, shape.kv_heads, 0, shape.head_size), np.float32)
    given: dict[str, NDArray[Any]] = {
        "seqlens_k": np.array([count - 1], np.int32),
        "total_sequence_length": np.array([count], np.int32),
        "position_ids": np.arange(count)[None],
        "input_ids": state,
        "hidden": state,
    }
    return {name: given.get(name, empty) for name in session.inputs}


def text_loss(
    folder: Path,
    shape: DecoderShape,
    after: Sequence[int],
    pieces: Sequence[NDArray[Any]],
    threads: int | None,
) -> float:
    """Mean cross-entropy (nats) of the next token over pieces, ids [tokens], of the graphs in `folder`.

    after: where their segments end. One graph is open at a time, so that memory holds a segment, not the decoder.
    """
    states: list[NDArray[Any]] = [piece[None].astype(np.int64) for piece in pieces]
    for number in range(len(after) + 1):
        gives = STATE if number == len(after) else NEXT
        with closing(
            OnnxSession(folder / segment_file(number), provider=PROVIDER, threads=threads)
        ) as segment:
            states = [
                segment.outputs_for(segment_inputs(segment, state, shape), (gives,))[0]
                for state in states
            ]
    losses = []
    with closing(OnnxSession(folder / HEAD, provider=PROVIDER, threads=threads)) as head:
        for piece, state in zip(pieces, states, strict=True):
            for start in range(0, len(piece) - 1, _ROWS):
                wanted = piece[1:][start : start + _ROWS, None]
                rows = state[:, start : start + len(wanted)]
                logits = head.outputs_for({STATE: rows}, (LOGITS,))[0][0].astype(np.float64)
                logits -= logits.max(-1, keepdims=True)
                said = np.take_along_axis(logits, wanted, -1)[:, 0]
                losses.append(np.log(np.exp(logits).sum(-1)) - said)
    return float(np.concatenate(losses).mean())
