from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import ortho_group, spearmanr

from codemill.compress.analyze.similarity import linear_cka, rsa


@pytest.fixture
def states() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)


def test_a_turned_and_scaled_layer_is_the_same_layer(states: np.ndarray) -> None:
    turn = ortho_group.rvs(8, random_state=0)
    assert linear_cka(states, 3 * states @ turn + 5) == pytest.approx(1, abs=1e-6)
    assert rsa(states, 3 * states @ turn) == pytest.approx(1, abs=1e-6)


def test_unrelated_layers_are_not_alike(states: np.ndarray) -> None:
    other = np.random.default_rng(1).normal(size=(60, 8))
    assert linear_cka(states, other) < 0.3
    assert abs(rsa(states, other)) < 0.1


def test_more_noise_makes_both_measures_smaller(states: np.ndarray) -> None:
    noise = np.random.default_rng(1).normal(size=states.shape)
    for measure in (rsa, linear_cka):
        found = [measure(states, states + share * noise) for share in (0.0, 0.3, 1.0, 3.0)]
        assert found == sorted(found, reverse=True)
        assert found[0] == pytest.approx(1)


def test_rsa_is_the_rank_correlation_of_cosine_distances(states: np.ndarray) -> None:
    other = states + np.random.default_rng(2).normal(size=states.shape)
    expected = spearmanr(pdist(states, "cosine"), pdist(other, "cosine")).statistic
    assert rsa(states, other) == pytest.approx(expected, abs=1e-6)


def test_linear_cka_is_hsic_of_the_gram_matrices(states: np.ndarray) -> None:
    # the definition in 1905.00414, by [tokens, tokens] matrices; the widths differ
    other = states[:, :5] + np.random.default_rng(2).normal(size=(60, 5))
    centre = np.eye(60) - 1 / 60
    one, two = (centre @ (x.astype(np.float64) @ x.T) @ centre for x in (states, other))
    expected = (one * two).sum() / np.sqrt((one**2).sum() * (two**2).sum())
    assert linear_cka(states, other) == pytest.approx(expected, abs=1e-9)


def test_layers_that_tell_no_tokens_apart_are_alike_only_among_themselves(
    states: np.ndarray,
) -> None:
    same = np.ones((60, 8), dtype=np.float32)
    for measure in (rsa, linear_cka):
        assert measure(same, same) == 1
        assert measure(same, states) == 0


def test_two_tokens_are_too_few_for_rsa(states: np.ndarray) -> None:
    with pytest.raises(ValueError, match="3 tokens"):
        rsa(states[:2], states[:2])
