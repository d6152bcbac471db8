"""What an ONNX file may hold, checked before ONNX Runtime reads it; without the onnx library.

ONNX Runtime refuses what is malformed, but trusts a graph to be well meant: it reads weights from any
file beside the graph, unfolds functions to any size, runs loops without end, and some of its operators
crash where an input is missing or of an odd shape. So a bundle's graph is a plain list of nodes of the
operators below, with its inputs there, and its weights in files the manifest names.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from codemill.errors import BundleError

__all__ = ["check_graph", "graph_inputs", "graph_operators"]

# what encoders and decoders are made of, without those that mutated graphs made crash (GatherND, Inverse) or that
# none needs: name -> the inputs that may be left out ("" in their place), which is what the operator's
# definition says, or less: "" for the bias of a LayerNormalization crashes
_STANDARD: Final[dict[str, tuple[int, ...]]] = {
    **dict.fromkeys(
        (
            *("Abs", "Add", "And", "ArgMax", "ArgMin", "Cast", "CastLike", "Ceil", "Concat"),
            *("Constant", "ConstantOfShape", "Cos", "CumSum", "Div", "DynamicQuantizeLinear"),
            *("Elu", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "Gather"),
            *("GatherElements", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish"),
            *("Identity", "IsInf", "IsNaN", "LayerNormalization", "LeakyRelu", "Less"),
            *("LessOrEqual", "Log", "LogSoftmax", "LpNormalization", "MatMul", "Max", "Mean"),
            *("Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "QLinearMatMul"),
            *("RMSNormalization", "Range", "Reciprocal", "Relu", "Reshape", "Round", "Shape"),
            *("Sigmoid", "Sign", "SimplifiedLayerNormalization", "Sin", "Size", "Softmax"),
            *("Softplus", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "Tile", "Transpose"),
            *("Unsqueeze", "Where", "Xor"),
        ),
        (),
    ),
    **dict.fromkeys(
        (
            *("ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
            *("ReduceProd", "ReduceSum", "ReduceSumSquare", "Split", "Squeeze", "Trilu"),
        ),
        (1,),
    ),
    **dict.fromkeys(("DequantizeLinear", "Gemm", "QuantizeLinear"), (2,)),
    "Attention": (3, 4, 5, 6),
    "Clip": (1, 2),
    "MatMulInteger": (2, 3),
    "Pad": (2, 3),
    "RotaryEmbedding": (3,),
    "Slice": (3, 4),
}
_MICROSOFT: Final[dict[str, tuple[int, ...]]] = {
    "Attention": (2, 3, 4, 5, 6),
    "BiasGelu": (),
    "DequantizeLinear": (2,),
    "EmbedLayerNormalization": (1, 4, 7, 8),
    "FastGelu": (1,),
    "FusedMatMul": (),
    "GatherBlockQuantized": (3,),
    "Gelu": (),
    "GroupQueryAttention": (1, 2),
    "MatMulNBits": (3, 4, 5),
    "MultiHeadAttention": (1, 2, 3, 4, 5, 6, 7, 8, 9),
    "QAttention": (5, 6, 7, 8),
    "QEmbedLayerNormalization": (1, 4, 7, 10, 15),
    "QuantizeLinear": (2,),
    "QuickGelu": (),
    "RotaryEmbedding": (),
    "SkipLayerNormalization": (3, 4),
    "SkipSimplifiedLayerNormalization": (3,),
}
OPERATORS: Final = {
    **{("", name): optional for name, optional in _STANDARD.items()},
    **{("com.microsoft", name): optional for name, optional in _MICROSOFT.items()},
}
"""By domain and name, the operators of a bundle's graph, and which of their inputs are optional."""

# fields of the messages of onnx.proto
_MODEL_GRAPH, _MODEL_TRAINING, _MODEL_FUNCTION = 7, 20, 25
_GRAPH_NODE, _GRAPH_TENSOR, _GRAPH_INPUT, _GRAPH_SPARSE = 1, 5, 11, 15
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_SHAPE, _SHAPE_SIZE = 1, 2, 1, 2, 1
_SIZE_NUMBER = 1
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_INT = 1, 3
_ATTRIBUTE_TENSORS, _ATTRIBUTE_SPARSE, _ATTRIBUTE_GRAPHS = (5, 10), (22, 23), (6, 11)
_TENSOR_PLACE = 13
_PLACE_KEY, _PLACE_VALUE = 1, 2

