"""The server: what the client says goes to completion, search and diagnostics; what they find goes back.

Everything here runs in one event loop that never waits for a model: these have threads of their own (`model.py`).
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_from_bytes

from lsprotocol import types
from pygls import uris
from pygls.exceptions import FeatureRequestError, JsonRpcException
from pygls.lsp.server import LanguageServer
from pygls.protocol import default_converter

from codemill import __version__
from codemill.errors import CodemillError
from codemill.runtime import load_completer, load_encoder
from codemill.server import settings
from codemill.server.completing import Completing
from codemill.server.diagnosing import Diagnosing, load_for
from codemill.server.documents import Document, Documents
from codemill.server.finding import Finding, Progress
from codemill.server.model import Model, place
from codemill.server.protocol import FIND, STATUS, FindParams, Input, Protocol, refused

if TYPE_CHECKING:
    from codemill.runtime import Classifier, Completer, Encoder, Hit

__all__ = ["Server"]

_SECTION = "codemill"
_WATCHED = (
    "**/*.{py,pyw,js,cjs,mjs,jsx,ts,cts,mts,tsx,java,c,h,cc,cpp,cxx,c++,hh,hpp,hxx,ipp,go,rs}"
)
"""Source files: which of them the index reads is the runtime's to know."""
_MOST_HITS = 1000


