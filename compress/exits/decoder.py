"""Exits of a decoder: an adapter for each, one controller for all, and what they learn.

An adapter makes of the hidden states after some layers what the last norm and the head can read (Balcony, 2503.05005,
with a gated product in place of a layer); it begins as the identity. The controller says of a token to stop, to exit
or to continue (SEC, 2401.09964). Everything here sees hidden states that were computed before, and so no backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from codemill.export.decoder.shape import Adapter, DecoderWeights, Exits, Linear, Norm
from codemill.runtime.completion.decoding import DECISIONS

__all__ = ["DecoderExits", "Labels", "LastHead", "decided", "exits_after", "shared_loss"]

Labels = Literal["agrees", "right"]
STOP, EXIT, CONTINUE = range(DECISIONS)
_OTHERS = 1024
"""Tokens that no row of a batch finds likely, beside those that one does, in a batch's softmax."""


def exits_after(after: str | tuple[int, ...], layers: int) -> tuple[int, ...]:
    """After how many layers there are exits; `auto`: three, evenly over the upper part: more would cost their gain.

    Raises ValueError for one that is not below the last layer.
    """
    if after == "none":
        return ()
    if isinstance(after, str):
        places = (round(layers * share) for share in (0.4, 0.6, 0.8))
        return tuple(sorted({place for place in places if 0 < place < layers}))
    if after[-1] >= layers:
        raise ValueError(
            f"an exit after layer {after[-1]} of {layers}: it has to be below the last"
        )
    return after


@dataclass(frozen=True)
class LastHead:
    """A decoder's last norm and head: norm, norm_bias [width], matrix [vocab, width], bias [vocab] or None."""

    norm: Tensor
    norm_bias: Tensor | None
    matrix: Tensor
    bias: Tensor | None
    epsilon: float
    kind: Literal["rms", "layer"]

    @classmethod
    def of(cls, weights: DecoderWeights) -> LastHead:
        """Copies of what a decoder has, which are never trained."""
        shape, norm = weights.shape, weights.last_norm()
        head = Linear(weights.words()) if shape.tied else weights.head()
        matrix = head.weight
        if shape.tied and shape.rank is not None:
            matrix = matrix @ weights.widen().T
        return cls(
            torch.tensor(norm.weight),
            None if norm.bias is None else torch.tensor(norm.bias),
            torch.tensor(matrix),
            None if head.bias is None else torch.tensor(head.bias),
            shape.epsilon,
            shape.norm,
        )

    @property
    def width(self) -> int:
        """Of hidden states."""
        return len(self.norm)

    def normed(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """By a norm of the decoder's kind."""
        if self.kind == "rms":
            return functional.rms_norm(hidden, (self.width,), weight, self.epsilon)
        return functional.layer_norm(hidden, (self.width,), weight, bias, self.epsilon)

    def state(self, hidden: Tensor) -> Tensor:
        """What the head takes."""
        return self.normed(hidden, self.norm, self.norm_bias)

    def logits(self, state: Tensor, tokens: Tensor | None = None) -> Tensor:
        """state [.., width] -> [.., vocab], or of these tokens only."""
        matrix, bias = self.matrix, self.bias
        if tokens is not None:
            matrix, bias = matrix[tokens], None if bias is None else bias[tokens]
        return functional.linear(state, matrix, bias)


class _Adapter(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))
        self.norm = nn.Parameter(torch.ones(width))
        self.norm_bias = nn.Parameter(torch.zeros(width))
        self.up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)
        nn.init.normal_(self.up.weight, std=width**-0.5)
        nn.init.zeros_(self.down.weight)


