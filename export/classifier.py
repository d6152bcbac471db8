"""An encoder with a head -> a bundle that labels: two graphs a variant, each step checked for parity.

With exits: two graphs for each of them, and two for the end (`segments.py`).

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

from codemill.export.candidates import (
    check_parity,
    graph_file,
    variant_of,
    variant_with,
    write_graph,
)
from codemill.export.encoder import INPUTS, OPSET, OUTPUT, export_encoder
from codemill.export.fuse import fuse_encoder
from codemill.export.segments import ExitHead, export_parts, part_file, part_head_file
from codemill.runtime.bundle import Variant, write_bundle

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

__all__ = ["ExitHead", "LabelHead", "graph_files", "head_file", "write_classifier"]

_SIDES = ("first", "second")
LOGITS = "logits"


@dataclass(frozen=True)
class LabelHead:
    """The head of a bundle that labels: a torch module of one or two embeddings, and what its logits mean.

    joined: the two texts of a row are one sequence of tokens, so the head sees one embedding. exits: heads after
    lower layers, the lowest first.
    """

    module: nn.Module
    labels: tuple[str, ...]
    texts: int
    joined: bool = False
    pooling: Literal["mean", "cls"] = "mean"
    long: Literal["truncate", "split"] = "truncate"
    exits: tuple[ExitHead, ...] = ()

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
    """Write a bundle folder with the variants of `precisions` ("plain", "fp32", "int8").

    sample: ids, mask int64 [2, tokens], whose pooled embeddings in torch are `pooled` [2, dim], and whose
    logits are `logits` [labels]: of the first, or of both as a pair. Raises CodemillError where plain or
    fused ONNX does not reproduce them. Exits have no thresholds yet: only rows that an exit is wholly certain of, a
    probability of 1 in floating point, leave there, until the manifest is written anew with those that were calibrated
    on these files.
    """
    dim = pooled.shape[1]
    variants: dict[str, Variant] = {}
    with tempfile.TemporaryDirectory() as scratch:
        graphs = _graphs(encoder, head, Path(scratch), heads, sample, pooled, logits)
        for precision in precisions:
            variant = variant_of(precision)
            names = graph_files(variant, len(head.exits))
            for (plain, fused), name_of in zip(graphs, names, strict=True):
                write_graph(plain, fused, folder / name_of, precision)
            variants[variant] = variant_with(variant, names)
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
        exits=[{"layer": item.layer, "temperature": 1.0, "threshold": 1.0} for item in head.exits],
    )


def graph_files(variant: str, exits: int) -> tuple[str, ...]:
    """Where a variant's graphs lie in a bundle, in the order in which they run."""
    if not exits:
        return graph_file(variant), head_file(variant)
    return tuple(
        name
        for number in range(exits + 1)
        for name in (part_file(variant, number), part_head_file(variant, number))
    )


def _graphs(
    encoder: PreTrainedModel,
    head: LabelHead,
    scratch: Path,
    heads: int,
    sample: tuple[np.ndarray, np.ndarray],
    pooled: np.ndarray,
    logits: np.ndarray,
) -> list[tuple[Path, Path]]:
    """Plain and fused fp32 graphs in `scratch`: encoder and head, or a part and its head for each exit and the end."""
    if head.exits:
        encoders = export_parts(
            encoder,
            scratch,
            head.exits,
            heads=heads,
            pooling=head.pooling,
            sample=sample,
            pooled=pooled,
        )
    else:
        plain, fused = scratch / "plain.onnx", scratch / "fused.onnx"
        export_encoder(encoder, plain, pooling=head.pooling, normalised=False)
        inputs = dict(zip(INPUTS, sample, strict=True))
        check_parity(plain, inputs, OUTPUT, pooled, "the encoder's plain ONNX graph")
        fuse_encoder(plain, fused, heads, encoder.config.hidden_size)
        check_parity(fused, inputs, OUTPUT, pooled, "the encoder's fused ONNX graph")
        encoders = [(plain, fused)]
    tops = [(item.module, item.pooled, item.logits) for item in head.exits]
    made = []
    for number, (graph, (module, embeddings, judged)) in enumerate(
        zip(encoders, [*tops, (head.module, pooled, logits)], strict=True)
    ):
        top = scratch / f"head-{number}.onnx"
        _export_head(module, head.inputs, top, pooled.shape[1])
        sides = {side: embeddings[i : i + 1] for i, side in enumerate(head.inputs)}
        check_parity(top, sides, LOGITS, judged[None], "the head's ONNX graph")
        made += [graph, (top, top)]
    return made


def _export_head(module: nn.Module, inputs: Sequence[str], path: Path, dim: int) -> None:
    import torch

    example = tuple(torch.zeros(2, dim) for _ in inputs)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            example,
            str(path),
            input_names=list(inputs),
            output_names=[LOGITS],
            dynamic_axes={name: {0: "rows"} for name in (*inputs, LOGITS)},
            opset_version=OPSET,
            dynamo=False,
        )
