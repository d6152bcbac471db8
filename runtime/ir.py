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
_INSIDE = {"data", "input", "output", "rt_info"}
"""What a layer holds, each once at most."""
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
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{root / path} is not UTF-8") from error
    # entities unfold to any size; a namespace hides an element here that OpenVINO sees
    for mark, what in (("<!", "a document type"), ("xmlns", "a namespace"), ("\0", "a zero byte")):
        if mark in text:
            raise BundleError(f"{root / path} holds {what}, which no writer of this format does")
    try:
        net = ElementTree.fromstring(text.removeprefix("\ufeff"))
    except (ElementTree.ParseError, ValueError) as error:
        raise BundleError(f"{root / path} is no XML: {error}") from error
    if net.tag != "net" or any(":" in part.tag or "}" in part.tag for part in net.iter()):
        raise BundleError(
            f"{root / path} is not of OpenVINO's format: it begins with {net.tag!r:.80}"
        )
    tags = [part.tag for part in net]
    if sorted(tags) not in (["edges", "layers"], ["edges", "layers", "rt_info"]):
        raise BundleError(f"{root / path} holds {tags!r:.200}; expected layers, edges and rt_info")
    for layer in net.find("layers") or ():
        kind, version = layer.get("type", ""), layer.get("version", "")
        inside = sorted(part.tag for part in layer)
        if layer.tag != "layer" or not set(inside) <= _INSIDE or len(inside) > len(set(inside)):
            raise BundleError(f"{root / path} has a {layer.tag!r:.80} that holds {inside!r:.200}")
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
