"""Text to embeddings: tokenizer, batches, one graph.

Pooling and normalisation are in the graph, so that every engine that runs it agrees. This is the
whole of inference for retrieval; how embeddings are kept and searched is `find.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codemill.errors import BundleError
from codemill.runtime.bundle import TOKENIZER, Manifest, check_files, digest, read_manifest
from codemill.runtime.session import Backend, OnnxSession, available_providers, choose_variant

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Encoder", "open_encoder"]

_INPUTS = {"input_ids": "tensor(int64)", "attention_mask": "tensor(int64)"}
_OUTPUT = "embedding"
_TASKS = ("retrieval",)
# tokenized at a time: sorts well by length, and bounds the memory a million texts would take
_WINDOW = 4096
# padded tokens of one run: beyond it a token costs no less, and memory and padding only grow
_TOKENS_PER_RUN = 1024


def open_encoder(
    path: str | os.PathLike[str], *, variant: str | None = None, threads: int | None = None
) -> Encoder:
    """What `codemill.load` does for a bundle that embeds; see there."""
    if Path(path).is_file():
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
    tokenizer_json = (folder / TOKENIZER).read_bytes()
    tokenizer = _tokenizer(tokenizer_json, folder)
    session = OnnxSession(
        folder / chosen.segments[0], provider=chosen.provider, threads=threads, output=_OUTPUT
    )
    if session.inputs != _INPUTS:
        raise BundleError(f"{session.path} takes {session.inputs}; an encoder takes {_INPUTS}")
    if len(session.output_shape) != 2 or session.output_shape[1] not in (manifest.dim, None):
        raise BundleError(
            f"{session.path} gives {_OUTPUT} of shape {list(session.output_shape)}; "
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
            window = [self._ids(self._tokenizer, text) for text in texts[start : start + _WINDOW]]
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
        tokenizer = _tokenizer(self._tokenizer_json, Path(TOKENIZER))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @staticmethod
    def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
        # one by one: `encode_batch` starts a thread for every core of the machine, whatever
        # `threads` says, and they make a later fork of the process print warnings
        try:
            ids: list[int] = tokenizer.encode(text).ids
        except (TypeError, UnicodeEncodeError):
            # half a surrogate pair, as in file names and files read with surrogateescape
            ids = tokenizer.encode(text.encode("utf-8", "replace").decode()).ids
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


def _tokenizer(content: bytes, folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_buffer(content)
    # the library raises plain Exception
    except Exception as error:
        raise BundleError(f"{TOKENIZER} of {str(folder)!r} cannot be read: {error}") from error


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
