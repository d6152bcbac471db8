"""Text to embeddings: tokenizer, batches, one graph.

Pooling and normalisation are in the graph, so that every engine that runs it agrees. This is the
whole of inference for retrieval; how embeddings are kept and searched is `find.py`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codemill.errors import BundleError
from codemill.runtime.bundle import (
    TOKENIZER,
    Manifest,
    check_files,
    check_graphs,
    digest,
    plain,
    read_manifest,
)
from codemill.runtime.session import (
    Backend,
    OnnxSession,
    available_providers,
    choose_variant,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Encoder", "open_encoder"]

_INPUTS = {"input_ids": "tensor(int64)", "attention_mask": "tensor(int64)"}
_OUTPUT = "embedding"
_OUTPUT_TYPE = "tensor(float)"
_TASKS = ("retrieval",)
# tokenized at a time: sorts well by length, and bounds the memory a million texts would take
_WINDOW = 4096
# padded tokens of one run: beyond it a token costs no less, and memory and padding only grow
_TOKENS_PER_RUN = 1024
# of a text by normalizing it: real tokenizers stay below a hundred
_LARGEST_GROWTH = 4096


def open_encoder(
    path: str | os.PathLike[str], *, variant: str | None = None, threads: int | None = None
) -> Encoder:
    """What `codemill.load` does for a bundle that embeds; see there."""
    # unlike Path.is_file it raises nothing: what cannot be looked at is refused further on
    if os.path.isfile(path):  # noqa: PTH113
        from codemill.runtime.archive import unpack

        # which has checked every file
        folder = unpack(path)
        manifest = read_manifest(folder)
    else:
        folder = Path(path)
        manifest = read_manifest(folder)
        check_files(folder, manifest)
    if manifest.task not in _TASKS or manifest.output["kind"] != "embedding":
        from codemill import __version__

        raise BundleError(
            f"bundle {manifest.name!r} is made for {manifest.task!r} with output "
            f"{manifest.output['kind']!r}; codemill {__version__} runs: {', '.join(_TASKS)} "
            "with output 'embedding'"
        )
    name = choose_variant(manifest, available_providers()) if variant is None else variant
    chosen = manifest.variant(name)
    if len(chosen.segments) != 1:
        raise BundleError(
            f"variant {name!r} has {len(chosen.segments)} segments; an encoder has one"
        )
    check_graphs(folder, chosen)
    try:
        tokenizer_json = (folder / TOKENIZER).read_bytes()
    except OSError as error:
        # gone since it was checked: the cache may be deleted at any time
        raise BundleError(
            f"cannot read {folder / TOKENIZER}: {error.strerror or error}. Load the bundle again"
        ) from error
    tokenizer = _tokenizer(tokenizer_json, str(folder))
    _check_tokenizer(tokenizer, manifest, str(folder))
    session = OnnxSession(
        folder / chosen.segments[0], provider=chosen.provider, threads=threads, output=_OUTPUT
    )
    if session.inputs != _INPUTS:
        raise BundleError(
            f"{session.path} takes {plain(session.inputs)}; an encoder takes {_INPUTS}"
        )
    if session.output_type != _OUTPUT_TYPE:
        raise BundleError(
            f"{session.path} gives {_OUTPUT} as {session.output_type}; an encoder gives {_OUTPUT_TYPE}"
        )
    if len(session.output_shape) != 2 or session.output_shape[1] not in (manifest.dim, None):
        raise BundleError(
            f"{session.path} gives {_OUTPUT} of shape {plain(list(session.output_shape))}; "
            f"the manifest says [batch, {manifest.dim}]"
        )
    return Encoder(manifest, name, tokenizer, session, tokenizer_json)


class Encoder:
    """Embeds texts with one variant of a bundle. Made by `codemill.load`.

    May be used from several threads at once. Is a context manager that closes itself.
    """

    def __init__(
        self,
        manifest: Manifest,
        variant: str,
        tokenizer: Tokenizer,
        session: Backend,
        tokenizer_json: bytes,
    ) -> None:
        self._manifest = manifest
        self._variant = variant
        self._session: Backend | None = session
        self._tokenizer = tokenizer
        self._tokenizer_json = tokenizer_json
        self._pad_id = _pad_id(tokenizer)
        tokenizer.enable_truncation(manifest.max_tokens)
        tokenizer.no_padding()

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self._manifest

    @property
    def variant(self) -> str:
        """The name of the variant that runs."""
        return self._variant

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return int(self._manifest.output["dim"])

    @cached_property
    def digest(self) -> str:
        """The bundle's digest: embeddings of two encoders compare only where it is the same."""
        return digest(self._manifest)

    def encode(self, texts: Sequence[str], batch_size: int = 32) -> NDArray[np.float32]:
        """Embed `texts`: float32 [n, dim], rows in the order of `texts`, each of length 1.

        Texts of similar length share a batch, of `batch_size` texts and 1,024 padded tokens at
        most (one longer text is a batch of its own). What is beyond
        `manifest.max_tokens` tokens of a text is cut off. The same list gives the same result;
        an int8 variant scales its activations over a batch, so a text's embedding may differ in
        the third decimal between batches.

        Raises TypeError for anything but a sequence of str (naming the index), ValueError for a
        `batch_size` below 1, and RuntimeError after `close`.
        """
        _check_texts(texts)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size should be a whole number from 1, found {batch_size!r}")
        session = self._session
        if session is None:
            raise RuntimeError("the encoder is closed; load the bundle again")
        embeddings = np.empty((len(texts), self.dim), dtype=np.float32)
        for start in range(0, len(texts), _WINDOW):
            window = [self._cut(text) for text in texts[start : start + _WINDOW]]
            for batch in _batches([len(ids) for ids in window], batch_size):
                rows = self._run(session, [window[i] for i in batch])
                embeddings[[start + i for i in batch]] = rows
        return embeddings

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, the special ones included, before anything is cut off."""
        _check_texts(texts)
        return [len(self._ids(self._whole_tokenizer, text)) for text in texts]

    def close(self) -> None:
        """Free the model; `encode` raises RuntimeError from now on. Calling it twice is fine."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def __enter__(self) -> Encoder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Encoder({self._manifest.name!r}, variant={self._variant!r}, dim={self.dim})"

    @cached_property
    def _whole_tokenizer(self) -> Tokenizer:
        # a second one, made when first asked for: switching truncation off and on in the other
        # would show in another thread's `encode`
        tokenizer = _tokenizer(self._tokenizer_json, self._manifest.name)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def _cut(self, text: str) -> list[int]:
        """Ids of `text`, `max_tokens` at most."""
        ids = self._ids(self._tokenizer, text)
        if len(ids) > self._manifest.max_tokens:
            raise BundleError(
                f"{TOKENIZER} of {self._manifest.name!r} gave {len(ids)} tokens, "
                f"the manifest says {self._manifest.max_tokens} at most"
            )
        return ids

    def _ids(self, tokenizer: Tokenizer, text: str) -> list[int]:
        # one by one: `encode_batch` starts a thread for every core of the machine, whatever
        # `threads` says, and they make a later fork of the process print warnings
        try:
            # half a surrogate pair, as in file names and files read with surrogateescape
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-8", "replace").decode()
        with _translated(f"{TOKENIZER} of {self._manifest.name!r} cannot be used"):
            ids: list[int] = tokenizer.encode(text).ids
        return ids

    def _run(self, session: Backend, ids: list[list[int]]) -> NDArray[np.float32]:
        """Embed one batch, padded to its longest: [batch, dim]."""
        # a text without a single token still needs something to pool over
        tokens = max(1, max(len(row) for row in ids))
        input_ids = np.full((len(ids), tokens), self._pad_id, dtype=np.int64)
        attention_mask = np.zeros((len(ids), tokens), dtype=np.int64)
        for i, row in enumerate(ids):
            input_ids[i, : len(row)] = row
            attention_mask[i, : max(1, len(row))] = 1
        rows = session.run({"input_ids": input_ids, "attention_mask": attention_mask})
        if rows.shape != (len(ids), self.dim) or not np.isfinite(rows).all():
            raise BundleError(
                f"variant {self._variant!r} of bundle {self._manifest.name!r} gave "
                f"{list(rows.shape)} values, or some that are not numbers, for {len(ids)} texts; "
                f"expected [{len(ids)}, {self.dim}] finite numbers"
            )
        return rows


