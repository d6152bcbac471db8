"""What a student learns from the model it was cut out of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.compress.models.families import FAMILIES, HIDDEN, LAYERS, LONGEST, noisy

from codemill.compress.architecture import Architecture
from codemill.compress.distill.labels import LabelTargets, label_loss
from codemill.compress.distill.origin import Origin, recording, relation_heads
from codemill.compress.models.classifier import Classifier, Head
from codemill.compress.models.surgery import architecture_of, cut_student
from codemill.compress.recipe import Distill, Losses
from codemill.errors import RecipeError

ROWS = 90
KINDS = ("embedding", "relations", "hidden")


def origin_model(family: str) -> Any:
    model: Any = noisy(FAMILIES[family](ROWS))
    # what a teacher is loaded as
    if family == "roberta":
        from codemill.compress.models.roberta import as_bert

        return as_bert(model).eval()
    return model.encoder if family == "t5" else model


def cut_pair(family: str = "roberta", **changes: Any) -> tuple[Classifier, Origin]:
    """A student of the origin, its tokens in another order, and the origin; full size but for `changes`."""
    model = origin_model(family)
    whole = architecture_of(model, LONGEST).to_json()
    vocab = changes.get("vocab_size", ROWS)
    shape = Architecture.from_json(
        {**whole, "layers": len(changes.get("copied_layers", range(LAYERS))), **changes}
    )
    # padding first, as a pruned vocabulary has it
    kept = [0, *np.random.default_rng(0).permutation(np.arange(1, ROWS))[: vocab - 1].tolist()]
    student = cut_student(model, shape, kept, [1] * vocab)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = Head(HIDDEN, 2, 1, 16)
    return Classifier(student, head, 1), Origin(
        model, "mean", torch.tensor(kept), shape.copied_layers
    )


def targets(vocab: int = ROWS, count: int = 40) -> LabelTargets:
    chance = np.random.default_rng(1)
    tokens = [chance.integers(1, vocab, length) for length in chance.integers(4, 40, count)]
    gold = np.array([int((ids < vocab // 2).mean() > 0.5) for ids in tokens])
    return LabelTargets(tokens, np.arange(count)[:, None], gold)


def settings(**weights: float) -> Distill:
    return Distill(losses=Losses(teacher=1.0, gold=0.5, **weights))


def taught(classifier: Classifier, origin: Origin | None, of: Distill) -> float:
    """What the losses of the origin add to the loss of all rows."""
    some = targets(len(origin.kept) if origin else ROWS)
    rows = np.arange(len(some.gold))
    with torch.no_grad():
        whole = label_loss(classifier, some, of, False, 0, origin)(rows)
        bare = label_loss(classifier, some, of, False, 0, None)(rows)
    return float(whole - bare)


@pytest.mark.parametrize("family", ["roberta", "modernbert", "t5"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_is_its_origin_has_nothing_to_learn_from_it(family: str, kind: str) -> None:
    classifier, origin = cut_pair(family)
    assert taught(classifier, origin, settings(**{kind: 1.0})) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("family", ["roberta", "modernbert", "t5"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_smaller_student_has(family: str, kind: str) -> None:
    classifier, origin = cut_pair(family, copied_layers=(0, 2), heads=2, intermediate_size=24)
    found = taught(classifier, origin, settings(**{kind: 1.0}))
    assert found > 1e-4
    assert taught(classifier, origin, settings(**{kind: 2.0})) == pytest.approx(2 * found, rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_read_under_the_origins_own_numbers(kind: str) -> None:
    classifier, origin = cut_pair()
    wrong = Origin(origin.encoder, "mean", torch.arange(ROWS), origin.copied_layers)
    assert taught(classifier, wrong, settings(**{kind: 1.0})) > 1e-2


def test_what_is_hidden_from_the_student_is_not_from_its_origin() -> None:
    classifier, origin = cut_pair()
    hiding = Distill(losses=Losses(teacher=1.0, gold=0.5, hidden=1.0), token_dropout=0.4)
    seen: list[torch.Tensor] = []
    handle = origin.encoder.register_forward_pre_hook(
        lambda _module, _given, named: seen.append(named["input_ids"]), with_kwargs=True
    )
    assert taught(classifier, origin, hiding) > 1e-3
    handle.remove()
    some = targets()
    shown = {tuple(row[row != 0].tolist()) for ids in seen for row in ids}
    assert shown == {tuple(origin.kept[torch.from_numpy(ids)].tolist()) for ids in some.tokens}


def test_nothing_is_computed_where_all_weights_are_zero() -> None:
    classifier, origin = cut_pair(copied_layers=(0, 2))

    def refuse(*_: Any) -> None:
        raise AssertionError("the origin was run")

    origin.encoder.register_forward_pre_hook(refuse)
    assert taught(classifier, origin, settings()) == 0
    with pytest.raises(AssertionError, match="was run"):
        taught(classifier, origin, settings(hidden=1.0))


def test_the_gradient_reaches_the_student_alone() -> None:
    classifier, origin = cut_pair(copied_layers=(0, 2), heads=2)
    every = settings(embedding=1.0, relations=1.0, hidden=1.0)
    label_loss(classifier, targets(), every, False, 0, origin)(np.arange(8)).backward()
    assert all(value.grad is None for value in origin.encoder.parameters())
    assert all(value.grad is not None for value in classifier.encoder.encoder.parameters())


def test_a_student_learns_with_all_losses_and_comes_nearer_to_its_origin() -> None:
    classifier, origin = cut_pair(
        copied_layers=(0, 2), heads=2, intermediate_size=24, vocab_size=70, embedding_rank=8
    )
    weights = {"embedding": 1.0, "relations": 5.0, "hidden": 1.0}
    some = targets(70)
    loss_of = label_loss(classifier, some, settings(**weights), False, 0, origin)
    kinds = {kind: settings(**{kind: 1.0}) for kind in KINDS}
    before = {kind: taught(classifier, origin, of) for kind, of in kinds.items()}
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3)
    values = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = loss_of(np.arange(40))
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    after = {kind: taught(classifier, origin, of) for kind, of in kinds.items()}
    assert values[-1] < 0.7 * values[0]
    for kind in KINDS:
        assert after[kind] < 0.8 * before[kind], kind


def test_bf16_changes_the_losses_of_the_origin_by_its_rounding_alone() -> None:
    classifier, origin = cut_pair(copied_layers=(0, 2), heads=2)
    some, every = targets(), settings(embedding=1.0, relations=1.0, hidden=1.0)
    full, half = (
        float(label_loss(classifier, some, every, bf16, 0, origin)(np.arange(40)).detach())
        for bf16 in (False, True)
    )
    assert half == pytest.approx(full, rel=0.02)
    assert half != full


def test_relations_are_formed_in_as_many_heads_as_divide_both_widths() -> None:
    classifier, origin = cut_pair(heads=3)  # 24 columns and 32
    assert relation_heads(classifier.encoder, origin, Distill()) == 4
    assert relation_heads(classifier.encoder, origin, Distill(relation_heads=8)) == 8
    with pytest.raises(RecipeError, match="relation_heads is 16, which does not divide 24 and 32"):
        relation_heads(classifier.encoder, origin, Distill(relation_heads=16))


def test_a_relation_layer_that_the_origin_has_not_is_refused() -> None:
    classifier, origin = cut_pair(copied_layers=(0, 2))
    with pytest.raises(RecipeError, match=r"relation_layer is 4, .* give one from 0 to 3"):
        relation_heads(classifier.encoder, origin, Distill(relation_layer=4))
    lower = Distill(losses=Losses(teacher=1.0, gold=0.5, relations=1.0), relation_layer=0)
    last = settings(relations=1.0)
    assert taught(classifier, origin, lower) != pytest.approx(taught(classifier, origin, last))


def test_nothing_is_recorded_once_the_recording_has_ended() -> None:
    classifier, _ = cut_pair()
    ids, mask = torch.ones((1, 4), dtype=torch.int64), torch.ones((1, 4), dtype=torch.int64)
    with recording(classifier.encoder, [0, 1], -1) as seen:
        classifier.encoder(input_ids=ids, attention_mask=mask)
    classifier.encoder(input_ids=ids, attention_mask=mask)
    assert len(seen.last) == len(seen.layers[0]) == len(seen.layers[1]) == len(seen.vectors) == 1
