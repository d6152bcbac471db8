"""The server as an editor meets it: a process, a real client on its stdin and stdout, bundles of a few kilobytes."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import pytest_asyncio
from lsprotocol import types
from pytest_lsp import LanguageClient, client_capabilities, make_test_lsp_client
from tests.house.test_complete_command import MARKS, write_decoder

from codemill.cli import main
from codemill.runtime import write_bundle

ROOT = Path(__file__).resolve().parents[2]
PARSING = "def load(text):\n    return parse(json(text))\n"
_LONGEST_S = 120
"""A server that does not answer fails a test in the end; no test is decided by how long one takes."""
SOCKETS = "class Client:\n    def begin(self):\n        return connect(socket(self))\n"


def _runtime_conftest() -> ModuleType:
    path = ROOT / "tests/runtime/conftest.py"
    spec = importlib.util.spec_from_file_location("runtime_conftest", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that embeds; not to be written to."""
    made = _runtime_conftest()
    folder = tmp_path_factory.mktemp("embedding") / "tiny"
    folder.mkdir()
    made.write_tokenizer(folder / "tokenizer.json")
    made.write_encoder(folder / "variants/cpu-fp32/encoder.onnx")
    write_bundle(folder, **made.fields())
    return folder


@pytest.fixture(scope="session")
def labelling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that labels `file`, `socket` or `matrix`; not to be written to."""
    folder: Path = _runtime_conftest().write_labels_bundle(
        tmp_path_factory.mktemp("labelling") / "tiny"
    )
    return folder


def _export(home: Path, marks: Sequence[str], positions: int = 600) -> Path:
    arguments = ["--task", "complete", "--precision", "fp32", "--out", str(home / "bundle")]
    assert main(["export", str(write_decoder(home / "model", marks, positions)), *arguments]) == 0
    return home / "bundle"


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that completes and fills, in fp32, 600 tokens at most, a byte each; not to be written to."""
    return _export(tmp_path_factory.mktemp("decoder"), MARKS)


@pytest.fixture(scope="session")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that completes behind a text only."""
    return _export(tmp_path_factory.mktemp("behind"), MARKS[:1])


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that knows no end: what it completes is as long as was asked for."""
    return _export(tmp_path_factory.mktemp("endless"), (), 1200)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of Python, as an editor has it open."""
    found = tmp_path / "project"
    found.mkdir()
    (found / "parsing.py").write_text(PARSING)
    (found / "sockets.py").write_text(SOCKETS)
    for path in found.iterdir():
        # a file that was written just now is read again: it may be written once more
        os.utime(path, (1e9, 1e9))
    return found


class Editor:
    """A client with one workspace folder, and what it has seen."""

    def __init__(self, client: LanguageClient, folder: Path) -> None:
        self.client = client
        self.folder = folder
        self.published: asyncio.Queue[types.PublishDiagnosticsParams] = asyncio.Queue()
        self._versions: dict[str, int] = {}
        # each that is published, in order, where the client keeps the last of each text
        features = client.protocol.fm.features
        features[types.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS] = self.published.put_nowait

    def uri(self, name: str) -> str:
        return (self.folder / name).as_uri()

    async def begin(self, settings: Any, **capabilities: Any) -> types.InitializeResult:
        known = client_capabilities("visual-studio-code")
        for name, value in capabilities.items():
            setattr(known, name, value)
        return await self.client.initialize_session(
            types.InitializeParams(
                capabilities=known,
                root_uri=self.folder.as_uri(),
                workspace_folders=[types.WorkspaceFolder(self.folder.as_uri(), "project")],
                initialization_options=settings,
            )
        )

    def open(self, name: str, text: str, language: str = "python") -> str:
        uri = self.uri(name)
        self._versions[uri] = 1
        self.client.text_document_did_open(
            types.DidOpenTextDocumentParams(types.TextDocumentItem(uri, language, 1, text))
        )
        return uri

    def change(self, uri: str, text: str, at: tuple[int, int, int, int] | None = None) -> int:
        """Replace a range (line, character, line, character), or all of it; the new version."""
        self._versions[uri] += 1
        change: types.TextDocumentContentChangeEvent
        if at is None:
            change = types.TextDocumentContentChangeWholeDocument(text)
        else:
            start, end = types.Position(*at[:2]), types.Position(*at[2:])
            change = types.TextDocumentContentChangePartial(types.Range(start, end), text)
        self.client.text_document_did_change(
            types.DidChangeTextDocumentParams(
                types.VersionedTextDocumentIdentifier(self._versions[uri], uri), [change]
            )
        )
        return self._versions[uri]

    def close(self, uri: str) -> None:
        self.client.text_document_did_close(
            types.DidCloseTextDocumentParams(types.TextDocumentIdentifier(uri))
        )

    def save(self, uri: str) -> None:
        self.client.text_document_did_save(
            types.DidSaveTextDocumentParams(types.TextDocumentIdentifier(uri))
        )

    def ask(
        self,
        uri: str,
        line: int,
        character: int,
        by_hand: bool = True,
        msg_id: str | None = None,
    ) -> asyncio.Future[Any]:
        """Ask for inline completion, at once; a future of the answer."""
        kinds = types.InlineCompletionTriggerKind
        params = types.InlineCompletionParams(
            types.InlineCompletionContext(kinds.Invoked if by_hand else kinds.Automatic),
            types.TextDocumentIdentifier(uri),
            types.Position(line, character),
        )
        # not the asynchronous one, which sends when it is awaited
        found = self.client.protocol.send_request(
            types.TEXT_DOCUMENT_INLINE_COMPLETION, params, msg_id=msg_id
        )
        return asyncio.wrap_future(found)

    async def complete(self, uri: str, line: int, character: int) -> list[str] | None:
        """Texts of the items."""
        found = await self.ask(uri, line, character)
        return None if found is None else [item.insert_text for item in found]

    async def request(self, method: str, params: Any = None) -> Any:
        async with asyncio.timeout(_LONGEST_S):
            return await self.client.protocol.send_request_async(method, params)

    async def status(self) -> Any:
        return await self.request("codemill/status")

    async def until(self, ready: Callable[[Any], bool]) -> Any:
        """The first status that is as wanted."""
        async with asyncio.timeout(_LONGEST_S):
            while not ready(status := await self.status()):
                await asyncio.sleep(0.01)
            return status

    async def shown(self, count: int = 1) -> list[str]:
        """Messages the user was shown, once there are so many."""
        async with asyncio.timeout(_LONGEST_S):
            while len(self.client.messages) < count:
                await asyncio.sleep(0.01)
        return [item.message for item in self.client.messages]

    async def diagnostics(self, uri: str) -> list[types.Diagnostic]:
        """The next ones that are published."""
        while True:
            found = await self.client.wait_for_notification(types.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS)
            if found.uri == uri:
                return list(found.diagnostics)

    def raw(self, body: bytes) -> None:
        """Send bytes as the body of a message."""
        writer = self.client.protocol.writer
        assert writer is not None
        writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)

    async def lives(self) -> None:
        """Fails where the server does not answer any more."""
        assert (await self.status()).documents >= 0


@pytest_asyncio.fixture
async def editor(folder: Path, tmp_path: Path) -> AsyncIterator[Editor]:
    client = make_test_lsp_client()
    environment = {**os.environ, "CODEMILL_CACHE": str(tmp_path / "cache")}
    await client.start_io(sys.executable, "-m", "codemill.server", env=environment)
    yield Editor(client, folder)
    if client.capabilities is not None:
        await client.shutdown_session()
    await client.stop()
