"""Reading and writing pairs: errors name file and line."""

from __future__ import annotations

import gzip
import os
import tracemalloc
from pathlib import Path

import pytest

from codemill.compress.data.pairs import Pair, read_pairs, write_pairs
from codemill.errors import DataError

GOOD = '{"query": "open it", "code": "def f(): ..."}\n'


def read(path: Path, content: str | bytes, **fields: str) -> list[Pair]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_pairs(path, **fields))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{nonsense", "not a JSON object"),
        ("[1, 2]", "expected a JSON object, found list"),
        ('"text"', "expected a JSON object, found str"),
        ('{"query": "q"}', "expected text under 'code', found fields ['query']"),
        ('{"code": "c"}', "expected text under 'query'"),
        ('{"query": "  ", "code": "c"}', "expected text under 'query', found '  '"),
        ('{"query": "q", "code": null}', "expected text under 'code', found None"),
        ('{"query": 3, "code": "c"}', "found 3"),
        ("[" * 100_000, "not a JSON object"),
        ('{"query": "half \\ud83d", "code": "c"}', "half a surrogate pair"),
        ('{"query": "q", "code": ' + "[" * 500 + "]" * 500 + "}", "expected text under 'code'"),
        ('{"query": "q", "code": ' + "9" * 5000 + "}", "not a JSON object"),
        ('{"query": "q", "code": "' + "c" * 1_000_001 + '"}', "has 1,000,001 characters, at most"),
        ('{"query": "q", "code": "' + "c" * 10_000_000 + '"}', "longer than 10,000,000 bytes"),
        ("\0" * 100, "not a JSON object"),
    ],
)
def test_a_wrong_line_is_named_with_its_file_and_number(
    tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "pairs.jsonl"
    with pytest.raises(DataError) as caught:
        read(path, GOOD + "\n" + GOOD + line + "\n" + GOOD)
    assert str(caught.value).startswith(f"{path}:4: ")
    assert message in str(caught.value)


def test_bytes_that_are_no_text_are_named_with_their_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pairs\.jsonl:2: not a JSON object"):
        read(tmp_path / "pairs.jsonl", GOOD.encode() + b'{"query": "\xff\xfe", "code": "c"}\n')


def test_a_missing_field_says_how_to_name_another(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--set data\.query_field= and data\.code_field="):
        read(tmp_path / "pairs.jsonl", '{"question": "q", "code": "c"}')


def test_fields_may_have_other_names(tmp_path: Path) -> None:
    row = '{"nl": "open it", "py": "def f(): ...", "repo": "here"}'
    found = read(tmp_path / "pairs.jsonl", row, query_field="nl", code_field="py")
    assert found == [Pair("open it", "def f(): ...", "here")]


@pytest.mark.parametrize("content", ["", "\n  \n"])
def test_a_file_without_pairs_is_a_data_error(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match=r"pairs\.jsonl is empty"):
        read(tmp_path / "pairs.jsonl", content)


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl does not exist; expected one JSON obj"):
        list(read_pairs(tmp_path / "nowhere.jsonl"))


def test_a_damaged_gzip_is_a_data_error(tmp_path: Path, pairs: list[Pair]) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    write_pairs(path, pairs)
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes(b ^ 0xFF for b in whole[middle : middle + 40]) + whole[-500:]
    for content in (whole[:-200], whole[:5], b"no gzip", flipped):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"pairs\.jsonl\.gz"):
            list(read_pairs(path))


def test_pairs_come_back_as_they_were_written(tmp_path: Path, pairs: list[Pair]) -> None:
    strange = Pair(
        "naïve – 字\t\u2028 query", 'def f():\n    return "\\"\\r\\n 🦆"\n', "some/where.py:f"
    )
    path = tmp_path / "pairs.jsonl.gz"
    write_pairs(path, [strange, *pairs])
    assert list(read_pairs(path)) == [strange, *pairs]


def test_equal_pairs_make_equal_files(tmp_path: Path, pairs: list[Pair]) -> None:
    one, two = tmp_path / "one.jsonl.gz", tmp_path / "two.jsonl.gz"
    write_pairs(one, pairs)
    write_pairs(two, iter(list(pairs)))
    assert one.read_bytes() == two.read_bytes()
    assert gzip.decompress(one.read_bytes()).count(b"\n") == len(pairs)


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode() * 2
    assert len(read(tmp_path / "pairs.jsonl", content)) == 2


def test_a_folder_or_a_pipe_in_a_files_place_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder; expected one JSON object a line"):
        list(read_pairs(tmp_path))
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match=r"pipe\.jsonl is not a file"):
        list(read_pairs(tmp_path / "pipe.jsonl"))
    with pytest.raises(DataError, match="File name too long"):
        list(read_pairs(tmp_path / ("x" * 5000)))


def test_a_small_file_that_unpacks_to_one_long_line_is_read_no_further(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b"x" * 200_000_000, compresslevel=1))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"bomb\.jsonl\.gz:1: longer than 10,000,000 bytes"):
            list(read_pairs(path))
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
