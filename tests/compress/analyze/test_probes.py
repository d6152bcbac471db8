from __future__ import annotations

import numpy as np
import pytest

from codemill.compress.analyze.probes import control_labels, pair_features, probe


@pytest.fixture
def chance() -> np.random.Generator:
    return np.random.default_rng(0)


def test_what_a_hyperplane_tells_apart_is_read_and_what_is_random_is_not(
    chance: np.random.Generator,
) -> None:
    features = chance.normal(size=(900, 12)).astype(np.float32)
    labels = (features[:, 3] + features[:, 5] > 0).astype(np.int64)
    random = chance.integers(0, 2, 900)
    found = probe("x", features, labels, random, np.arange(900) < 600)
    assert found.accuracy > 0.95
    assert found.control == pytest.approx(0.5, abs=0.12)
    assert found.selectivity == found.accuracy - found.control
    assert found.standard_error == pytest.approx(
        np.sqrt(found.accuracy * (1 - found.accuracy) / 300)
    )


def test_a_layer_that_names_every_word_gets_no_selectivity(chance: np.random.Generator) -> None:
    # the word's own column: a probe can learn any label of a word, true or random, by heart
    words = chance.integers(0, 20, 900)
    features = np.eye(20, dtype=np.float32)[words]
    labels = (words % 3).astype(np.int64)
    control = control_labels([str(word) for word in words], labels, 0)
    found = probe("x", features, labels, control, np.arange(900) < 600)
    assert found.accuracy == found.control == 1
    assert found.selectivity == 0


def test_a_column_that_never_changes_is_no_trouble(chance: np.random.Generator) -> None:
    features = np.concatenate([chance.normal(size=(200, 3)), np.ones((200, 1))], axis=1)
    labels = (features[:, 0] > 0).astype(np.int64)
    assert probe("x", features, labels, labels, np.arange(200) < 120).accuracy > 0.9


def test_control_labels_belong_to_words_and_are_as_frequent_as_the_true_ones() -> None:
    words = [f"w{number % 2000}" for number in range(6000)]
    labels = np.asarray([0] * 4200 + [1] * 1800)
    found = control_labels(words, labels, 0)
    assert all(found[number] == found[number % 2000] for number in range(6000))
    assert (found == 0).mean() == pytest.approx(0.7, abs=0.05)
    assert not np.array_equal(found, control_labels(words, labels, 1))


def test_a_linear_probe_can_compare_two_tokens(chance: np.random.Generator) -> None:
    one = chance.normal(size=(900, 6)).astype(np.float32)
    near = chance.integers(0, 2, 900)
    two = np.where(near[:, None] == 1, one + 0.1, chance.normal(size=one.shape)).astype(np.float32)
    train = np.arange(900) < 600
    apart = probe("x", np.concatenate([one, two], axis=1), near, near, train)
    compared = probe("x", pair_features(one, two), near, near, train)
    assert apart.accuracy < 0.65
    assert compared.accuracy > 0.9
    assert np.array_equal(pair_features(one, two), pair_features(two, one))
