"""Exits of a decoder: what the controller should say, thresholds by rates, the loss, the way to export."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codemill.compress.exits.controller import (
    coverage,
    fit_controller,
    leaving_at,
    rate_thresholds,
    stop_thresholds,
)
from codemill.compress.exits.decoder import (
    CONTINUE,
    EXIT,
    STOP,
    DecoderExits,
    LastHead,
    decided,
    exits_after,
    shared_loss,
)


def head(width: int = 16, vocab: int = 50) -> LastHead:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(vocab, width, generator=generator)
    return LastHead(torch.ones(width), None, matrix, None, 1e-5, "rms")


def test_exits_stand_in_the_upper_part() -> None:
    assert exits_after("auto", 30) == (12, 18, 24)
    assert exits_after("auto", 8) == (3, 5, 6)
    assert exits_after("auto", 1) == ()
    assert exits_after("none", 30) == ()
    with pytest.raises(ValueError, match="after layer 30 of 30"):
        exits_after((12, 30), 30)


def test_labels_that_agree_with_the_last_layer() -> None:
    said = np.array([[1, 2, 3, 4], [1, 5, 5, 5]])
    final = np.array([1, 5, 6, 7])
    gold = np.array([1, 5, 6, 9])
    found = decided("agrees", said, final, gold)
    # right at once; right later; right at the last layer only; wrong in the end
    assert found.tolist() == [[EXIT, CONTINUE, CONTINUE, STOP], [EXIT, EXIT, CONTINUE, STOP]]


def test_labels_of_sec() -> None:
    said = np.array([[9, 2, 3, 4], [1, 5, 5, 5]])
    final = np.array([1, 5, 6, 7])
    gold = np.array([9, 5, 6, 8])
    found = decided("right", said, final, gold)
    # once right, right from there on; stop where no layer is, the last one included
    assert found.tolist() == [[EXIT, CONTINUE, CONTINUE, STOP], [EXIT, EXIT, CONTINUE, STOP]]


def chances(certain: list[float]) -> np.ndarray:
    """One exit that would leave, with these probabilities."""
    rows = [[(1 - value) / 2, value, (1 - value) / 2] for value in certain]
    return np.array([rows])


def test_as_many_leave_as_a_rate_allows() -> None:
    certain = chances([0.99, 0.95, 0.9, 0.8, 0.7])
    right = np.array([[True, True, False, True, False]])
    assert rate_thresholds(certain, right, 0.0) == [0.95]
    assert rate_thresholds(certain, right, 0.2) == [0.8]
    assert rate_thresholds(certain, right, 0.4) == [0.7]
    assert coverage(certain, right, 0.2) == pytest.approx(0.8)
    assert leaving_at(certain, [0.9]).tolist() == [0, 0, 0, 1, 1]
    assert leaving_at(certain, [None]).tolist() == [1] * 5


def test_where_nothing_may_leave_there_is_no_threshold() -> None:
    assert rate_thresholds(chances([0.9, 0.8]), np.array([[False, False]]), 0.1) == [None]


def test_equal_certainties_leave_together_or_not_at_all() -> None:
    certain = chances([0.9, 0.9, 0.8])
    right = np.array([[True, False, True]])
    assert rate_thresholds(certain, right, 0.0) == [None]
    assert rate_thresholds(certain, right, 0.34) == [0.8]


def test_stopping_is_right_as_often_as_asked_for() -> None:
    said = np.array([[[0.9, 0.05, 0.05], [0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]])
    right = np.array([False, False, True, True])
    assert stop_thresholds(said, right, 0.9) == [0.8]
    assert stop_thresholds(said, right, 0.6) == [0.7]
    assert stop_thresholds(said, ~right, 0.9) == [None]


def test_a_controller_learns_what_can_be_told_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randint(3, (2, 500), generator=generator)
    states = torch.nn.functional.one_hot(wanted, 8).float() * 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        controller = torch.nn.Linear(8, 3)
    fit_controller(controller, states, wanted, 0, steps=200)
    assert (controller(states).argmax(-1) == wanted).float().mean() > 0.99


def test_an_exit_begins_as_what_the_head_reads() -> None:
    last = head()
    exits = DecoderExits(last, (1, 2), 8, 0)
    hidden = torch.randn(5, 16)
    torch.testing.assert_close(exits.state(0, hidden), last.state(hidden))
    made = exits.as_exits()
    assert made.layers == (1, 2)
    assert made.adapters[0].up.weight.shape == (16, 16)
    assert made.controller.bias is not None
    assert made.adapters[0].norm.bias is None


def test_the_loss_is_least_where_an_exit_says_what_the_last_layer_says() -> None:
    last = head()
    hidden = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    state = last.state(hidden)
    logits, likeliest = last.logits(state).topk(8)
    gold = torch.full((40,), -1)

    def loss(of: torch.Tensor) -> float:
        drawn = torch.Generator().manual_seed(0)
        return float(shared_loss(last, [of], likeliest, logits, gold, 0.1, drawn))

    noise = torch.randn(state.shape, generator=torch.Generator().manual_seed(2))
    assert loss(state) < loss(state + 0.3 * noise) < loss(noise)