class DecoderExits(nn.Module):
    """Adapters after `layers`, and the controller they share. last: of the decoder, and no part of this module."""

    def __init__(self, last: LastHead, layers: Sequence[int], inner: int, seed: int) -> None:
        super().__init__()
        self.last = last
        self.layers = tuple(layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.adapters = nn.ModuleList(_Adapter(last.width, inner) for _ in layers)
            self.controller = nn.Linear(last.width, DECISIONS)

    def state(self, number: int, hidden: Tensor) -> Tensor:
        """What the head takes at exit `number`, of hidden states [.., width]."""
        adapter = self._adapter(number)
        x = hidden * adapter.scale + adapter.shift
        gate, wide = adapter.up(self.last.normed(x, adapter.norm, adapter.norm_bias)).chunk(2, -1)
        return self.last.state(x + adapter.down(functional.silu(gate) * wide))

    def _adapter(self, number: int) -> _Adapter:
        found = self.adapters[number]
        assert isinstance(found, _Adapter)
        return found

    def decisions(self, state: Tensor) -> Tensor:
        """Logits [.., 3] of stop, exit and continue."""
        found: Tensor = self.controller(state)
        return found

    def as_exits(self) -> Exits:
        """For export."""
        layer_norm = self.last.kind == "layer"
        adapters = []
        for number, layer in enumerate(self.layers):
            item = self._adapter(number)
            norm = Norm(_array(item.norm), _array(item.norm_bias) if layer_norm else None)
            up, down = (Linear(_array(part.weight)) for part in (item.up, item.down))
            adapters.append(Adapter(layer, _array(item.scale), _array(item.shift), norm, up, down))
        controller = Linear(_array(self.controller.weight), _array(self.controller.bias))
        return Exits(tuple(adapters), controller)


def _array(values: Tensor) -> np.ndarray:
    found: np.ndarray = values.detach().float().cpu().numpy().copy()
    return found


def shared_loss(
    last: LastHead,
    states: Sequence[Tensor],
    likeliest: Tensor,
    logits: Tensor,
    gold: Tensor,
    gold_weight: float,
    generator: torch.Generator,
) -> Tensor:
    """KL to what a teacher finds likeliest, plus `gold_weight` times cross-entropy with the file's tokens.

    The mean over states [n, width] of exits, or of the last layer; likeliest int64 [n, k] and their logits [n, k]; gold
    int64 [n], -1: none. The softmax is over the tokens that any row of the batch
    finds likely, its own next ones, and some others, drawn anew: a fraction of the work of a whole vocabulary.
    """
    others = torch.randint(len(last.matrix), (_OTHERS,), generator=generator).to(likeliest.device)
    tokens = torch.cat([likeliest.flatten(), gold[gold >= 0], others]).unique()  # type: ignore[no-untyped-call]
    at = torch.searchsorted(tokens, likeliest)
    gold_at = torch.searchsorted(tokens, gold.clamp(min=0))
    aim = logits.float().softmax(-1)
    entropy = (aim * aim.clamp(min=1e-12).log()).sum(-1).mean()
    known = gold >= 0
    total = torch.zeros((), device=likeliest.device)
    for state in states:
        found = last.logits(state, tokens).float().log_softmax(-1)
        lost = entropy - (aim * found.gather(1, at)).sum(-1).mean()
        if gold_weight and bool(known.any()):
            lost = lost - gold_weight * found.gather(1, gold_at[:, None])[known].mean()
        total = total + lost
    return total / len(states)


def decided(labels: Labels, said: np.ndarray, final: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """What the controller should have said at each exit: int64 [exits, n].

    said: int [exits, n], the likeliest token at each exit; final [n], of the last layer; gold [n], -1 where unknown.
    `right` (SEC): stop where no layer says what the file says; else exit from the first one on that does. `agrees`:
    exit where an exit says what the last layer says; else stop where that is wrong.
    """
    known = gold >= 0
    if labels == "agrees":
        wrong = np.broadcast_to((final != gold) & known, said.shape)
        return np.where(said == final, EXIT, np.where(wrong, STOP, CONTINUE))
    right = np.logical_or.accumulate(said == gold, axis=0)
    never = ~right[-1] & (final != gold) & known
    found = np.where(right, EXIT, CONTINUE)
    return np.where(never, STOP, found)