class Server(LanguageServer):
    """One client's server."""

    protocol: Protocol

    def __init__(self) -> None:
        super().__init__(
            "codemill-lsp", __version__, protocol_cls=Protocol, converter_factory=default_converter
        )
        self.completer: Model[Completer] = Model("completion", self.tell)
        self.encoder: Model[Encoder] = Model("search", self.tell)
        self.classifier: Model[Classifier] = Model("diagnostics", self.tell)
        self.completing = Completing(self.completer, self.documents)
        self.finding = Finding(self.encoder, self.tell, self._report)
        self.diagnosing = Diagnosing(
            self.classifier, self.documents, self.text_document_publish_diagnostics, self.tell
        )
        self.used = settings.Settings()
        self.given: object = None
        self._told: set[str] = set()
        self._ended_well = False
        self._progress: str | None = None
        _register(self)

    def serve(self) -> int:
        """Speak on stdin and stdout until the client says exit, or goes away; the exit code."""
        # what a library prints must not come between the messages
        stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
        sys.stdout = sys.stderr
        self.start_io(Input(stdin), stdout)  # type: ignore[arg-type]
        self.stop()
        for model in (self.completer, self.encoder, self.classifier):
            model.close()
        return 0 if self._ended_well else 1

    def tell(self, message: str) -> None:
        """Show the user a message, once until the settings change."""
        if message in self._told:
            return
        self._told.add(message)
        self.window_show_message(types.ShowMessageParams(types.MessageType.Error, message))

    def report_server_error(self, error: Exception, source: Any) -> None:
        """What pygls could not handle: a message that cannot be read is answered, and what nobody waits for logged."""
        if source is FeatureRequestError:
            return
        if source is JsonRpcException:
            self.protocol.answer_unreadable(error)
        self.window_log_message(
            types.LogMessageParams(types.MessageType.Error, f"{type(error).__name__}: {error}")
        )

    async def configure(self, given: object) -> None:
        """Take settings over; None or an empty object: ask the client for them, and keep those there are otherwise."""
        if not given and self._can("workspace", "configuration"):
            items = [types.ConfigurationItem(section=_SECTION)]
            found = await self.workspace_configuration_async(types.ConfigurationParams(items))
            given = found[0] if found else None
        if not given:
            given = self.given
        self.given = given
        self.apply(settings.settings_of(given))

    def apply(self, wanted: settings.Settings) -> None:
        """Load what is named, let go of what is not any more."""
        self._told.clear()
        for problem in wanted.problems:
            self.tell(problem)
        used, self.used = self.used, wanted
        root = next(iter(self.folders), None)

        self.completing.settings = wanted.completion
        # one that could not be loaded is tried again
        failed = self.completer.state == "failed"
        if failed or _loaded(used.completion) != _loaded(wanted.completion):
            self.completing.stop()
            completion = wanted.completion
            self.completer.exchange(
                None if completion is None else lambda: _completer(completion, root)
            )

        self.finding.settings = wanted.search
        failed = self.encoder.state == "failed"
        reloaded = failed or _loaded(used.search) != _loaded(wanted.search)
        if reloaded:
            self.finding.stop()
            search = wanted.search
            self.encoder.exchange(None if search is None else lambda: _encoder(search, root))
        if reloaded or used.search != wanted.search:
            self.finding.begin(self.folders)

        self.diagnosing.settings = wanted.diagnostics
        if used.diagnostics != wanted.diagnostics or self.classifier.state == "failed":
            self.diagnosing.stop()
            labels = wanted.diagnostics
            # its labels are checked against the settings as it is loaded
            self.classifier.exchange(
                None if labels is None else lambda: load_for(labels, place(labels.bundle, root))
            )
            self.diagnosing.begin()

    @property
    def folders(self) -> list[Path]:
        """The workspace's folders; its root where the client knows no folders."""
        workspace = self.workspace
        found = [uris.to_fs_path(folder.uri) for folder in workspace.folders.values()]
        if not found:
            found = [workspace.root_path]
        return [Path(path) for path in found if path]

    def stop(self) -> None:
        """Stop all that runs."""
        self.completing.stop()
        self.finding.stop()
        self.diagnosing.stop()

    def ended_well(self) -> None:
        """The client said shutdown."""
        self._ended_well = True
        self.stop()

    def status(self) -> dict[str, Any]:
        """What `codemill/status` answers."""
        models: dict[str, Model[Any]] = {
            "completion": self.completer,
            "search": self.encoder,
            "diagnostics": self.classifier,
        }
        found: dict[str, Any] = {}
        for name, model in models.items():
            part = getattr(self.used, name)
            found[name] = {
                "state": model.state,
                "bundle": part.bundle.path if part is not None else None,
                "problem": model.reason or None,
            }
        found["completion"] |= {
            "tokens": self.completing.tokens,
            "kept_bytes": self.completing.kept_bytes,
        }
        progress = self.finding.progress
        found["search"] |= {
            "problem": self.encoder.reason or self.finding.problem or None,
            "functions": self.finding.functions,
            "indexing": None if progress.ended else [progress.done, progress.total],
        }
        found["documents"] = len(self.documents().text_documents)
        return found

    def documents(self) -> Documents:
        """The texts that are open."""
        documents = self.workspace
        assert isinstance(documents, Documents)
        return documents

    def _can(self, *names: str) -> bool:
        """Whether the client says that it can do something."""
        value: Any = self.client_capabilities
        for name in names:
            value = getattr(value, name, None)
        return bool(value)

    def watch(self) -> None:
        """Have the client tell of files that change, where it can."""
        if not self._can("workspace", "did_change_watched_files", "dynamic_registration"):
            return
        options = types.DidChangeWatchedFilesRegistrationOptions(
            [types.FileSystemWatcher(glob_pattern=_WATCHED)]
        )
        self.client_register_capability(
            types.RegistrationParams(
                [
                    types.Registration(
                        id="codemill-files",
                        method=types.WORKSPACE_DID_CHANGE_WATCHED_FILES,
                        register_options=options,
                    )
                ]
            )
        )

    def _report(self, progress: Progress) -> None:
        """Tell the client how far an index is, where it can show that."""
        if not self._can("window", "work_done_progress"):
            return
        token, shown = self._progress, self.work_done_progress
        if progress.ended:
            if token is not None:
                self._progress = None
                message = f"{progress.done:,} of {progress.total:,} files"
                shown.end(token, types.WorkDoneProgressEnd(message=message))
                shown.tokens.pop(token, None)
            return
        message = f"{progress.done:,} of {progress.total:,} files"
        percentage = 100 * progress.done // max(1, progress.total)
        if token is None:
            token = self._progress = f"codemill-{uuid.uuid4()}"
            # the client takes messages in their order, so that its answer need not be awaited
            shown.create(token)
            begin = types.WorkDoneProgressBegin(
                "codemill: index", cancellable=True, message=message, percentage=percentage
            )
            shown.begin(token, begin)
            return
        report = types.WorkDoneProgressReport(
            cancellable=True, message=message, percentage=percentage
        )
        shown.report(token, report)


def _loaded(part: settings.Completion | settings.Search | None) -> object:
    """What of the settings makes another model."""
    if isinstance(part, settings.Completion):
        return part.bundle, part.memory_mb
    return None if part is None else part.bundle


def _completer(asked: settings.Completion, root: Path | None) -> Completer:
    bundle = asked.bundle
    model = load_completer(place(bundle, root), bundle.variant, bundle.threads)
    model.memory_bytes = asked.memory_mb * 2**20
    return model


def _encoder(asked: settings.Search, root: Path | None) -> Encoder:
    bundle = asked.bundle
    return load_encoder(place(bundle, root), bundle.variant, bundle.threads)


@contextmanager
def _answered() -> Iterator[None]:
    """What codemill refuses is the request's answer."""
    try:
        yield
    except CodemillError as error:
        raise refused(str(error)) from error


