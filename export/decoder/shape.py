"""What all decoders here have in common: one shape, and weights that are read a layer at a time.

A decoder is a table of words, layers of attention and feed-forward with a residual stream, a last norm and a head.
What differs between families (which norm, which activation, how positions enter) is a field. Matrices are [out, in],
as torch's Linear keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Activation",
    "Adapter",
    "DecoderShape",
    "DecoderWeights",
    "Exits",
    "Layer",
    "Linear",
    "Norm",
    "Rotary",
]

Floats = NDArray[np.float32]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: the angles' cosines and sines, [max_tokens, turned / 2], and one place's angles, [turned / 2].

    interleaved: neighbouring columns are turned together, and not column i with i + turned / 2. Columns of a head
    beyond the `turned` first ones are left as they are.
    """

    cos: Floats
    sin: Floats
    frequencies: tuple[float, ...]
    interleaved: bool = False

    @property
    def turned(self) -> int:
        """Columns of a head that are turned."""
        return 2 * int(self.cos.shape[1])


@dataclass(frozen=True)
class DecoderShape:
    """A decoder's shape.

    gated: down(act(gate x) * up x), and not down(act(up x)). parallel: attention and feed-forward read the same norm,
    and both are added (CodeGen). positions: a learned table of positions is added to the words. window: how many of
    the last tokens a token attends to, itself included; None: all. rank: the word table is factorised. tied: the head
    is the word table.
    """

    family: str
    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate_size: int
    max_tokens: int
    norm: Literal["rms", "layer"]
    epsilon: float
    activation: Activation
    gated: bool
    tied: bool
    parallel: bool = False
    positions: bool = False
    window: int | None = None
    rank: int | None = None

    @property
    def query_size(self) -> int:
        """Columns of all queries."""
        return self.heads * self.head_size

    @property
    def kv_size(self) -> int:
        """Columns of all keys, and of all values."""
        return self.kv_heads * self.head_size


@dataclass(frozen=True)
class Linear:
    """y = x @ weight.T + bias; weight [out, in], bias [out] or None."""

    weight: Floats
    bias: Floats | None = None


@dataclass(frozen=True)
class Norm:
    """weight [width]; bias [width] of a LayerNorm, None of an RMS norm."""

    weight: Floats
    bias: Floats | None = None


@dataclass(frozen=True)
class Layer:
    """One layer. qkv: rows of queries, then keys, then values; up: where gated, rows of the gate, then of up.

    mlp_norm is None where attention and feed-forward share a norm.
    """

    norm: Norm
    qkv: Linear
    out: Linear
    mlp_norm: Norm | None
    up: Linear
    down: Linear


@dataclass(frozen=True)
class Adapter:
    """What an exit after `layer` layers makes of the hidden states h before the last norm and the head.

    x = h * scale + shift, then x + down(silu(gate n) * up n) with n = norm(x): with scale 1, shift 0 and down 0 it is
    h. up: rows of the gate, then of up. The method is Balcony's (2503.05005), with a gated product in place of a layer.
    """

    layer: int
    scale: Floats
    shift: Floats
    norm: Norm
    up: Linear
    down: Linear


@dataclass(frozen=True)
class Exits:
    """The exits of a decoder, the lowest first, and their one controller: [3, width], to stop, to exit, to continue.

    It reads what the head would read (SEC, 2401.09964, reads the hidden states).
    """

    adapters: tuple[Adapter, ...]
    controller: Linear

    @property
    def layers(self) -> tuple[int, ...]:
        """After how many layers each is."""
        return tuple(adapter.layer for adapter in self.adapters)


class DecoderWeights(Protocol):
    """Weights in float32, read when asked for, so that not all of them are held at once."""

    shape: DecoderShape
    rotary: Rotary | None

    def words(self) -> Floats:
        """[vocab, width], or [vocab, rank] where factorised."""

    def widen(self) -> Floats:
        """[width, rank]; only where factorised."""

    def positions(self) -> Floats:
        """[max_tokens, width]; only where positions are learned."""

    def layer(self, number: int) -> Layer:
        """The layer of this number, from 0."""

    def last_norm(self) -> Norm:
        """The norm behind the last layer."""

    def head(self) -> Linear:
        """[vocab, width]; where tied, only its bias would be looked at, and there is none."""
