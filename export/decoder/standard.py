"""A decoder's graphs, as they ship, in standard ONNX operators: for engines that know no others, which have their own.

Node by node: what ONNX Runtime has one operator for (attention with its cache, products with rounded weights, norms
of sums) becomes the few that it stands for. Weights are the very numbers that ship: rounded ones are written as what
they stand for, so that exits and thresholds, which were learned on them, stay right. The encoders' plain graphs
(`export/encoder.py`) come from torch; here there is no torch, and no model: a bundle is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from codemill.errors import ModelError
from codemill.export.decoder.weights import WeightFile
from codemill.export.decoder.write import WEIGHTS
from codemill.export.quantize.blocks import Blocks, packed, restore, unpacked

__all__ = ["write_standard"]

_OPSET, _IR_VERSION = 21, 10
_FLOAT, _HALF, _INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64
_PLACES = "position_ids"
_DROPPED = ("seqlens_k", "total_sequence_length")
_KEPT = ("key.", "value.")
_AWAY = -1e30
"""Added to the score of what a token does not attend to; finite, for some engines have no infinity there."""
_SAME = frozenset(
    (
        *("Add", "Gather", "LayerNormalization", "Mul", "Relu", "Reshape"),
        *("Slice", "Softmax", "Split", "Transpose"),
    )
)
"""Standard operators that ship, and stay."""


def write_standard(
    root: Path, segments: Sequence[str], folder: Path, *, half: bool = False, blocks: bool = False
) -> list[Path]:
    """Write the `segments` below `root` into `folder`, under their own names, over one file of weights.

    A segment of layers takes input_ids int64 [1, tokens] or hidden float32 [1, tokens, width], position_ids int64
    [1, tokens], one after another, and past_key_values.N.key, .value [1, kv_heads, past, head_size], of which the
    columns before the first position are read, whatever stands behind them (finite numbers). It gives hidden_out or
    state, and key.N, value.N [1, kv_heads, tokens, head_size] of its own tokens, as a projection does. The others take
    and give what they did.

    half: products in float16, with keys and values in it too; what they are summed up to, norms and softmax are
    float32. blocks: weights that were rounded in blocks stay so (DequantizeLinear), where these fill a row; not with
    half. Raises ModelError for an operator that no decoder here is written with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with WeightFile(folder / WEIGHTS) as weights:
        for segment in segments:
            paths.append(folder / Path(segment).name)
            _Rewriting(root / segment, weights, half, blocks).write(paths[-1])
    return paths


