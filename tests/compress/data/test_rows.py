"""Every kind of file gives the same rows; what is bad is named by file and line, or refused."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codemill.compress.data.rows import PAIR_COLUMNS, Row, Skipped, read_rows
from codemill.errors import DataError, MachineError

ROWS = [{"code": "int f();\n", "label": "0"}, {"code": "a,\"b\"\t'ü'", "label": "1"}]


def lines(rows: list[dict[str, str]] = ROWS) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["code", "label"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def zstd(data: bytes) -> bytes:
    packed: bytes = pytest.importorskip("zstandard").ZstdCompressor().compress(data)
    return packed


def plain(data: bytes) -> bytes:
    return data


def read(path: Path | str, columns: tuple[str, ...] = ()) -> tuple[list[Row], Skipped]:
    skipped = Skipped()
    skipped.begin(str(path))
    rows = list(read_rows(str(path), skipped, columns))
    for _ in rows:
        skipped.good()
    skipped.end()
    return rows, skipped


@pytest.mark.parametrize(
    ("suffix", "pack"), [("", plain), (".gz", gzip.compress), (".zst", zstd)], ids=["", "gz", "zst"]
)
@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("jsonl", lines()),
        ("json", json.dumps(ROWS).encode()),
        ("csv", table(",")),
        ("tsv", table("\t")),
    ],
    ids=["jsonl", "json", "csv", "tsv"],
)
def test_every_text_format_packed_or_not_gives_the_same_rows(
    tmp_path: Path, kind: str, data: bytes, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"data.{kind}{suffix}"
    path.write_bytes(pack(data))
    assert [row.value for row in read(path)[0]] == ROWS


def test_parquet_and_a_saved_dataset_give_the_same_rows(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    stored = arrow.Table.from_pylist(ROWS)
    import pyarrow.parquet

    pyarrow.parquet.write_table(stored, tmp_path / "data.parquet")
    folder = tmp_path / "saved"
    folder.mkdir()
    with arrow.ipc.new_stream(str(folder / "data-0.arrow"), stored.schema) as stream:
        stream.write_table(stored)
    state = {"_data_files": [{"filename": "data-0.arrow"}]}
    (folder / "state.json").write_text(json.dumps(state))
    for path in (tmp_path / "data.parquet", folder):
        rows, _ = read(path)
        assert [row.value for row in rows] == ROWS
        assert rows[1].where == f"{path}:2"


def test_a_saved_dataset_cannot_name_files_outside_its_folder(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../x.arrow"}]}))
    with pytest.raises(DataError, match="outside its folder"):
        read(tmp_path)


def test_a_row_of_csv_is_named_by_the_line_it_begins_at(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(table(","))
    # the first value holds a line break
    assert [row.line for row in read(path)[0]] == [2, 4]


def test_a_bad_line_is_skipped_and_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(lines() + b"{oops\n[1]\n" + b'"' + b"x" * 10_000_001 + b'"\n' + lines())
    rows, skipped = read(path)
    assert [row.line for row in rows] == [1, 2, 6, 7]
    assert skipped.counts == {"not JSON": 1, "not an object": 1, "line too long": 1}
    assert skipped.examples["not JSON"][0].startswith(f"{path}:3: ")


def test_a_row_of_csv_with_a_field_too_many_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("code,label\na,1\nb,1,2\nc,0\n")
    rows, skipped = read(path)
    assert [row.value["code"] for row in rows] == ["a", "c"]
    assert skipped.examples["not CSV"] == [f"{path}:3: 3 fields, the header has 2"]


@pytest.mark.parametrize("header", ["", "id1\tid2\tlabel\tteacher\n"])
def test_pair_lists_have_columns_by_position_or_by_their_header(
    tmp_path: Path, header: str
) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text(header + "a\tb\t1\t0\nc\td\t0\nlonely\n")
    rows, skipped = read(path, PAIR_COLUMNS)
    assert rows[0].value == {"id1": "a", "id2": "b", "label": "1", "teacher": "0"}
    assert rows[1].value == {"id1": "c", "id2": "d", "label": "0"}
    assert skipped.counts == {"not a pair": 1}


def test_more_than_half_bad_rows_of_the_first_thousand_are_refused_with_the_first_of_them(
    tmp_path: Path,
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"{oops\n" * 501 + lines(ROWS * 1000))
    with pytest.raises(
        DataError, match=r"(?s)more than half of the first 1,000.*data.jsonl:5: not JSON"
    ):
        read(path)


def test_half_bad_rows_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"{oops\n" * 500 + lines(ROWS * 250))
    assert read(path)[1].counts == {"not JSON": 500}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("data.jsonl", b"", "no rows"),
        ("data.jsonl", b"{oops\n", r"no row is good\n.*data.jsonl:1"),
        ("data.jsonl.gz", gzip.compress(lines(), mtime=0)[:-6], "cannot be read"),
        ("data.jsonl.gz", b"no gzip", "cannot be read"),
        ("data.jsonl.zst", b"no zstd", "cannot be read"),
        ("data.parquet", b"no parquet", "cannot be read"),
        ("data.json", b'"text"', "holds a str"),
        ("data.json", b"[1, ", "not JSON"),
        ("data.xlsx", b"x", r"unknown kind '\.xlsx'; expected \.jsonl"),
        ("data.csv", b"a,a\n1,2\n", "twice in the header"),
    ],
)
def test_a_file_that_is_unusable_is_an_error_that_names_it(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as raised:
        read(path)
    assert name in str(raised.value)


def test_json_lines_under_the_name_json_are_read(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(lines())
    assert [row.value for row in read(path)[0]] == ROWS


def test_a_hub_dataset_is_streamed_and_its_code_never_trusted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []

    def load_dataset(*names: Any, **settings: Any) -> list[dict[str, str]]:
        asked.append((names, settings))
        return ROWS

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    rows, _ = read("hf:owner/name:java@test")
    assert [row.value for row in rows] == ROWS
    assert asked == [(("owner/name", "java"), {"split": "test", "streaming": True})]


def test_a_hub_dataset_without_the_library_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MachineError, match=r"pip install datasets"):
        read("hf:owner/name")
