"""The training loop (`fit`): steps, checkpoints, the best by validation; and batches and losses of retrieval.

Deterministic: the batches are a function of the data and the seed, nothing else is random, so a run
continued from its checkpoint gives the very student an undisturbed one gives.
"""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from codemill.compress.distill.losses import contrastive, cosine_distance, similarity_divergence
from codemill.compress.distill.team import ALONE, Team, part_of
from codemill.compress.models.pooling import Tokenized, embed, pad, positions
from codemill.compress.pipeline import CHECKPOINT, Report
from codemill.compress.recipe import Distill, Losses
from codemill.errors import TrainingError
from codemill.runtime.atomic import write_atomically

__all__ = ["Point", "Schedule", "Targets", "fit", "narrowed", "plan_batches", "train"]

_CHECKPOINT_SECONDS = 60.0
_POOL = 32
"""Batches drawn together and sorted by length, so that little of a batch is padding."""


@dataclass(frozen=True)
class Targets:
    """What a student learns from; index i of each belongs to pair i.

    teacher_queries, teacher_codes: float [n, dim], L2-normalised, None where only the pairs
    themselves teach (fine-tuning a teacher). `aims`: the embeddings that the cosine loss draws
    queries and codes to, where they are not the teacher's: of a student of another width, [n, its dim].
    """

    queries: Tokenized
    codes: Tokenized
    teacher_queries: np.ndarray | None = None
    teacher_codes: np.ndarray | None = None
    aims: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class Point:
    """One validation: the step, the mean training loss since the last one, the metric."""

    step: int
    loss: float
    metric: float


@dataclass(frozen=True)
class Schedule:
    """How to train, for a student and for a teacher's fine-tuning alike."""

    epochs: float
    batch_size: int
    learning_rate: float
    warmup: float
    temperature: float
    losses: Losses
    validations: int
    patience: int
    bf16: bool = False

    @classmethod
    def of(cls, settings: Distill, bf16: bool) -> Schedule:
        """The schedule of a recipe's `distill` section."""
        names = set(cls.__dataclass_fields__) - {"bf16"}
        return cls(**{name: getattr(settings, name) for name in names}, bf16=bf16)


