"""How much n-grams weigh is fitted on texts: more where the model knows less, nothing lost where it knows all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest

from codemill.compress.ngrams import ORDERS, fit_ngrams
from codemill.runtime.completion.ngrams import Nearby, mixed

VOCAB = 20


class Knowing:
    """A model of texts of letters: it gives what really follows this much more than all else."""

    def __init__(self, sure: float, wrong: int = 0) -> None:
        self._sure = sure
        self._wrong = wrong

    def logits(self, text: str) -> tuple[np.ndarray, Iterator[np.ndarray]]:
        ids = np.array([ord(letter) - ord("a") for letter in text], np.int64)
        rows = np.zeros((len(ids), VOCAB), np.float32)
        rows[np.arange(len(ids)), (np.roll(ids, -1) + self._wrong) % VOCAB] = self._sure
        # in parts, as of a long text
        return ids, iter(np.array_split(rows, 3))


def fitted(model: Knowing, texts: list[str]) -> Any:
    return fit_ngrams(cast(Any, model), texts)


def random_texts(seed: int = 0, count: int = 6) -> list[str]:
    draw = np.random.default_rng(seed)
    return ["".join(chr(97 + at) for at in draw.integers(0, VOCAB, 80)) for _ in range(count)]


def test_texts_that_repeat_themselves_are_said_by_counting() -> None:
    texts = [text[:10] * 8 for text in random_texts()]
    found = fitted(Knowing(0.0), texts)
    assert len(found.escapes) == ORDERS
    assert found.helps
    assert found.right == 1.0 > found.right_alone
    assert found.bits < 0.5 < found.bits_alone
    assert min(found.escapes) <= 0.1


def test_counting_adds_nothing_to_a_model_that_knows_all() -> None:
    found = fitted(Knowing(12.0), random_texts())
    assert not found.helps
    assert found.right == found.right_alone == 1.0
    # and the first order, which is met most often, is all but switched off
    assert found.escapes[0] >= 100


def test_a_wrong_model_is_outvoted_and_what_is_judged_is_what_the_runtime_takes() -> None:
    texts = [text[:10] * 8 for text in random_texts()]
    model = Knowing(3.0, wrong=1)
    found = fitted(model, texts)
    assert found.right_alone == 0.0
    assert found.right > 0.9
    ids, parts = model.logits(texts[1])
    rows, right, of = np.concatenate(list(parts)), 0, range(len(ids) // 2, len(ids) - 1)
    for at in of:
        near = Nearby(ids[: at + 1].tolist(), ORDERS)
        right += int(mixed(rows[at], near.followers(), found.escapes).argmax()) == ids[at + 1]
    assert right / len(of) == pytest.approx(found.right, abs=0.1)


def test_one_text_is_too_few() -> None:
    with pytest.raises(ValueError, match="two texts or more, found 1"):
        fitted(Knowing(0.0), ["abc"])
