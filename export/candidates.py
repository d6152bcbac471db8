"""One torch encoder -> a bundle folder with its fused fp32 and int8 variants, every step checked for parity."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codemill.errors import CodemillError
from codemill.export.encoder import INPUTS, OUTPUT, export_encoder
from codemill.export.fuse import fuse_encoder
from codemill.export.quantize.dynamic import quantize_dynamic_int8
from codemill.runtime.bundle import Variant, write_bundle

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["FP32", "INT8", "graph_file", "write_candidates"]

FP32 = "cpu-fp32"
INT8 = "cpu-int8"
_PROVIDER = "CPUExecutionProvider"
_PARITY = 1e-4
"""Most that one component of a unit-length embedding may differ between torch, plain and fused fp32."""


def graph_file(variant: str) -> str:
    """Where a variant's graph lies in a bundle."""
    return f"variants/{variant}/encoder.onnx"


def write_candidates(
    model: PreTrainedModel,
    folder: Path,
    *,
    heads: int,
    tokenizer_json: str,
    max_tokens: int,
    precisions: Sequence[str],
    name: str,
    sample: tuple[np.ndarray, np.ndarray],
    expected: np.ndarray,
    architecture: Mapping[str, Any] | None = None,
) -> None:
    """Write a bundle folder with the variants of `precisions` ("fp32", "int8").

    sample: ids, mask int64 [batch, tokens], whose embeddings in torch are `expected` [batch, dim].
    Raises CodemillError where plain or fused ONNX does not reproduce them.
    """
    hidden_size = model.config.hidden_size
    variants: dict[str, Variant] = {}
    with tempfile.TemporaryDirectory() as scratch:
        plain, fused = Path(scratch, "plain.onnx"), Path(scratch, "fused.onnx")
        export_encoder(model, plain)
        _check_parity(plain, sample, expected, "the plain ONNX graph")
        fuse_encoder(plain, fused, heads, hidden_size)
        _check_parity(fused, sample, expected, "the fused ONNX graph")
        for precision in precisions:
            variant = f"cpu-{precision}"
            path = folder / graph_file(variant)
            path.parent.mkdir(parents=True, exist_ok=True)
            if precision == "int8":
                # seven bits: the bundle may meet a processor without VNNI, and must answer alike there
                quantize_dynamic_int8(fused, path, reduce_range=True)
            else:
                path.write_bytes(fused.read_bytes())
            variants[variant] = Variant(
                _PROVIDER, precision, (graph_file(variant),), (graph_file(variant),)
            )
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    write_bundle(
        folder,
        name=name,
        task="retrieval",
        input={"max_tokens": max_tokens},
        output={"kind": "embedding", "dim": hidden_size},
        variants=variants,
        architecture=architecture,
    )


def _check_parity(
    path: Path, sample: tuple[np.ndarray, np.ndarray], expected: np.ndarray, what: str
) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=[_PROVIDER])
    (found,) = session.run([OUTPUT], dict(zip(INPUTS, sample, strict=True)))
    worst = float(np.abs(found - expected).max())
    if not worst <= _PARITY:
        raise CodemillError(
            f"{what} differs from torch by {worst:.2g} in an embedding component, more than {_PARITY:.0e}; "
            "this is an exporter's fault: report it with the model's config.json"
        )