def _batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices into `lengths`, like lengths together.

    The longest first: the memory a call needs is needed at once, not at its end.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    first = 0
    while first < len(order):
        fit = _TOKENS_PER_RUN // max(1, lengths[order[first]])
        end = first + max(1, min(batch_size, fit))
        yield order[first:end]
        first = end


def _check_texts(texts: object) -> None:
    if isinstance(texts, str | bytes):
        raise TypeError(f"pass a list of texts, not one {type(texts).__name__}: encode([text])")
    if not isinstance(texts, Sequence):
        raise TypeError(f"pass a list of texts, not {type(texts).__name__}")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{index}] should be str, found {type(text).__name__}")


@contextmanager
def _translated(message: str) -> Iterator[None]:
    """Raise BundleError with `message` for what the tokenizers library raises."""
    try:
        yield
    except BaseException as error:
        # plain Exception, or where its Rust code panics a class below BaseException only
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BundleError(f"{message}: {plain(error)}") from error


def _tokenizer(content: bytes, where: str) -> Tokenizer:
    from tokenizers import Tokenizer

    with _translated(f"{TOKENIZER} of {where!r} cannot be read"):
        return Tokenizer.from_buffer(content)


def _check_tokenizer(tokenizer: Tokenizer, manifest: Manifest, where: str) -> None:
    """Check that a text takes bounded memory, and can be cut to `max_tokens`; BundleError."""
    with _translated(f"{TOKENIZER} of {where!r} cannot be read"):
        added = tokenizer.num_special_tokens_to_add(False)
        normalizer = _state(tokenizer.normalizer)
        pre_tokenizer = _state(tokenizer.pre_tokenizer)
        post_processor = _state(tokenizer.post_processor)
    if added >= manifest.max_tokens:
        raise BundleError(
            f"{TOKENIZER} of {where!r} adds {added} tokens to every text, which leaves none of the "
            f"{manifest.max_tokens} the manifest allows"
        )
    # what is cut off is combined once for each place the text stands in: without end for many
    if any(_places(item) > 1 for item in _flat(post_processor)):
        raise BundleError(f"{TOKENIZER} of {where!r} repeats the text; it should stand there once")
    # each step works on what the one before it made
    growth = math.prod(_growth(item) for item in _flat(normalizer) + _flat(pre_tokenizer))
    if growth > _LARGEST_GROWTH:
        raise BundleError(
            f"{TOKENIZER} of {where!r} may replace a text by one more than {_LARGEST_GROWTH} times "
            "as long"
        )


