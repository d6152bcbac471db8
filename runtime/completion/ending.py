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
_CONTEXT, _LONGEST_CONTEXT = 4, 12
"""Tokens that are decoded with those that follow: some tokenizers drop a space at a beginning. More of them where
they would begin inside of a character."""
_SETTLED = 16
"""Tokens that are decoded together, at least, before they are settled: never all of a long text for each token."""


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
        found = (stop,) if isinstance(stop, str) else tuple(stop)
        if isinstance(stop, str) or not all(isinstance(item, str) and item for item in found):
            raise ValueError(f"stop should be a list of texts that are not empty, found {stop!r}")
        self._tokenizer = tokenizer
        self._before = self._context(prompt)
        self._stop = (*found, "\r\n", "\n") if mode == "line" else found
        self._block = mode == "block"
        line = prefix.rsplit("\n", 1)[-1]
        self._indent = len(line) - len(line.lstrip())
        # tokens whose text is not settled yet, and the settled text before theirs
        self._ids: list[int] = []
        self._settled = ""
        self._given = 0
        self.text = ""
        self.ended = False

    def add(self, token: int) -> str:
        """Take a token; the text that is certain now and was not before. `ended` says whether more may follow."""
        self._ids.append(token)
        decoded = self._decoded()
        # a character whose bytes are not all there yet
        finished = decoded.rstrip(_UNFINISHED)
        sure = self._cut(self._settled + finished)
        if len(finished) == len(decoded) and len(self._ids) >= _SETTLED:
            self._settled += decoded
            self._before = self._context([*self._before, *self._ids])
            self._ids.clear()
        if not self.ended:
            sure = sure[: len(sure) - self._held(sure)]
        return self._give(sure)

    def end(self) -> str:
        """Nothing follows: the text that was held back."""
        if self.ended:
            return ""
        return self._give(self._cut(self._settled + self._decoded()))

    def _give(self, sure: str) -> str:
        piece = sure[self._given :]
        self._given = max(self._given, len(sure))
        self.text += piece
        return piece

    def _context(self, tokens: Sequence[int]) -> list[int]:
        """The last tokens of these, from the beginning of a character on."""
        for count in range(_CONTEXT, _LONGEST_CONTEXT):
            found = list(tokens[-count:])
            text: str = self._tokenizer.decode(found, skip_special_tokens=False)
            if not text.startswith(_UNFINISHED):
                return found
        return []

    def _decoded(self) -> str:
        """The text of the tokens that are not settled."""
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
            # a line that is indented less may follow, and what is blank before it is no part then
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
            return len(text[:at].rstrip("\r\n\t "))
        at = end
    return None
