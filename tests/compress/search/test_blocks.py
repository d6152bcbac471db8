"""Which layers of a decoder stand for themselves, and which for a block."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from codemill.compress.search.blocks import blocks_of, choose_layers, state_changes


def states_of(*changed: float) -> np.ndarray:
    """Random states [500, layers + 1, 64], to which each layer adds so much."""
    generator = np.random.default_rng(0)
    states = [generator.normal(size=(500, 64))]
    for much in changed:
        states.append(states[-1] + much * generator.normal(size=(500, 64)))
    return np.stack(states, 1)


def test_changes_are_told_between_any_two_layers() -> None:
    states = states_of(0.0, 1.0)
    states[:, 1:] *= 30.0
    found = state_changes([states[:100], states[100:]])
    assert found.shape == (3, 3)
    assert found == pytest.approx(found.T)
    assert found[0, 1] == pytest.approx(0.0, abs=1e-9)
    # a state and as much noise: cosine of 1 / sqrt 2
    assert found[0, 2] == pytest.approx(2 - 2 / 2**0.5, abs=0.05)


def test_layers_that_change_much_stand_for_themselves() -> None:
    changes = state_changes([states_of(2.0, 0.1, 0.1, 0.1, 0.1, 2.0, 0.1, 0.1, 2.0)])
    assert choose_layers(changes, 5) == (0, 4, 5, 7, 8)
    assert choose_layers(changes, 9) == tuple(range(9))
    assert choose_layers(changes, 1) == (8,)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_choice_is_the_least_of_all(count: int) -> None:
    generator = np.random.default_rng(count)
    changes = generator.random((8, 8))
    changes = changes + changes.T

    def cost(kept: tuple[int, ...]) -> float:
        blocks = blocks_of(kept, 7)
        return float(sum(changes[a, b] ** 4 for a, b in blocks if b - a > 1))

    every = [(*some, 6) for some in combinations(range(6), count - 1)]
    assert choose_layers(changes, count) == min(every, key=cost)


def test_blocks_cover_all_layers() -> None:
    assert blocks_of((0, 3, 4), 6) == [(0, 1), (1, 4), (4, 6)]
    assert blocks_of((5,), 6) == [(0, 6)]
    for kept in combinations(range(6), 3):
        blocks = blocks_of(kept, 6)
        assert all(left[1] == right[0] for left, right in pairwise(blocks))
