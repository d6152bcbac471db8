from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from codemill.errors import DataError, InputError, MachineError
from codemill.runtime import Encoder, Index, load

PARSE = 'def parse(text):\n    """Read it."""\n    return json(text)\n'
SOCKET = "class Client:\n    def connect(self):\n        return open(socket)\n"
MATRIX = "def product(a, b):\n    return matrix(multiply(a, b))\n"


class Counting(Encoder):
    """An encoder that keeps the code it embedded."""

    embedded: list[str]

    def encode(self, texts: Sequence[str], batch_size: int = 32) -> NDArray[np.float32]:
        self.embedded.extend(text for text in texts if "def " in text or "func " in text)
        return super().encode(texts, batch_size)


@pytest.fixture
def encoder(built: Path) -> Iterator[Counting]:
    with load(built, threads=1) as encoder:
        encoder.__class__ = Counting
        assert isinstance(encoder, Counting)
        encoder.embedded = []
        yield encoder


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    (folder / "net").mkdir(parents=True)
    write(folder / "a.py", PARSE)
    write(folder / "net/client.py", SOCKET)
    write(folder / "b.py", MATRIX)
    return folder


def write(path: Path, text: str, age_s: float = 100) -> None:
    """Write a file as if it were older than the index has to mistrust."""
    path.write_text(text)
    written = time.time_ns() - int(age_s * 1e9) + len(text)
    os.utime(path, ns=(written, written))


def names(index: Index, query: str = "parse json") -> list[str]:
    return [hit.qualified_name for hit in index.search(query, top=99)]


def table(cache: Path) -> Path:
    (found,) = cache.glob("indexes/*/index.json")
    return found


def test_the_nearest_function_comes_first_with_its_place_and_code(
    code: Path, encoder: Counting
) -> None:
    index = Index.open(code, encoder)
    hit = index.search("connect a socket", top=1)[0]
    assert (hit.path, hit.line, hit.qualified_name) == (code / "net/client.py", 2, "Client.connect")
    assert hit.code == "def connect(self):\n    return open(socket)"
    assert index.search("multiply a matrix", top=1)[0].qualified_name == "product"
    assert (len(index), index.files) == (3, 3)


def test_scores_are_cosines_in_falling_order(code: Path, encoder: Counting) -> None:
    hits = Index.open(code, encoder).search("parse json")
    said = {"parse": "Read it.\n"}
    texts = [said.get(hit.qualified_name, "") + hit.code for hit in hits]
    vectors = encoder.encode(["parse json", *texts])
    np.testing.assert_allclose([hit.score for hit in hits], vectors[1:] @ vectors[0], atol=2e-3)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_what_is_embedded_is_the_docstring_and_the_code_without_it(
    code: Path, encoder: Counting
) -> None:
    index = Index.open(code, encoder)
    assert "Read it.\ndef parse(text):\n    return json(text)" in encoder.embedded
    assert index.search("parse json", top=1)[0].code == "def parse(text):\n    return json(text)"