_LONGEST_TEXT_BYTES = 2**16

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT_BYTES = 10


def check_graph(root: Path, path: str, files: Collection[str]) -> None:
    """Check that the graph at `path` below `root` is one a bundle may hold, and reads no file but `files`.

    What it computes, and whether it is well formed, is left to ONNX Runtime. Raises BundleError.
    """
    with _mapped(root / path) as content:
        _Graph(content, path, files).check()


def graph_inputs(path: Path) -> dict[str, tuple[int | None, ...]]:
    """What the graph of a file that was checked takes, and the sizes of each; None: any. Raises BundleError."""
    with _mapped(path) as content:
        return dict(_Graph(content, path.name, ()).inputs())


def graph_operators(path: Path) -> Counter[tuple[str, str]]:
    """Nodes of each (domain, operator) in the graph of a file; the standard domain is empty. Raises BundleError."""
    with _mapped(path) as content:
        return Counter(_Graph(content, path.name, ()).operators())


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            yield content
    # ValueError: an empty file cannot be mapped either
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} is no graph a bundle may hold: {error}") from error


class _Graph:
    """The walk through one file; its methods raise ValueError."""

    def __init__(self, content: mmap.mmap, path: str, files: Collection[str]) -> None:
        self._content = content
        self._folder = path[: path.rfind("/") + 1]
        self._files = files

    def check(self) -> None:
        for number, start, end in self._fields(0, len(self._content)):
            if number in (_MODEL_FUNCTION, _MODEL_TRAINING):
                raise ValueError("it defines functions, or training, of its own")
            if number == _MODEL_GRAPH:
                self._graph(start, end)

    def inputs(self) -> Iterator[tuple[str, tuple[int | None, ...]]]:
        for graph in self._below((0, len(self._content)), _MODEL_GRAPH):
            for value in self._below(graph, _GRAPH_INPUT):
                name = "".join(self._text(*place) for place in self._below(value, _VALUE_NAME))
                sizes = self._below(value, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_SHAPE, _SHAPE_SIZE)
                yield name, tuple(self._whole(*place, _SIZE_NUMBER) for place in sizes)

    def operators(self) -> Iterator[tuple[str, str]]:
        for graph in self._below((0, len(self._content)), _MODEL_GRAPH):
            for node in self._below(graph, _GRAPH_NODE):
                domain, operator = (
                    "".join(self._text(*place) for place in self._below(node, field))
                    for field in (_NODE_DOMAIN, _NODE_OPERATOR)
                )
                yield "" if domain == "ai.onnx" else domain, operator

    def _below(self, place: tuple[int, int], *path: int) -> Iterator[tuple[int, int]]:
        """Where the messages lie that are reached by these fields, one inside the other."""
        for number, first, last in self._fields(*place):
            if number == path[0]:
                yield from self._below((first, last), *path[1:]) if path[1:] else [(first, last)]

    def _graph(self, start: int, end: int) -> None:
        for number, first, last in self._fields(start, end):
            if number == _GRAPH_NODE:
                self._node(first, last)
            elif number == _GRAPH_TENSOR:
                self._tensor(first, last)
            elif number == _GRAPH_SPARSE:
                self._sparse(first, last)

    def _node(self, start: int, end: int) -> None:
        operator = domain = ""
        inputs = outputs = 0
        left_out, attributes = [], []
        for number, first, last in self._fields(start, end):
            if number == _NODE_INPUT:
                if first == last:
                    left_out.append(inputs)
                inputs += 1
            elif number == _NODE_OUTPUT:
                outputs += 1
            elif number == _NODE_OPERATOR:
                operator = self._text(first, last)
            elif number == _NODE_DOMAIN:
                domain = self._text(first, last)
            elif number == _NODE_ATTRIBUTE:
                self._attribute(first, last)
                attributes.append((first, last))
        if domain == "ai.onnx":
            domain = ""
        optional = OPERATORS.get((domain, operator))
        if optional is None:
            name = f"{domain}.{operator}" if domain else operator
            raise ValueError(f"it uses the operator {name[:200]!r}, which is not supported")
        if any(place not in optional for place in left_out):
            raise ValueError(f"an operator {operator!r} lacks an input it needs")
        if operator == "Split":
            # ONNX Runtime ends the process where these differ
            for first, last in attributes:
                if self._number(first, last, "num_outputs") not in (None, outputs):
                    raise ValueError(
                        "an operator 'Split' says that it has other outputs than it has"
                    )

    def _number(self, start: int, end: int, name: str) -> int | None:
        """The number that an attribute of this name is; None of another name."""
        found = ""
        for number, first, last in self._fields(start, end):
            if number == _ATTRIBUTE_NAME:
                found = self._text(first, last)
        return (self._whole(start, end, _ATTRIBUTE_INT) or 0) if found == name else None

    def _whole(self, start: int, end: int, field: int) -> int | None:
        """A field of a message that is a whole number; None where it is not there. Of several the last counts."""
        value = None
        while start < end:
            tag, start = _varint(self._content, start, end)
            number, kind = (tag & 0xFFFFFFFF) >> 3, tag & 7
            if kind == _VARINT:
                read, start = _varint(self._content, start, end)
                value = read if number == field else value
            elif kind == _BYTES:
                size, start = _varint(self._content, start, end)
                start += size
            else:
                # what is beyond the message, or of no known kind, was refused before
                start += 8 if kind == _FIXED64 else 4
        return value

    def _attribute(self, start: int, end: int) -> None:
        for number, first, last in self._fields(start, end):
            if number in _ATTRIBUTE_GRAPHS:
                raise ValueError("it has graphs inside its nodes, which are not supported")
            if number in _ATTRIBUTE_TENSORS:
                self._tensor(first, last)
            elif number in _ATTRIBUTE_SPARSE:
                self._sparse(first, last)

    def _sparse(self, start: int, end: int) -> None:
        # its two fields of bytes are both tensors
        for _, first, last in self._fields(start, end):
            self._tensor(first, last)

    def _tensor(self, start: int, end: int) -> None:
        for number, first, last in self._fields(start, end):
            if number == _TENSOR_PLACE:
                self._place(first, last)

    def _place(self, start: int, end: int) -> None:
        """One of the pairs of key and value that say where a tensor's data lie."""
        pair = {_PLACE_KEY: "", _PLACE_VALUE: ""}
        for number, first, last in self._fields(start, end):
            pair[number] = self._text(first, last)
        location = pair[_PLACE_VALUE]
        # equal to a path of the manifest, so it has no `..` and passes no link
        if pair[_PLACE_KEY] == "location" and f"{self._folder}{location}" not in self._files:
            raise ValueError(
                f"it keeps weights in {location[:200]!r}, which is not one of the files "
                "the manifest names for this variant"
            )

    def _text(self, start: int, end: int) -> str:
        if end - start > _LONGEST_TEXT_BYTES:
            raise ValueError("a name in it is too long")
        return self._content[start:end].decode()

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(number, start, end) of the length-delimited fields of the message between two places."""
        content = self._content
        while start < end:
            tag, start = _varint(content, start, end)
            # as parsers do, which read a tag of 32 bits
            number, kind = (tag & 0xFFFFFFFF) >> 3, tag & 7
            first = start
            if kind == _BYTES:
                size, first = _varint(content, start, end)
                start = first + size
            elif kind == _VARINT:
                _, start = _varint(content, start, end)
            elif kind in (_FIXED64, _FIXED32):
                start += 8 if kind == _FIXED64 else 4
            else:
                raise ValueError("a field of an unknown type")
            if start > end or number == 0:
                raise ValueError("a field goes beyond its message")
            if kind == _BYTES:
                yield number, first, start


def _varint(content: mmap.mmap, start: int, end: int) -> tuple[int, int]:
    if start < end and content[start] < 0x80:
        return content[start], start + 1
    value = 0
    for place in range(start, min(end, start + _LONGEST_VARINT_BYTES)):
        byte = content[place]
        value |= (byte & 0x7F) << 7 * (place - start)
        if byte < 0x80:
            return value, place + 1
    raise ValueError("a number goes beyond its message")
