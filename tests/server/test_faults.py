"""What is wrong is answered with an error or shown once, and the server lives on."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from lsprotocol import types
from pygls.exceptions import JsonRpcException

from codemill.server.documents import LARGEST_DOCUMENT
from codemill.server.protocol import LARGEST_MESSAGE_BYTES, Input

from .conftest import SOCKETS, Editor


def configure(editor: Editor, settings: Any) -> None:
    editor.client.workspace_did_change_configuration(types.DidChangeConfigurationParams(settings))


@pytest.mark.asyncio
async def test_wrong_settings_are_shown_once_and_the_rest_holds(
    editor: Editor, embedding: Path
) -> None:
    await editor.begin(
        {"search": {"bundle": str(embedding)}, "completion": {"bundle": "x", "mode": "word"}}
    )
    uri = editor.open("new.py", SOCKETS)
    for _ in range(3):
        assert await editor.complete(uri, 0, 0) is None
    assert await editor.shown() == [
        "codemill.completion.mode should be line, block or none, found 'word'"
    ]
    assert (await editor.request("codemill/find", {"query": "socket"})).hits


@pytest.mark.asyncio
async def test_a_bundle_that_is_not_there_is_shown_once_and_is_the_answer(
    editor: Editor, embedding: Path, decoder: Path, tmp_path: Path
) -> None:
    missing = tmp_path / "missing.mill"
    parts = {name: {"bundle": str(missing)} for name in ("completion", "search", "diagnostics")}
    await editor.begin(parts)
    uri = editor.open("new.py", SOCKETS)
    shown = await editor.shown(3)
    assert sorted(text.partition(":")[0] for text in shown) == [
        "codemill.completion",
        "codemill.diagnostics",
        "codemill.search",
    ]
    assert all(str(missing) in text for text in shown)
    for _ in range(2):
        with pytest.raises(JsonRpcException, match=r"codemill\.completion: .*missing\.mill"):
            await editor.complete(uri, 3, 0)
        with pytest.raises(JsonRpcException, match=r"codemill\.search: .*missing\.mill"):
            await editor.request("codemill/find", {"query": "socket"})
    assert len(await editor.shown(3)) == 3
    # other settings, and it goes on
    configure(
        editor, {"completion": {"bundle": str(decoder)}, "search": {"bundle": str(embedding)}}
    )
    assert await editor.complete(uri, 3, 0) is not None
    assert (await editor.request("codemill/find", {"query": "socket"})).hits


@pytest.mark.asyncio
async def test_a_bundle_of_another_kind_is_refused(
    editor: Editor, embedding: Path, labelling: Path
) -> None:
    await editor.begin(
        {
            "completion": {"bundle": str(embedding)},
            "diagnostics": {"bundle": str(labelling), "labels": {"bad": "error"}},
        }
    )
    shown = sorted(await editor.shown(2))
    assert "is made for 'retrieval'" in shown[0]
    assert "names 'bad'; bundle 'tiny' has the labels 'file', 'socket', 'matrix'" in shown[1]


@pytest.mark.asyncio
async def test_a_bundle_that_is_deleted_while_it_runs_does_no_harm(
    editor: Editor, embedding: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(embedding, copy)
    await editor.begin({"search": {"bundle": str(copy)}})
    assert (await editor.request("codemill/find", {"query": "socket"})).hits
    shutil.rmtree(copy)
    assert (await editor.request("codemill/find", {"query": "json"})).hits
    configure(editor, {"search": {"bundle": str(copy), "variant": "cpu-fp32"}})
    with pytest.raises(JsonRpcException, match=r"codemill\.search: "):
        await editor.request("codemill/find", {"query": "socket"})
    await editor.lives()


@pytest.mark.asyncio
async def test_a_folder_that_is_deleted_does_no_harm(editor: Editor, embedding: Path) -> None:
    await editor.begin({"search": {"bundle": str(embedding)}})
    assert (await editor.request("codemill/find", {"query": "socket"})).hits
    shutil.rmtree(editor.folder)
    assert (await editor.request("codemill/find", {"query": "socket"})).hits == []


@pytest.mark.asyncio
async def test_a_text_that_is_too_large_is_refused_until_it_is_small(
    editor: Editor, decoder: Path, labelling: Path
) -> None:
    await editor.begin(
        {"completion": {"bundle": str(decoder)}, "diagnostics": {"bundle": str(labelling)}}
    )
    uri = editor.open("large.py", "x" * (LARGEST_DOCUMENT + 1))
    with pytest.raises(JsonRpcException, match=r"large\.py has more than 4,194,304 characters"):
        await editor.complete(uri, 0, 5)
    editor.change(uri, "y", (0, 4_000_000, 0, 4_000_001))
    with pytest.raises(JsonRpcException, match=r"large\.py has more than"):
        await editor.complete(uri, 0, 5)
    editor.change(uri, SOCKETS)
    assert await editor.complete(uri, 3, 0) is not None


@pytest.mark.asyncio
async def test_a_text_that_is_none_is_refused(editor: Editor, decoder: Path) -> None:
    await editor.begin({"completion": {"bundle": str(decoder)}})
    uri = editor.open("picture.py", "\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    with pytest.raises(JsonRpcException, match="it holds a null character"):
        await editor.complete(uri, 0, 2)


@pytest.mark.asyncio
async def test_files_that_are_no_text_are_left_out_of_the_index(
    editor: Editor, embedding: Path
) -> None:
    (editor.folder / "binary.py").write_bytes(bytes(range(256)) * 100)
    await editor.begin({"search": {"bundle": str(embedding)}})
    assert len((await editor.request("codemill/find", {"query": "socket"})).hits) == 2


@pytest.mark.asyncio
async def test_a_text_that_is_not_open_and_an_unknown_method_are_errors(
    editor: Editor, decoder: Path
) -> None:
    await editor.begin({"completion": {"bundle": str(decoder)}})
    with pytest.raises(JsonRpcException, match="is not open"):
        await editor.complete(editor.uri("sockets.py"), 0, 0)
    with pytest.raises(JsonRpcException, match="Method Not Found"):
        await editor.request("codemill/other", {})
    await editor.lives()


@pytest.mark.asyncio
async def test_edits_and_closes_of_a_text_that_is_not_open_do_no_harm(editor: Editor) -> None:
    await editor.begin({})
    uri = editor.open("new.py", SOCKETS)
    editor.close(uri)
    editor.change(uri, "x")
    editor.close(uri)
    editor.save(uri)
    await editor.lives()


@pytest.mark.asyncio
async def test_places_outside_of_the_text_are_at_its_ends(editor: Editor, decoder: Path) -> None:
    await editor.begin({"completion": {"bundle": str(decoder), "max_tokens": 4}})
    uri = editor.open("new.py", "x = 1\n")
    assert await editor.complete(uri, 99, 99) == await editor.complete(uri, 1, 0)


class Raw:
    """A client that sends bytes."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "codemill.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        # a server that does not answer fails the test in the end
        self._limit = threading.Timer(120, self.process.kill)
        self._limit.daemon = True
        self._limit.start()

    def send(self, body: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The next answer; notifications are left out."""
        stream = self.process.stdout
        assert stream is not None
        while True:
            header = stream.readline()
            assert header, self.process.stderr and self.process.stderr.read()
            while stream.readline().strip():
                pass
            found: dict[str, Any] = json.loads(stream.read(int(header.split(b":")[1])))
            if "id" in found and "method" not in found:
                return found

    def begin(self) -> None:
        self.send(
            b'{"jsonrpc":"2.0","id":0,"method":"initialize","params":'
            b'{"processId":null,"rootUri":null,"capabilities":{}}}'
        )
        assert self.answer()["id"] == 0

    def lives(self) -> None:
        self.send(b'{"jsonrpc":"2.0","id":77,"method":"codemill/status"}')
        found = self.answer()
        assert (found["id"], "result" in found) == (77, True)

    def end(self) -> tuple[int, bytes]:
        self.send(b'{"jsonrpc":"2.0","id":99,"method":"shutdown"}')
        assert self.answer()["id"] == 99
        self.send(b'{"jsonrpc":"2.0","method":"exit"}')
        _, said = self.process.communicate()
        return self.process.returncode, said


@pytest.mark.parametrize(
    ("body", "id", "code"),
    [
        (b"{", None, -32700),
        (b"\xff\xfe", None, -32700),
        (b"[" * 100_000, None, -32700),
        (b"[]", None, -32600),
        (b"null", None, -32600),
        (b'{"id":5,"method":"codemill/status"}', None, -32600),
        (b'{"jsonrpc":"2.0","id":5,"method":"codemill/nothing"}', 5, -32601),
        (b'{"jsonrpc":"2.0","id":5,"method":"codemill/find","params":{}}', 5, -32602),
        (b'{"jsonrpc":"2.0","id":5,"method":"textDocument/inlineCompletion"}', 5, -32602),
        (
            b'{"jsonrpc":"2.0","id":5,"method":"textDocument/inlineCompletion","params":3}',
            5,
            -32602,
        ),
        (b'{"jsonrpc":"2.0","id":5,"method":"workspace/symbol","params":{"query":"x"}}', 5, 0),
    ],
)
def test_a_malformed_message_is_answered(body: bytes, id: int | None, code: int) -> None:
    client = Raw()
    client.begin()
    client.send(body)
    found = client.answer()
    assert found["id"] == id
    assert found.get("error", {"code": 0})["code"] == code
    client.lives()
    assert client.end() == (0, b"")


def test_a_message_that_is_too_long_is_read_past() -> None:
    client = Raw()
    client.begin()
    client.send(b" " * (LARGEST_MESSAGE_BYTES + 1))
    assert client.answer()["error"]["code"] == -32600
    client.lives()
    assert client.end() == (0, b"")


def messages(given: bytes) -> list[bytes]:
    """The bodies that pygls finds in what a client sends."""
    found, stream = [], Input(io.BytesIO(given))
    while header := stream.readline():
        length = re.fullmatch(rb"Content-Length: (\d+)\r\n", header)
        assert length is not None
        assert stream.readline() == b"\r\n"
        found.append(stream.read(int(length[1])))
    return found


@pytest.mark.parametrize(
    "header",
    [
        b"Content-Length: 2\r\n\r\n",
        b"content-length: 2\r\n\r\n",
        b"Content-Length:2\r\n\r\n",
        b"CONTENT-LENGTH : \t2 \r\n\r\n",
        b"Content-Length: 2\n\n",
        b"Content-Type: x; charset=utf-8\r\nContent-Length: 2\r\n\r\n",
        b"X-Content-Length: 7\r\nContent-Length: 2\r\n\r\n",
        b"Content-Length: 2\r\nX-Long: " + b"x" * 9000 + b"\r\n\r\n",
    ],
)
def test_a_header_may_be_written_in_any_way(header: bytes) -> None:
    assert messages(header + b"{}" + header + b"[]") == [b"{}", b"[]"]


@pytest.mark.parametrize(
    "header",
    [
        b"Content-Length: -5\r\n\r\n",
        b"Content-Length: five\r\n\r\n",
        b"Content-Length: " + b"9" * 4000 + b"\r\n\r\n",
        b"Content-Type: x\n\n",
    ],
)
@pytest.mark.parametrize("body", [b"", b"{}", b"{\n\n}\r\n", b"x" * 4090, b"x" * 9000])
def test_a_header_without_a_length_is_no_request_and_the_next_one_is_found(
    header: bytes, body: bytes
) -> None:
    right = b"Content-Length: 2\r\n\r\n[]"
    assert messages(right + header + body + right + right) == [b"[]", b"null", b"[]", b"[]"]


def test_an_empty_message_is_no_request() -> None:
    assert messages(b"Content-Length: 0\r\n\r\nContent-Length: 2\r\n\r\n[]") == [b"null", b"[]"]


def test_a_header_without_a_length_is_answered() -> None:
    client = Raw()
    client.begin()
    assert client.process.stdin is not None
    client.process.stdin.write(b'Content-Length: -5\r\n\r\n{"id": 5}')
    client.process.stdin.flush()
    found = client.answer()
    assert (found["id"], found["error"]["code"]) == (None, -32600)
    client.lives()
    assert client.end() == (0, b"")


def test_a_request_before_initialize_or_after_shutdown_is_refused() -> None:
    client = Raw()
    asked = b'{"jsonrpc":"2.0","id":5,"method":"codemill/status"}'
    client.send(b'{"jsonrpc":"2.0","method":"initialized","params":{}}')
    client.send(asked)
    assert client.answer()["error"]["code"] == -32002
    client.begin()
    client.lives()
    client.send(b'{"jsonrpc":"2.0","id":7,"method":"initialize","params":{"capabilities":{}}}')
    again = client.answer()
    assert (again["id"], again["error"]["code"]) == (7, -32600)
    client.send(b'{"jsonrpc":"2.0","id":6,"method":"shutdown"}')
    assert client.answer()["id"] == 6
    client.send(asked)
    found = client.answer()
    assert (found["id"], found["error"]["code"]) == (5, -32600)
    client.send(b'{"jsonrpc":"2.0","method":"exit"}')
    _, said = client.process.communicate()
    assert (client.process.returncode, said) == (0, b"")


@pytest.mark.parametrize("how", ["exit", "end of input"])
def test_a_client_that_goes_away_ends_the_server(how: str) -> None:
    client = Raw()
    client.begin()
    if how == "exit":
        client.send(b'{"jsonrpc":"2.0","method":"exit"}')
    _, said = client.process.communicate()
    # without a shutdown the protocol has it end with 1
    assert (client.process.returncode, said) == (1, b"")


def test_ctrl_c_ends_the_server() -> None:
    client = Raw()
    client.begin()
    client.process.send_signal(signal.SIGINT)
    # as shells say it: 130
    assert client.process.wait() == -signal.SIGINT
    client.process.communicate()


@pytest.mark.asyncio
async def test_it_opens_no_connection(
    editor: Editor, embedding: Path, labelling: Path, decoder: Path
) -> None:
    bundles = {"search": embedding, "diagnostics": labelling, "completion": decoder}
    await editor.begin({name: {"bundle": str(path)} for name, path in bundles.items()})
    uri = editor.open("new.py", SOCKETS)
    assert await editor.diagnostics(uri)
    assert await editor.complete(uri, 3, 0) is not None
    assert (await editor.request("codemill/find", {"query": "socket"})).hits
    server = psutil.Process(editor.client._server.pid)
    assert server.net_connections("inet") == []
    assert server.children() == []


@pytest.mark.asyncio
async def test_settings_are_asked_for_where_the_client_has_them(
    editor: Editor, embedding: Path
) -> None:
    editor.client.set_configuration({"codemill": {"search": {"bundle": str(embedding)}}})
    await editor.begin(None)
    await editor.until(lambda status: status.search.functions == 2)
