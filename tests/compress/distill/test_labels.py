from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.compress.conftest import HIDDEN, tiny_bert

from codemill.compress.distill import labels as labels_module
from codemill.compress.distill import loop
from codemill.compress.distill.labels import LabelTargets, _seen, label_loss, taught_rows
from codemill.compress.distill.loop import Schedule, fit
from codemill.compress.distill.losses import label_divergence
from codemill.compress.models.classifier import Classifier, Head
from codemill.compress.recipe import Distill, Losses
from codemill.compress.tasks.classification import plan_row_batches


def test_the_divergence_from_oneself_is_nothing_at_any_temperature() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    for temperature in (0.5, 1.0, 4.0):
        found = label_divergence(logits, logits.softmax(-1), temperature)
        assert float(found) == pytest.approx(0, abs=1e-5)


def test_the_divergence_is_that_of_softened_distributions() -> None:
    logits, teacher = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.3, 0.7]])
    soft = (teacher.log() / 2).softmax(-1)
    mine = (logits / 2).softmax(-1)
    expected = 4 * float((soft * (soft / mine).log()).sum())
    assert float(label_divergence(logits, teacher, 2.0)) == pytest.approx(expected, rel=1e-5)


def test_a_label_given_for_certain_is_learned_like_a_gold_one() -> None:
    logits = torch.tensor([[1.0, -0.5], [0.2, 0.1]])
    certain = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    entropy = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1]))
    assert float(label_divergence(logits, certain, 1.0)) == pytest.approx(float(entropy), abs=1e-4)


@pytest.fixture
def classifier() -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Classifier(tiny_bert(50), Head(HIDDEN, 2, 1, 16), 1).eval()


def targets(gold: list[int], teacher: list[list[float]] | None) -> LabelTargets:
    generator = np.random.default_rng(0)
    tokens = [generator.integers(5, 50, 9) for _ in gold]
    soft = None if teacher is None else np.array(teacher, dtype=np.float32)
    return LabelTargets(tokens, np.arange(len(gold))[:, None], np.array(gold), soft)


def loss(classifier: Classifier, of: LabelTargets, settings: Distill) -> float:
    rows = np.arange(len(of.gold))
    return float(label_loss(classifier, of, settings, False)(rows).detach())


def test_rows_without_a_teacher_learn_from_gold_and_rows_without_gold_from_the_teacher(
    classifier: Classifier,
) -> None:
    nan = float("nan")
    settings = Distill(label_temperature=1.0, losses=Losses(teacher=1.0, gold=1.0))
    mixed = targets([1, -1], [[nan, nan], [0.0, 1.0]])
    only_gold = targets([1, 1], None)
    assert loss(classifier, mixed, settings) == pytest.approx(
        loss(classifier, only_gold, settings), abs=1e-3
    )


def test_without_a_weight_gold_labels_of_taught_rows_teach_nothing(classifier: Classifier) -> None:
    settings = Distill(label_temperature=1.0, losses=Losses(teacher=1.0, gold=0.0))
    teacher = [[0.4, 0.6], [0.9, 0.1]]
    right, wrong = (loss(classifier, targets(gold, teacher), settings) for gold in ([1, 0], [0, 1]))
    assert right == pytest.approx(wrong)


def test_balanced_weights_make_a_rare_label_count_as_much_as_a_frequent_one(
    classifier: Classifier,
) -> None:
    rare = targets([0, 0, 0, 1], None)
    plain, balanced = (
        loss(classifier, rare, Distill(class_weights=kind)) for kind in ("none", "balanced")
    )
    logits = classifier.logits(rare.tokens, rare.rows)
    each = torch.nn.functional.cross_entropy(logits, torch.from_numpy(rare.gold), reduction="none")
    assert plain == pytest.approx(float(each.mean().detach()), rel=1e-5)
    assert balanced == pytest.approx(float((each[:3].mean() + each[3]).detach() / 2), rel=1e-5)


def test_a_label_that_no_row_has_does_not_break_balanced_weights() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        three = Classifier(tiny_bert(50), Head(HIDDEN, 3, 1, 16), 1).eval()
    assert loss(three, targets([0, 0, 1], None), Distill(class_weights="balanced")) > 0


def test_rows_with_nothing_to_learn_from_are_known() -> None:
    nan = float("nan")
    found = targets([1, -1, -1], [[0.2, 0.8], [0.5, 0.5], [nan, nan]])
    both = Distill(losses=Losses(teacher=1.0, gold=0.5))
    assert taught_rows(found, both).tolist() == [True, True, False]
    gold_only = Distill(losses=Losses(teacher=0.0, gold=1.0))
    assert taught_rows(found, gold_only).tolist() == [True, False, False]


