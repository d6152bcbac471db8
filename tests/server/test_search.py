"""Functions by meaning, over the protocol, and an index that follows the files."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from lsprotocol import types
from pygls.exceptions import JsonRpcException

from .conftest import Editor

pytestmark = pytest.mark.asyncio


async def symbols(editor: Editor, query: str) -> list[types.SymbolInformation]:
    found = await editor.request(types.WORKSPACE_SYMBOL, types.WorkspaceSymbolParams(query=query))
    return list(found)


async def names(editor: Editor, query: str) -> list[str]:
    found = await editor.request("codemill/find", {"query": query})
    return [hit.name for hit in found.hits]


async def changed(editor: Editor, name: str) -> None:
    kind = types.FileChangeType.Changed
    editor.client.workspace_did_change_watched_files(
        types.DidChangeWatchedFilesParams([types.FileEvent(editor.uri(name), kind)])
    )


async def test_the_custom_request_gives_places_scores_and_code(
    editor: Editor, embedding: Path
) -> None:
    await editor.begin({"search": {"bundle": str(embedding)}})
    found = await editor.request("codemill/find", {"query": "connect a socket", "top": 1})
    (hit,) = found.hits
    assert (hit.uri, hit.line, hit.name) == (editor.uri("sockets.py"), 1, "Client.begin")
    assert hit.code.startswith("def begin(self):")
    assert 0 < hit.score <= 1


async def test_workspace_symbols_are_by_meaning_the_best_first(
    editor: Editor, embedding: Path
) -> None:
    await editor.begin({"search": {"bundle": str(embedding)}})
    best, other = await symbols(editor, "parse json")
    assert (best.name, best.kind) == ("load", types.SymbolKind.Function)
    assert best.location.uri == editor.uri("parsing.py")
    assert best.location.range.start == types.Position(0, 0)
    assert (best.container_name or "").startswith("parsing.py (0.")
    assert (other.name, other.kind) == ("Client.begin", types.SymbolKind.Method)


async def test_symbols_of_an_empty_query_or_without_a_bundle_are_none(
    editor: Editor, embedding: Path
) -> None:
    await editor.begin({"search": {"bundle": str(embedding)}})
    assert await symbols(editor, " ") == []
    editor.client.workspace_did_change_configuration(
        types.DidChangeConfigurationParams({"codemill": {"search": None}})
    )
    assert await symbols(editor, "parse json") == []


async def test_the_index_follows_files_that_are_saved_made_and_removed(
    editor: Editor, embedding: Path
) -> None:
    await editor.begin({"search": {"bundle": str(embedding)}})
    assert sorted(await names(editor, "multiply a matrix")) == ["Client.begin", "load"]
    (editor.folder / "matrices.py").write_text("def times(x):\n    return multiply(matrix(x))\n")
    await changed(editor, "matrices.py")
    await editor.until(lambda status: status.search.functions == 3)
    assert (await names(editor, "multiply a matrix"))[0] == "times"
    (editor.folder / "parsing.py").write_text("def a(): pass\ndef b(): pass\n")
    editor.save(editor.open("parsing.py", "def a(): pass\ndef b(): pass\n"))
    await editor.until(lambda status: status.search.functions == 4)
    (editor.folder / "sockets.py").unlink()
    await changed(editor, "sockets.py")
    await editor.until(lambda status: status.search.functions == 3)


async def test_progress_is_shown_while_an_index_is_made(editor: Editor, embedding: Path) -> None:
    for number in range(30):
        (editor.folder / f"module{number}.py").write_text(f"def f{number}(): return {number}\n")
    window = types.WindowClientCapabilities(work_done_progress=True)
    await editor.begin({"search": {"bundle": str(embedding)}}, window=window)
    await editor.until(lambda status: status.search.functions == 32)
    (reports,) = editor.client.progress_reports.values()
    begun, ended = reports[0], reports[-1]
    assert (begun.title, begun.cancellable) == ("codemill: index", True)
    assert begun.message.endswith("of 32 files")
    assert ended.kind == "end"


async def test_folders_that_are_excluded_are_not_searched(editor: Editor, embedding: Path) -> None:
    (editor.folder / "build").mkdir()
    (editor.folder / "build/made.py").write_text("def made(): return socket()\n")
    await editor.begin({"search": {"bundle": str(embedding), "exclude": ["build"]}})
    assert "made" not in await names(editor, "socket")


def also_open(editor: Editor, folder: Path) -> None:
    added = types.WorkspaceFolder(folder.as_uri(), folder.name)
    editor.client.workspace_did_change_workspace_folders(
        types.DidChangeWorkspaceFoldersParams(types.WorkspaceFoldersChangeEvent([added], []))
    )


async def test_a_second_folder_is_searched_with_the_first(
    editor: Editor, embedding: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "matrices.py").write_text("def times(x):\n    return multiply(matrix(x))\n")
    await editor.begin({"search": {"bundle": str(embedding)}})
    also_open(editor, other)
    assert (await names(editor, "multiply a matrix"))[0] == "times"
    assert sorted(await names(editor, "socket")) == ["Client.begin", "load", "times"]


async def test_a_folder_inside_another_gives_no_hit_twice(editor: Editor, embedding: Path) -> None:
    inner = editor.folder / "inner"
    inner.mkdir()
    (inner / "matrices.py").write_text("def times(x):\n    return multiply(matrix(x))\n")
    await editor.begin({"search": {"bundle": str(embedding)}})
    also_open(editor, inner)
    assert sorted(await names(editor, "socket")) == ["Client.begin", "load", "times"]


async def test_two_functions_of_one_name_on_one_line_are_both_found(
    editor: Editor, embedding: Path
) -> None:
    (editor.folder / "small.py").write_text(
        "class A: f = lambda x: socket(x); f = lambda x: matrix(x)\n"
    )
    await editor.begin({"search": {"bundle": str(embedding)}})
    assert (await names(editor, "socket")).count("A.f") == 2


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"query": " "}, "the query is empty"),
        ({"query": "socket", "top": 0}, "top should be from 1 to 1000, found 0"),
        ({"top": 3}, "Invalid Params"),
        ({"query": "socket", "top": "many"}, "Invalid Params"),
        (None, "Invalid Params"),
        ([1], "Invalid Params"),
    ],
)
async def test_a_wrong_question_is_answered_with_an_error(
    editor: Editor, embedding: Path, params: Any, said: str
) -> None:
    await editor.begin({"search": {"bundle": str(embedding)}})
    with pytest.raises(JsonRpcException, match=said):
        await editor.request("codemill/find", params)
    assert len(await names(editor, "socket")) == 2


async def test_search_that_is_off_says_which_setting_switches_it_on(editor: Editor) -> None:
    await editor.begin({})
    with pytest.raises(JsonRpcException, match=r"codemill\.search\.bundle names no bundle"):
        await names(editor, "socket")


async def test_an_index_that_was_cancelled_is_no_index_without_hits(
    editor: Editor, embedding: Path
) -> None:
    for number in range(3000):
        (editor.folder / f"module{number}.py").write_text(f"def f{number}(): return {number}\n")
    window = types.WindowClientCapabilities(work_done_progress=True)
    await editor.begin({"search": {"bundle": str(embedding)}}, window=window)
    while not (reports := editor.client.progress_reports):
        await asyncio.sleep(0.01)
    editor.client.window_work_done_progress_cancel(
        types.WorkDoneProgressCancelParams(next(iter(reports)))
    )
    stopped = f"the index of {editor.folder} was stopped, and continues when a file is saved"
    status = await editor.until(lambda status: status.search.problem)
    assert (status.search.state, status.search.problem) == ("ready", stopped)
    for asked in (names, symbols):
        with pytest.raises(JsonRpcException, match=re.escape(stopped)):
            await asked(editor, "socket")
    # nothing that is wrong
    assert editor.client.messages == []
    for path in editor.folder.glob("module*.py"):
        path.unlink()
    await changed(editor, "module0.py")
    await editor.until(lambda status: status.search.problem is None)
    assert len(await names(editor, "socket")) == 2


async def test_an_index_that_cannot_be_made_is_the_answer(
    editor: Editor, embedding: Path, tmp_path: Path
) -> None:
    # the cache would be a folder
    (tmp_path / "cache").write_text("")
    await editor.begin({"search": {"bundle": str(embedding)}})
    (shown,) = await editor.shown()
    with pytest.raises(JsonRpcException) as found:
        await names(editor, "socket")
    assert shown == f"codemill.search: {found.value.message}"
    assert (await editor.status()).search.problem == found.value.message


async def test_a_folder_without_an_index_leaves_the_others_hits(
    editor: Editor, embedding: Path, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    await editor.begin({"search": {"bundle": str(embedding)}})
    event = types.WorkspaceFoldersChangeEvent([types.WorkspaceFolder(gone.as_uri(), "gone")], [])
    editor.client.workspace_did_change_workspace_folders(
        types.DidChangeWorkspaceFoldersParams(event)
    )
    status = await editor.until(lambda status: status.search.problem)
    assert status.search.problem == f"there is no folder {str(gone)!r} to search"
    assert len(await names(editor, "socket")) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
async def test_a_file_whose_name_is_not_utf_8_is_found(editor: Editor, embedding: Path) -> None:
    folder = os.fsencode(editor.folder)
    os.rename(folder + b"/sockets.py", folder + b"/s\xf6ckets.py")  # noqa: PTH104
    uri = editor.folder.as_uri() + "/s%F6ckets.py"
    await editor.begin({"search": {"bundle": str(embedding)}})
    found = await editor.request("codemill/find", {"query": "connect a socket"})
    assert [hit.uri for hit in found.hits] == [uri, editor.uri("parsing.py")]
    best = (await symbols(editor, "connect a socket"))[0]
    assert best.location.uri == uri
    assert (best.container_name or "").startswith("s\ufffdckets.py (")
