"""What a decoder says of every token of some pieces of code, computed once: hidden states at exits, likeliest tokens.

By the decoder's own graphs, the very files that ship, or by a teacher in torch; kept in files that are read as mapped
memory. A run that was killed goes on behind the last piece that was noted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codemill.compress.pipeline import Report
from codemill.errors import DataError
from codemill.runtime.atomic import write_atomically
from codemill.runtime.completion.cache import Cache
from codemill.runtime.completion.parts import OnnxParts

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Labelled", "Labeller", "TokenLabels", "by_graphs", "label_pieces", "read_token_labels"]

_NOTE = "labels.json"
_NOTE_EVERY_S = 10.0
_KINDS: dict[str, Any] = {
    "hidden": np.float16,
    "likeliest": np.int32,
    "logits": np.float16,
    "gold": np.int32,
}


@dataclass(frozen=True)
class TokenLabels:
    """One row for each token: hidden [n, exits, width]; likeliest, logits [n, k], the first is the last layer's choice.

    gold [n]: the token that the file has next, -1 behind the end of a piece. `hidden` may be of the first tokens only.
    """

    hidden: np.ndarray
    likeliest: np.ndarray
    logits: np.ndarray
    gold: np.ndarray


@dataclass(frozen=True)
class Labelled:
    """Pieces int [tokens], and the labels of their tokens, one piece after the other."""

    pieces: Sequence[np.ndarray]
    labels: TokenLabels

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each piece's rows begin, and the end: int64 [pieces + 1]."""
        return np.cumsum([0, *map(len, self.pieces)])

    def batch(self, numbers: Sequence[int], device: Any) -> tuple[np.ndarray, Tensor, Tensor]:
        """Of these pieces: the labels' rows [n], ids int64 [pieces, longest], and where one is, bool, n times true."""
        import torch

        starts = self.starts
        rows = np.concatenate([np.arange(starts[at], starts[at + 1]) for at in numbers])
        found = [torch.from_numpy(self.pieces[at].astype(np.int64)) for at in numbers]
        ids = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)
        real = torch.nn.utils.rnn.pad_sequence(
            [torch.ones(len(item), dtype=torch.bool) for item in found], batch_first=True
        )
        return rows, ids.to(device), real.to(device)


Labeller = Callable[[Sequence[np.ndarray]], dict[str, np.ndarray]]
"""Pieces -> `hidden`, `likeliest` and `logits` of all of their tokens, one piece after the other."""


def label_pieces(
    label: Labeller,
    pieces: Sequence[np.ndarray],
    folder: Path,
    report: Report,
    *,
    likeliest: int,
    exits: int = 0,
    width: int = 0,
    at_once: int = 1,
    with_hidden: int | None = None,
) -> TokenLabels:
    """Label pieces int [tokens] into files in `folder`, so many at once, or go on with it there.

    with_hidden: of so many pieces, the first ones, hidden states are kept; None: of all. Raises DataError where a
    hidden state is beyond what 16 bits hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(map(len, pieces))
    hidden = sum(map(len, pieces[:with_hidden]))
    shapes = {
        "hidden": (hidden, exits, width),
        "likeliest": (total, likeliest),
        "logits": (total, likeliest),
        "gold": (total,),
    }
    noted = _noted(folder, shapes)
    if not noted:
        # before files are made anew: of what an older note counts nothing is left
        (folder / _NOTE).unlink(missing_ok=True)
    files = _files(folder, shapes, "r+" if noted else "w+")
    at, last_note, started = sum(map(len, pieces[:noted])), time.monotonic(), time.monotonic()
    first = at
    for number in range(noted, len(pieces), at_once):
        some = pieces[number : number + at_once]
        end = at + sum(map(len, some))
        found = label(some)
        found["gold"] = np.concatenate([np.append(piece[1:], -1) for piece in some])
        for name, file in files.items():
            # those of states end earlier
            room = file[at:end]
            values = found[name][: len(room)].astype(_KINDS[name])
            if not np.isfinite(values).all():
                raise DataError(
                    f"the {name} states of this decoder are beyond what 16 bits hold, in which they are kept"
                )
            room[:] = values
        at = end
        if time.monotonic() - last_note > _NOTE_EVERY_S or number + at_once >= len(pieces):
            for file in files.values():
                if isinstance(file, np.memmap):
                    file.flush()
            _note(folder, shapes, number + len(some))
            last_note = time.monotonic()
        speed = (at - first) / (time.monotonic() - started)
        report(at / total, f"labelled {at:,} of {total:,} tokens, {speed:,.0f} a second")
    return TokenLabels(**files)


def by_graphs(parts: OnnxParts, longest: int, likeliest: int) -> Labeller:
    """By a decoder's own graphs; pieces of up to `longest` tokens."""
    import torch

    cache = Cache(parts.decoding, longest)
    exits = len(parts.decoding.exits)

    def label(pieces: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        states, tops, logits = [], [], []
        for piece in pieces:
            found: Any = piece.astype(np.int64)
            hidden = []
            for number in range(exits + 1):
                found = parts.segment(number, found, cache, 0)
                hidden.append(found.copy())
            values, ids = torch.from_numpy(parts.logits(found)).topk(likeliest)
            shape = (len(piece), exits, parts.decoding.width)
            states.append(np.stack(hidden[:-1], 1) if exits else np.empty(shape, np.float32))
            tops.append(ids.numpy())
            logits.append(values.numpy())
        return {
            "hidden": np.concatenate(states),
            "likeliest": np.concatenate(tops),
            "logits": np.concatenate(logits),
        }

    return label


def _files(folder: Path, shapes: dict[str, tuple[int, ...]], mode: Any) -> dict[str, np.ndarray]:
    """Mapped files; nothing of no size can be mapped."""
    return {
        name: np.memmap(folder / f"{name}.bin", dtype=_KINDS[name], mode=mode, shape=shape)
        if np.prod(shape)
        else np.empty(shape, _KINDS[name])
        for name, shape in shapes.items()
    }


def _noted(folder: Path, shapes: dict[str, tuple[int, ...]]) -> int:
    """Pieces that a run that was killed had labelled."""
    try:
        value = json.loads((folder / _NOTE).read_text())
        if value["shapes"] != {name: list(shape) for name, shape in shapes.items()}:
            return 0
        for name, shape in shapes.items():
            size = int(np.prod(shape)) * np.dtype(_KINDS[name]).itemsize
            if size and (folder / f"{name}.bin").stat().st_size != size:
                return 0
        return int(value["pieces"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _note(folder: Path, shapes: dict[str, tuple[int, ...]], pieces: int) -> None:
    text = json.dumps({"shapes": shapes, "pieces": pieces}).encode()
    write_atomically(folder / _NOTE, lambda file: file.write(text))


def read_token_labels(folder: Path) -> TokenLabels:
    """What `label_pieces` wrote, as mapped memory."""
    shapes = json.loads((folder / _NOTE).read_text())["shapes"]
    return TokenLabels(
        **_files(folder, {name: tuple(shape) for name, shape in shapes.items()}, "r")
    )
