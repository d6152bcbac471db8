"""Near duplicates by the index are those of brute force."""

from __future__ import annotations

import random

import pytest

from codemill.compress.data.leakage import _shingles
from codemill.compress.data.near import NearIndex, shingles_of


def texts(seed: int, count: int) -> list[str]:
    chance = random.Random(0)
    bases = [[chance.choice("abcdefgh") for _ in range(n)] for n in (2, 4, 5, 6, 14, 20, 60)]
    chance.seed(seed)
    made = []
    for _ in range(count):
        words = list(chance.choice(bases))
        for _ in range(chance.randrange(4)):
            words[chance.randrange(len(words))] = chance.choice("abcdefghXYZ")
        made.append(chance.choice([" ", "\n  "]).join(words))
    return made


def similarity(one: str, other: str) -> float:
    a, b = _shingles(one), _shingles(other)
    return len(a & b) / len(a | b)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.75, 1.0])
def test_the_index_finds_the_most_similar_text_of_brute_force(threshold: float) -> None:
    held_out, asked = texts(1, 80), texts(2, 300)
    index, hits = NearIndex(held_out, threshold), 0
    for text in asked:
        best = max(similarity(text, other) for other in held_out)
        found = index.find(text)
        assert (found is not None) == (best >= threshold)
        if found is not None:
            assert similarity(text, held_out[found]) == best
            hits += 1
    assert 0 < hits < len(asked)


def test_shingles_are_those_of_the_leakage_check() -> None:
    for text in [*texts(3, 200), "int f(char *s) { return strlen(s) + ünïcode; }"]:
        assert set(shingles_of(text).tolist()) == _shingles(text)


def test_an_index_of_nothing_finds_nothing() -> None:
    assert NearIndex([]).find("int f();") is None
