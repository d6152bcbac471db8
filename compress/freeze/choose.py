"""How many layers are frozen: as many as a recipe says, or as many as a short sweep finds to cost little (`auto`).

The sweep trains a few steps with nothing frozen and with each of a few numbers of layers, from the same weights on the
same batches, and takes the most layers whose validation is within a bound of the best. It is short, so it is a guess:
what trains longer may part further. `compress telly` measures what this only samples, with the whole training.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch

from codemill.compress.distill.team import ALONE, Team
from codemill.compress.freeze.freeze import bottom_of, freeze_bottom
from codemill.compress.pipeline import Report
from codemill.runtime.atomic import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn
    from transformers import PreTrainedModel

    from codemill.compress.distill.loop import Schedule
    from codemill.compress.recipe import FreezeLayers

__all__ = [
    "RECORD",
    "Frozen",
    "Tried",
    "brief_schedule",
    "brief_steps",
    "candidates",
    "freeze_as_asked",
    "most_within",
]

RECORD = "freeze.json"
"""What a sweep found, in the folder of its stage."""
_CANDIDATES = 4
_NONE = -1
_SHARE, _FEWEST_STEPS, _MOST_STEPS = 16, 8, 64


@dataclass(frozen=True)
class Tried:
    """A number of frozen layers (None: nothing is frozen), and the validation it led to."""

    layers: int | None
    metric: float


@dataclass(frozen=True)
class Frozen:
    """What is frozen now. layers: None where nothing is, not even the embeddings. Sizes in parameters."""

    layers: int | None
    trainable: int
    parameters: int
    tried: tuple[Tried, ...] = ()


def freeze_as_asked(
    asked: FreezeLayers,
    encoder: PreTrainedModel,
    *,
    key: str,
    bound: float,
    train: Callable[[Path], float],
    folder: Path,
    report: Report,
    model: nn.Module | None = None,
    team: Team = ALONE,
) -> Frozen:
    """Freeze the bottom of `encoder` as the recipe's `key` asks.

    train: of `auto`, trains a little in a folder for its checkpoint and gives the validation; it leaves the weights
    anywhere, here they are put back. model: all that it trains, where that is more than the encoder. bound: the share
    of the best validation that may be lost. `folder` keeps what was tried, and a run that was killed goes on there.
    team: the
    one that leads tries, and tells the others. Raises RecipeError where no layer is left to train.
    """
    if asked == "none":
        return _frozen(encoder, None, key)
    if asked != "auto":
        return _frozen(encoder, asked, key)
    tried: list[Tried] = []

    def decide() -> float:
        tried.extend(_tried(encoder, model or encoder, key, train, folder, report))
        found = most_within(tried, bound)
        return _NONE if found is None else float(found)

    number = int(team.told(decide))
    layers = None if number == _NONE else number
    said = "none" if layers is None else f"the lowest {layers} and the embeddings"
    report(0.0, f"{key}: auto freezes {said}")
    return _frozen(encoder, layers, key, tuple(tried))


def _frozen(
    encoder: PreTrainedModel, layers: int | None, key: str, tried: tuple[Tried, ...] = ()
) -> Frozen:
    return Frozen(layers, *freeze_bottom(encoder, layers, key), tried)


def candidates(layers: int) -> list[int | None]:
    """What is tried of so many layers: nothing frozen, the embeddings alone, and a few up to all layers but one."""
    spread = np.linspace(0, layers - 1, _CANDIDATES).round().astype(int).tolist()
    return [None, *sorted(set(spread))]


def most_within(tried: Sequence[Tried], bound: float) -> int | None:
    """The most frozen layers whose metric lost no more than the share `bound` of the best one."""
    least = max(item.metric for item in tried) * (1 - bound)
    within = [item.layers for item in tried if item.metric >= least]
    return max((layers for layers in within if layers is not None), default=None)


def brief_steps(steps: int) -> int:
    """Of a training of so many steps, those that each number of layers is tried for: a sixteenth, 8 to 64."""
    return min(steps, max(_FEWEST_STEPS, min(_MOST_STEPS, steps // _SHARE)))


def brief_schedule(schedule: Schedule, pairs: int) -> Schedule:
    """Of a training on so many pairs, its first `brief_steps`, validated once."""
    steps = max(1, round(pairs * schedule.epochs / schedule.batch_size))
    share = schedule.epochs * brief_steps(steps) / steps
    return replace(schedule, epochs=share, validations=1, patience=1)


def _tried(
    encoder: PreTrainedModel,
    model: nn.Module,
    key: str,
    train: Callable[[Path], float],
    folder: Path,
    report: Report,
) -> list[Tried]:
    wanted = candidates(len(bottom_of(encoder)[1]))
    tried = _read(folder / RECORD)[: len(wanted)]
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    flags = {name: value.requires_grad for name, value in model.named_parameters()}
    scratch = folder / "sweep"
    for number in range(len(tried), len(wanted)):
        layers = wanted[number]
        said = "nothing" if layers is None else f"{layers} layers"
        report(number / len(wanted), f"a few steps with {said} frozen")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        freeze_bottom(encoder, layers, key)
        try:
            tried.append(Tried(layers, train(scratch)))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            with torch.no_grad():
                for name, value in model.named_parameters():
                    value.copy_(before[name])
                    value.requires_grad_(flags[name])
                    value.grad = None
        content = json.dumps([asdict(item) for item in tried]).encode()
        write_atomically(folder / RECORD, partial(_write, content))
    return tried


def _write(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


def _read(path: Path) -> list[Tried]:
    """What was tried before the run was killed; nothing where the file is damaged."""
    try:
        return [Tried(**item) for item in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError):
        return []
