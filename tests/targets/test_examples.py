"""Queries that are shown: right ones and wrong ones, and what was found."""

from __future__ import annotations

import numpy as np

from codemill.targets.evaluation import Evaluation
from codemill.targets.examples import evenly, ranking_examples
from codemill.targets.metrics import ranks

COUNT = 20


def test_half_of_them_are_right_and_half_are_wrong_over_all_ranks() -> None:
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(COUNT, 8))
    queries = codes + np.linspace(0, 3, COUNT)[:, None] * rng.normal(size=(COUNT, 8))
    found_ranks = ranks(queries, codes)
    evaluation = Evaluation(
        "x", tuple(f"query {i}" for i in range(COUNT)), tuple(f"def f{i}():" for i in range(COUNT))
    )
    found = ranking_examples(evaluation, queries, codes, found_ranks, 6)
    assert [example.rank == 1 for example in found.values()] == [True] * 3 + [False] * 3
    wrong = [example.rank for example in found.values()][3:]
    assert wrong == sorted(wrong)
    for number, example in found.items():
        assert example.query == f"query {number}"
        assert example.code == f"def f{number}():"
        scores = [item.score for item in example.found]
        assert scores == sorted(scores, reverse=True)
        place = [item.right for item in example.found]
        assert place.count(True) == (example.rank <= 3)
        assert not any(place) or place.index(True) == example.rank - 1
    assert ranking_examples(evaluation, queries, codes, found_ranks, 0) == {}


def test_where_all_are_right_only_those_are_shown_and_long_code_is_cut() -> None:
    code = "\n".join(f"line {i}" for i in range(40))
    evaluation = Evaluation("x", ("a", "b"), (code, "short"))
    found = ranking_examples(evaluation, np.eye(2), np.eye(2), np.array([1, 1]), 6)
    assert len(found) == 2
    assert found[0].code.splitlines()[-1] == "line 11 …"
    assert found[1].code == "short"


def test_evenly_takes_the_middles_of_equal_parts() -> None:
    assert evenly(np.arange(10), 2) == [2, 7]
    assert evenly(np.arange(3), 5) == [0, 1, 2]
    assert evenly(np.arange(0), 5) == []