def test_a_second_opening_embeds_and_reads_nothing(
    code: Path, encoder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    Index.open(code, encoder)
    encoder.embedded.clear()
    monkeypatch.setattr(Path, "write_bytes", None)
    calls: list[tuple[int, int]] = []
    index = Index.open(code, encoder, progress=lambda done, total: calls.append((done, total)))
    assert (encoder.embedded, calls) == ([], [(0, 0)])
    assert names(index)[0] == "parse"


def test_only_a_file_that_changed_is_embedded_again(code: Path, encoder: Counting) -> None:
    Index.open(code, encoder)
    encoder.embedded.clear()
    write(code / "b.py", MATRIX.replace("product", "times"))
    index = Index.open(code, encoder)
    assert encoder.embedded == ["def times(a, b):\n    return matrix(multiply(a, b))"]
    assert sorted(names(index)) == ["Client.connect", "parse", "times"]


def test_a_file_that_was_only_touched_or_moved_is_not_embedded_again(
    code: Path, encoder: Counting
) -> None:
    Index.open(code, encoder)
    encoder.embedded.clear()
    write(code / "a.py", PARSE, age_s=50)
    (code / "b.py").rename(code / "net/c.py")
    index = Index.open(code, encoder)
    assert encoder.embedded == []
    assert index.search("multiply a matrix")[0].path == code / "net/c.py"


def test_an_edit_that_keeps_time_and_size_is_seen_while_the_file_is_young(
    code: Path, encoder: Counting
) -> None:
    (code / "a.py").write_text(PARSE)
    status = (code / "a.py").stat()
    Index.open(code, encoder)
    (code / "a.py").write_text(PARSE.replace("parse", "spare"))
    os.utime(code / "a.py", ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert "spare" in names(Index.open(code, encoder))


def test_functions_of_deleted_files_are_forgotten(
    code: Path, encoder: Counting, cache: Path
) -> None:
    Index.open(code, encoder)
    (code / "a.py").unlink()
    assert "parse" not in names(Index.open(code, encoder))
    assert "a.py" not in [row[0] for row in json.loads(table(cache).read_text())["files"]]


def test_a_hit_in_a_file_that_changed_since_is_never_shown(code: Path, encoder: Counting) -> None:
    index = Index.open(code, encoder)
    write(code / "a.py", "\n" + PARSE.replace("parse", "read"))
    (code / "b.py").unlink()
    hits = {hit.qualified_name: hit for hit in index.search("parse json")}
    assert sorted(hits) == ["Client.connect", "read"]
    assert hits["read"].line == 2


def test_folders_that_hold_other_peoples_code_are_not_looked_into(
    code: Path, encoder: Counting
) -> None:
    for folder in (".git", "__pycache__", "node_modules", "venv", "x/site-packages", "my-env"):
        (code / folder).mkdir(parents=True)
        (code / folder / "m.py").write_text("def hidden(): pass")
    (code / "my-env/pyvenv.cfg").write_text("")
    (code / "link.py").symlink_to(code / "a.py")
    (code / "text.txt").write_text("def hidden(): pass")
    assert sorted(names(Index.open(code, encoder))) == ["Client.connect", "parse", "product"]


def test_a_folder_that_is_asked_for_is_looked_into_whatever_its_name(
    tmp_path: Path, encoder: Counting
) -> None:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "a.py").write_text(PARSE)
    assert names(Index.open(folder, encoder)) == ["parse"]


def test_files_that_cannot_be_read_are_told_and_the_rest_is_found(
    code: Path, encoder: Counting
) -> None:
    (code / "wrong.py").write_text("def f(:")
    (code / "bytes.py").write_bytes(b"def good(): 1\n\ndef bad(: 2\n\ndef mixed(): '\xff'\n")
    (code / "large.py").write_bytes(b"def f(): pass\n" + b"#" * (4 * 2**20))
    index = Index.open(code, encoder)
    assert {path.name for path in index.unreadable} == {"wrong.py", "bytes.py", "large.py"}
    assert "syntax" in index.unreadable[code / "wrong.py"]
    assert sorted(names(index)) == ["Client.connect", "good", "mixed", "parse", "product"]
    (code / "wrong.py").write_text("def right(): pass")
    assert "right" in names(Index.open(code, encoder))


def test_a_file_that_could_not_be_read_is_tried_again(
    code: Path, encoder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path.read_bytes

    def refused(path: Path) -> bytes:
        if path.name == "b.py":
            raise PermissionError(13, "Permission denied")
        return whole(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refused)
        assert Index.open(code, encoder).unreadable == {code / "b.py": "Permission denied"}
        # it is tried each time, and where nothing is new nothing is written
        patch.setattr("codemill.runtime.table.Table.save", None)
        assert Index.open(code, encoder).unreadable == {code / "b.py": "Permission denied"}
    # neither its time nor its size is another
    index = Index.open(code, encoder)
    assert (index.unreadable, "product" in names(index)) == ({}, True)


def test_a_file_that_changed_with_its_time_and_size_is_read_again_where_it_is_found(
    code: Path, encoder: Counting
) -> None:
    index = Index.open(code, encoder)
    status = (code / "b.py").stat()
    content = (code / "b.py").read_text()
    (code / "b.py").write_text(content.replace("product", "tcudorp"))
    os.utime(code / "b.py", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "tcudorp" in names(index)
    assert "tcudorp" in names(Index.open(code, encoder))


def test_the_next_best_come_where_a_file_can_be_read_no_more(
    code: Path, encoder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = Index.open(code, encoder)
    best = index.search("multiply a matrix", top=1)[0]
    whole = Path.read_bytes

    def refused(path: Path) -> bytes:
        if path == best.path:
            raise PermissionError(13, "Permission denied")
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    (hit,) = index.search("multiply a matrix", top=1)
    assert hit.path != best.path
    assert index.unreadable == {best.path: "Permission denied"}


def test_a_file_of_1970_that_changed_is_read_again(code: Path, encoder: Counting) -> None:
    os.utime(code / "b.py", ns=(0, 0))
    index = Index.open(code, encoder)
    (code / "b.py").write_text((code / "b.py").read_text().replace("product", "tcudorp"))
    os.utime(code / "b.py", ns=(0, 0))
    assert "tcudorp" in names(index)


@pytest.mark.parametrize("damage", ["table", "matrix", "matrix gone", "rows", "other"])
def test_an_index_that_was_damaged_is_built_again(
    code: Path, encoder: Counting, cache: Path, damage: str
) -> None:
    expected = names(Index.open(code, encoder))
    (matrix,) = cache.glob("indexes/*/*.npy")
    if damage == "table":
        table(cache).write_text("{")
    elif damage == "matrix":
        matrix.write_bytes(matrix.read_bytes()[:-1] + b"x")
    elif damage == "matrix gone":
        matrix.unlink()
    elif damage == "rows":
        text = table(cache).read_bytes()
        assert text.count(b'"spans": [') == 1
        table(cache).write_bytes(text.replace(b'"spans": [', b'"spans": [1'))
    else:
        table(cache).write_text('{"embeddings": 3}')
    encoder.embedded.clear()
    assert names(Index.open(code, encoder)) == expected
    assert len(encoder.embedded) == 3


def test_saving_writes_only_what_is_new(code: Path, encoder: Counting, cache: Path) -> None:
    Index.open(code, encoder)
    (first,) = cache.glob("indexes/*/*.npy")
    write(code / "b.py", "def other(): pass")
    expected = names(Index.open(code, encoder))
    (second,) = set(cache.glob("indexes/*/*.npy")) - {first}
    # a row, and what an array's file begins with
    assert second.stat().st_size == 128 + encoder.dim + 4
    encoder.embedded.clear()
    assert names(Index.open(code, encoder)) == expected
    assert encoder.embedded == []


def test_rows_that_are_gone_do_not_pile_up(code: Path, encoder: Counting, cache: Path) -> None:
    for number in range(30):
        write(code / "b.py", f"def other(): return {number}")
        index = Index.open(code, encoder)
        assert sorted(names(index)) == ["Client.connect", "other", "parse"]
    sizes = [path.stat().st_size - 128 for path in cache.glob("indexes/*/*.npy")]
    assert len(sizes) <= 8
    assert sum(sizes) <= 2 * 3 * (encoder.dim + 4)


def test_an_index_that_another_process_put_together_is_written_whole(
    code: Path, encoder: Counting, cache: Path
) -> None:
    index = Index.open(code, encoder)
    for path in cache.glob("indexes/*/*.npy"):
        # mapped here, and gone from the folder
        path.unlink()
    write(code / "b.py", "def other(): pass")
    index.update()
    encoder.embedded.clear()
    assert sorted(names(Index.open(code, encoder))) == ["Client.connect", "other", "parse"]
    assert encoder.embedded == []


def test_an_interrupted_update_keeps_what_it_embedded(
    code: Path, encoder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codemill.runtime.find._CHUNK", 1)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Index.open(code, encoder, progress=stop)
    assert len(encoder.embedded) == 2
    index = Index.open(code, encoder)
    assert len(encoder.embedded) == 3
    assert len(names(index)) == 3


def test_progress_counts_the_files_to_read(code: Path, encoder: Counting) -> None:
    calls: list[tuple[int, int]] = []
    Index.open(code, encoder, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_folders_have_indexes_of_their_own(code: Path, encoder: Counting, cache: Path) -> None:
    Index.open(code, encoder)
    assert names(Index.open(code / "net", encoder)) == ["Client.connect"]
    assert len(list(cache.glob("indexes/*"))) == 2


def test_an_empty_folder_has_no_hits(tmp_path: Path, encoder: Counting) -> None:
    (tmp_path / "empty").mkdir()
    assert Index.open(tmp_path / "empty", encoder).search("parse") == []


def test_what_cannot_be_searched_is_an_error_that_says_why(
    code: Path, encoder: Counting, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        Index.open(tmp_path / "none", encoder)
    index = Index.open(code, encoder)
    with pytest.raises(InputError, match="the query is empty"):
        index.search(" ")
    with pytest.raises(ValueError, match="top"):
        index.search("parse", top=0)


def test_a_cache_that_cannot_be_made_is_a_machine_error(
    code: Path, encoder: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CODEMILL_CACHE", str(tmp_path / "file"))
    with pytest.raises(MachineError, match="CODEMILL_CACHE"):
        Index.open(code, encoder)


def test_folders_named_in_exclude_are_left_out_at_any_depth(code: Path, encoder: Counting) -> None:
    write(code / "net/extra.py", PARSE.replace("parse", "extra"))
    assert names(Index.open(code, encoder, exclude=["net"]), "json") == ["parse", "product"]
    assert "Client.connect" in names(Index.open(code, encoder), "json")


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_disk_that_is_full_is_a_machine_error_and_the_older_index_stays(
    code: Path, encoder: Counting, cache: Path
) -> None:
    import resource

    Index.open(code, encoder)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    write(
        code / "c.py",
        "".join(f"def parse_{n}(json):\n    return read(json, {n})\n" for n in range(99)),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, before[1]))
    try:
        with pytest.raises(MachineError, match="cannot write the index"):
            Index.open(code, encoder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(list(cache.glob("indexes/*/*"))) == 2
    encoder.embedded.clear()
    assert len(Index.open(code, encoder)) == 102
    assert len(encoder.embedded) == 99


def test_a_search_may_be_of_one_language_alone(code: Path, encoder: Counting) -> None:
    pytest.importorskip("tree_sitter_go", reason="the extra `find`")
    write(code / "net/read.go", "package net\n\n// Parse json.\nfunc Parse(text string) {}\n")
    index = Index.open(code, encoder)
    (hit,) = index.search("parse json", languages=["go"])
    assert (hit.path, hit.line, hit.qualified_name) == (code / "net/read.go", 4, "Parse")
    assert {hit.language for hit in index.search("parse json")} == {"python", "go"}
    assert index.search("parse json", languages=["rust"]) == []
    with pytest.raises(InputError, match="'basic' is no language"):
        index.search("parse json", languages=["basic"])


def test_files_of_languages_that_cannot_be_read_here_are_counted(
    code: Path, encoder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codemill.runtime.files.readable_languages", lambda: frozenset({"python"}))
    for name in ("a.go", "b.go", "c.rs"):
        write(code / name, "")
    index = Index.open(code, encoder)
    assert (index.files, index.passed_over) == (3, {"go": 2, "rust": 1})


def test_what_git_ignores_is_left_out_and_forgotten(code: Path, encoder: Counting) -> None:
    assert "product" in names(Index.open(code, encoder))
    (code / ".gitignore").write_text("b.py\n")
    assert sorted(names(Index.open(code, encoder))) == ["Client.connect", "parse"]


def test_patterns_of_exclude_are_those_of_gitignore(code: Path, encoder: Counting) -> None:
    assert names(Index.open(code, encoder, exclude=["/b.py", "net/"])) == ["parse"]


def test_equal_scores_keep_the_order_of_files(code: Path, encoder: Counting) -> None:
    for name in ("z.py", "c.py", "y.py", "d.py"):
        write(code / name, PARSE)
    found = [hit.path.name for hit in Index.open(code, encoder).search("read json text", top=4)]
    assert found == ["a.py", "c.py", "d.py", "y.py"]
