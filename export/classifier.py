"""An encoder with a head -> a bundle that labels: two graphs a variant, each step checked for parity.

The encoder's graph gives a pooled embedding, the head's graph the logits of one or two of them; the runtime
(`runtime/classifier.py`) runs the one for each distinct text and the other for each row.
"""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from codemill.export.candidates import PROVIDER, check_parity, graph_file, write_graph
from codemill.export.encoder import INPUTS, OPSET, OUTPUT, export_encoder
from codemill.export.fuse import fuse_encoder
from codemill.runtime.bundle import Variant, write_bundle

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

__all__ = ["LabelHead", "head_file", "write_classifier"]

_SIDES = ("first", "second")
LOGITS = "logits"


@dataclass(frozen=True)
class LabelHead:
    """The head of a bundle that labels: a torch module of one or two embeddings, and what its logits mean.

    joined: the two texts of a row are one sequence of tokens, so the head sees one embedding.
    """

    module: nn.Module
    labels: tuple[str, ...]
    texts: int
    joined: bool = False
    pooling: Literal["mean", "cls"] = "mean"
    long: Literal["truncate", "split"] = "truncate"

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the head graph's inputs."""
        return _SIDES[: 1 if self.joined else self.texts]


def head_file(variant: str) -> str:
    """Where a variant's head lies in a bundle."""
    return f"variants/{variant}/head.onnx"


def write_classifier(
    encoder: PreTrainedModel,
    head: LabelHead,
    folder: Path,
    *,
    heads: int,
    tokenizer_json: str,
    max_tokens: int,
    precisions: Sequence[str],
    name: str,
    sample: tuple[np.ndarray, np.ndarray],
    pooled: np.ndarray,
    logits: np.ndarray,
    architecture: Mapping[str, Any] | None = None,
) -> None:
    """Write a bundle folder with the variants of `precisions` ("fp32", "int8").

    sample: ids, mask int64 [2, tokens], whose pooled embeddings in torch are `pooled` [2, dim], and whose
    logits are `logits` [labels]: of the first, or of both as a pair. Raises CodemillError where plain or
    fused ONNX does not reproduce them.
    """
    dim = pooled.shape[1]
    variants: dict[str, Variant] = {}
    with tempfile.TemporaryDirectory() as scratch:
        plain, fused = Path(scratch, "plain.onnx"), Path(scratch, "fused.onnx")
        export_encoder(encoder, plain, pooling=head.pooling, normalised=False)
        inputs = dict(zip(INPUTS, sample, strict=True))
        check_parity(plain, inputs, OUTPUT, pooled, "the encoder's plain ONNX graph")
        fuse_encoder(plain, fused, heads, encoder.config.hidden_size)
        check_parity(fused, inputs, OUTPUT, pooled, "the encoder's fused ONNX graph")
        top = Path(scratch, "head.onnx")
        _export_head(head, top, dim)
        sides = {side: pooled[i : i + 1] for i, side in enumerate(head.inputs)}
        check_parity(top, sides, LOGITS, logits[None], "the head's ONNX graph")
        for precision in precisions:
            variant = f"cpu-{precision}"
            write_graph(fused, folder / graph_file(variant), precision)
            write_graph(top, folder / head_file(variant), precision)
            graphs = (graph_file(variant), head_file(variant))
            variants[variant] = Variant(PROVIDER, precision, graphs, graphs)
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    write_bundle(
        folder,
        name=name,
        task="classification" if head.texts == 1 else "pair-classification",
        input={
            "max_tokens": max_tokens,
            "texts": head.texts,
            "joined": head.joined,
            "long": head.long,
        },
        output={"kind": "labels", "labels": list(head.labels), "dim": dim},
        variants=variants,
        architecture=architecture,
    )


def _export_head(head: LabelHead, path: Path, dim: int) -> None:
    import torch

    example = tuple(torch.zeros(2, dim) for _ in head.inputs)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            head.module,
            example,
            str(path),
            input_names=list(head.inputs),
            output_names=[LOGITS],
            dynamic_axes={name: {0: "rows"} for name in (*head.inputs, LOGITS)},
            opset_version=OPSET,
            dynamo=False,
        )
