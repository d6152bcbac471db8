"""What every loaded model is, whatever it answers: one variant of a bundle, open until it is closed.

What it answers is `encoder.py`'s and `classifier.py`'s.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Self

from codemill.runtime.bundle import Manifest, digest

if TYPE_CHECKING:
    from codemill.runtime.session import Graph

__all__ = ["LoadedModel"]


class LoadedModel(ABC):
    """A context manager that closes itself."""

    def __init__(self, manifest: Manifest, variant: str) -> None:
        self._manifest = manifest
        self._variant = variant

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self._manifest

    @property
    def variant(self) -> str:
        """The name of the variant that runs."""
        return self._variant

    @cached_property
    def digest(self) -> str:
        """The bundle's digest: what two models answer compares only where it is the same."""
        return digest(self._manifest)

    @property
    def graphs(self) -> Sequence[Graph]:
        """What runs, in its order, of a model that is open; none of one that does not tell."""
        return ()

    @abstractmethod
    def close(self) -> None:
        """Free the model; any use of it raises RuntimeError from now on. Calling it twice is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
