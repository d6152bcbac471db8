"""Training that starts above the frozen layers, from what they made of a text before (`cache.py`).

While it lasts the encoder is the same to whoever calls it: ids and mask in, the last hidden states out. A text that is
kept is looked up; any other goes through the frozen layers, as it would without a cache, and keeps no gradients there.
The layers above are the encoder's own, so what an optimizer does to them is seen at once.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from codemill.compress.freeze.bottom import By
from codemill.compress.freeze.cache import (
    FrozenStates,
    Kind,
    TooLarge,
    begun,
    clear,
    distinct,
    frozen_states,
    needed_bytes,
)
from codemill.compress.pipeline import Report
from codemill.compress.recipe import Finetune
from codemill.export.layers import HIDDEN, layers_in, part_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import PreTrainedModel

    from codemill.compress.distill.loop import Point
    from codemill.compress.freeze.choose import Frozen

__all__ = ["Kept", "computed_once", "learned", "starting_from"]

_WORTH_IT = 1.5
"""A text has to be run so often at least, on average: once is what the cache itself takes."""
_SHARE_OF_DISK = 0.9


@dataclass(frozen=True)
class Kept:
    """What is kept of the frozen layers: size, texts, the seconds that took, what ran them; or why nothing is."""

    kind: Kind | None = None
    texts: int = 0
    size_bytes: int = 0
    seconds: float = 0.0
    by: By | None = None
    why_not: str | None = None


def learned(frozen: Frozen, kept: Kept, points: Sequence[Point]) -> dict[str, Any]:
    """What the facts of a fine-tuned model say of its training, as plain JSON."""
    return {
        "frozen_layers": frozen.layers,
        "tried": [asdict(item) for item in frozen.tried],
        "frozen_states": asdict(kept),
        "trainable_parameters": frozen.trainable,
        "parameters": frozen.parameters,
        "points": [asdict(point) for point in points],
    }


@contextlib.contextmanager
def computed_once(
    encoder: PreTrainedModel,
    layers: int | None,
    texts: Iterable[np.ndarray],
    runs: int,
    settings: Finetune,
    folder: Path,
    bf16: bool,
    report: Report,
) -> Iterator[Kept]:
    """While this lasts, the encoder starts above its lowest `layers` layers, where `settings.cache` asks for that.

    texts: token ids of what training will run, and validation where it is repeated; `runs`: how many texts it will
    run in all. `folder` is for what is kept, and is empty of it in the end; a run that was killed goes on there.
    """
    states, kept = _states(encoder, layers, texts, runs, settings, folder, bf16, report)
    if states is None or layers is None:
        yield kept
    else:
        with starting_from(encoder, layers, states):
            yield kept
        # what is mapped cannot be removed everywhere
        del states
    # not where it ended by an error: the next run goes on with it
    clear(folder)


def _states(
    encoder: PreTrainedModel,
    layers: int | None,
    texts: Iterable[np.ndarray],
    runs: int,
    settings: Finetune,
    folder: Path,
    bf16: bool,
    report: Report,
) -> tuple[FrozenStates | None, Kept]:
    """What the frozen layers give, in a kind that can hold it; or why training runs them each time."""
    if settings.cache == "none":
        return None, Kept(why_not="teacher.finetune.cache is none")
    if not layers:
        return None, Kept(why_not="no layer is frozen")
    found = distinct(texts)
    if not found:
        return None, Kept(why_not="what is read beside the ids is no part of them")
    if runs < _WORTH_IT * len(found):
        return None, Kept(why_not=f"each text is run {runs / len(found):.1f} times")
    width, started = encoder.config.hidden_size, time.monotonic()
    # a number beyond float16 is rare, and is in few models
    kinds: tuple[Kind, ...] = (settings.cache, "fp32")
    if settings.cache != "fp32" and begun(encoder, layers, found, "fp32", folder, bf16):
        # a run that was killed had found it out
        kinds = ("fp32",)
    for kind in dict.fromkeys(kinds):
        why_not = _no_room(needed_bytes(found.values(), width, kind), settings.cache_gb, folder)
        if why_not is not None:
            report(0.0, f"the frozen layers run each time: {why_not}")
            return None, Kept(why_not=why_not)
        try:
            states = frozen_states(encoder, layers, found, kind, folder, bf16, report)
        except TooLarge as error:
            clear(folder)
            report(0.0, str(error))
            continue
        seconds = round(time.monotonic() - started, 3)
        return states, Kept(kind, len(found), states.size_bytes, seconds, states.by)
    return None, Kept(why_not="the hidden states are not finite")


def _no_room(needed: int, limit_gb: float, folder: Path) -> str | None:
    """Why so many bytes cannot be kept in `folder`; None where they can."""
    if needed > limit_gb * 1e9:
        return f"{needed / 1e9:.2f} GB are needed, teacher.finetune.cache_gb allows {limit_gb:g}"
    free = shutil.disk_usage(folder).free + _held(folder)
    if needed > _SHARE_OF_DISK * free:
        return f"{needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free in {folder}"
    return None


def _held(folder: Path) -> int:
    """What a run that was killed has written already."""
    return sum(path.stat().st_size for path in folder.glob("frozen.bin"))


@contextlib.contextmanager
def starting_from(encoder: PreTrainedModel, layers: int, states: FrozenStates) -> Iterator[None]:
    """While this lasts, encoder(input_ids, attention_mask) runs only the layers above `layers` for a text of `states`.

    Anything else that it is given (embeddings, positions) goes through the whole encoder.
    """
    bottom, top = part_of(encoder, 0, layers), part_of(encoder, layers, layers_in(encoder))
    whole = encoder.forward

    def forward(
        input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **other: Any
    ) -> Any:
        beside = any(value is not None for value in other.values())
        if beside or input_ids is None or attention_mask is None:
            return whole(input_ids=input_ids, attention_mask=attention_mask, **other)
        hidden = states.of(input_ids, attention_mask)
        if hidden is None:
            with torch.no_grad():
                hidden = bottom(input_ids, attention_mask)[HIDDEN]
        return top(hidden, attention_mask)

    encoder.__dict__["forward"] = forward
    try:
        yield
    finally:
        del encoder.__dict__["forward"]
