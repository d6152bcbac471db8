"""What exits learn from, on a tiny classifier: states that are encoded once, and the loss of a batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.compress.conftest import tiny_bert
from torch.nn import functional

from codemill.compress.distill.exits import (
    ExitTargets,
    encoded,
    exit_loss,
    final_probabilities,
    kept,
    states_of,
    validated,
)
from codemill.compress.distill.losses import label_divergence
from codemill.compress.exits.heads import Exiting
from codemill.compress.models.classifier import Classifier, Head
from codemill.compress.recipe import Distill

EXITS = (1, 2)


@pytest.fixture
def exiting() -> Exiting:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = Head(32, 2, 2, 8)
        torch.nn.init.normal_(head.outer.weight)
        made = Exiting(Classifier(tiny_bert(100), head, 2), EXITS).eval()
        # or each would be the last one's copy
        for number, copied in enumerate(made.heads):
            torch.nn.init.normal_(copied.outer.weight, std=1.0 + number)
    return made


@pytest.fixture
def tokens() -> list[np.ndarray]:
    chance = np.random.default_rng(0)
    return [chance.integers(5, 100, chance.integers(4, 40)) for _ in range(30)]


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 30, (50, 2))


def nothing(*_: object) -> None:
    """No report."""


def targets_of(
    exiting: Exiting, states: np.ndarray, rows: np.ndarray, **more: np.ndarray
) -> ExitTargets:
    own = final_probabilities(exiting.whole, states, rows)
    return ExitTargets(rows, own, more.get("gold", np.full(len(rows), -1)), more.get("teacher"))


def test_states_that_were_kept_judge_as_the_encoder_does(
    exiting: Exiting, tokens: list[np.ndarray], rows: np.ndarray, tmp_path: Path
) -> None:
    states = states_of(exiting, tokens, tmp_path, "train", False, nothing)
    assert states.shape == (30, 3, 32)
    with torch.inference_mode():
        before = exiting.judge(kept(states)(rows))
        after = exiting.judge(encoded(exiting, tokens, False)(rows))
        whole = exiting.whole.logits(tokens, rows)
    for one, other in zip(before, after, strict=True):
        # kept in half precision
        assert torch.allclose(one, other, atol=2e-2)
    assert torch.allclose(after[-1], whole, atol=1e-5)
    own = final_probabilities(exiting.whole, states, rows)
    assert np.abs(own - whole.softmax(-1).numpy()).max() < 1e-2


def test_a_run_that_was_stopped_encodes_only_what_is_missing(
    exiting: Exiting,
    tokens: list[np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("codemill.compress.distill.exits._CHUNK", 8)
    first = states_of(exiting, tokens, tmp_path, "train", False, nothing)
    parts = sorted(tmp_path.glob("states-train-*.npy"))
    assert len(parts) == 4
    parts[1].unlink()
    parts[2].write_bytes(parts[2].read_bytes()[:100])
    asked: list[int] = []
    embed_distinct = exiting.embed_distinct

    def counted(*args: object) -> object:
        asked.append(len(args[1]))  # type: ignore[arg-type]
        return embed_distinct(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(exiting, "embed_distinct", counted)
    again = states_of(exiting, tokens, tmp_path, "train", False, nothing)
    assert len(asked) == 2
    assert np.array_equal(first, again)


def test_the_loss_is_what_the_last_head_said_and_labels_as_the_recipe_weighs_them(
    exiting: Exiting, tokens: list[np.ndarray], rows: np.ndarray, tmp_path: Path
) -> None:
    states = states_of(exiting, tokens, tmp_path, "train", False, nothing)
    batch = np.arange(12)
    gold = np.where(np.arange(50) % 3, np.arange(50) % 2, -1)
    settings = Distill.model_validate({"losses": {"gold": 0.7}, "label_temperature": 1.5})
    targets = targets_of(exiting, states, rows, gold=gold)
    found = exit_loss(exiting, kept(states), targets, settings, whole=False)(batch)
    expected = []
    with torch.inference_mode():
        for logits in exiting.judge(kept(states)(rows[batch]))[:-1]:
            own = torch.from_numpy(targets.own[batch])
            known = torch.from_numpy(gold[batch] >= 0)
            entropy = functional.cross_entropy(
                logits[known], torch.from_numpy(gold[batch])[known].long()
            )
            share = known.float().mean()
            expected.append(label_divergence(logits, own, 1.5) + 0.7 * share * entropy)
    assert float(found.detach()) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)


def test_without_labels_an_exit_that_says_what_the_last_head_says_has_nothing_to_learn(
    exiting: Exiting, tokens: list[np.ndarray], rows: np.ndarray, tmp_path: Path
) -> None:
    states = states_of(exiting, tokens, tmp_path, "train", False, nothing)
    # every exit sees what the last head sees, and is its copy
    states[:, :-1] = states[:, -1:]
    same = Exiting(exiting.whole, EXITS)
    targets = targets_of(same, states, rows)
    loss = exit_loss(same, kept(states), targets, Distill(), whole=True)(np.arange(50))
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    other = exit_loss(exiting, kept(states), targets, Distill(), whole=True)(np.arange(50))
    assert float(other.detach()) > 0.01


def test_only_heads_learn_where_the_student_stays(
    exiting: Exiting, tokens: list[np.ndarray], rows: np.ndarray, tmp_path: Path
) -> None:
    states = states_of(exiting, tokens, tmp_path, "train", False, nothing)
    targets = targets_of(exiting, states, rows)
    exit_loss(exiting, kept(states), targets, Distill(), whole=False)(np.arange(20)).backward()  # type: ignore[no-untyped-call]
    assert all(value.grad is not None for value in exiting.heads.parameters())
    assert all(value.grad is None for value in exiting.whole.parameters())
    exiting.zero_grad()
    sides = encoded(exiting, tokens, False)
    exit_loss(exiting, sides, targets, Distill(), whole=True)(np.arange(20)).backward()  # type: ignore[no-untyped-call]
    assert any(value.grad is not None for value in exiting.whole.encoder.parameters())


def test_a_validation_is_the_mean_recall_of_the_exits(
    exiting: Exiting, tokens: list[np.ndarray], rows: np.ndarray, tmp_path: Path
) -> None:
    states = states_of(exiting, tokens, tmp_path, "train", False, nothing)
    with torch.inference_mode():
        every = [logits.argmax(1).numpy() for logits in exiting.judge(kept(states)(rows))]
    truth = every[-1]
    if len(set(truth.tolist())) == 1:
        truth = np.arange(len(rows)) % 2

    def recall(said: np.ndarray) -> float:
        return float(np.mean([(said == label)[truth == label].mean() for label in set(truth)]))

    found = validated(exiting, kept(states), rows, truth, whole=False)()
    assert found == pytest.approx(np.mean([recall(said) for said in every[:-1]]))
    whole = validated(exiting, kept(states), rows, truth, whole=True)()
    assert whole == pytest.approx(np.mean([recall(said) for said in every]))