class _Rewriting:
    """One graph, being written anew."""

    def __init__(self, source: Path, weights: WeightFile, half: bool, blocks: bool) -> None:
        self._source, self._weights = source, weights
        self._half, self._blocks = half, blocks
        graph = onnx.load(str(source), load_external_data=False).graph
        self._graph = graph
        self._given = {item.name: item for item in graph.initializer}
        self._nodes: list[NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        # made once, whoever asks for it first
        self._made: dict[str, str] = {}
        self._attends = any(node.op_type == "GroupQueryAttention" for node in graph.node)
        self._outputs = [item for item in graph.output if not item.name.startswith("present.")]

    def write(self, path: Path) -> None:
        """All nodes, and the file."""
        for node in self._graph.node:
            self._node(node)
        inputs = [self._input(item) for item in self._graph.input if item.name not in _DROPPED]
        if self._attends and _PLACES not in {item.name for item in inputs}:
            inputs.append(helper.make_tensor_value_info(_PLACES, _INT64, [1, "tokens"]))
        for item in self._outputs:
            if item.name.startswith(_KEPT) and self._half:
                item.type.tensor_type.elem_type = _HALF
        made = helper.make_graph(
            self._nodes, path.stem, inputs, self._outputs, list(self._initializers.values())
        )
        model = helper.make_model(
            made, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="codemill"
        )
        model.ir_version = _IR_VERSION
        path.write_bytes(model.SerializeToString(deterministic=True))

    def _input(self, item: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
        if self._half and item.name.startswith("past_key_values."):
            item.type.tensor_type.elem_type = _HALF
        return item

    def _node(self, node: NodeProto) -> None:
        if node.op_type in _OWN:
            _OWN[node.op_type](self, node)
        elif node.op_type in _SAME and node.domain == "":
            same = NodeProto()
            same.CopyFrom(node)
            if node.op_type == "Gather" and node.input[0] in self._given:
                self._rows(self._matrix(node.input[0]), node.input[1], node.output[0])
                return
            del same.input[:]
            same.input.extend(self._value(name) for name in node.input)
            name = node.output[0]
            if name.startswith(_KEPT) and self._half:
                same.output[0] = f"{name}/full"
                self._nodes.append(same)
                self._cast(f"{name}/full", name, _HALF)
                return
            self._nodes.append(same)
        else:
            raise ModelError(
                f"{self._source} has the operator {node.domain or 'ai.onnx'}.{node.op_type}, which has no form in "
                "standard operators here; export the model again"
            )

    # what nodes are made of

    def _node_of(self, operator: str, inputs: list[str], to: str, **values: Any) -> str:
        self._nodes.append(helper.make_node(operator, inputs, [to], **values))
        return to

    def _cast(self, x: str, to: str, kind: int) -> str:
        self._nodes.append(helper.make_node("Cast", [x], [to], to=kind))
        return to

    def _rename(self, x: str, to: str) -> None:
        """Call what a node gave otherwise: an engine that drops a node that does nothing would choose a name itself."""
        for node in self._nodes:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    if name == x:
                        names[place] = to

    def _once(self, name: str, make: Callable[[str], str]) -> str:
        if name not in self._made:
            self._made[name] = make(name)
        return self._made[name]

    def _numbers(self, *values: int) -> str:
        name = f"int64 {values}"
        self._initializers[name] = helper.make_tensor(name, _INT64, [len(values)], values)
        return name

    def _number(self, value: float) -> str:
        name = f"float {value}"
        self._initializers[name] = helper.make_tensor(name, _FLOAT, [], [value])
        return name

    def _whole(self, value: int) -> str:
        name = f"int64 {value}"
        self._initializers[name] = helper.make_tensor(name, _INT64, [], [value])
        return name

    def _value(self, name: str) -> str:
        """An input of a node: an initializer as it is, or what a node gave."""
        found = self._given.get(name)
        if found is None or name in self._initializers:
            return name
        if found.data_location == TensorProto.EXTERNAL:
            self._weights.array(self._key(found), self._read(found))
            self._initializers[name] = self._weights.tensor(self._key(found), name)
        else:
            self._initializers[name] = found
        return name

    def _key(self, tensor: TensorProto) -> str:
        """What is read from one place is written to one."""
        found = {item.key: item.value for item in tensor.external_data}
        return f"{found['location']} {found['offset']}+{found['length']}"

    def _read(self, name: str | TensorProto) -> NDArray[Any]:
        tensor = self._given[name] if isinstance(name, str) else name
        if tensor.data_location != TensorProto.EXTERNAL:
            return numpy_helper.to_array(tensor)
        found = {item.key: item.value for item in tensor.external_data}
        kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return np.memmap(
            self._source.parent / found["location"],
            kind,
            "r",
            int(found["offset"]),
            tuple(tensor.dims),
        )

    def _store(self, key: str, name: str, values: Callable[[], NDArray[np.float32]]) -> str:
        """A matrix [rows, columns] in the precision of products."""
        if name not in self._initializers:
            if not self._weights.has(key):
                self._weights.array(key, values().astype(np.float16 if self._half else np.float32))
            self._initializers[name] = self._weights.tensor(key, name)
        return name

    def _matrix(self, name: str) -> str:
        found = self._given[name]
        return self._store(f"{self._key(found)} matrix", name, lambda: self._read(found))

    def _rounded(self, names: Sequence[str], rows: int, columns: int, bits: int, block: int) -> str:
        """A matrix that was rounded in blocks, by its values, scales and any zero points: in full, or as it is."""
        if self._blocks and columns % block == 0:
            return self._once(
                f"{names[0]}/in blocks",
                lambda to: self._in_blocks(names, rows, columns, bits, block, to),
            )
        values, scales, *zeros = names
        count = -(-columns // block)
        shape = rows, count, block * bits // 8

        def made() -> NDArray[np.float32]:
            points = self._read(zeros[0]).reshape(rows, -1) if zeros else None
            scale = self._read(scales).reshape(rows, count)
            return restore(Blocks(self._read(values).reshape(shape), scale, points, bits, columns))

        return self._store(f"{self._key(self._given[values])} {columns}", values, made)

    def _in_blocks(
        self, names: Sequence[str], rows: int, columns: int, bits: int, block: int, to: str
    ) -> str:
        """The same, as the standard operator takes it: values [rows, columns], the others [rows, blocks]."""
        count = columns // block
        kind = TensorProto.UINT4 if bits == 4 else TensorProto.UINT8
        for name, size in zip(names, (columns, count, count), strict=False):
            if name in self._initializers:
                continue
            key = self._key(self._given[name])
            if not self._weights.has(key):
                read = self._read(name)
                if name == names[-1] and len(names) == 3 and bits == 4 and count % 2:
                    # each row was filled up to whole bytes
                    zeros = unpacked(read.reshape(rows, -1), bits)[:, :count]
                    read = packed(zeros.reshape(-1).astype(np.float32), bits)
                self._weights.array(key, read)
            tensor = self._weights.tensor(key, name, shape=(rows, size))
            if name != names[1]:
                tensor.data_type = kind
            self._initializers[name] = tensor
        points = names[2] if len(names) == 3 else self._middles(rows, count, bits, kind)
        inputs = [*names[:2], points]
        return self._node_of("DequantizeLinear", inputs, to, axis=1, block_size=block)

    def _middles(self, rows: int, count: int, bits: int, kind: int) -> str:
        """Zero points [rows, count] of a symmetric matrix, which has none of its own."""
        name = f"middles/{rows}x{count}/{bits}"
        if name not in self._initializers:
            if not self._weights.has(name):
                numbers = np.full(rows * count, 2 ** (bits - 1), np.float32)
                self._weights.array(name, packed(numbers, bits))
            tensor = self._weights.tensor(name, name, shape=(rows, count))
            tensor.data_type = kind
            self._initializers[name] = tensor
        return name

    def _product(self, x: str, matrix: str, to: str) -> str:
        """x [.., columns] by a matrix [rows, columns] as it lies."""
        turned = self._once(
            f"{matrix}/turned", lambda name: self._node_of("Transpose", [matrix], name, perm=[1, 0])
        )
        return self._full(self._node_of("MatMul", [self._halved(x), turned], self._inner(to)), to)

    def _halved(self, x: str) -> str:
        """x as products take it."""
        if not self._half:
            return x
        return self._once(f"{x}/half", lambda name: self._cast(x, name, _HALF))

    def _inner(self, to: str) -> str:
        return f"{to}/half product" if self._half else to

    def _full(self, x: str, to: str) -> str:
        """What a product gave, in float32 and called `to`."""
        return self._cast(x, to, _FLOAT) if self._half else x

    def _rows(self, table: str, ids: str, to: str) -> None:
        self._full(self._node_of("Gather", [table, ids], self._inner(to), axis=0), to)

    def _rms(self, x: str, weight: str, epsilon: float, to: str) -> None:
        square = self._node_of("Mul", [x, x], f"{to}/square")
        mean = self._node_of("ReduceMean", [square, self._numbers(-1)], f"{to}/mean", keepdims=1)
        above = self._node_of("Add", [mean, self._number(epsilon)], f"{to}/above")
        root = self._node_of("Sqrt", [above], f"{to}/root")
        unit = self._node_of("Div", [x, root], f"{to}/unit")
        self._node_of("Mul", [unit, self._value(weight)], to)

    # ONNX Runtime's operators, one by one

    def fused_product(self, node: NodeProto) -> None:
        """x @ weight.T"""
        self._product(node.input[0], self._matrix(node.input[1]), node.output[0])

    def rounded_product(self, node: NodeProto) -> None:
        """The same of weights in blocks."""
        values = _attributes(node)
        x, *parts = node.input
        sizes = values["N"], values["K"], values["bits"], values["block_size"]
        self._product(x, self._rounded(parts, *sizes), node.output[0])

    def rounded_rows(self, node: NodeProto) -> None:
        """Rows of a table in blocks, filled up as they are there."""
        values = _attributes(node)
        table, ids, *parts = node.input
        to, (rows, size) = node.output[0], self._given[table].dims
        bits, block = values["bits"], values["block_size"]
        columns = size * 8 // bits
        if not self._blocks:
            self._rows(self._rounded([table, *parts], rows, columns, bits, block), ids, to)
            return
        # of the rows that are looked up alone: a table is large
        count = columns // block
        found = []
        for name, width in ((table, columns), *((part, count) for part in parts)):
            rounded = name != parts[0]
            stored = self._bytes(name, rows, width) if rounded and bits == 4 else self._value(name)
            row = self._node_of("Gather", [stored, ids], f"{to}/{name}", axis=0)
            number = self._cast(row, f"{row}/float", _FLOAT) if rounded else row
            apart = self._numbers(1, -1, count, width // count)
            found.append(self._node_of("Reshape", [number, apart], f"{row}/blocks"))
        value, scale, *zeros = found
        zero = zeros[0] if zeros else self._number(2 ** (bits - 1))
        moved = self._node_of("Sub", [value, zero], f"{to}/moved")
        scaled = self._node_of("Mul", [moved, scale], f"{to}/scaled")
        self._node_of("Reshape", [scaled, self._numbers(1, -1, columns)], to)

    def _bytes(self, name: str, rows: int, columns: int) -> str:
        """Numbers of 4 bits, two to a byte, as a byte each."""
        key, apart = f"{self._key(self._given[name])} apart", f"{name}/apart"
        if not self._weights.has(key):
            self._weights.array(key, unpacked(self._read(name).reshape(rows, -1), 4)[:, :columns])
        self._initializers[apart] = self._weights.tensor(key, apart)
        return apart

    def rms(self, node: NodeProto) -> None:
        """x / sqrt(mean(x^2) + epsilon) * weight"""
        values = _attributes(node)
        self._rms(node.input[0], node.input[1], values["epsilon"], node.output[0])

    def added_rms(self, node: NodeProto) -> None:
        """Of a sum, which is given too."""
        values = _attributes(node)
        x, added, weight = node.input
        together = self._node_of("Add", [x, added], node.output[3])
        self._rms(together, weight, values["epsilon"], node.output[0])

    def added_norm(self, node: NodeProto) -> None:
        """LayerNorm of a sum, which is given too."""
        values = _attributes(node)
        x, added, *parts = node.input
        together = self._node_of("Add", [x, added], node.output[3])
        inputs = [together, *map(self._value, parts)]
        self._node_of(
            "LayerNormalization", inputs, node.output[0], axis=-1, epsilon=values["epsilon"]
        )

    def identity(self, node: NodeProto) -> None:
        """No node."""
        self._rename(node.input[0], node.output[0])

    def silu(self, node: NodeProto) -> None:
        """x * sigmoid(x)"""
        values = _attributes(node)
        (x,), to = node.input, node.output[0]
        if values["alpha"] != 1:
            raise ModelError(f"{self._source} has a QuickGelu of alpha {values['alpha']}")
        self._node_of("Mul", [x, self._node_of("Sigmoid", [x], f"{to}/sigmoid")], to)

    def gelu(self, node: NodeProto) -> None:
        """The standard operator's two forms."""
        form = "tanh" if node.op_type == "FastGelu" else "none"
        self._node_of("Gelu", [node.input[0]], node.output[0], approximate=form)

    def rotary(self, node: NodeProto) -> None:
        """Of keys [1, tokens, heads * size] alone."""
        values = _attributes(node)
        x, _, cos, sin = node.input
        to, heads = node.output[0], values["num_heads"]
        # as a projection gives it: [1, heads, tokens, size]
        size = self._outputs[0].type.tensor_type.shape.dim[3].dim_value
        apart = self._node_of("Reshape", [x, self._numbers(1, -1, heads, size)], f"{to}/apart")
        first = self._node_of("Transpose", [apart], f"{to}/heads", perm=[0, 2, 1, 3])
        turned = self._turned(first, heads, size, cos, sin, values["interleaved"], f"{to}/turned")
        back = self._node_of("Transpose", [turned], f"{to}/back", perm=[0, 2, 1, 3])
        self._node_of("Reshape", [back, self._numbers(1, -1, heads * size)], to)

    def attention(self, node: NodeProto) -> None:
        """Of queries, keys and values [1, tokens, (heads + 2 * kv_heads) * size], over the cache and themselves.

        Neither the cache nor the new keys are copied: scores are of both apart, and only these are put together.
        """
        values = _attributes(node)
        x, _, _, past_key, past_value, _, _, *angles = node.input
        to, heads, shared = node.output[0], values["num_heads"], values["kv_num_heads"]
        (size,) = {
            item.type.tensor_type.shape.dim[3].dim_value
            for item in self._graph.input
            if item.name == past_key
        }
        split = self._numbers(1, -1, heads + 2 * shared, size)
        apart = self._node_of("Reshape", [x, split], f"{to}/apart")
        first = self._node_of("Transpose", [apart], f"{to}/heads", perm=[0, 2, 1, 3])
        both, value = f"{to}/queries and keys", f"{to}/value"
        self._split(first, [both, value], [heads + shared, shared], 1)
        if angles:
            (cos, sin), interleaved = angles, values.get("rotary_interleaved", 0)
            both = self._turned(both, heads + shared, size, cos, sin, interleaved, f"{to}/turned")
        query, key = f"{to}/query", f"{to}/key"
        self._split(both, [query, key], [heads, shared], 1)
        key, value = (
            self._gives_kept(part, node.output[place], shared, size)
            for place, part in ((1, key), (2, value))
        )
        scale = self._number(size**-0.5)
        query = self._halved(self._node_of("Mul", [query, scale], f"{query}/scaled"))
        groups = heads // shared
        if groups > 1:
            # heads that share a key lie together: as so many more rows
            rows = self._numbers(1, shared, -1, size)
            query = self._node_of("Reshape", [query, rows], f"{query}/rows")
        scores = []
        for name, keys in (("past", past_key), ("own", key)):
            turned = self._node_of("Transpose", [keys], f"{to}/{name}/keys", perm=[0, 1, 3, 2])
            found = f"{to}/{name}/scores"
            product = self._node_of("MatMul", [query, turned], self._inner(found))
            scores.append(self._full(product, found))
        together = self._node_of("Concat", scores, f"{to}/scores", axis=-1)
        window = values.get("local_window_size", -1)
        seen = self._node_of("Add", [together, self._bias(past_key, groups, window)], f"{to}/seen")
        shares = self._halved(self._node_of("Softmax", [seen], f"{to}/shares", axis=-1))
        count = self._columns(past_key)
        ends = (
            ("past", past_value, self._numbers(0), count),
            ("own", value, count, self._numbers(np.iinfo(np.int64).max)),
        )
        sums = []
        for name, columns, start, end in ends:
            part = self._node_of(
                "Slice", [shares, start, end, self._numbers(3)], f"{to}/{name}/shares"
            )
            sums.append(self._node_of("MatMul", [part, columns], f"{to}/{name}/sum"))
        summed = self._node_of("Add", sums, f"{to}/sum")
        if groups > 1:
            back = self._numbers(1, heads, -1, size)
            summed = self._node_of("Reshape", [summed, back], f"{to}/sum/heads")
        placed = self._node_of("Transpose", [summed], f"{to}/placed", perm=[0, 2, 1, 3])
        flat = self._numbers(1, -1, heads * size)
        self._full(self._node_of("Reshape", [placed, flat], self._inner(to)), to)

    def _gives_kept(self, x: str, present: str, heads: int, size: int) -> str:
        """Make keys or values of the tokens that are run an output, in the cache's precision, and return it."""
        _, layer, kind = present.split(".")
        name = f"{kind}.{layer}"
        kind_of = _HALF if self._half else _FLOAT
        if self._half:
            self._cast(x, name, kind_of)
        else:
            self._rename(x, name)
        shape: list[int | str | None] = [1, heads, "tokens", size]
        self._outputs.append(helper.make_tensor_value_info(name, kind_of, shape))
        return name

    def _columns(self, past: str) -> str:
        """int64 [1]: how many tokens the cache has room for, the same in all layers."""

        def make(name: str) -> str:
            shape = self._node_of("Shape", [past], f"{name}/shape")
            return self._node_of("Gather", [shape, self._numbers(2)], name, axis=0)

        return self._once("columns", make)

    def _bias(self, past: str, groups: int, window: int) -> str:
        """[groups * tokens, past + tokens]: 0 where a token attends to another one, else what takes its score away."""

        def make(name: str) -> str:
            rows = self._node_of("Reshape", [_PLACES, self._numbers(-1, 1)], f"{name}/rows")
            own = self._node_of("Reshape", [_PLACES, self._numbers(1, -1)], f"{name}/own")
            bounds = [self._numbers(at) for at in (0, 1, 0)]
            first = self._node_of("Slice", [rows, *bounds], f"{name}/first")
            # a row's own place is behind the first one's
            before = self._node_of("Min", [rows, first], f"{name}/before")
            count = self._node_of("Squeeze", [self._columns(past)], f"{name}/count")
            steps = self._node_of("Range", [self._whole(0), count, self._whole(1)], f"{name}/steps")
            columns = self._node_of("Unsqueeze", [steps, self._numbers(0)], f"{name}/columns")
            parts = []
            for kind, where, operator, bound in (
                ("past", columns, "Less", before),
                ("new", own, "LessOrEqual", rows),
            ):
                seen = self._node_of(operator, [where, bound], f"{name}/{kind}/before")
                if window > 0:
                    last = self._node_of(
                        "Sub", [rows, self._numbers(window)], f"{name}/{kind}/last"
                    )
                    near = self._node_of("Greater", [where, last], f"{name}/{kind}/near")
                    seen = self._node_of("And", [seen, near], f"{name}/{kind}/seen")
                choice = [seen, self._number(0.0), self._number(_AWAY)]
                parts.append(self._node_of("Where", choice, f"{name}/{kind}"))
            one = self._node_of("Concat", parts, f"{name}/one" if groups > 1 else name, axis=1)
            return one if groups == 1 else self._node_of("Concat", [one] * groups, name, axis=0)

        return self._once("bias", make)

    def _angles(self, table: str, interleaved: int) -> str:
        """Rows of cosines or sines of the tokens' places, for each column that is turned: [1, 1, tokens, 2 * half]."""

        def make(name: str) -> str:
            rows = self._node_of("Gather", [self._value(table), _PLACES], f"{name}/rows", axis=0)
            if interleaved:
                wide = self._node_of("Unsqueeze", [rows, self._numbers(3)], f"{name}/wide")
                both = self._node_of("Concat", [wide, wide], f"{name}/pairs", axis=3)
                flat = self._numbers(1, 1, -1, 2 * int(self._given[table].dims[1]))
                return self._node_of("Reshape", [both, flat], name)
            both = self._node_of("Concat", [rows, rows], f"{name}/both", axis=2)
            return self._node_of("Unsqueeze", [both, self._numbers(1)], name)

        return self._once(f"{table}/angles", make)

    def _turned(
        self, x: str, heads: int, size: int, cos: str, sin: str, interleaved: int, to: str
    ) -> str:
        """x [1, heads, tokens, size], its first columns turned by the angles of the tokens' places."""
        half = int(self._given[cos].dims[1])
        c, s = (self._angles(table, interleaved) for table in (cos, sin))
        rest, part = [], x
        if size > 2 * half:
            rest, part = [f"{to}/rest"], f"{to}/part"
            self._split(x, [part, *rest], [2 * half, size - 2 * half], 3)
        if interleaved:
            apart = self._numbers(1, heads, -1, half, 2)
            pairs = self._node_of("Reshape", [part, apart], f"{to}/apart")
            one, other = (
                self._node_of("Gather", [pairs, self._whole(at)], f"{to}/{at}", axis=4)
                for at in (0, 1)
            )
        else:
            one, other = f"{to}/0", f"{to}/1"
            self._split(part, [one, other], [half, half], 3)
        across = [self._node_of("Neg", [other], f"{to}/negative"), one]
        if interleaved:
            across = [
                self._node_of("Unsqueeze", [half_of, self._numbers(4)], f"{half_of}/wide")
                for half_of in across
            ]
            both = self._node_of("Concat", across, f"{to}/across/pairs", axis=4)
            flat = self._numbers(1, heads, -1, 2 * half)
            crossed = self._node_of("Reshape", [both, flat], f"{to}/across")
        else:
            crossed = self._node_of("Concat", across, f"{to}/across", axis=3)
        # in this form, which engines know and have an operator of their own for
        ahead = self._node_of("Mul", [part, c], f"{to}/cos")
        beside = self._node_of("Mul", [crossed, s], f"{to}/sin")
        found = self._node_of("Add", [ahead, beside], f"{to}/sum")
        return self._node_of("Concat", [found, *rest], to, axis=3) if rest else found

    def _split(self, x: str, names: Sequence[str], sizes: Sequence[int], axis: int) -> None:
        inputs = [x, self._numbers(*sizes)]
        self._nodes.append(helper.make_node("Split", inputs, list(names), axis=axis))


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


_OWN: Mapping[str, Callable[[_Rewriting, NodeProto], None]] = {
    "FastGelu": _Rewriting.gelu,
    "FusedMatMul": _Rewriting.fused_product,
    "GatherBlockQuantized": _Rewriting.rounded_rows,
    "Gelu": _Rewriting.gelu,
    "GroupQueryAttention": _Rewriting.attention,
    "Identity": _Rewriting.identity,
    "MatMulNBits": _Rewriting.rounded_product,
    "QuickGelu": _Rewriting.silu,
    "RotaryEmbedding": _Rewriting.rotary,
    "SimplifiedLayerNormalization": _Rewriting.rms,
    "SkipLayerNormalization": _Rewriting.added_norm,
    "SkipSimplifiedLayerNormalization": _Rewriting.added_rms,
}
"""By name, those that ship and are not standard, or have a standard form of other inputs."""