def _register(server: Server) -> None:
    """What the client may say, and who hears it."""

    @server.feature(types.INITIALIZE)
    def initialize(ls: Server, params: types.InitializeParams) -> None:
        ls.given = params.initialization_options

    @server.feature(types.INITIALIZED)
    async def initialized(ls: Server, _: types.InitializedParams) -> None:
        ls.watch()
        await ls.configure(ls.given)

    @server.feature(types.SHUTDOWN)
    def shutdown(ls: Server, _: None) -> None:
        ls.ended_well()

    @server.feature(types.WORKSPACE_DID_CHANGE_CONFIGURATION)
    async def configured(ls: Server, params: types.DidChangeConfigurationParams) -> None:
        await ls.configure(params.settings)

    @server.feature(types.WORKSPACE_DID_CHANGE_WORKSPACE_FOLDERS)
    def folders(ls: Server, _: types.DidChangeWorkspaceFoldersParams) -> None:
        ls.finding.begin(ls.folders)

    @server.feature(types.WORKSPACE_DID_CHANGE_WATCHED_FILES)
    def watched(ls: Server, _: types.DidChangeWatchedFilesParams) -> None:
        ls.finding.changed()

    @server.feature(types.WINDOW_WORK_DONE_PROGRESS_CANCEL)
    def paused(ls: Server, params: types.WorkDoneProgressCancelParams) -> None:
        if params.token == ls._progress:
            ls.finding.pause()

    @server.feature(types.TEXT_DOCUMENT_DID_OPEN)
    def opened(ls: Server, params: types.DidOpenTextDocumentParams) -> None:
        ls.diagnosing.saved(params.text_document.uri)

    @server.feature(types.TEXT_DOCUMENT_DID_CHANGE)
    def changed(ls: Server, params: types.DidChangeTextDocumentParams) -> None:
        ls.completing.changed(params.text_document.uri)
        ls.diagnosing.changed(params.text_document.uri)

    @server.feature(types.TEXT_DOCUMENT_DID_SAVE)
    def saved(ls: Server, params: types.DidSaveTextDocumentParams) -> None:
        ls.diagnosing.saved(params.text_document.uri)
        ls.finding.changed()

    @server.feature(types.TEXT_DOCUMENT_DID_CLOSE)
    def closed(ls: Server, params: types.DidCloseTextDocumentParams) -> None:
        ls.completing.closed(params.text_document.uri)
        ls.diagnosing.closed(params.text_document.uri)

    @server.feature(types.TEXT_DOCUMENT_INLINE_COMPLETION, types.InlineCompletionOptions())
    async def complete(
        ls: Server, params: types.InlineCompletionParams
    ) -> list[types.InlineCompletionItem] | None:
        document = _open(ls, params.text_document.uri)
        kind = params.context.trigger_kind
        automatic = kind == types.InlineCompletionTriggerKind.Automatic
        with _answered():
            return await ls.completing.complete(document, params.position, automatic)

    @server.feature(types.WORKSPACE_SYMBOL)
    async def symbols(
        ls: Server, params: types.WorkspaceSymbolParams
    ) -> list[types.SymbolInformation]:
        search = ls.used.search
        # other servers answer too: without a bundle, or a query, there is nothing to add
        if search is None or not params.query.strip():
            return []
        with _answered():
            hits = await ls.finding.find(params.query, search.top, newest=True)
        return [_symbol(ls, hit) for hit in hits]

    @server.feature(FIND)
    async def find(ls: Server, params: FindParams) -> dict[str, Any]:
        if not 1 <= params.top <= _MOST_HITS:
            raise refused(f"top should be from 1 to {_MOST_HITS}, found {params.top}")
        with _answered():
            hits = await ls.finding.find(params.query, params.top)
        return {
            "hits": [
                {
                    "uri": _uri(hit.path),
                    "line": hit.line - 1,
                    "name": hit.qualified_name,
                    "score": hit.score,
                    "code": hit.code,
                }
                for hit in hits
            ]
        }

    @server.feature(STATUS)
    def status(ls: Server, _: Any) -> dict[str, Any]:
        return ls.status()


def _open(ls: Server, uri: str) -> Document:
    document = ls.documents().opened(uri)
    if document is None:
        raise refused(f"{uri} is not open")
    return document


def _symbol(ls: Server, hit: Hit) -> types.SymbolInformation:
    # the score where editors show what a symbol is in
    folder = next((item for item in ls.folders if hit.path.is_relative_to(item)), None)
    path = hit.path if folder is None else hit.path.relative_to(folder)
    # a name that is not UTF-8 is no text that every client reads
    shown = os.fsencode(path.as_posix()).decode("utf-8", "replace")
    start = types.Position(hit.line - 1, 0)
    return types.SymbolInformation(
        name=hit.qualified_name,
        kind=types.SymbolKind.Method if "." in hit.qualified_name else types.SymbolKind.Function,
        location=types.Location(_uri(hit.path), types.Range(start, start)),
        container_name=f"{shown} ({hit.score:.2f})",
    )


def _uri(path: Path) -> str:
    """The address of a file; its name need not be UTF-8."""
    absolute = path.absolute()
    try:
        return uris.from_fs_path(str(absolute)) or ""
    except UnicodeEncodeError:
        return "file://" + quote_from_bytes(os.fsencode(absolute))
