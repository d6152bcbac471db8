"""The texts that the client has open: pygls' documents, with the protocol's line ends and a limit of size.

pygls divides lines as `str.splitlines` does, at form feeds and U+2028 too; the protocol does not, and edits below
one would land on another line.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from lsprotocol import types
from pygls.workspace import TextDocument, Workspace

__all__ = ["LARGEST_DOCUMENT", "Document", "Documents"]

LARGEST_DOCUMENT = 4 * 2**20
"""Characters of a text that is looked at; no more are kept."""


class Document(TextDocument):
    """An open text. One that is too large is kept as none."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._too_large = False
        self._limit()

    @property
    def lines(self) -> Sequence[str]:
        """Lines with their ends, which are those of the protocol."""
        return tuple(io.StringIO(self.source, newline=""))

    @property
    def refusal(self) -> str | None:
        """Why a model is not asked about this text; None where it is."""
        if self._too_large:
            return f"{self.filename} has more than {LARGEST_DOCUMENT:,} characters"
        if "\0" in self.source:
            return f"{self.filename} is not text: it holds a null character"
        return None

    @property
    def python(self) -> bool:
        """Whether it is Python source."""
        return self.language_id == "python" or str(self.path).endswith(".py")

    def apply_change(self, change: types.TextDocumentContentChangeEvent) -> None:
        """Apply an edit; of a text that is too large, only one that replaces all of it."""
        whole = not isinstance(change, types.TextDocumentContentChangePartial)
        if self._too_large and not whole:
            return
        super().apply_change(change)
        self._limit()

    def _limit(self) -> None:
        self._too_large = self._source is not None and len(self._source) > LARGEST_DOCUMENT
        if self._too_large:
            self._source = ""


class Documents(Workspace):
    """The texts that are open."""

    def opened(self, uri: str) -> Document | None:
        """The open text of this address."""
        document = self.get_text_document(uri)
        # else one that is on disk and not open
        return document if document.version is not None and isinstance(document, Document) else None

    def all_open(self) -> list[Document]:
        """Every open text."""
        return [item for item in self.text_documents.values() if isinstance(item, Document)]

    def _create_text_document(
        self,
        doc_uri: str,
        source: str | None = None,
        version: int | None = None,
        language_id: str | None = None,
    ) -> TextDocument:
        return Document(
            doc_uri,
            source=source,
            version=version,
            language_id=language_id,
            sync_kind=self._sync_kind,
            position_codec=self._position_codec,
        )
