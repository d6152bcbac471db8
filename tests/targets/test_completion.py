"""Figures of completions, and their report."""

from __future__ import annotations

from pathlib import Path

import pytest

from codemill.errors import DataError
from codemill.targets.completion import (
    Completed,
    CompletionEvaluation,
    figures_of,
    in_turn,
    read_completion_evaluation,
    scores,
    write_completion_evaluation,
)


def test_scores_of_lines() -> None:
    found = scores(["return a", "return b ", ""], ["return a", "return a", ""])
    assert found["exact_match"].tolist() == [1, 0, 1]
    assert found["edit_similarity"].tolist() == [1, pytest.approx(7 / 8), 1]
    assert found["rouge_l"][0] == 1
    assert found["rouge_l"][1] == pytest.approx(0.5)


def test_figures_count_tokens_by_their_layers() -> None:
    done = [
        Completed("return a", 0.1, 0.01, (8, 3, 3, 8), 1, "stop"),
        Completed("ret", 0.3, 0.02, (8, 3), 0, "uncertain"),
    ]
    found = figures_of(done, ["return a", "return b"])
    assert found.places == 2
    assert found.exact_match == 0.5
    assert found.completion_ms_mean == pytest.approx(200)
    assert found.layers == {"3": 0.5, "8": 0.5}
    assert found.layers_mean == 5.5
    assert found.stopped == 0.5
    assert found.drafted == pytest.approx(1 / 6)
    assert found.tokens_per_s == pytest.approx(15)


def test_turns_begin_with_another_one_each_time() -> None:
    assert [in_turn(["a", "b"], number) for number in range(3)] == [
        ["a", "b"],
        ["b", "a"],
        ["a", "b"],
    ]


def test_an_evaluation_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = CompletionEvaluation("held out", ("a = ", ""), ("1", "b"))
    write_completion_evaluation(tmp_path / "e.jsonl.gz", made)
    assert read_completion_evaluation(tmp_path / "e.jsonl.gz", "held out") == made
    (tmp_path / "bad.jsonl").write_text('{"prefix": 1, "line": "a"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:1: expected a text .* 'prefix'"):
        read_completion_evaluation(tmp_path / "bad.jsonl")
