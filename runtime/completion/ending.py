"""From token ids to text as it grows, and where it ends: at a stop string, a line's or a block's end.

Text that may still change, or be the beginning of a stop string, is held back, so that what was given stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Growing", "Mode"]

Mode = Literal["line", "block"]
_UNFINISHED = "\ufffd"
_CONTEXT = 4
"""Tokens of the prompt that are decoded with the completion: some tokenizers drop a space at a beginning."""


class Growing:
    """A completion's text. mode `line`: to the end of the line; `block`: until a line is indented less than the first.

    stop: texts that end it and are not part of it. Raises ValueError for an empty one, or another mode.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        prefix: str,
        stop: Sequence[str] = (),
        mode: Mode | None = None,
    ) -> None:
        if mode not in (None, "line", "block"):
            raise ValueError(f"mode should be 'line', 'block' or None, found {mode!r}")
        if isinstance(stop, str) or not all(isinstance(item, str) and item for item in stop):
            raise ValueError(f"stop should be a list of texts that are not empty, found {stop!r}")
        self._tokenizer = tokenizer
        self._before = list(prompt[-_CONTEXT:])
        self._stop = tuple(stop) if mode != "line" else (*stop, "\n")
        self._block = mode == "block"
        line = prefix.rsplit("\n", 1)[-1]
        self._indent = len(line) - len(line.lstrip())
        self._ids: list[int] = []
        self._given = 0
        self.text = ""
        self.ended = False

    def add(self, token: int) -> str:
        """Take a token; the text that is certain now and was not before. `ended` says whether more may follow."""
        self._ids.append(token)
        whole = self._decoded()
        sure = self._cut(whole.removesuffix(_UNFINISHED) if whole.endswith(_UNFINISHED) else whole)
        if not self.ended:
            sure = sure[: len(sure) - self._held(sure)]
        return self._give(sure)

    def end(self) -> str:
        """Nothing follows: the text that was held back."""
        if self.ended:
            return ""
        return self._give(self._cut(self._decoded()))

    def _give(self, sure: str) -> str:
        piece = sure[self._given :]
        self._given = max(self._given, len(sure))
        self.text += piece
        return piece

    def _decoded(self) -> str:
        decode = self._tokenizer.decode
        before = decode(self._before, skip_special_tokens=False)
        found: str = decode([*self._before, *self._ids], skip_special_tokens=False)
        if before and found.startswith(before):
            return found[len(before) :]
        alone: str = decode(self._ids, skip_special_tokens=False)
        return alone

    def _cut(self, text: str) -> str:
        """Up to where it ends."""
        places = [at for at in (text.find(item) for item in self._stop) if at >= 0]
        if self._block:
            at = _dedent(text, self._indent)
            if at is not None:
                places.append(at)
        if not places:
            return text
        self.ended = True
        return text[: min(places)]

    def _held(self, text: str) -> int:
        """Characters at the end that a stop string, or a less indented line, may begin with."""
        held = 0
        for item in self._stop:
            for count in range(min(len(item) - 1, len(text)), held, -1):
                if item.startswith(text[len(text) - count :]):
                    held = count
                    break
        if self._block:
            at = text.rfind("\n")
            if at >= 0 and not text[at:].strip():
                # the line that begins here, and blank ones before it
                held = max(held, len(text) - len(text.rstrip()))
        return held


def _dedent(text: str, indent: int) -> int | None:
    """Where the first line ends that something less indented follows; None where nothing does."""
    at = text.find("\n")
    while at >= 0:
        end = text.find("\n", at + 1)
        line = text[at + 1 :] if end < 0 else text[at + 1 : end]
        stripped = line.lstrip()
        if stripped and len(line) - len(stripped) < indent:
            return len(text[:at].rstrip("\n "))
        at = end
    return None
