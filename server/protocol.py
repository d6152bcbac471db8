"""The protocol as pygls speaks it, where it answers what is malformed and takes no message of any size.

pygls tells its log of a request that it cannot read, and leaves the client waiting.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from functools import lru_cache
from typing import Any, BinaryIO

import attrs
from lsprotocol import types
from pygls.exceptions import (
    JsonRpcException,
    JsonRpcInvalidRequest,
    JsonRpcParseError,
    JsonRpcServerNotInitialized,
)
from pygls.protocol import LanguageServerProtocol, lsp_method

from codemill.server.documents import Documents

__all__ = [
    "FIND",
    "LARGEST_MESSAGE_BYTES",
    "STATUS",
    "FindParams",
    "Input",
    "Protocol",
    "modified",
    "refused",
]

FIND = "codemill/find"
STATUS = "codemill/status"
LARGEST_MESSAGE_BYTES = 64 * 2**20
_LONGEST_HEADER_BYTES = 4096
_PIECE_BYTES = 2**20
_NO_REQUEST = b"null"
_LENGTH = re.compile(rb"content-length[ \t]*:[ \t]*(\d{1,15})[ \t]*\r?\n\Z", re.IGNORECASE)
"""At the end of a line: a body of which nobody knew the length may come before."""
_LONGEST_LENGTH_BYTES = 128


@attrs.define
class FindParams:
    """What `codemill/find` takes."""

    query: str
    top: int = 10


@attrs.define
class _Find:
    id: int | str
    params: FindParams
    method: str = FIND
    jsonrpc: str = "2.0"


@attrs.define
class _Status:
    id: int | str
    params: Any = None
    method: str = STATUS
    jsonrpc: str = "2.0"


def refused(message: str) -> JsonRpcException:
    """The answer to a request that was understood and cannot be met."""
    return JsonRpcException(message, code=int(types.LSPErrorCodes.RequestFailed))


def modified(message: str) -> JsonRpcException:
    """The answer to a request whose text, or whose asker, has moved on."""
    return JsonRpcException(message, code=int(types.LSPErrorCodes.ContentModified))


class Protocol(LanguageServerProtocol):
    """pygls' protocol, with documents of our own."""

    @lru_cache  # noqa: B019
    def get_message_type(self, method: str) -> type[Any] | None:
        """The type of a method's message."""
        return {FIND: _Find, STATUS: _Status}.get(method) or super().get_message_type(method)

    @lsp_method(types.INITIALIZE)
    def lsp_initialize(
        self, params: types.InitializeParams
    ) -> Generator[Any, Any, types.InitializeResult]:
        """As in pygls, with documents of our own."""
        result = yield from super().lsp_initialize(params)
        workspace = self.workspace
        self._workspace = Documents(
            workspace.root_uri,
            self._server._text_document_sync_kind,
            params.workspace_folders or [],
            workspace.position_encoding,
        )
        return result

    def structure_message(self, data: dict[str, Any]) -> Any:
        """As in pygls; a request that cannot be read is answered before the error goes on."""
        if isinstance(data.get("method"), str) and self.get_message_type(data["method"]) is None:
            # which pygls asks for where it does not know the method
            data.setdefault("params", None)
        try:
            return super().structure_message(data)
        except JsonRpcException as error:
            if "method" in data and isinstance(data.get("id"), (int, str)):
                error.add_note(_ANSWERED)
                self._send_response(data["id"], error=error.to_response_error())
            raise

    def handle_message(self, message: Any) -> None:
        """As in pygls; what comes before initialize, a second one, and what comes after shutdown are refused.

        Of notifications nothing is said.
        """
        method, id = getattr(message, "method", None), getattr(message, "id", None)
        early = self._workspace is None and method not in (types.INITIALIZE, types.EXIT)
        late = self._shutdown and method != types.EXIT
        again = self._workspace is not None and method == types.INITIALIZE
        if method is None or not (early or late or again):
            super().handle_message(message)
            return
        if id is not None:
            error: JsonRpcException = JsonRpcInvalidRequest(
                "the server was shut down" if late else "initialize was said before"
            )
            if early:
                error = JsonRpcServerNotInitialized("the client has not said initialize yet")
            self._send_response(id, error=error.to_response_error())

    def answer_unreadable(self, error: Exception) -> None:
        """Answer a message that was not even a request."""
        if _ANSWERED in getattr(error, "__notes__", ()):
            return
        said: JsonRpcException = JsonRpcInvalidRequest()
        # of json: what is no JSON, or no UTF-8
        if isinstance(error, (ValueError, RecursionError)):
            said = JsonRpcParseError(f"Parse Error: {error}")
        # a plain one: lsprotocol leaves out an id that is null
        error_only = {"code": said.code, "message": said.message}
        self._send_data({"jsonrpc": "2.0", "id": None, "error": error_only})


_ANSWERED = "answered"


class Input:
    """stdin, with limits: a longer message is read past, and stands for one that is no request.

    Headers may have any case, spaces and line ends. One that says no length is answered as no request is, and what
    follows is read past until a header says one.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lost = False
        # the end of a line that was read in part
        self._before = b""
        # of the message that is being handed out; 0: it is none
        self._length: int | None = None

    def readline(self) -> bytes:
        """A header as pygls reads it: the length, then an empty line."""
        if self._length is not None:
            return b"\r\n"
        self._length = self._next_length()
        if self._length is None:
            return b""
        return b"Content-Length: %d\r\n" % (self._length or len(_NO_REQUEST))

    def read(self, size: int) -> bytes:
        """A body; fewer bytes only at the end."""
        length, self._length = self._length, None
        if length == 0:
            return _NO_REQUEST
        if size <= LARGEST_MESSAGE_BYTES:
            return self._stream.read(size)
        while size > 0 and (piece := self._stream.read(min(size, _PIECE_BYTES))):
            size -= len(piece)
        return _NO_REQUEST if size <= 0 else b""

    def _next_length(self) -> int | None:
        """Read headers; the bytes of the body, 0 where it has none or they do not say, None at the end of input."""
        length: int | None = None
        begun = False
        while line := self._stream.readline(_LONGEST_HEADER_BYTES):
            if not self._before and not line.strip():
                if length is not None:
                    self._lost = False
                    return length
                if begun and not self._lost:
                    self._lost = True
                    return 0
                continue
            begun = True
            line = self._before + line
            self._before = b"" if line.endswith(b"\n") else line[-_LONGEST_LENGTH_BYTES:]
            # a body of which nobody knew the length may come before on its line
            found = (_LENGTH.search if self._lost else _LENGTH.match)(line)
            if found is not None and length is None:
                length = int(found[1])
        return None