def _state(component: Any) -> Any:
    """A part of a tokenizer as JSON; the whole holds the vocabulary, which takes long to parse."""
    return None if component is None else json.loads(component.__getstate__())


def _flat(component: Any) -> list[dict[str, Any]]:
    """A part of a tokenizer, or those it is a sequence of."""
    if not isinstance(component, dict):
        return []
    inner = [component.get(key) for key in ("normalizers", "pretokenizers", "processors")]
    return [component, *(flat for items in inner for item in items or () for flat in _flat(item))]


def _places(post_processor: dict[str, Any]) -> int:
    return sum("Sequence" in piece for piece in post_processor.get("single") or ())


def _growth(component: dict[str, Any]) -> int:
    """By how much a step may lengthen a text."""
    if component.get("type") == "Replace":
        # between any two characters, where the pattern matches nothing
        return 1 + len(component["content"])
    return {"ByteLevel": 2, "Precompiled": 16}.get(component.get("type", ""), 1)


def _pad_id(tokenizer: Tokenizer) -> int:
    """What fills a batch: masked, but some models count positions by it."""
    padding: dict[str, Any] | None = tokenizer.padding
    if padding is not None:
        return int(padding["pad_id"])
    for token in ("[PAD]", "<pad>"):
        found = tokenizer.token_to_id(token)
        if found is not None:
            return int(found)
    return 0
