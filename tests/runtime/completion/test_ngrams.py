"""What followed the same tokens nearby, and a model's own word, mixed."""

from __future__ import annotations

import numpy as np
import pytest

from codemill.runtime.completion.ngrams import Nearby, mixed, weighed

VOCAB = 12


def chances_of(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return powers / powers.sum()


def by_hand(text: list[int], own: np.ndarray, escapes: list[float]) -> np.ndarray:
    """The definition: every order's counts over the whole vocabulary, one after another."""
    found = own
    for order, escape in enumerate(escapes, start=1):
        if len(text) < order:
            break
        ends = range(order, len(text))
        behind = [text[at] for at in ends if text[at - order : at] == text[-order:]]
        if not behind:
            break
        counts = np.bincount(behind, minlength=len(own))
        below = escape * np.count_nonzero(counts)
        found = (counts + below * found) / (counts.sum() + below)
    return found


def test_mixed_is_the_definition() -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        text = draw.integers(0, 4, draw.integers(1, 40)).tolist()
        logits = draw.normal(0, 3, VOCAB).astype(np.float32)
        escapes = draw.uniform(0.1, 5, 6).tolist()
        found = mixed(logits, Nearby(text, len(escapes)).followers(), escapes)
        wanted = by_hand(text, chances_of(logits), escapes)
        assert chances_of(found) == pytest.approx(wanted, rel=1e-4)


def test_tokens_that_never_followed_keep_their_logits_and_the_given_ones_stay() -> None:
    logits = np.arange(VOCAB, dtype=np.float32)
    before = logits.copy()
    found = mixed(logits, Nearby([1, 2, 3, 1, 2, 3, 1], 4).followers(), [1.0] * 4)
    assert (logits == before).all()
    changed = np.flatnonzero(found != logits)
    assert changed.tolist() == [2]
    assert found[2] > logits[2]


def test_a_last_token_that_is_new_leaves_all_to_the_model() -> None:
    logits = np.arange(VOCAB, dtype=np.float32)
    assert Nearby([1, 2, 3], 4).followers() is None
    assert Nearby([], 4).followers() is None
    assert mixed(logits, None, [1.0]) is logits


def test_a_text_that_grows_is_the_text_as_a_whole() -> None:
    text = np.random.default_rng(1).integers(0, 3, 200).tolist()
    growing = Nearby(text[:1], 5)
    for number, token in enumerate(text[1:], start=2):
        growing.add(token)
        whole = Nearby(text[:number], 5).followers()
        found = growing.followers()
        assert (whole is None) == (found is None)
        if whole is not None and found is not None:
            assert (whole.ids == found.ids).all()
            assert (whole.counts == found.counts).all()


def test_other_texts_count_and_no_match_reaches_from_one_into_another() -> None:
    others = [np.array([7, 8, 9]), np.array([5, 7, 8])]
    found = Nearby([1, 7, 8], 4, others).followers()
    assert found is not None
    # behind 8 in the first; the second ends there, and what begins the text itself does not follow it
    assert found.ids.tolist() == [9]
    # behind `7 8` as well, and not behind a third token
    assert found.counts.tolist() == [[1], [1]]
    assert Nearby([8], 4, others).followers() is not None
    assert Nearby([9], 4, others).followers() is None


def test_a_longer_match_says_more() -> None:
    # 2 is followed by 3 twice, but behind 1 by 4
    text = [5, 2, 3, 6, 2, 3, 1, 2, 4, 1, 2]
    logits = np.zeros(VOCAB, np.float32)
    assert mixed(logits, Nearby(text, 1).followers(), [0.5]).argmax() == 3
    assert mixed(logits, Nearby(text, 2).followers(), [0.5, 0.5]).argmax() == 4


def test_numbers_at_the_edge_stay_finite() -> None:
    logits = np.full(VOCAB, -1e30, np.float32)
    logits[0] = 1e30
    for escape in (1e-320, 1e6):
        found = mixed(logits, Nearby([1, 2, 1], 8).followers(), [escape] * 8)
        assert np.isfinite(found).all()
    chances, left = weighed(np.ones((1, 1)), np.zeros(1), [1e-320])
    assert np.isfinite(chances).all()
    assert left >= 0
