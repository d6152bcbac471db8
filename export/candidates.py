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
from codemill.runtime.session import PLAIN

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "FP32",
    "INT8",
    "PLAIN",
    "PROVIDER",
    "check_parity",
    "graph_file",
    "variant_of",
    "variant_with",
    "write_candidates",
    "write_graph",
]

FP32 = "cpu-fp32"
INT8 = "cpu-int8"
PROVIDER = "CPUExecutionProvider"
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
    """Write a bundle folder with the variants of `precisions` ("plain", "fp32", "int8").

    sample: ids, mask int64 [batch, tokens], whose embeddings in torch are `expected` [batch, dim].
    Raises CodemillError where plain or fused ONNX does not reproduce them.
    """
    hidden_size = model.config.hidden_size
    variants: dict[str, Variant] = {}
    with tempfile.TemporaryDirectory() as scratch:
        plain, fused = Path(scratch, "plain.onnx"), Path(scratch, "fused.onnx")
        export_encoder(model, plain)
        inputs = dict(zip(INPUTS, sample, strict=True))
        check_parity(plain, inputs, OUTPUT, expected, "the plain ONNX graph")
        fuse_encoder(plain, fused, heads, hidden_size)
        check_parity(fused, inputs, OUTPUT, expected, "the fused ONNX graph")
        for precision in precisions:
            name_of = variant_of(precision)
            write_graph(plain, fused, folder / graph_file(name_of), precision)
            variants[name_of] = variant_with(name_of, (graph_file(name_of),))
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


def variant_of(precision: str) -> str:
    """The variant's name."""
    return PLAIN if precision == "plain" else f"cpu-{precision}"


def variant_with(name: str, files: tuple[str, ...]) -> Variant:
    """A variant for processors, of these graphs."""
    return Variant(PROVIDER, name.rsplit("-", 1)[-1], files, files)


def write_graph(plain: Path, fused: Path, path: Path, precision: str) -> None:
    """The graph that ships: `plain` or `fused` as it is, or the int8 form of `fused`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if precision == "int8":
        # seven bits: the bundle may meet a processor without VNNI, and must answer alike there
        quantize_dynamic_int8(fused, path, reduce_range=True)
    else:
        path.write_bytes((plain if precision == "plain" else fused).read_bytes())


def check_parity(
    path: Path, inputs: Mapping[str, np.ndarray], output: str, expected: np.ndarray, what: str
) -> None:
    """Raise CodemillError where the graph does not give what torch gave for these inputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=[PROVIDER])
    (found,) = session.run([output], dict(inputs))
    # of numbers that are not of length 1, such as logits, the larger may differ by more
    worst = float((np.abs(found - expected) / np.maximum(np.abs(expected), 1)).max())
    if not worst <= _PARITY:
        raise CodemillError(
            f"{what} differs from torch by {worst:.2g} in a value of its {output}, more than {_PARITY:.0e}; "
            "this is an exporter's fault: report it with the model's config.json"
        )
