from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import pytest

from codemill.errors import DataError
from codemill.targets import Evaluation, read_evaluation, texts_of_length, write_evaluation


def characters(texts: Sequence[str]) -> list[int]:
    return [len(text) for text in texts]


def words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def test_an_evaluation_set_survives_being_written_with_the_same_bytes(tmp_path: Path) -> None:
    evaluation = Evaluation("set", ("größe?", "b"), ("def f():\n    'x'\n", "y"))
    path, again = tmp_path / "set.jsonl.gz", tmp_path / "again.jsonl.gz"
    write_evaluation(path, evaluation)
    write_evaluation(again, evaluation)
    assert read_evaluation(path) == evaluation
    assert path.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"query": "a", "code": "b"}\n{"query": "a"', r"bad\.jsonl\.gz:2: not a JSON object"),
        (b'{"query": "a"}\n', r"bad\.jsonl\.gz:1: expected text under 'code'"),
        (b'{"query": "a", "code": 7}\n', r"bad\.jsonl\.gz:1: expected text under 'code', found 7"),
        (b'{"query": "a\\ud83d", "code": "b"}\n', "half a surrogate pair"),
        (b'{"query": "a", "code": "\xff"}\n', r"bad\.jsonl\.gz:1: not a JSON object"),
        (b"[" * 100_000, r"bad\.jsonl\.gz:1: not a JSON object"),
        (b"[]\n", r"bad\.jsonl\.gz:1: expected a JSON object, found list"),
        (b"", "is empty; expected one JSON object a line with 'query' and 'code'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.jsonl.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=message):
        read_evaluation(path)


def test_a_file_that_is_missing_or_cut_short_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.jsonl\.gz does not exist"):
        read_evaluation(tmp_path / "no.jsonl.gz")
    cut = tmp_path / "cut.jsonl.gz"
    whole = gzip.compress(b'{"query": "a", "code": "b"}' * 50)
    damaged = whole[:30] + bytes(byte ^ 0xFF for byte in whole[30:40]) + whole[40:]
    for content in (whole[:-9], damaged, b"no gzip"):
        cut.write_bytes(content)
        with pytest.raises(DataError, match=r"cut\.jsonl\.gz cannot be read"):
            read_evaluation(cut)


def test_a_small_file_that_unpacks_to_far_too_much_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codemill.targets.evaluation._MOST_BYTES", 10_000)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"query": "a", "code": "b"}\n' * 1000))
    with pytest.raises(DataError, match="unpacks to more than 10,000 bytes"):
        read_evaluation(path)


def test_texts_have_the_asked_length_and_come_from_the_nearest_longer_functions() -> None:
    functions = ["a" * 100, "b" * 34, "c" * 5, "d" * 32, "e" * 33]
    assert texts_of_length(functions, characters, 32, 3) == ["d" * 32, "e" * 32, "b" * 32]


def test_short_functions_are_joined_when_too_few_are_long_enough() -> None:
    functions = [f"short{i} one two three" for i in range(10)]
    texts = texts_of_length(functions, words, 10, 2)
    assert words(texts) == [10, 10]
    assert len(set(texts)) == 2


def test_a_counter_that_truncates_still_gives_the_length() -> None:
    functions = ["word " * 400, "other " * 300]
    texts = texts_of_length(functions, lambda ts: [min(n, 256) for n in words(ts)], 256, 2)
    assert words(texts) == [256, 256]


def test_a_length_the_tokenizer_steps_over_is_exceeded_by_the_step() -> None:
    texts = texts_of_length(["x " * 50], lambda ts: [2 * n for n in words(ts)], 31, 1)
    assert words(texts) == [16]


def test_too_few_texts_are_repeated_and_none_is_an_error() -> None:
    assert texts_of_length(["a" * 9], characters, 8, 3) == ["a" * 8] * 3
    with pytest.raises(DataError, match="too few or too short"):
        texts_of_length(["a", "b"], characters, 100, 1)
