"""What the frozen layers make of each distinct text, computed once and kept on disk while a model is trained.

Telly (2304.05216) runs its frozen layers forward in every epoch; their output never changes, so here every later
epoch starts from it. One file holds the hidden states of all real tokens, text by text, and is read as mapped memory;
beside it stands how far it is, so that a run that was killed goes on. A text is known by its token ids, never by its
place: what was cut, hidden or rewritten otherwise is another text, and is not found. When this is worth it, and how
training starts from it, is `resume.py`'s.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from codemill.compress.freeze.bottom import By, Run, fastest, in_torch
from codemill.compress.freeze.freeze import bottom_of
from codemill.compress.models.pooling import pad, positions
from codemill.compress.pipeline import Report
from codemill.runtime.atomic import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "FrozenStates",
    "Kind",
    "TooLarge",
    "begun",
    "clear",
    "distinct",
    "frozen_states",
    "needed_bytes",
]

Kind = Literal["fp16", "bf16", "fp32"]
"""How a number is kept."""

_STORED: dict[str, tuple[torch.dtype, type[np.generic]]] = {
    # numpy has no bfloat16: its bits
    "bf16": (torch.bfloat16, np.int16),
    "fp16": (torch.float16, np.float16),
    "fp32": (torch.float32, np.float32),
}
_FILE, _MARK = "frozen.bin", "frozen.json"
_TOKENS_PER_RUN = 8192
_MARK_EVERY_S = 10.0
"""What a run that is killed has to do again."""


class TooLarge(Exception):
    """A hidden state is beyond the largest number that its kind of storage has."""


@dataclass(frozen=True)
class FrozenStates:
    """The output of the last frozen layer for the real tokens of some texts.

    values: of all texts one after the other, [tokens, width] as stored. places: a text's key -> its first row there
    and how many it has. `by`: what computed those that were still missing. `size_bytes` is what it takes on disk.
    """

    values: np.ndarray
    places: dict[bytes, tuple[int, int]]
    kind: Kind
    by: By = "torch"

    @property
    def size_bytes(self) -> int:
        """On disk."""
        return int(self.values.nbytes)

    def of(self, ids: Tensor, mask: Tensor) -> Tensor | None:
        """ids, mask int64 [batch, tokens], padded at the end -> float32 [batch, tokens, width], 0 in the padding.

        None where a text is not among these.
        """
        lengths = mask.sum(1)
        if not bool(
            (
                mask.bool() == (torch.arange(mask.shape[1], device=mask.device) < lengths[:, None])
            ).all()
        ):
            return None
        texts = [
            row[:length] for row, length in zip(ids.cpu().numpy(), lengths.tolist(), strict=True)
        ]
        places = [self.places.get(_key(text)) for text in texts]
        found = torch.zeros((*ids.shape, self.values.shape[1]))
        stored, _ = _STORED[self.kind]
        for row, place in enumerate(places):
            if place is None:
                return None
            start, length = place
            # copied: torch takes no memory that may not be written to
            states = torch.from_numpy(np.array(self.values[start : start + length]))
            found[row, :length] = states.view(stored).float()
        return found.to(ids.device)


def _key(ids: np.ndarray) -> bytes:
    return hashlib.blake2b(np.asarray(ids, dtype=np.int32).tobytes(), digest_size=16).digest()


def distinct(texts: Iterable[np.ndarray]) -> dict[bytes, np.ndarray]:
    """Each text once, by its key, the shortest first, so that little of a run is padding."""
    found = {_key(text): text for text in texts}
    return dict(sorted(found.items(), key=lambda item: (len(item[1]), item[0])))


def needed_bytes(texts: Iterable[np.ndarray], width: int, kind: Kind) -> int:
    """What the hidden states of these distinct texts take."""
    return sum(map(len, texts)) * width * np.dtype(_STORED[kind][1]).itemsize


@torch.inference_mode()
def frozen_states(
    encoder: PreTrainedModel,
    layers: int,
    texts: dict[bytes, np.ndarray],
    kind: Kind,
    folder: Path,
    bf16: bool,
    report: Report,
) -> FrozenStates:
    """Run the lowest `layers` layers over what `distinct` gave, or over what is missing of it in `folder`.

    bf16: as in training, so that both see the same. The encoder is in eval mode: a frozen layer has no dropout.
    Raises TooLarge where a number is beyond `kind`, OSError where the disk is full.
    """
    encoder.eval()
    folder.mkdir(parents=True, exist_ok=True)
    width, stored = encoder.config.hidden_size, np.dtype(_STORED[kind][1])
    items = list(texts.values())
    ends = np.cumsum([0, *map(len, items)])
    made_of = _made_of(encoder, layers, texts, kind, bf16)
    done = _done(folder, made_of)
    if done and (folder / _FILE).stat().st_size < int(ends[done]) * width * stored.itemsize:
        done = 0
    if not done:
        # what it marks is overwritten now
        (folder / _MARK).unlink(missing_ok=True)
    # fp32 is for those who want what torch gives, to the last digit
    run: Run = in_torch(encoder, layers, bf16)
    by: By = "torch"
    if kind != "fp32":
        run, by = fastest(encoder, layers, bf16, items[done:])
    with (folder / _FILE).open("r+b" if done else "wb") as file:
        file.truncate(int(ends[done]) * width * stored.itemsize)
        file.seek(0, os.SEEK_END)
        marked = time.monotonic()
        for together in _runs(items, done):
            ids, mask = pad([items[index] for index in together], positions(encoder))
            states = run(ids, mask)
            # row after row, the padding left out: the order of the file
            file.write(_as_stored(states[mask.bool()], kind).tobytes())
            done = together[-1] + 1
            if done == len(items) or time.monotonic() - marked > _MARK_EVERY_S:
                file.flush()
                # the mark says that it is there
                os.fsync(file.fileno())
                _write_mark(folder, made_of, done)
                marked = time.monotonic()
            report(int(ends[done]) / int(ends[-1]), "running the frozen layers once")
    values = np.memmap(folder / _FILE, stored, "r", shape=(int(ends[-1]), width))
    places = {
        key: (int(start), len(text))
        for (key, text), start in zip(texts.items(), ends[:-1], strict=True)
    }
    return FrozenStates(values, places, kind, by)


def begun(
    encoder: PreTrainedModel,
    layers: int,
    texts: dict[bytes, np.ndarray],
    kind: Kind,
    folder: Path,
    bf16: bool,
) -> bool:
    """Whether `folder` holds some of what `frozen_states` would write there."""
    return _done(folder, _made_of(encoder, layers, texts, kind, bf16)) > 0


def _runs(items: Sequence[np.ndarray], done: int) -> Iterator[range]:
    """The indices of each run of the encoder, beginning with the first that is not done; they rise in length."""
    start = done
    for index in range(done, len(items)):
        following = len(items[index + 1]) if index + 1 < len(items) else 0
        if not following or (index + 2 - start) * following > _TOKENS_PER_RUN:
            yield range(start, index + 1)
            start = index + 1


def _as_stored(states: Tensor, kind: Kind) -> np.ndarray:
    stored, form = _STORED[kind]
    cast = states.to(stored)
    if not bool(cast.isfinite().all()):
        raise TooLarge(
            f"hidden states up to {float(states.abs().max()):g} cannot be kept as {kind}"
        )
    found: np.ndarray = (cast.view(torch.int16) if kind == "bf16" else cast).numpy().astype(form)
    return found


def _made_of(
    encoder: PreTrainedModel, layers: int, texts: dict[bytes, np.ndarray], kind: Kind, bf16: bool
) -> str:
    """A hash of all that shapes the file: the texts in their order, the frozen weights, how it is computed."""
    total = hashlib.sha256(json.dumps([layers, kind, bf16, len(texts)]).encode())
    total.update(encoder.config.to_json_string().encode())
    for key in texts:
        total.update(key)
    embeddings, stack = bottom_of(encoder)
    for part in (embeddings, *stack[:layers]):
        for name, value in part.state_dict().items():
            total.update(name.encode())
            total.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _done(folder: Path, made_of: str) -> int:
    """How many texts the file in `folder` holds of these; what is damaged or of others is as good as nothing."""
    try:
        said = json.loads((folder / _MARK).read_text())
        return (
            int(said["texts"]) if said["made_of"] == made_of and (folder / _FILE).is_file() else 0
        )
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _write_mark(folder: Path, made_of: str, texts: int) -> None:
    content = json.dumps({"made_of": made_of, "texts": texts}).encode()
    write_atomically(folder / _MARK, lambda file: file.write(content))


def clear(folder: Path) -> None:
    """Remove what `frozen_states` kept there: gigabytes, and computed again in minutes."""
    for name in (_MARK, _FILE):
        (folder / name).unlink(missing_ok=True)
