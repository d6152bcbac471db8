"""How much n-grams weigh is fitted on texts: more where the model knows less, nothing lost where it knows all."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from codemill.compress.ngrams import FEWEST, ORDERS, fit_ngrams, places_of, says_right
from codemill.runtime.completion.ngrams import Nearby, mixed

VOCAB = 20


class Knowing:
    """A model of texts of letters: it gives what really follows this much more than all else."""

    def __init__(self, sure: float, wrong: int = 0, known: float = 1.0) -> None:
        self.manifest = SimpleNamespace(input={"begin": []}, output={"end": [VOCAB]})
        self._known = known
        self._sure = sure
        self._wrong = wrong

    def logits(self, text: str) -> tuple[np.ndarray, Iterator[np.ndarray]]:
        ids = np.array([ord(letter) - ord("a") for letter in text], np.int64)
        # one more, which ends a text
        rows = np.zeros((len(ids), VOCAB + 1), np.float32)
        unknown = np.random.default_rng(len(ids)).random(len(ids)) >= self._known
        rows[np.arange(len(ids)), (np.roll(ids, -1) + self._wrong + unknown) % VOCAB] = self._sure
        # in parts, as of a long text
        return ids, iter(np.array_split(rows, 3))


def fitted(model: Knowing, texts: list[str]) -> Any:
    return fit_ngrams(cast(Any, model), texts)


def random_texts(seed: int = 0, count: int = 2 * FEWEST) -> list[str]:
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


def test_counting_adds_nothing_where_nothing_repeats() -> None:
    # right at four places of five, as sure as that
    found = fitted(Knowing(4.4, known=0.8), random_texts())
    assert found.right_alone == pytest.approx(0.8, abs=0.1)
    assert not found.helps
    # and the first order, which is met most often, is all but switched off
    assert found.escapes[0] >= 50


def test_a_wrong_model_is_outvoted_and_what_is_judged_is_what_the_runtime_takes() -> None:
    texts = [text[:10] * 8 for text in random_texts()]
    model = Knowing(3.0, wrong=1)
    found = fitted(model, texts)
    assert found.right_alone == 0.0
    assert found.right > 0.9
    for text in texts[:4]:
        ids, parts = model.logits(text)
        rows = np.concatenate(list(parts))
        places = places_of(cast(Any, model), text)
        for at, place in enumerate(places, start=len(ids) // 2):
            near = Nearby(ids[: at + 1].tolist(), ORDERS)
            said = int(mixed(rows[at], near.followers(), found.escapes, [VOCAB]).argmax())
            assert says_right(place, found.escapes) == (said == ids[at + 1])


def test_too_little_text_tells_nothing() -> None:
    assert fitted(Knowing(0.0), random_texts(count=FEWEST - 1)) is None
    assert fitted(Knowing(0.0), ["ab"] * 100) is None
