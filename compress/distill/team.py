"""Processes that train one model together: each takes a part of every batch, gradients are averaged.

The first one leads: it alone validates, writes and reports, and the others, which run the same stage on the
same inputs, follow what it decides. They are started by the stage (`followers`) and end with it, so one command
and one recipe serve one GPU or eight of one machine.

Why torch.distributed itself and not `accelerate`, which is made of it: that hooks into a model's own forward,
and here a loss is a closure over an encoder, a head and at times the model they were cut out of. What would be
left of it are the three calls below, an environment to be launched in, and state that outlives a stage.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from codemill.errors import TrainingError

__all__ = ["ALONE", "Team", "joined", "led", "part_of"]

_TIMEOUT = timedelta(minutes=30)
"""The longest that one waits for another: in a validation, of which the followers know nothing, for minutes."""
_POLL_S = 0.05
_GRACE_S = 30.0
_MEETING, _BEGUN = "meeting", "begun-"


@dataclass(frozen=True)
class Team:
    """This process among those that train together. A team of one does nothing."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def leads(self) -> bool:
        """Whether this is the process that validates, writes and reports."""
        return self.rank == 0

    def average(self, values: Iterable[Tensor], share: float) -> None:
        """Add up each value times its process's share, in place, so that all have the weighted mean."""
        if self.size == 1:
            return
        for value in values:
            value.mul_(share)
            distributed.all_reduce(value)

    def told(self, decide: Callable[[], float]) -> float:
        """What the leader's `decide()` says, for all."""
        if self.size == 1:
            return decide()
        said = torch.tensor([decide() if self.leads else 0.0], dtype=torch.float64)
        on_device = said.to(self.device)
        distributed.broadcast(on_device, 0)
        return float(on_device)


ALONE = Team()


def part_of(batch: np.ndarray, team: Team) -> tuple[np.ndarray, float]:
    """The rows of a batch that are this process's, and the share of them in what all take.

    Neighbours, because neighbouring pairs share functions. A batch too small for all is taken whole by each.
    """
    if len(batch) < team.size:
        return batch, 1 / team.size
    found: np.ndarray = np.array_split(batch, team.size)[team.rank]
    return found, len(found) / len(batch)


@contextlib.contextmanager
def joined(rank: int, size: int, meeting: Path, device: str) -> Iterator[Team]:
    """Meet the others of a team. meeting: a file that none of them has made yet. device: "cpu", or "cuda"."""
    device = f"cuda:{rank}" if device.startswith("cuda") else device
    backend = "gloo"
    if device != "cpu":
        torch.cuda.set_device(device)
        backend = "nccl"
    distributed.init_process_group(
        backend, init_method=meeting.as_uri(), rank=rank, world_size=size, timeout=_TIMEOUT
    )
    try:
        yield Team(rank, size, device)
    finally:
        distributed.destroy_process_group()


@contextlib.contextmanager
def led(
    size: int, device: str, follow: Callable[..., Any], arguments: Sequence[Any]
) -> Iterator[Team]:
    """Lead a team of `size` processes, in which the others run follow(team, *arguments).

    follow: a function of a module that they can import; arguments: what can be pickled. A team of one starts none.
    Raises TrainingError where a follower fails.
    """
    if size == 1:
        yield Team(device=device)
        return
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as named:
        folder = Path(named)
        others: list[BaseProcess] = [
            context.Process(
                target=_follow,
                args=(follow, tuple(arguments), rank, size, folder, device),
                daemon=True,
            )
            for rank in range(1, size)
        ]
        for other in others:
            other.start()
        try:
            _wait_for(others, folder)
            with joined(0, size, folder / _MEETING, device) as team:
                yield team
            for other in others:
                other.join(_GRACE_S)
        except RuntimeError as error:
            # what the libraries of communication say when the other side is gone
            if (failed := _exit_code(others)) is None:
                raise
            raise _ended(failed, f"{error}") from error
        finally:
            for other in others:
                other.kill()


def _ended(code: int, said: str) -> TrainingError:
    return TrainingError(
        f"one of the processes that train together ended with exit code {code}, and said why above: {said}. The same "
        "command continues from the last checkpoint; device: cpu trains in one process"
    )


def _wait_for(others: Sequence[BaseProcess], folder: Path) -> None:
    """Until all of them have begun: one that cannot would be waited for at the meeting for long."""
    while len(list(folder.glob(f"{_BEGUN}*"))) < len(others):
        for other in others:
            if other.exitcode is not None:
                raise _ended(other.exitcode, "it could not begin")
        time.sleep(_POLL_S)


def _exit_code(others: Sequence[BaseProcess]) -> int | None:
    """Of a follower that failed; None where none has, and what went wrong is the leader's own."""
    for other in others:
        other.join(1.0)
    return next((other.exitcode for other in others if other.exitcode), None)


def _follow(
    follow: Callable[..., Any],
    arguments: tuple[Any, ...],
    rank: int,
    size: int,
    folder: Path,
    device: str,
) -> None:
    _end_with_leader()
    (folder / f"{_BEGUN}{rank}").touch()
    with joined(rank, size, folder / _MEETING, device) as team:
        follow(team, *arguments)


def _end_with_leader() -> None:
    """A leader that is killed leaves nobody waiting for it."""
    leader = multiprocessing.parent_process()

    def wait() -> None:
        if leader is not None:
            leader.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
