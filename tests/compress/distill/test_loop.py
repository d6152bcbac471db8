"""The training loop: what it sees, where it continues, what it leaves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from codemill.compress.data.pairs import Pair
from codemill.compress.distill import loop
from codemill.compress.distill.loop import Point, Schedule, Targets, plan_batches, train
from codemill.compress.models.load import TeacherModel
from codemill.compress.models.pooling import embed_all
from codemill.compress.pipeline import CHECKPOINT
from codemill.compress.recipe import Distill, Losses
from codemill.compress.tasks.retrieval import tokenize_pairs, validator
from codemill.errors import TrainingError

State = dict[str, Tensor]


def quiet(fraction: float, message: str) -> None:
    pass


def schedule(**changes: Any) -> Schedule:
    values = {"epochs": 1.5, "batch_size": 8, "learning_rate": 3e-3, "validations": 4, **changes}
    return Schedule.of(Distill(**values), bf16=False)


@pytest.fixture(scope="module")
def targets(pairs: list[Pair], tokenizer_json: str) -> Targets:
    tokens = tokenize_pairs(pairs[:72], tokenizer_json, 48)
    chance = np.random.default_rng(0)
    labels = [chance.normal(size=(72, 32)) for _ in range(2)]
    rows = [(r / np.linalg.norm(r, axis=1, keepdims=True)).astype(np.float16) for r in labels]
    return Targets(tokens.queries, tokens.codes, *rows)


def state_of(teacher: TeacherModel) -> State:
    return {name: value.clone() for name, value in teacher.model.state_dict().items()}


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def growing() -> Callable[[], float]:
    """A metric that gets better at every validation."""
    values = iter(range(1, 1000))
    return lambda: next(values) / 1000


@pytest.mark.parametrize(
    ("count", "size"), [(72, 8), (70, 8), (9, 8), (5, 8), (1, 8), (600, 8), (4 * 32 + 1, 4)]
)
def test_every_pair_is_in_one_batch_of_each_epoch(count: int, size: int) -> None:
    lengths = np.random.default_rng(0).integers(3, 60, count)
    per_epoch = -(-count // size)
    batches = plan_batches(lengths, size, 2.0, seed=1)
    for number in (0, 1):
        epoch = batches[number * per_epoch : (number + 1) * per_epoch]
        if number == 0 or 2 * count % size == 0:
            assert sorted(np.concatenate(epoch)) == list(range(count))
    smallest = min(size, count) // 2
    assert all(smallest <= len(batch) <= size for batch in batches)
    assert len(batches) == math.ceil(2 * count / min(size, count))


def test_batches_depend_on_the_seed_and_on_nothing_else() -> None:
    lengths = list(range(100))
    first, again, other = (plan_batches(lengths, 8, 3.0, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert not np.array_equal(first[0], first[13]), "another order each epoch"


def test_pairs_of_like_length_share_a_batch() -> None:
    lengths = np.random.default_rng(0).integers(3, 200, 1000)
    spread = [np.ptp(lengths[batch]) for batch in plan_batches(lengths, 10, 1.0, seed=0)]
    assert np.mean(spread) < 10


def test_part_of_an_epoch_is_part_of_its_batches() -> None:
    batches = plan_batches([5] * 80, 8, 0.5, seed=0)
    assert len(batches) == 5
    assert max(Counter(np.concatenate(batches).tolist()).values()) == 1


def test_a_student_learns_the_pairs(
    teacher: TeacherModel, targets: Targets, pairs: list[Pair], tokenizer_json: str, tmp_path: Path
) -> None:
    held_out = tokenize_pairs(pairs[200:], tokenizer_json, 48)
    validate = validator(teacher.model, held_out, False)
    before = validate()
    only = Losses(cosine=0, similarity=0, contrastive=1)
    points = train(
        teacher.model, targets, schedule(losses=only, epochs=4), 0, validate, tmp_path, quiet
    )
    assert points[-1].loss < points[0].loss
    assert max(point.metric for point in points) > before + 0.05
    assert points[-1].step == 36
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT], "kept until all is written"


def test_the_teachers_embeddings_are_learnt(
    teacher: TeacherModel, targets: Targets, tmp_path: Path
) -> None:
    assert targets.teacher_codes is not None
    wanted = targets.teacher_codes.astype(np.float32)

    def closeness() -> float:
        return float((embed_all(teacher.model, targets.codes) * wanted).sum(1).mean())

    before = closeness()
    only = Losses(cosine=1, similarity=0, contrastive=0)
    train(teacher.model, targets, schedule(losses=only, epochs=5), 0, closeness, tmp_path, quiet)
    assert closeness() > before + 0.05


class Stopped(Exception):
    pass


def stop_report(at: int) -> tuple[Any, Callable[[], float]]:
    calls = iter(range(1, 1000))

    def report(fraction: float, message: str) -> None:
        if next(calls) == at:
            raise Stopped

    return report, growing()


def stop_validation(at: int) -> tuple[Any, Callable[[], float]]:
    calls, values = iter(range(1, 1000)), growing()

    def validate() -> float:
        if next(calls) == at:
            raise Stopped
        return values()

    return quiet, validate


@pytest.mark.parametrize(
    ("stop", "at"),
    [
        (stop_report, 1),
        (stop_report, 6),
        (stop_report, 14),
        (stop_validation, 1),
        (stop_validation, 3),
    ],
)
@pytest.mark.parametrize("every_s", [60.0, 0.0])
def test_a_stopped_run_continues_to_the_very_student_of_an_undisturbed_one(
    teacher: TeacherModel,
    targets: Targets,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: Callable[[int], tuple[Any, Callable[[], float]]],
    at: int,
    every_s: float,
) -> None:
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", every_s)
    fresh, plan = state_of(teacher), schedule()
    seen: dict[int, float] = {}

    def by_weights() -> float:
        """A metric of the weights alone, as a real one is."""
        return float(teacher.model.encoder.layer[0].output.dense.weight.detach().abs().mean())

    (tmp_path / "a").mkdir()
    expected_points = train(teacher.model, targets, plan, 3, by_weights, tmp_path / "a", quiet)
    expected = state_of(teacher)

    teacher.model.load_state_dict(fresh)
    (tmp_path / "b").mkdir()
    report, stopping = stop(at)

    def validate() -> float:
        stopping()
        return by_weights()

    with pytest.raises(Stopped):
        train(teacher.model, targets, plan, 3, validate, tmp_path / "b", report)
    # the process is gone: only the folder is left
    teacher.model.load_state_dict(fresh)

    def note(fraction: float, message: str) -> None:
        seen[round(fraction * 14)] = fraction

    points = train(teacher.model, targets, plan, 3, by_weights, tmp_path / "b", note)
    assert same(state_of(teacher), expected)
    assert points == expected_points
    if every_s == 0 and stop is stop_report:
        assert len(seen) == 14 - at, "no step is done twice"


def test_a_damaged_checkpoint_is_as_good_as_none(
    teacher: TeacherModel, targets: Targets, tmp_path: Path
) -> None:
    fresh = state_of(teacher)
    train(teacher.model, targets, schedule(), 0, growing(), tmp_path, quiet)
    expected = state_of(teacher)
    for content in (b"", b"PK\x03\x04 not a checkpoint", b"\x80\x02nonsense."):
        teacher.model.load_state_dict(fresh)
        (tmp_path / CHECKPOINT).write_bytes(content)
        train(teacher.model, targets, schedule(), 0, growing(), tmp_path, quiet)
        assert same(state_of(teacher), expected)


def test_a_loss_that_is_not_a_number_ends_training_with_the_step(
    teacher: TeacherModel, targets: Targets, tmp_path: Path
) -> None:
    assert targets.teacher_queries is not None
    labels = targets.teacher_queries.copy()
    batch = plan_batches([len(code) for code in targets.codes], 8, 1.5, 0)[4]
    labels[batch[0]] = np.nan
    damaged = Targets(targets.queries, targets.codes, labels, targets.teacher_codes)
    with pytest.raises(TrainingError, match="the loss is nan at step 5 of 14"):
        train(teacher.model, damaged, schedule(), 0, growing(), tmp_path, quiet)


def metrics(*values: float) -> Callable[[], float]:
    given = iter(values)
    return lambda: next(given)


def test_training_stops_once_patience_is_used_up(
    teacher: TeacherModel, targets: Targets, tmp_path: Path
) -> None:
    plan = schedule(validations=14, patience=2)
    validate = metrics(0.1, 0.5, 0.4, 0.5, 0.9)
    points = train(teacher.model, targets, plan, 0, validate, tmp_path, quiet)
    assert [point.metric for point in points] == [0.1, 0.5, 0.4, 0.5]
    assert [point.step for point in points] == [1, 2, 3, 4]


def test_the_weights_that_validated_best_are_put_back(
    teacher: TeacherModel, targets: Targets, tmp_path: Path
) -> None:
    states: list[State] = []
    values = metrics(0.1, 0.5, 0.4, 0.2)

    def validate() -> float:
        states.append(state_of(teacher))
        return values()

    train(teacher.model, targets, schedule(), 0, validate, tmp_path, quiet)
    assert same(state_of(teacher), states[1])
    assert not same(states[1], states[3])


def test_frozen_parameters_stay(teacher: TeacherModel, targets: Targets, tmp_path: Path) -> None:
    before = state_of(teacher)
    teacher.model.embeddings.requires_grad_(False)
    train(teacher.model, targets, schedule(), 0, growing(), tmp_path, quiet)
    after = state_of(teacher)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved
    assert not [name for name in moved if name.startswith("embeddings.")]


def test_the_learning_rate_rises_then_falls_to_nothing() -> None:
    plan = schedule(warmup=0.1)
    rates = [loop._rate(step, 100, plan) / plan.learning_rate for step in range(100)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3], rel=0.01)
    assert max(rates) == rates[9] > 0.95
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[99] < 0.001


def test_validations_are_spread_over_the_steps(
    teacher: TeacherModel, targets: Targets, tmp_path: Path
) -> None:
    points = train(teacher.model, targets, schedule(validations=3), 0, growing(), tmp_path, quiet)
    assert [point.step for point in points] == [5, 10, 14]
    assert all(isinstance(point, Point) and math.isfinite(point.loss) for point in points)


def test_equal_queries_or_codes_are_no_negatives_of_each_other() -> None:
    texts = [np.array([1, value, 2], dtype=np.uint16) for value in (5, 6, 5, 7)]
    codes = [np.array([1, value, 2], dtype=np.uint16) for value in (8, 9, 10, 9)]
    found = loop._same_text(Targets(texts, codes), np.arange(4))
    assert found.nonzero().tolist() == [[0, 2], [1, 3], [2, 0], [3, 1]]
