"""Text to embeddings: tokenizer, batches, one graph.

Pooling and normalisation are in the graph, so that every engine that runs it agrees. This is the
whole of inference for retrieval; how embeddings are kept and searched is `find.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from codemill.errors import BundleError
from codemill.runtime.bundle import Manifest, plain
from codemill.runtime.loaded import LoadedModel
from codemill.runtime.opening import open_variant
from codemill.runtime.pages import give_back_freed
from codemill.runtime.session import Graph
from codemill.runtime.texts import Texts, batches, check_batch_size, check_texts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Encoder", "embeds", "open_encoder"]

_INPUTS = {"input_ids": "tensor(int64)", "attention_mask": "tensor(int64)"}
_OUTPUT = "embedding"
_OUTPUT_TYPE = "tensor(float)"
_TASKS = ("retrieval",)
# tokenized at a time: sorts well by length, and bounds the memory a million texts would take
_WINDOW = 4096


def embeds(manifest: Manifest) -> bool:
    """Whether a bundle is one that `Encoder` runs."""
    return manifest.task in _TASKS and manifest.output["kind"] == "embedding"


def open_encoder(
    folder: Path, manifest: Manifest, *, variant: str | None = None, threads: int | None = None
) -> Encoder:
    """What `codemill.load` does for a bundle that embeds, its files checked; see there."""
    opened = open_variant(folder, manifest, variant, segments=1)
    session = opened.session(opened.variant.segments[0], threads)
    if session.inputs != _INPUTS:
        raise BundleError(
            f"{session.path} takes {plain(session.inputs)}; an encoder takes {_INPUTS}"
        )
    if _OUTPUT not in session.outputs:
        raise BundleError(
            f"{session.path} has no output {_OUTPUT!r}; it has: {plain(', '.join(session.outputs))}"
        )
    kind, shape = session.outputs[_OUTPUT]
    if kind != _OUTPUT_TYPE:
        raise BundleError(
            f"{session.path} gives {_OUTPUT} as {kind}; an encoder gives {_OUTPUT_TYPE}"
        )
    if len(shape) != 2 or shape[1] not in (manifest.dim, None):
        raise BundleError(
            f"{session.path} gives {_OUTPUT} of shape {plain(list(shape))}; "
            f"the manifest says [batch, {manifest.dim}]"
        )
    return Encoder(manifest, opened.name, opened.tokenizer, session, opened.tokenizer_json)


class Encoder(LoadedModel):
    """Embeds texts with one variant of a bundle. Made by `codemill.load`.

    May be used from several threads at once. Is a context manager that closes itself.
    """

    def __init__(
        self,
        manifest: Manifest,
        variant: str,
        tokenizer: Tokenizer,
        session: Graph,
        tokenizer_json: bytes,
    ) -> None:
        super().__init__(manifest, variant)
        self._session: Graph | None = session
        self._texts = Texts(tokenizer, tokenizer_json, manifest.name, manifest.max_tokens)

    @property
    def graphs(self) -> Sequence[Graph]:
        """The one graph, while it is open."""
        return () if self._session is None else (self._session,)

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return int(self._manifest.output["dim"])

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
        check_texts(texts)
        check_batch_size(batch_size)
        session = self._session
        if session is None:
            raise RuntimeError("the encoder is closed; load the bundle again")
        embeddings = np.empty((len(texts), self.dim), dtype=np.float32)
        for start in range(0, len(texts), _WINDOW):
            window = [self._texts.cut(text).ids for text in texts[start : start + _WINDOW]]
            for batch in batches([len(ids) for ids in window], batch_size):
                rows = self._run(session, [window[i] for i in batch])
                embeddings[[start + i for i in batch]] = rows
        return embeddings

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, the special ones included, before anything is cut off."""
        check_texts(texts)
        return [self._texts.count(text) for text in texts]

    def close(self) -> None:
        """Free the model; `encode` raises RuntimeError from now on. Calling it twice is fine."""
        session, self._session = self._session, None
        if session is not None:
            session.close()
            give_back_freed()

    def __repr__(self) -> str:
        return f"Encoder({self._manifest.name!r}, variant={self._variant!r}, dim={self.dim})"

    def _run(self, session: Graph, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Embed one batch, padded to its longest: [batch, dim]."""
        input_ids, attention_mask = self._texts.padded(ids)
        (rows,) = session.outputs_for(
            {"input_ids": input_ids, "attention_mask": attention_mask}, (_OUTPUT,)
        )
        if rows.shape != (len(ids), self.dim) or not np.isfinite(rows).all():
            raise BundleError(
                f"variant {self._variant!r} of bundle {self._manifest.name!r} gave "
                f"{list(rows.shape)} values, or some that are not numbers, for {len(ids)} texts; "
                f"expected [{len(ids)}, {self.dim}] finite numbers"
            )
        return rows