def test_hidden_tokens_are_the_same_whenever_a_batch_comes_and_never_the_special_ones(
    classifier: Classifier,
) -> None:
    of = targets([0, 1, 0, 1], None)
    settings = Distill(token_dropout=0.4)
    assert loss(classifier, of, settings) == loss(classifier, of, settings)
    assert loss(classifier, of, settings) != loss(classifier, of, Distill())
    seen, whole = _seen(of, of.rows, settings, 0)
    for index, ids in enumerate(of.tokens):
        assert seen[index][[0, -1]].tolist() == ids[[0, -1]].tolist()
        assert whole[index].tolist() == ids.tolist()
    hidden = [seen[index] != ids for index, ids in enumerate(of.tokens)]
    assert sum(part.sum() for part in hidden) > 0


def rewritten_targets(count: int = 40) -> LabelTargets:
    """Every text is all 5, its first variant all 6, its second all 7, each of another length."""
    forms = [
        [np.full(length, token) for _ in range(count)]
        for token, length in ((5, 9), (6, 8), (7, 12))
    ]
    gold = np.arange(count) % 2
    return LabelTargets(forms[0], np.arange(count)[:, None], gold, variants=(forms[1], forms[2]))


def test_of_the_texts_that_a_step_sees_the_share_asked_for_is_rewritten() -> None:
    of = rewritten_targets()
    seen = {
        share: [
            int(_seen(of, of.rows, Distill(augment=share), seed)[0][index][0])
            for seed in range(20)
            for index in range(40)
        ]
        for share in (0.0, 0.3, 1.0)
    }
    assert set(seen[0.0]) == {5}
    assert 0.25 < np.mean([token != 5 for token in seen[0.3]]) < 0.35
    assert set(seen[1.0]) == {6, 7}
    assert 0.4 < np.mean([token == 6 for token in seen[1.0]]) < 0.6


def test_which_texts_are_seen_rewritten_is_a_function_of_seed_and_batch() -> None:
    of, settings = rewritten_targets(), Distill(augment=0.5, token_dropout=0.2)

    def shown(seed: int) -> list[list[int]]:
        found = _seen(of, of.rows, settings, seed)[0]
        return [found[index].tolist() for index in range(40)]

    assert shown(3) == shown(3)
    assert shown(3) != shown(4)


def test_a_rewritten_text_keeps_its_label(classifier: Classifier) -> None:
    of = rewritten_targets()
    as_they_are = LabelTargets(of.variants[0], of.rows, of.gold)
    only_first = LabelTargets(of.tokens, of.rows, of.gold, variants=of.variants[:1])
    assert loss(classifier, only_first, Distill(augment=1.0)) == pytest.approx(
        loss(classifier, as_they_are, Distill())
    )


@pytest.mark.parametrize("at", [3, 7])
def test_a_run_that_was_stopped_sees_the_rewritten_texts_that_an_undisturbed_one_sees(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", 0.0)
    of = rewritten_targets()
    settings = Distill(augment=0.5, token_dropout=0.1, batch_size=8, epochs=2, validations=2)
    batches = plan_row_batches(of.rows, [9] * 40, 8, 2.0, 0)
    fresh = {name: value.clone() for name, value in classifier.state_dict().items()}

    def train(folder: Path, stop: int = -1) -> dict[str, torch.Tensor]:
        def report(_fraction: float, note: str) -> None:
            if note.startswith(f"step {stop}/"):
                raise KeyboardInterrupt

        folder.mkdir(exist_ok=True)
        classifier.load_state_dict(fresh)
        fit(
            classifier,
            batches,
            label_loss(classifier, of, settings, False, 5),
            Schedule.of(settings, False),
            # of the weights alone, as a real metric is
            lambda: float(classifier.head.outer.weight.detach().abs().mean()),
            folder,
            report,
        )
        return {name: value.clone() for name, value in classifier.state_dict().items()}

    expected = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", at)
    found = train(tmp_path / "stopped")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not torch.equal(expected["head.inner.weight"], fresh["head.inner.weight"])


def test_weights_of_labels_are_counted_once(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, counted = targets([0, 0, 0, 1], None), []
    count = np.bincount
    monkeypatch.setattr(
        labels_module.np, "bincount", lambda *a, **k: (counted.append(1), count(*a, **k))[1]
    )
    loss_of = label_loss(classifier, of, Distill(class_weights="balanced"), False)
    assert float(loss_of(np.arange(4)).detach()) == float(loss_of(np.arange(4)).detach())
    assert len(counted) == 1


def test_of_a_long_text_a_step_sees_a_window_between_its_special_tokens() -> None:
    long = np.arange(100, 200)
    of = LabelTargets([long, np.arange(9)], np.array([[0], [1]]), np.array([0, 1]), longest=20)
    starts = set()
    for seed in range(40):
        seen, whole = _seen(of, of.rows, Distill(), seed)
        window = seen[0]
        assert whole[0].tolist() == window.tolist()
        assert len(window) == 20
        assert (window[0], window[-1]) == (100, 199)
        assert (np.diff(window[1:-1]) == 1).all()
        starts.add(int(window[1]))
        assert seen[1].tolist() == list(range(9))
    assert 101 in starts
    assert len(starts) > 10
    assert max(starts) + 17 <= 198
