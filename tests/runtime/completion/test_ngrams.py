"""What followed the same tokens nearby, and a model's own word, mixed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from codemill.runtime.completion.decoding import Fill
from codemill.runtime.completion.ngrams import Nearby, mixed, parts_of

from .test_loop import decoding

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
        growing.read(token)
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
    found = mixed(logits, Nearby([1, 2, 1], 8).followers(), [1e-320] * 8, end=[3])
    assert np.isfinite(found).all()


def test_what_ends_a_completion_is_as_likely_as_the_model_says() -> None:
    draw = np.random.default_rng(3)
    for _ in range(50):
        logits = draw.normal(0, 3, VOCAB).astype(np.float32)
        near = Nearby(draw.integers(0, 4, 40).tolist(), 5)
        found = chances_of(mixed(logits, near.followers(), [0.1] * 5, end=[10, 11]))
        own = chances_of(logits)
        assert found[[10, 11]] == pytest.approx(own[[10, 11]], rel=1e-4)
        # and the rest is what it is among itself without the ends
        rest = np.where(np.isin(np.arange(VOCAB), [10, 11]), -np.inf, logits)
        wanted = chances_of(mixed(rest, near.followers(), [0.1] * 5)) * (1 - own[[10, 11]].sum())
        assert found[:10] == pytest.approx(wanted[:10], rel=1e-4)


def test_what_was_said_is_no_evidence_but_goes_on_from_there() -> None:
    near = Nearby([1, 2, 3, 4, 1], 4)
    near.say(2)
    near.say(7)
    near.say(1)
    found = near.followers()
    assert found is not None
    # 2 followed 1 in the text, once; what was said is not counted
    assert found.ids.tolist() == [2]
    assert found.counts.tolist() == [[1]]
    near.say(2)
    found = near.followers()
    assert found is not None
    assert found.ids.tolist() == [3]
    # `1 2` stands in the text
    assert found.counts.tolist() == [[1], [1]]


def test_only_the_nearest_matches_count_of_each_length() -> None:
    # long ago 5 followed `3 1`, then 6 followed 1 a hundred times
    text = [3, 1, 5, *[2, 1, 6] * 100, 3, 1]
    found = Nearby(text, 2).followers()
    assert found is not None
    assert found.ids.tolist() == [5, 6]
    assert found.counts.tolist() == [[0, 64], [1, 0]]
    # of other texts the first is the nearest
    near, far = np.array([1, 7] * 60), np.array([1, 8] * 60)
    found = Nearby([1], 1, [near, far]).followers()
    assert found is not None
    assert found.ids.tolist() == [7, 8]
    assert found.counts.tolist() == [[60, 4]]


def test_marks_of_a_gap_are_no_text() -> None:
    shape = replace(decoding(), begin=(9,), fill=Fill(prefix=6, suffix=7, middle=8))
    assert parts_of([9, 6, 1, 2, 7, 3, 4, 8], shape) == ([1, 2], [3, 4])
    assert parts_of([9, 6, 7, 3, 8], shape) == ([], [3])
    assert parts_of([9, 1, 2], shape) == ([1, 2], ())
    # the place before the gap is what is continued, and what is behind it is another text
    text, behind = parts_of([9, 6, 1, 2, 5, 1, 2, 7, 3, 1, 8], shape)
    found = Nearby(text, 4, [behind]).followers()
    assert found is not None
    assert found.ids.tolist() == [5]
    assert found.counts.tolist() == [[1], [1]]
