"""What a file of OpenVINO's format may hold, checked before OpenVINO reads it; without OpenVINO.

As `graph.py` does for ONNX: a plain list of known operators, whose weights lie in the one .bin beside it that the
manifest names, and inside that file. What it computes is left to OpenVINO.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Final
from xml.etree import ElementTree

from codemill.errors import BundleError

__all__ = ["SUFFIX", "check_ir"]

SUFFIX: Final = ".xml"
_MOST_BYTES = 32 * 2**20
_OPERATORS: Final = frozenset(
    (
        *("Abs", "Add", "Broadcast", "Clamp", "Concat", "Const", "Convert", "ConvertLike", "Cos"),
        *("CumSum", "Divide", "Equal", "Erf", "Exp", "FakeQuantize", "Gather", "GatherElements"),
        *("Gelu", "Greater", "GreaterEqual", "Identity", "Less", "LessEqual", "Log", "LogicalAnd"),
        *("LogicalNot", "LogicalOr", "MVN", "MatMul", "Maximum", "Minimum", "Mod", "Multiply"),
        *("Negative", "NotEqual", "Pad", "Parameter", "Power", "RMS", "Range", "ReLU"),
        *("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Reshape", "Result"),
        *("ScaledDotProductAttention", "Select", "ShapeOf", "Sigmoid", "Sin", "Slice", "SoftMax"),
        *("Split", "Sqrt", "SquaredDifference", "Squeeze", "StridedSlice", "Subtract", "Swish"),
        *("Tanh", "Tile", "Transpose", "Unsqueeze", "VariadicSplit"),
    )
)
_VERSION = re.compile(r"opset[0-9]{1,2}")


def check_ir(root: Path, path: str, files: Collection[str]) -> None:
    """Check the graph at `path` below `root`; it may read no file but its .bin, one of `files`. Raises BundleError."""
    weights = str(PurePosixPath(path).with_suffix(".bin"))
    if weights not in files:
        raise BundleError(
            f"{root / path}: its weights, {weights}, are not among the variant's files"
        )
    try:
        size = (root / path).stat().st_size
        room = (root / weights).stat().st_size
        if size > _MOST_BYTES:
            raise BundleError(f"{root / path} is {size:,} bytes; {_MOST_BYTES:,} at most are read")
        content = (root / path).read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {root / path}: {error.strerror or error}") from error
    if b"<!" in content:
        # entities unfold to any size; no writer of this format declares any
        raise BundleError(f"{root / path} declares a document type or holds comments")
    try:
        net = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise BundleError(f"{root / path} is no XML: {error}") from error
    if net.tag != "net":
        raise BundleError(
            f"{root / path} is not of OpenVINO's format: it begins with {net.tag!r:.80}"
        )
    layers = net.find("layers")
    for layer in () if layers is None else layers:
        kind, version = layer.get("type", ""), layer.get("version", "")
        if kind not in _OPERATORS or not _VERSION.fullmatch(version):
            raise BundleError(
                f"{root / path} holds the operator {kind!r:.80} of {version!r:.80}, which no bundle needs"
            )
        if kind == "Const":
            _check_const(layer, room, root / path)


def _check_const(layer: ElementTree.Element, room: int, path: Path) -> None:
    data = layer.find("data")
    offset, size = ("", "") if data is None else (data.get("offset", ""), data.get("size", ""))
    if not (offset.isdecimal() and size.isdecimal() and len(offset) < 20 and len(size) < 20):
        raise BundleError(f"{path} has a constant without a place in its weights")
    if int(offset) + int(size) > room:
        raise BundleError(f"{path} has a constant that ends behind its weights")
