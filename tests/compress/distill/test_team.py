"""Two processes of this machine, as two GPUs of one would, without a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from codemill.compress.distill.team import ALONE, Team, led, part_of
from codemill.compress.pipeline import CHECKPOINT
from codemill.errors import TrainingError

from . import together


def test_the_parts_of_a_batch_are_the_batch() -> None:
    batch = np.arange(100, 111)
    parts = [part_of(batch, Team(rank, 4)) for rank in range(4)]
    assert np.concatenate([rows for rows, _ in parts]).tolist() == batch.tolist()
    assert sum(share for _, share in parts) == pytest.approx(1)
    assert [len(rows) / 11 for rows, _ in parts] == pytest.approx([share for _, share in parts])
    assert part_of(batch, ALONE)[0].tolist() == batch.tolist()


def test_a_batch_too_small_for_all_is_taken_by_each() -> None:
    for rank in range(4):
        rows, share = part_of(np.array([3, 4]), Team(rank, 4))
        assert rows.tolist() == [3, 4]
        assert share == 0.25


def test_two_processes_train_the_student_that_one_trains(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    alone, expected, _ = together.trained(ALONE, tmp_path / "one")
    notes = tmp_path / "notes.pt"
    with led(2, "cpu", together.follow, (tmp_path / "two", notes)) as team:
        assert team == Team(0, 2, "cpu")
        both, found, said = together.trained(team, tmp_path / "two")
    assert [point.metric for point in found] == [point.metric for point in expected]
    losses = [point.loss for point in expected]
    assert [point.loss for point in found] == pytest.approx(losses, rel=1e-3)
    weights = dict(both.named_parameters())
    for name, value in alone.named_parameters():
        assert torch.allclose(weights[name], value, atol=5e-3), name
    # the follower came to the very same, reported nothing, and left the files to the leader
    theirs = torch.load(notes, weights_only=True)
    assert all(torch.equal(theirs["weights"][name], value) for name, value in weights.items())
    assert theirs["metrics"] == [point.metric for point in found]
    assert theirs["said"] == []
    assert len(said) == 17
    assert [path.name for path in (tmp_path / "two").iterdir()] == [CHECKPOINT]
    # a run that goes on from the checkpoint: each of them reads it
    with led(2, "cpu", together.follow, (tmp_path / "two", notes)) as team:
        again, points, said = together.trained(team, tmp_path / "two")
    assert points == found
    assert said == []
    assert all(torch.equal(weights[name], value) for name, value in again.named_parameters())
    theirs = torch.load(notes, weights_only=True)
    assert all(torch.equal(theirs["weights"][name], value) for name, value in weights.items())


def test_a_follower_that_fails_ends_the_run_and_does_not_hang_it(tmp_path: Path) -> None:
    with (
        pytest.raises(TrainingError, match=r"one of the processes .* exit code 7"),
        led(2, "cpu", together.fail, ()) as team,
    ):
        together.trained(team, tmp_path)


def test_a_follower_that_cannot_begin_is_not_waited_for(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with (
        pytest.raises(TrainingError, match=r"exit code 1, .* could not begin"),
        led(2, "cpu", together.fail, (together.Unreadable(),)),
    ):
        raise AssertionError("it began")
    assert "no number" in capfd.readouterr().err


def test_a_team_of_one_starts_nobody() -> None:
    with led(1, "cpu", together.fail, ()) as team:
        assert team == ALONE
        values = [torch.tensor([3.0])]
        team.average(values, 0.5)
        assert float(values[0]) == 3.0
        assert team.told(lambda: 2.5) == 2.5
