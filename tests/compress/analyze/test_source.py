from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codemill.compress.analyze.source import Snippet, read_snippets
from codemill.errors import DataError


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_queries_and_labels_are_read_where_there_are_any(tmp_path: Path) -> None:
    rows = [
        {"func": "a", "target": 1},
        {"func": "b", "target": 0, "docstring": "say b"},
        {"func": "c", "docstring": "", "target": None},
    ]
    assert read_snippets(write(tmp_path / "x.jsonl", rows), 10, 0) == [
        Snippet("a", None, "1"),
        Snippet("b", "say b", "0"),
        Snippet("c", None, None),
    ]


def test_fields_can_be_named(tmp_path: Path) -> None:
    rows = [{"body": "a", "code": "no", "says": "b", "kind": "c"}]
    found = read_snippets(
        write(tmp_path / "x.jsonl", rows),
        10,
        0,
        code_field="body",
        query_field="says",
        label_field="kind",
    )
    assert found == [Snippet("a", "b", "c")]


def test_the_label_of_a_pair_is_not_that_of_its_first_half(tmp_path: Path) -> None:
    data = write(tmp_path / "x.jsonl", [{"code1": "a", "code2": "b", "label": 1}])
    assert read_snippets(data, 10, 0) == [Snippet("a")]


def test_a_sample_is_drawn_from_all_of_the_file_by_the_seed(tmp_path: Path) -> None:
    data = write(tmp_path / "x.jsonl", [{"code": str(number)} for number in range(2000)])
    first, second = (read_snippets(data, 50, seed) for seed in (0, 1))
    assert first == read_snippets(data, 50, 0)
    assert first != second
    numbers = [int(snippet.code) for snippet in first]
    assert len(set(numbers)) == 50
    assert max(numbers) > 1500
    assert min(numbers) < 500


def test_installed_code_comes_with_words_and_from_many_files() -> None:
    found = read_snippets("installed", 30, 0)
    assert len(found) == 30
    assert found == read_snippets("installed", 30, 0)
    assert all(snippet.query and "def " in snippet.code for snippet in found)
    assert len({snippet.code for snippet in found}) > 25


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prose": "a"}], "expected one of code, func.*--code-field"),
        ([{"code": ""}], "empty text"),
        ([], "no rows"),
    ],
)
def test_a_file_without_code_says_what_it_lacks(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_snippets(write(tmp_path / "x.jsonl", rows), 10, 0)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.jsonl"):
        read_snippets(str(tmp_path / "nothing.jsonl"), 10, 0)
