from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.compress.conftest import HIDDEN, tiny_bert

from codemill.compress.models.classifier import Classifier, Head, load_head, save_head
from codemill.compress.search.cost import head_parameters


@pytest.mark.parametrize(("texts", "ordered"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("labels", [2, 5])
def test_a_head_has_the_parameters_that_the_search_counts(
    texts: int, ordered: bool, labels: int
) -> None:
    head = Head(48, labels, texts, hidden=24, ordered=ordered)
    found = sum(value.numel() for value in head.parameters())
    assert found == head_parameters(48, labels, texts, 24, ordered)


def test_a_head_of_unordered_pairs_does_not_care_which_text_is_first() -> None:
    head = _drawn(Head(HIDDEN, 3, 2, 16))
    first, second = torch.randn(2, 7, HIDDEN, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(head(first, second), head(second, first), atol=1e-6)
    ordered = _drawn(Head(HIDDEN, 3, 2, 16, ordered=True))
    assert not torch.allclose(ordered(first, second), ordered(second, first), atol=1e-3)


def test_an_untrained_pair_head_takes_texts_that_are_alike_for_the_last_label() -> None:
    head = Head(HIDDEN, 2, 2, 16)
    same = torch.randn(1, HIDDEN, generator=torch.Generator().manual_seed(1))
    other = torch.randn(1, HIDDEN, generator=torch.Generator().manual_seed(2))
    assert head(same, same).argmax() == 1
    assert head(same, other).argmax() == 0


@pytest.mark.parametrize("ordered", [False, True])
def test_a_head_is_read_back_as_it_was_written(tmp_path: Path, ordered: bool) -> None:
    head = _drawn(Head(HIDDEN, 3, 2, 16, ordered=ordered)).eval()
    save_head(head, tmp_path / "head.safetensors")
    first, second = torch.randn(2, 4, HIDDEN, generator=torch.Generator().manual_seed(0))
    read = load_head(tmp_path / "head.safetensors", 2, ordered)
    assert torch.equal(head(first, second), read(first, second))


def test_each_text_of_a_batch_of_pairs_is_encoded_once_and_rows_keep_their_order() -> None:
    encoder = tiny_bert(50)
    seen: list[int] = []
    encoder.register_forward_hook(
        lambda _module, _args, kwargs, _output: seen.append(len(kwargs["input_ids"])),
        with_kwargs=True,
    )
    classifier = Classifier(encoder, _drawn(Head(HIDDEN, 2, 2, 16)), 2).eval()
    generator = np.random.default_rng(0)
    tokens = [generator.integers(5, 50, length) for length in (12, 3, 30, 7)]
    rows = np.array([[0, 1], [1, 2], [3, 0], [2, 1], [0, 1]])
    together = classifier.probabilities(tokens, rows)
    assert sum(seen) == 4
    alone = np.concatenate([classifier.probabilities(tokens, row[None]) for row in rows])
    assert together == pytest.approx(alone, abs=1e-5)
    assert together.sum(1) == pytest.approx(np.ones(5), abs=1e-5)


def _drawn(head: Head) -> Head:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in head.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return head
