"""Training a tiny classifier in one process or in several; what a follower runs has to be importable."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.compress.conftest import HIDDEN, tiny_bert

from codemill.compress.compute import Compute
from codemill.compress.distill.labels import LabelTargets, label_loss
from codemill.compress.distill.loop import Point, Schedule, fit
from codemill.compress.distill.team import Team
from codemill.compress.models.classifier import Classifier, Head
from codemill.compress.recipe import Distill
from codemill.compress.tasks.classification import plan_row_batches, validator

TEXTS = 45
BATCH = 8


def classifier() -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Classifier(tiny_bert(50), Head(HIDDEN, 2, 1, 16), 1)


def trained(team: Team, folder: Path) -> tuple[Classifier, list[Point], list[str]]:
    """45 texts in batches of 8 and of 1 or 7: some do not divide among the processes."""
    torch.set_num_threads(1)
    chance = np.random.default_rng(0)
    tokens = [chance.integers(5, 50, length) for length in chance.integers(4, 20, TEXTS)]
    gold = np.array([int((ids < 27).mean() > 0.5) for ids in tokens])
    targets = LabelTargets(tokens, np.arange(TEXTS)[:, None], gold)
    settings = Distill(batch_size=BATCH, epochs=3, validations=3, learning_rate=3e-3, patience=9)
    model = classifier()
    batches = plan_row_batches(targets.rows, [len(t) for t in tokens], BATCH, 3.0, 0)
    # smaller than the team
    batches[2] = batches[2][:1]
    said: list[str] = []
    points = fit(
        model,
        batches,
        label_loss(model, targets, settings, False),
        Schedule.of(settings, False),
        validator(model, tokens, targets.rows, gold),
        folder,
        lambda _fraction, note: said.append(note),
        team,
    )
    return model, points, said


def follow(team: Team, folder: Path, notes: Path) -> None:
    """What a follower does: the same; and it leaves a note of what it came to."""
    model, points, said = trained(team, folder)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    torch.save({"weights": weights, "metrics": [p.metric for p in points], "said": said}, notes)


class Unreadable:
    """What a process can be given and cannot read."""

    def __reduce__(self) -> Any:
        return (int, ("no number",))


def fail(team: Team) -> None:
    """A follower that dies at work."""
    if team.rank:
        os._exit(7)


@dataclass(frozen=True)
class TwoProcesses(Compute):
    """What `OnGpus` is for two GPUs, on the processor."""

    @property
    def processes(self) -> int:
        """Two."""
        return 2
