"""Completing code: what `codemill.load` gives for a bundle of the task completion."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from codemill.errors import BundleError
from codemill.runtime.bundle import Manifest
from codemill.runtime.completion.decoding import COMPLETION, Decoding, Exit, decoding_of
from codemill.runtime.completion.document import KEPT_END, Document
from codemill.runtime.completion.ending import Growing, Mode
from codemill.runtime.completion.lookup import Costs, Drafts
from codemill.runtime.completion.loop import Cancel, Ended, Settings, Taken, generate, logits_of
from codemill.runtime.completion.ngrams import Nearby, mixed
from codemill.runtime.completion.parts import Backend, open_parts
from codemill.runtime.completion.sampling import Sampler
from codemill.runtime.completion.speculation import Speculation
from codemill.runtime.loaded import LoadedModel
from codemill.runtime.opening import open_variant
from codemill.runtime.pages import give_back_freed
from codemill.runtime.texts import encode_whole

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Completer", "Completion", "Finish", "Stream", "completes", "open_completer"]

Finish = Literal["stop", "length", "uncertain", "cancelled"]
_MEMORY_BYTES = 256 * 2**20
_CHARACTERS = 16
"""Of a token, at most, on average: what is more is not even tokenized."""
_STEPS = 4
"""Of a context: what is too long is cut in such shares of it."""
_MARKS = 3
"""Tokens around the two texts between which is filled."""
_LEAST_PROMPT = 8
"""Tokens that are left for a prompt."""
_BUFFERS = 32
_LONGEST_BUFFER = 20_000
"""Characters of an open file in which drafts are looked for: its end."""


@dataclass(frozen=True)
class Completion:
    """What was completed.

    finish_reason: `stop` (a stop string, the line's or block's end, or the model ended it), `length` (max_tokens),
    `uncertain` (a controller found that what follows would be wrong; `text` is what was certain), `cancelled`.
    layers_used: of each token; drafted: how many tokens were drafted and found right. prompt_tokens: of what the
    model read, of which reused_tokens were known from before. truncated: the prompt was longer than the model takes,
    and its beginning (of a suffix: its end) was left out.
    """

    text: str
    finish_reason: Finish
    tokens: tuple[int, ...]
    layers_used: tuple[int, ...]
    drafted: int
    prompt_tokens: int
    reused_tokens: int
    truncated: bool


def completes(manifest: Manifest) -> bool:
    """Whether a bundle is one that `Completer` runs."""
    return manifest.task == COMPLETION


def open_completer(
    folder: Path, manifest: Manifest, *, variant: str | None = None, threads: int | None = None
) -> Completer:
    """What `codemill.load` does for a bundle that completes, its files checked; see there."""
    decoding = decoding_of(manifest)
    opened = open_variant(folder, manifest, variant, segments=3 * len(decoding.exits) + 2)
    room = decoding.max_tokens - len(decoding.begin) - _LEAST_PROMPT
    if room < 1:
        raise BundleError(
            f"bundle {manifest.name!r} takes {decoding.max_tokens} tokens, which leaves none to complete: expected "
            f"{len(decoding.begin) + _LEAST_PROMPT + 1} or more"
        )
    highest = max(opened.tokenizer.get_vocab().values(), default=-1)
    if highest >= decoding.vocab_size:
        raise BundleError(
            f"the tokenizer of bundle {manifest.name!r} has token ids up to {highest:,}, its model takes those below "
            f"{decoding.vocab_size:,}"
        )
    parts = open_parts(opened, decoding, threads)
    return Completer(manifest, opened.name, opened.tokenizer, parts)


class Completer(LoadedModel):
    """Completes code with one variant of a bundle. Made by `codemill.load`.

    Texts that were completed before are kept, up to `memory_bytes` of keys and values, and recognised by their
    beginning and end: the next keystroke costs what is new. May be used from several threads at once, each
    completion with a text of its own. Is a context manager that closes itself.
    """

    def __init__(
        self, manifest: Manifest, variant: str, tokenizer: Tokenizer, backend: Backend
    ) -> None:
        super().__init__(manifest, variant)
        # one text as long as may be is always kept
        full = backend.decoding.max_tokens * backend.decoding.kv_bytes_per_token
        self.memory_bytes = max(_MEMORY_BYTES, full)
        self._tokenizer = tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # what stands in a source file is text, whatever a model calls its marks
        tokenizer.encode_special_tokens = True
        self._backend: Backend | None = backend
        self._decoding = backend.decoding
        # the one used last comes last
        self._kept: list[Document] = []
        self._costs = Costs()
        self._speculation = Speculation(len(backend.decoding.exits))
        self._buffers: dict[str, NDArray[np.int64]] = {}
        self._lock = Lock()
        # of streams that were never closed: whoever collects garbage may hold the lock
        self._dropped: deque[Document] = deque()

    @property
    def fills(self) -> bool:
        """Whether it can complete between two texts, and not only behind one."""
        return self._decoding.fill is not None

    @property
    def kept_bytes(self) -> int:
        """Memory of keys and values that are kept now."""
        with self._lock:
            self._gather()
            return sum(document.cache.size_bytes for document in self._kept)

    def complete(
        self,
        prefix: str,
        suffix: str = "",
        *,
        max_tokens: int = 64,
        max_prompt_tokens: int | None = None,
        mode: Mode | None = None,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        exits: bool | Sequence[tuple[float | None, float | None]] = True,
        drafts: bool = True,
        ngrams: bool = True,
        speculate: bool = False,
        buffers: Sequence[str] = (),
        cancel: Cancel | None = None,
    ) -> Completion:
        """What comes behind `prefix`, or between it and `suffix`.

        max_prompt_tokens: how much of the two is read, at most, which bounds the first token's time, and memory; None:
        as much as the model takes. mode `line` ends with the line, `block` where a line is indented less than the
        prefix's last; `stop` are texts that end it. temperature 0 takes the likeliest token each time; otherwise
        `top_p` and `seed` say how one is drawn. exits: whether tokens may leave early, and what is uncertain be given
        up; or, for each exit, bounds in the place of the bundle's: from which probabilities on it is left, and given
        up, None: never. drafts: whether tokens are looked up in the prompt and in `buffers` (texts of other open files,
        the nearest first), and checked several at once. ngrams: whether what followed the same tokens there counts
        beside what the model says, where the bundle was calibrated for that. speculate: exits say what may follow, and
        the layers above check it at once: the text of full depth, and nothing leaves early; it pays in fp32, where it
        does. cancel: a threading.Event; it takes effect within a token.

        Raises ValueError for values out of range, for a suffix where the bundle does not fill, and for speculate where
        it has no exits; BundleError where a graph fails; RuntimeError once closed.
        """
        stream = self.stream(
            prefix,
            suffix,
            max_tokens=max_tokens,
            max_prompt_tokens=max_prompt_tokens,
            mode=mode,
            stop=stop,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            exits=exits,
            drafts=drafts,
            ngrams=ngrams,
            speculate=speculate,
            buffers=buffers,
            cancel=cancel,
        )
        with stream:
            for _ in stream:
                pass
        return stream.completion

    def stream(
        self,
        prefix: str,
        suffix: str = "",
        *,
        max_tokens: int = 64,
        max_prompt_tokens: int | None = None,
        mode: Mode | None = None,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        exits: bool | Sequence[tuple[float | None, float | None]] = True,
        drafts: bool = True,
        ngrams: bool = True,
        speculate: bool = False,
        buffers: Sequence[str] = (),
        cancel: Cancel | None = None,
    ) -> Stream:
        """`complete`, a piece of text at a time, each as soon as it is certain."""
        backend = self._open_backend()
        for name, text in (("prefix", prefix), ("suffix", suffix)):
            if not isinstance(text, str):
                raise TypeError(f"{name} should be str, found {type(text).__name__}")
        if isinstance(buffers, str) or not all(isinstance(text, str) for text in buffers):
            raise TypeError("buffers should be a list of str")
        if cancel is not None and not callable(getattr(cancel, "is_set", None)):
            raise TypeError(f"cancel should be a threading.Event or None, found {cancel!r}")
        decoding = self._decoding
        least = len(decoding.begin) + _LEAST_PROMPT
        _check_whole("max_tokens", max_tokens, 1, decoding.max_tokens - least)
        read = decoding.max_tokens - max_tokens
        if max_prompt_tokens is not None:
            _check_whole("max_prompt_tokens", max_prompt_tokens, least)
            read = min(read, max_prompt_tokens)
        bounds = _bounds(decoding, exits)
        if speculate and not decoding.exits:
            raise ValueError(f"speculate is by exits, and bundle {self.manifest.name!r} has none")
        prompt, truncated = self._prompt(prefix, suffix, read)
        escapes = decoding.escapes if ngrams else ()
        settings = Settings(
            choose=Sampler(temperature, top_p, seed),
            max_tokens=max_tokens,
            exits=() if speculate else bounds,
            drafts=Drafts(self._costs) if drafts else None,
            costs=self._costs,
            escapes=escapes,
            speculation=self._speculation if speculate else None,
            others=[self._buffer(text) for text in buffers[:_BUFFERS]] if drafts or escapes else (),
            cancel=cancel,
        )
        growing = Growing(self._tokenizer, prompt, prefix, stop, mode)
        document = self._take(backend, prompt)
        return Stream(self, backend, document, prompt, truncated, settings, growing)

    def predictions(
        self, text: str, *, ngrams: bool = True
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids of a text's tokens, and after each the one that is found likeliest at full depth: int64 [n] both.

        What the bundle begins a prompt with comes first; of a text that is too long, its end is read. ngrams: as in
        `complete`. Nothing is kept. Raises RuntimeError once closed.
        """
        ids, parts = self.logits(text)
        decoding = self._decoding
        escapes = decoding.escapes if ngrams else ()
        nearby = Nearby((), len(escapes))
        found = []
        for at, row in enumerate(row for part in parts for row in part):
            if escapes and at >= len(decoding.begin):
                nearby.read(int(ids[at]))
                row = mixed(row, nearby.followers(), escapes, decoding.end)
            found.append(row.argmax())
        return ids, np.array(found, np.int64)

    def logits(self, text: str) -> tuple[NDArray[np.int64], Iterator[NDArray[np.float32]]]:
        """Ids [n] of a text's tokens, read as `predictions` does; and what the model says behind them, [n, vocab].

        In parts, of so many rows together, for all of them may take much memory. Raises RuntimeError once closed.
        """
        backend = self._open_backend()
        if not isinstance(text, str):
            raise TypeError(f"text should be str, found {type(text).__name__}")
        ids, _ = self._prompt(text, "", self._decoding.max_tokens)
        whole = np.asarray(ids, dtype=np.int64)

        def parts() -> Iterator[NDArray[np.float32]]:
            for part in logits_of(backend, whole):
                yield part
                self._open_backend()

        return whole, parts()

    def forget(self) -> None:
        """Free the keys and values of all texts that no completion is using now."""
        with self._lock:
            self._dropped.clear()
            self._kept.clear()

    def close(self) -> None:
        """Free the model; any use of it raises RuntimeError from now on. Calling it twice is fine."""
        self.forget()
        with self._lock:
            self._buffers.clear()
            backend, self._backend = self._backend, None
        if backend is not None:
            backend.close()
            give_back_freed()

    def _open_backend(self) -> Backend:
        if self._backend is None:
            raise RuntimeError(f"the bundle {self.manifest.name!r} is closed")
        return self._backend

    def _prompt(self, prefix: str, suffix: str, most: int) -> tuple[list[int], bool]:
        """Ids of what the model reads, `most` at most, and whether something was left out."""
        begin, fill = list(self._decoding.begin), self._decoding.fill
        most -= len(begin)
        kept = _last(prefix, most * _CHARACTERS)
        before = self._ids(prefix[kept:])
        if not suffix:
            start = _left_out(len(before), most)
            ids = [*begin, *before[start:]]
            # with nothing to go on: as after the end of another text
            nothing = [self._decoding.end[0] if self._decoding.end else 0]
            return ids or nothing, start > 0 or kept > 0
        if fill is None:
            raise ValueError(
                f"bundle {self.manifest.name!r} completes behind a text only: its model was not trained to fill; "
                "leave suffix out"
            )
        after = self._ids(suffix[: most * _CHARACTERS])
        room = max(0, most - _MARKS)
        behind = len(after)
        if len(before) + len(after) > room:
            # what is before the gap says more; by steps, so that the next keystroke cuts at the same place
            step = max(1, room // _STEPS)
            free = max(room // 4, room - len(before))
            behind = min(len(after), free if free < step else free // step * step)
        start = _left_out(len(before), room - behind)
        cut = start > 0 or behind < len(after) or kept > 0 or len(suffix) > most * _CHARACTERS
        marked = [fill.prefix, *before[start:], fill.suffix, *after[:behind], fill.middle]
        return [*begin, *marked], cut

    def _ids(self, text: str) -> list[int]:
        return encode_whole(self._tokenizer, text, self.manifest.name)

    def _buffer(self, text: str) -> NDArray[np.int64]:
        """An open file's last tokens; tokenized once while it stays the same."""
        text = text[-_LONGEST_BUFFER:]
        with self._lock:
            found = self._buffers.pop(text, None)
        if found is None:
            found = np.asarray(self._ids(text), dtype=np.int64)
        with self._lock:
            self._buffers[text] = found
            while len(self._buffers) > _BUFFERS:
                del self._buffers[next(iter(self._buffers))]
        return found

    def _take(self, backend: Backend, prompt: Sequence[int]) -> Document:
        """The kept text that is most like `prompt`, taken out of those kept; else a new one.

        Only where half of it, at least, is used again: other files that begin alike keep what is theirs.
        """
        with self._lock:
            self._gather()
            likeness = [sum(document.alike(prompt)) for document in self._kept]
            for at in sorted(range(len(likeness)), key=lambda at: (-likeness[at], -at)):
                if likeness[at] and likeness[at] >= self._kept[at].prompt / 2:
                    return self._kept.pop(at)
        return Document(backend.cache())

    def _keep(self, document: Document) -> None:
        """Put a text back; those used longest ago are let go where memory is short."""
        with self._lock:
            self._dropped.append(document)
            self._gather()

    def _gather(self) -> None:
        """Take back what streams have let go of, within the limit of memory. The lock is held."""
        while self._dropped:
            document = self._dropped.popleft()
            # what is too large by itself pushes nothing out, and one that was cancelled before it was read is of no use
            too_large = document.cache.size_bytes > self.memory_bytes
            if self._backend is None or too_large or not document.tokens:
                continue
            self._kept.append(document)
            while sum(kept.cache.size_bytes for kept in self._kept) > self.memory_bytes:
                del self._kept[0]


def _check_whole(name: str, value: object, least: int, most: int | None = None) -> None:
    if (
        not isinstance(value, int)
        or isinstance(value, bool)
        or value < least
        or (most is not None and value > most)
    ):
        upto = "" if most is None else f" to {most}"
        raise ValueError(f"{name} should be a whole number from {least}{upto}, found {value!r}")


def _bounds(
    decoding: Decoding, asked: bool | Sequence[tuple[float | None, float | None]]
) -> tuple[Exit, ...]:
    """The exits with the bounds that are asked for."""
    if isinstance(asked, bool):
        return decoding.exits if asked else ()
    if not isinstance(asked, Sequence) or isinstance(asked, str):
        raise ValueError(
            f"exits should be True, False or a pair of bounds for each exit, found {asked!r}"
        )
    places = [item.layer for item in decoding.exits]
    if len(asked) != len(places):
        raise ValueError(
            f"exits should be True, False or a pair of bounds for each of the exits after layers {places}, found "
            f"{len(asked)}"
        )
    for pair in asked:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise ValueError(
                f"exits should hold a pair (leave, give up) for each exit, found {pair!r}"
            )
        for value in pair:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and 0 <= value <= 1):
                raise ValueError(
                    f"a bound of an exit should be a probability from 0 to 1, or None for never, found {value!r}"
                )
    return tuple(Exit(layer, *pair) for layer, pair in zip(places, asked, strict=True))


def _last(text: str, most: int) -> int:
    """Where the last `most` characters of a text begin, about, and the same while it grows a little; at a line."""
    start = _left_out(len(text), most)
    line = text.find("\n", start) + 1
    return line if start and 0 < line < len(text) else start


def _left_out(length: int, room: int) -> int:
    """How much of a beginning is left out so that the rest has room: in steps, so that it stays while a text grows."""
    if length <= room:
        return 0
    step = max(1, room // _STEPS)
    return min(length, -(-(length - room) // step) * step)


class Stream:
    """Pieces of a completion as they become certain. Iterate over it, or close it; a context manager closes itself.

    `completion` is what was completed up to now; whole once the pieces have ended.
    """

    def __init__(
        self,
        completer: Completer,
        backend: Backend,
        document: Document,
        prompt: list[int],
        truncated: bool,
        settings: Settings,
        growing: Growing,
    ) -> None:
        start, end = document.alike(prompt)
        known = start + (end if end >= KEPT_END and settings.move else 0)
        self._completer = completer
        self._document: Document | None = document
        self._growing = growing
        self._prompt_tokens = len(prompt)
        self._reused_tokens = min(known, len(prompt) - 1)
        self._truncated = truncated
        self._tokens: list[Taken] = []
        self._reason: list[Finish] = ["cancelled"]
        self._found = generate(backend, document, prompt, settings)
        # not a method: what holds itself is freed late
        self._pieces = _pieces(self._found, growing, self._tokens, self._reason)

    @property
    def completion(self) -> Completion:
        """What there is up to now."""
        tokens = self._tokens
        return Completion(
            text=self._growing.text,
            finish_reason=self._reason[-1],
            tokens=tuple(item.id for item in tokens),
            layers_used=tuple(item.layers for item in tokens),
            drafted=sum(item.drafted for item in tokens),
            prompt_tokens=self._prompt_tokens,
            reused_tokens=self._reused_tokens,
            truncated=self._truncated,
        )

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration:
            self.close()
            raise
        except BaseException:
            # what it left behind may be half written
            self._document = None
            self.close()
            raise

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        document = self._let_go()
        if document is not None:
            self._completer._dropped.append(document)

    def close(self) -> None:
        """Stop; what was computed is kept for the next completion. Calling it twice is fine."""
        document = self._let_go()
        if document is not None:
            self._completer._keep(document)

    def _let_go(self) -> Document | None:
        # where its making failed there is nothing yet
        pieces, found = getattr(self, "_pieces", None), getattr(self, "_found", None)
        for generator in (pieces, found):
            if generator is not None:
                generator.close()
        document, self._document = getattr(self, "_document", None), None
        return document


def _pieces(
    found: Iterator[Taken | Ended], growing: Growing, tokens: list[Taken], reason: list[Finish]
) -> Generator[str, None, None]:
    """Text as it becomes certain; what it is made of goes into `tokens`, why it ends into `reason`."""
    for item in found:
        if isinstance(item, Taken):
            tokens.append(item)
            piece = growing.add(item.id)
            if growing.ended:
                reason.append("stop")
        else:
            piece = growing.end()
            reason.append("stop" if growing.ended or item == "end" else item)
        if piece:
            yield piece
        if growing.ended:
            return