def narrowed(
    queries: np.ndarray, codes: np.ndarray, dim: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Embeddings [n, width] of both sides in the `dim` directions that hold most of them, L2-normalised.

    None where they have that width already. Raises TrainingError for a `dim` above it.
    """
    width = queries.shape[1]
    if dim == width:
        return None
    if dim > width:
        raise TrainingError(
            f"a student of width {dim} cannot learn embeddings of width {width}: set "
            "distill.losses.cosine to 0, or take a narrower student"
        )
    rows = np.concatenate([queries, codes]).astype(np.float32)
    _, directions = np.linalg.eigh(rows.T @ rows)
    basis = directions[:, ::-1][:, :dim]

    def image(side: np.ndarray) -> np.ndarray:
        found = side.astype(np.float32) @ basis
        image: np.ndarray = found / np.linalg.norm(found, axis=1, keepdims=True).clip(1e-9)
        return image

    return image(queries), image(codes)


def plan_batches(
    lengths: Sequence[int], batch_size: int, epochs: float, seed: int
) -> list[np.ndarray]:
    """The pairs of every step: shuffled, then sorted by length within pools, then the batches shuffled.

    Every pair is in one batch of each whole epoch. A batch holds `batch_size` pairs, or a few less
    (half of them at worst) where a pool does not divide: to leave the rest out would be to leave
    the longest pairs out, each time.
    """
    generator = np.random.default_rng(seed)
    count = len(lengths)
    size = min(batch_size, count)
    steps = max(1, math.ceil(count * epochs / size))
    # the last pool takes in a rest that would not fill a batch
    bounds = list(range(0, count - size + 1, size * _POOL))[1:]
    batches: list[np.ndarray] = []
    while len(batches) < steps:
        epoch: list[np.ndarray] = []
        for pool in np.split(generator.permutation(count), bounds):
            by_length = pool[np.argsort([lengths[index] for index in pool], kind="stable")]
            epoch += np.array_split(by_length, math.ceil(len(pool) / size))
        batches += [epoch[index] for index in generator.permutation(len(epoch))]
    return batches[:steps]


def train(
    model: nn.Module,
    targets: Targets,
    schedule: Schedule,
    seed: int,
    validate: Callable[[], float],
    folder: Path,
    report: Report,
) -> list[Point]:
    """Train `model` in place on pairs of query and code; see `fit`."""
    batches = plan_batches(
        [len(code) for code in targets.codes], schedule.batch_size, schedule.epochs, seed
    )
    most = positions(model)

    def loss_of(batch: np.ndarray) -> Tensor:
        query, code = (
            embed(model, *pad([side[index] for index in batch], most), schedule.bf16)
            for side in (targets.queries, targets.codes)
        )
        return _loss(query, code, targets, batch, schedule)

    return fit(model, batches, loss_of, schedule, validate, folder, report)


def fit(
    model: nn.Module,
    batches: Sequence[np.ndarray],
    loss_of: Callable[[np.ndarray], Tensor],
    schedule: Schedule,
    validate: Callable[[], float],
    folder: Path,
    report: Report,
    team: Team = ALONE,
) -> list[Point]:
    """Train `model` in place, a step for each of `batches`, and leave it with the weights that validated best.

    Only parameters that require gradients are trained. A checkpoint in `folder` is continued from,
    and stays there: it goes when the stage's own files are safe (`run_stages`).
    team: each of its processes calls this with the same model, batches and folder; a step then takes the mean
    of their gradients, each of its part of the batch, weighted by its rows. The model is on the team's device
    while it is trained, and ends on the processor.
    Raises TrainingError, with the step, when the loss is not a number.
    """
    model.to(team.device)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=schedule.learning_rate, weight_decay=0.01)
    every = math.ceil(len(batches) / schedule.validations)
    state = _State(folder / CHECKPOINT, trained, optimizer)
    state.restore()
    model.eval()  # no dropout: a small student underfits, and a frozen layer must not vary
    started, first = time.monotonic(), state.step
    while state.step < len(batches) and not state.stalled(schedule.patience):
        for group in optimizer.param_groups:
            group["lr"] = _rate(state.step, len(batches), schedule)
        where = f"step {state.step + 1} of {len(batches)}"
        part, share = part_of(batches[state.step], team)
        loss = _step(trained, optimizer, loss_of(part), where, team, share)
        state.step += 1
        state.losses.append(loss)
        if state.step % every == 0 or state.step == len(batches):
            state.validated(team.told(validate))
            if team.leads:
                state.save()
        if not team.leads:
            continue
        state.save_now_and_then()
        speed = (time.monotonic() - started) / (state.step - first)
        note = f"step {state.step}/{len(batches)}, loss {loss:.3f}, {speed:.2f} s a step"
        if state.points:
            note += f", best {max(point.metric for point in state.points):.3f}"
        report(state.step / len(batches), note)
    state.finish()
    model.to("cpu")
    return state.points


def _rate(step: int, steps: int, schedule: Schedule) -> float:
    """Linear rise, then a cosine to 0."""
    rise = min(1.0, (step + 1) / max(1.0, schedule.warmup * steps))
    return schedule.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / steps))


def _step(
    trained: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    where: str,
    team: Team,
    share: float,
) -> float:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    mean = loss.detach()
    gradients = [item.grad for item in trained.values() if item.grad is not None]
    team.average([mean, *gradients], share)
    norm = float(torch.nn.utils.clip_grad_norm_(trained.values(), 1.0))
    value = float(mean)
    # checked before the weights are touched: a checkpoint never holds a NaN
    for what, found in (("loss", value), ("gradient's norm", norm)):
        if not math.isfinite(found):
            raise TrainingError(
                f"the {what} is {found} at {where}; lower the learning rate or look for damaged data"
            )
    optimizer.step()
    return value


def _loss(
    query: Tensor, code: Tensor, targets: Targets, batch: np.ndarray, schedule: Schedule
) -> Tensor:
    weights, temperature = schedule.losses, schedule.temperature
    total = torch.zeros(())
    if weights.contrastive:
        same = _same_text(targets, batch)
        total = total + weights.contrastive * contrastive(query, code, temperature, same)
    if targets.teacher_queries is None or targets.teacher_codes is None:
        return total
    teacher_query = torch.from_numpy(targets.teacher_queries[batch].astype(np.float32))
    teacher_code = torch.from_numpy(targets.teacher_codes[batch].astype(np.float32))
    if weights.cosine:
        query_aim, code_aim = (teacher_query, teacher_code)
        if targets.aims is not None:
            query_aim, code_aim = (
                torch.from_numpy(rows[batch].astype(np.float32)) for rows in targets.aims
            )
        apart = cosine_distance(query, query_aim) + cosine_distance(code, code_aim)
        total = total + weights.cosine * apart / 2
    if weights.similarity:
        total = total + weights.similarity * similarity_divergence(
            query, code, teacher_query, teacher_code, temperature
        )
    return total


def _same_text(targets: Targets, batch: np.ndarray) -> Tensor:
    """[batch, batch]: True where another row has the very same query or code, and so is no negative."""
    same = np.zeros((len(batch), len(batch)), dtype=bool)
    for texts in (targets.queries, targets.codes):
        keys = [texts[index].tobytes() for index in batch]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        ids = np.array([numbers[key] for key in keys])
        same |= ids[:, None] == ids[None, :]
    np.fill_diagonal(same, False)
    return torch.from_numpy(same)


class _State:
    """Where training stands, in memory and in the checkpoint file."""

    def __init__(
        self, path: Path, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> None:
        self.path, self.trained, self.optimizer = path, trained, optimizer
        self.step = 0
        self.losses: list[float] = []
        self.points: list[Point] = []
        self.best: dict[str, Tensor] = {}
        self.saved = time.monotonic()

    def restore(self) -> None:
        """Continue from the checkpoint, if there is a whole one; a damaged one is as good as none."""
        if not self.path.is_file():
            return
        try:
            # an optimizer puts its state where the weights are
            value: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError):
            return
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(value["model"][name])
        self.optimizer.load_state_dict(value["optimizer"])
        self.step, self.losses, self.best = value["step"], value["losses"], value["best"]
        self.points = [Point(**point) for point in value["points"]]

    def save(self) -> None:
        value = {
            "step": self.step,
            "losses": self.losses,
            "points": [asdict(point) for point in self.points],
            "best": self.best,
            "model": {name: parameter.detach() for name, parameter in self.trained.items()},
            "optimizer": self.optimizer.state_dict(),
        }
        write_atomically(self.path, lambda file: torch.save(value, file))
        self.saved = time.monotonic()

    def save_now_and_then(self) -> None:
        if time.monotonic() - self.saved > _CHECKPOINT_SECONDS:
            self.save()

    def validated(self, metric: float) -> None:
        """Note a validation; keep the weights if they are the best so far."""
        if not math.isfinite(metric):
            raise TrainingError(
                f"the validation after step {self.step} gives {metric}: expected rows with labels to validate on"
            )
        if all(metric > point.metric for point in self.points):
            self.best = {name: value.detach().clone() for name, value in self.trained.items()}
        self.points.append(Point(self.step, sum(self.losses) / len(self.losses), metric))
        self.losses = []

    def stalled(self, patience: int) -> bool:
        """Whether the last `patience` validations brought nothing better."""
        metrics = [point.metric for point in self.points]
        return len(metrics) > patience and max(metrics[:-patience]) >= max(metrics[-patience:])

    def finish(self) -> None:
        """Put the best weights into the model. The checkpoint stays until what comes of it is safe."""
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(self.best[name])


def seconds_per_pair(
    model: nn.Module, queries: Tokenized, codes: Tokenized, losses: Losses, bf16: bool
) -> tuple[float, float]:
    """Time of a training step and of a mere forward pass on this machine, per pair. Changes no weights."""
    trained = [value for value in model.parameters() if value.requires_grad]
    batches = plan_batches([len(code) for code in codes], 32, 1.0, seed=0)
    timings: dict[str, list[float]] = {"training": [], "forward": []}
    for batch in batches * 2:
        most = positions(model)
        sides = [pad([texts[index] for index in batch], most) for texts in (queries, codes)]
        for kind, taken in timings.items():
            start = time.perf_counter()
            with torch.set_grad_enabled(kind == "training"):
                query, code = (embed(model, *side, bf16) for side in sides)
                loss = contrastive(query, code, 0.05) + losses.cosine * cosine_distance(
                    query, code.detach()
                )
            if kind == "training":
                torch.autograd.grad(loss, trained, allow_unused=True)
            taken.append((time.perf_counter() - start) / len(batch))
    # the first pass over the batches compiles kernels
    half = len(batches)
    return float(np.mean(timings["training"][half:])), float(np.mean(timings["forward"][half:]))
