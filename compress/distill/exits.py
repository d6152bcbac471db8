"""Training the heads of early exits by self-distillation: each learns what the last head says of a row.

The last head's own probabilities, as it was distilled, are the aim (1905.08094); beside them count the teacher's and
the gold labels as they did for the student. With the student left as it is, what its layers give of each distinct
text is computed once, and training is a matter of small matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from codemill.compress.distill.losses import label_divergence
from codemill.compress.exits.heads import Exiting
from codemill.compress.models.classifier import Classifier
from codemill.compress.models.pooling import Tokenized
from codemill.compress.pipeline import Report
from codemill.compress.recipe import Distill
from codemill.compress.tasks.classification import mean_recall
from codemill.runtime.atomic import write_atomically

__all__ = [
    "ExitTargets",
    "Sides",
    "States",
    "encoded",
    "exit_loss",
    "final_probabilities",
    "kept",
    "states_of",
    "validated",
]

_CHUNK = 2048
"""Texts that are encoded between two files: what a run that is killed has to do again."""
_ROWS = 1024

States = np.ndarray
"""float16 [texts, exits + 1, dim]: what the layers give of each distinct text, pooled."""
Sides = Callable[[np.ndarray], "list[Tensor]"]
"""rows int [n, texts] -> for each text of a row, embeddings [exits + 1, n, dim]"""


@dataclass(frozen=True)
class ExitTargets:
    """rows: int [n, 1 | 2]. own: float32 [n, labels], what the last head says of each row before exits are trained.

    gold: int [n], -1 where unknown; teacher: float32 [n, labels], NaN where no teacher has labelled, or None.
    """

    rows: np.ndarray
    own: np.ndarray
    gold: np.ndarray
    teacher: np.ndarray | None = None


@torch.inference_mode()
def states_of(
    exiting: Exiting, tokens: Tokenized, folder: Path, name: str, bf16: bool, report: Report
) -> States:
    """Encode each text once. Finished parts are files in `folder`, from which a run that was killed goes on."""
    order = np.argsort([len(text) for text in tokens], kind="stable")
    dim = exiting.whole.encoder.config.hidden_size
    found = np.empty((len(tokens), len(exiting.layers) + 1, dim), dtype=np.float16)
    for start in range(0, len(order), _CHUNK):
        chosen = order[start : start + _CHUNK]
        path = folder / f"states-{name}-{start}.npy"
        part = _read(path, (len(chosen), *found.shape[1:]))
        if part is None:
            made, at = exiting.embed_distinct(tokens, chosen.tolist(), bf16)
            places = [at[index] for index in chosen.tolist()]
            part = made[:, places].transpose(0, 1).to(torch.float16).cpu().numpy()
            write_atomically(path, partial(_write, part))
        found[chosen] = part
        report((start + len(chosen)) / len(order), f"encoded {start + len(chosen):,} texts")
    return found


def _write(values: np.ndarray, file: object) -> None:
    np.save(file, values, allow_pickle=False)  # type: ignore[arg-type]


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """A part that was finished before; a damaged one is as good as none."""
    try:
        found: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and found.dtype == np.float16 else None


def kept(states: States) -> Sides:
    """The embeddings of rows out of what was computed before."""

    def sides(rows: np.ndarray) -> list[Tensor]:
        return [
            torch.from_numpy(states[texts].astype(np.float32)).transpose(0, 1) for texts in rows.T
        ]

    return sides


def encoded(exiting: Exiting, tokens: Tokenized, bf16: bool) -> Sides:
    """The same, from the encoder as it stands; each distinct text of the rows once."""

    def sides(rows: np.ndarray) -> list[Tensor]:
        embedded, at = exiting.embed_distinct(tokens, np.unique(rows).tolist(), bf16)
        return [embedded[:, [at[index] for index in texts]] for texts in rows.T.tolist()]

    return sides


@torch.inference_mode()
def final_probabilities(classifier: Classifier, states: States, rows: np.ndarray) -> np.ndarray:
    """float32 [n, labels]: what the last head says of rows of texts with these states."""
    found = []
    for start in range(0, len(rows), _ROWS):
        sides = [side[-1] for side in kept(states)(rows[start : start + _ROWS])]
        found.append(classifier.head(*sides).softmax(-1).numpy())
    return np.concatenate(found)


def exit_loss(
    exiting: Exiting, sides: Sides, targets: ExitTargets, settings: Distill, whole: bool
) -> Callable[[np.ndarray], Tensor]:
    """The loss of a batch of rows: the mean over exits and, with `whole`, the last head, which keeps to itself.

    Of a row: KL to what the last head said, plus KL to the teacher and cross-entropy with gold as the student's
    losses weigh. Balanced class weights are in the last head's probabilities; gold labels are then left out.
    """

    def loss_of(batch: np.ndarray) -> Tensor:
        every = exiting.judge(sides(targets.rows[batch]))
        device = every[0].device
        own = torch.from_numpy(targets.own[batch]).to(device)
        losses = [
            label_divergence(logits, own, settings.label_temperature)
            + _labelled(logits, targets, batch, settings)
            for logits in every[:-1]
        ]
        if whole:
            losses.append(label_divergence(every[-1], own, settings.label_temperature))
        return torch.stack(losses).mean()

    return loss_of


def _labelled(logits: Tensor, targets: ExitTargets, batch: np.ndarray, settings: Distill) -> Tensor:
    weights, device = settings.losses, logits.device
    total = torch.zeros((), device=device)
    if targets.teacher is not None and weights.teacher:
        teacher = torch.from_numpy(targets.teacher[batch]).to(device)
        taught = ~teacher.isnan().any(1)
        if taught.any():
            divergence = label_divergence(
                logits[taught], teacher[taught], settings.label_temperature
            )
            total = total + weights.teacher * taught.float().mean() * divergence
    gold = torch.from_numpy(targets.gold[batch].astype(np.int64)).to(device)
    known = gold >= 0
    if known.any() and weights.gold and settings.class_weights == "none":
        entropy = functional.cross_entropy(logits[known], gold[known])
        total = total + weights.gold * known.float().mean() * entropy
    return total


def validated(
    exiting: Exiting, sides: Sides, rows: np.ndarray, truth: np.ndarray, whole: bool
) -> Callable[[], float]:
    """A function that gives the mean of the exits' mean recall on held-out rows; with `whole`, the last head's too."""

    @torch.inference_mode()
    def validate() -> float:
        found: list[Sequence[np.ndarray]] = []
        for start in range(0, len(rows), _ROWS):
            every = exiting.judge(sides(rows[start : start + _ROWS]))
            found.append([logits.softmax(-1).cpu().numpy() for logits in every])
        heads = [np.concatenate(parts) for parts in zip(*found, strict=True)]
        judged = heads if whole else heads[:-1]
        return float(np.mean([mean_recall(head, truth) for head in judged]))

    return validate
