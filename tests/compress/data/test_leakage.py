"""Duplicates and leakage against brute force."""

from __future__ import annotations

import random
import re

import pytest

from codemill.compress.data.leakage import remove_duplicates, remove_overlap
from codemill.compress.data.pairs import Pair

TOKEN = re.compile(r"\w+|[^\w\s]")


def normal(text: str) -> list[str]:
    return TOKEN.findall(text.lower())


def shingles(code: str) -> set[tuple[str, ...]]:
    tokens = TOKEN.findall(code)
    if len(tokens) <= 5:
        return {tuple(tokens)}
    return {tuple(tokens[at : at + 5]) for at in range(len(tokens) - 4)}


def jaccard(one: str, other: str) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def brute_force(pairs: list[Pair], held_out: list[Pair], threshold: float) -> dict[str, list[Pair]]:
    found: dict[str, list[Pair]] = {"same_code": [], "same_query": [], "similar_code": [], "": []}
    for pair in pairs:
        if any(normal(pair.code) == normal(other.code) for other in held_out):
            reason = "same_code"
        elif any(normal(pair.query) == normal(other.query) for other in held_out):
            reason = "same_query"
        elif any(jaccard(pair.code, other.code) >= threshold for other in held_out):
            reason = "similar_code"
        else:
            reason = ""
        found[reason].append(pair)
    return found


def random_pairs(seed: int, count: int) -> list[Pair]:
    """Short codes over few words: many equal, many alike, some of fewer than five tokens."""
    chance = random.Random(0)
    bases = [[chance.choice("abcdefgh") for _ in range(length)] for length in (2, 4, 5, 6, 14, 20)]
    chance.seed(seed)
    made = []
    for number in range(count):
        words = list(chance.choice(bases))
        for _ in range(chance.randrange(3)):
            words[chance.randrange(len(words))] = chance.choice("abcdefghXYZ")
        query = f"query {chance.randrange(60)}"
        made.append(Pair(query, chance.choice([" ", "\n  "]).join(words), str(number)))
    return made


@pytest.mark.parametrize("threshold", [0.5, 0.7, 1.0])
def test_overlap_is_what_brute_force_finds(threshold: float) -> None:
    pairs, held_out = random_pairs(1, 400), random_pairs(2, 12)
    expected = brute_force(pairs, held_out, threshold)
    kept, overlap = remove_overlap(pairs, held_out, threshold)
    assert kept == expected[""]
    assert overlap.same_code == len(expected["same_code"]) > 0
    assert overlap.same_query == len(expected["same_query"]) > 0
    assert overlap.similar_code == len(expected["similar_code"])
    assert threshold == 1.0 or overlap.similar_code > 0
    removed = {pair.origin for reason in list(expected)[:3] for pair in expected[reason]}
    assert {origin for origin, _ in overlap.examples} <= removed
    assert len(overlap.examples) == 10


def test_nothing_held_out_removes_nothing() -> None:
    pairs = random_pairs(1, 50)
    kept, overlap = remove_overlap(pairs, [])
    assert kept == pairs
    assert (overlap.same_code, overlap.similar_code, overlap.same_query) == (0, 0, 0)


def test_duplicates_are_found_up_to_white_space_and_case_and_the_first_stays() -> None:
    pairs = random_pairs(3, 400)
    seen: list[list[str]] = []
    expected = []
    for pair in pairs:
        if normal(pair.code) not in seen:
            seen.append(normal(pair.code))
            expected.append(pair)
    kept, dropped = remove_duplicates(pairs)
    assert kept == expected
    assert dropped == len(pairs) - len(expected) > 0
