"""A decoder's graphs, just written, run over pieces of text: without a tokenizer, controllers or a manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codemill.export.candidates import PROVIDER
from codemill.export.decoder.shape import DecoderShape
from codemill.export.decoder.write import HEAD, segment_file
from codemill.runtime.completion.cache import Cache
from codemill.runtime.completion.decoding import Decoding, Exit
from codemill.runtime.completion.parts import OnnxParts
from codemill.runtime.session import OnnxSession

__all__ = ["open_graphs", "text_loss"]

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


def text_loss(parts: OnnxParts, pieces: Sequence[NDArray[Any]]) -> float:
    """Mean cross-entropy (nats) of the next token over pieces, ids [tokens], of graphs without exits."""
    cache = Cache(parts.decoding, max(map(len, pieces)))
    losses = []
    for piece in pieces:
        states = parts.segment(0, piece.astype(np.int64), cache, 0)[:-1].copy()
        for start in range(0, len(states), _ROWS):
            logits = parts.logits(states[start : start + _ROWS]).astype(np.float64)
            logits -= logits.max(-1, keepdims=True)
            wanted = piece[1:][start : start + _ROWS, None]
            said = np.take_along_axis(logits, wanted, -1)[:, 0]
            losses.append(np.log(np.exp(logits).sum(-1)) - said)
    return float(np.concatenate(losses).mean())
