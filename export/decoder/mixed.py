"""How a decoder is rounded: by real text, and at 8 bits where rounding to 4 costs most, as measured.

Matrices are told apart by kind: the words (with a head that is tied to them), a head of its own, and of all layers the
`qkv`, `out`, `up` or `down`.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from codemill.export.decoder.by_text import SCRATCH, rounded_by_text
from codemill.export.decoder.rounding import FULL, Rounding
from codemill.export.decoder.running import text_loss
from codemill.export.decoder.shape import DecoderShape, DecoderWeights
from codemill.export.decoder.write import write_decoder
from codemill.export.quantize.blocks import BLOCK

__all__ = ["ROUNDING_LOSS", "round_decoder"]

ROUNDING_LOSS = 0.2
"""Share of perplexity that rounding a decoder as it is to 4 bits may cost, where nobody says."""

Pieces = Sequence[NDArray[Any]]
_ROUNDED_BY = 0.5
"""Of the time, about, where kinds are chosen as well."""


def round_decoder(
    weights: DecoderWeights,
    bits: int,
    pieces: Pieces,
    held_out: Pieces = (),
    most_loss: float | None = None,
    block: int = BLOCK,
    folder: Path | None = None,
    threads: int | None = None,
    report: Callable[[float, str], None] = lambda _, __: None,
    room: int | None = None,
    symmetric: bool = False,
) -> Rounding:
    """Round at `bits` by `pieces` (each as it is where there are none), ids [tokens] as of `held_out`.

    most_loss: at 4 bits, the share by which perplexity on `held_out` may be above that at 8 bits. Kinds are kept at 8
    bits, that which wins most a byte first, until it is met, or nothing more fits into `room`, bytes beyond what all
    take at 4 bits (None: all that is needed). most_loss None: none are. symmetric: at 4 bits without zero points.
    Takes disk for the decoder in float32.
    Raises ValueError where there is nothing to measure a loss on.
    """
    if bits == FULL:
        return Rounding(FULL)
    chooses = bits == 4 and most_loss is not None
    if chooses and not held_out:
        raise ValueError("what rounding loses is measured on held-out pieces, and there are none")
    rounding = Rounding(bits, block=block, symmetric=symmetric)
    if pieces:
        share = _ROUNDED_BY if chooses else 1.0
        blocks = rounded_by_text(
            weights,
            rounding,
            pieces,
            folder,
            threads,
            lambda done: report(share * done, "rounding matrices by what they are multiplied with"),
        )
        rounding = replace(rounding, blocks=blocks)
    if not chooses:
        return rounding
    assert most_loss is not None
    losses = _Losses(weights, held_out, folder, threads)
    return _mixed(rounding, losses, weights.shape, most_loss, room, report)


class _Losses:
    """What a decoder that is rounded so loses on some text."""

    def __init__(
        self, weights: DecoderWeights, held_out: Pieces, folder: Path | None, threads: int | None
    ) -> None:
        self._weights, self._held_out = weights, held_out
        self._folder, self._threads = folder, threads

    def of(self, rounding: Rounding) -> float:
        shape, longest = self._weights.shape, max(map(len, self._held_out))
        # a segment a layer: memory need not hold what is written
        after = range(1, shape.layers)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=SCRATCH) as scratch:
            graphs = Path(scratch)
            write_decoder(self._weights, graphs, rounding, after, longest)
            return text_loss(graphs, shape, after, self._held_out, self._threads)


def _mixed(
    rounding: Rounding,
    losses: _Losses,
    shape: DecoderShape,
    most_loss: float,
    room: int | None,
    report: Callable[[float, str], None],
) -> Rounding:
    # bytes of a weight and its part of a zero point, at 8 bits beyond 4
    more = 0.5 + (1.0 if rounding.symmetric else 0.5) / rounding.block
    sizes = _elements(shape)
    left_over = math.inf if room is None else room
    # all at 4 bits, all at 8, each kind, and each but the first again beside those that are chosen
    steps, done = 2 * len(sizes) + 1, 0

    def loss(item: Rounding, what: str) -> float:
        nonlocal done
        share = _ROUNDED_BY + (1 - _ROUNDED_BY) * done / steps
        report(share, f"measuring the loss with {what}")
        done += 1
        return losses.of(item)

    allowed = loss(replace(rounding, bits=8, blocks={}), "8 bits") + math.log1p(most_loss)
    now = loss(rounding, "4 bits")
    if now <= allowed:
        return rounding
    alone = {
        kind: loss(replace(rounding, eight=(kind,)), f"{kind} at 8 bits")
        for kind, elements in sizes.items()
        if elements * more <= left_over
    }
    for kind in sorted(alone, key=lambda kind: (alone[kind] - now) / sizes[kind]):
        if sizes[kind] * more > left_over:
            continue
        left_over -= sizes[kind] * more
        rounding = replace(rounding, eight=(*rounding.eight, kind))
        first = len(rounding.eight) == 1
        left = alone[kind] if first else loss(rounding, f"{', '.join(rounding.eight)} at 8 bits")
        if left <= allowed:
            break
    return rounding


def _elements(shape: DecoderShape) -> dict[str, int]:
    """Of all matrices of a kind."""
    width, inner = shape.width, shape.intermediate_size
    tables = {"words": shape.vocab_size * (width if shape.rank is None else shape.rank)}
    if not shape.tied:
        tables["head"] = shape.vocab_size * width
    layers = {
        "qkv": width * (shape.query_size + 2 * shape.kv_size),
        "out": width * shape.query_size,
        "up": width * inner * (1 + shape.gated),
        "down": width * inner,
    }
    return tables | {kind: shape.layers * size for kind, size in layers.items()}
