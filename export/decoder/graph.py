"""The nodes of a decoder's parts: some of its layers, its head, and keys and values of layers that are skipped.

Every graph takes one sequence: attention is ONNX Runtime's GroupQueryAttention, whose past and present keys may be the
same buffer, so that nothing is copied; products are MatMulNBits (4 and 8 bits, in blocks) or, in float32,
FusedMatMul, which takes a matrix as it lies. Names of inputs and outputs are below; `runtime` knows them too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from codemill.export.decoder.rounding import FULL
from codemill.export.decoder.shape import Activation, DecoderShape, Rotary
from codemill.export.decoder.weights import Matrix, WeightFile

__all__ = [
    "Stored",
    "StoredExit",
    "StoredLayer",
    "write_exit",
    "write_head",
    "write_project",
    "write_segment",
    "write_whole",
]

_OPSETS = {"": 21, "com.microsoft": 1}
_IR_VERSION = 10
_MICROSOFT = "com.microsoft"
_FLOAT, _INT32, _INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64
_COS, _SIN, _POSITIONS = "rotary/cos", "rotary/sin", "positions/weight"


@dataclass(frozen=True)
class StoredLayer:
    """A layer's matrices in the file; its norms lie under `key`."""

    key: str
    qkv: Matrix
    out: Matrix
    up: Matrix
    down: Matrix


@dataclass(frozen=True)
class StoredExit:
    """An exit's matrices; its scale, shift and norm lie under `key`."""

    key: str
    up: Matrix
    down: Matrix


@dataclass(frozen=True)
class Stored:
    """A decoder in a file of weights. head: where tied, the words' own matrix."""

    shape: DecoderShape
    file: WeightFile
    words: Matrix
    widen: Matrix | None
    narrow: Matrix | None
    layers: tuple[StoredLayer, ...]
    head: Matrix
    rotary: Rotary | None


Stream = tuple[str, str | None]
"""The residual stream, and what is still to be added to it: the next norm does both in one node."""


@dataclass
class _Graph:
    """Nodes as they are added, with the initializers that they need."""

    stored: Stored
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    initializers: dict[str, TensorProto] = field(default_factory=dict)

    def node(
        self, operator: str, inputs: list[str], *outputs: str, domain: str = "", **values: Any
    ) -> str:
        made = helper.make_node(operator, inputs, list(outputs), domain=domain, **values)
        self.nodes.append(made)
        return outputs[0]

    def microsoft(self, operator: str, inputs: list[str], *outputs: str, **values: Any) -> str:
        return self.node(operator, inputs, *outputs, domain=_MICROSOFT, **values)

    def weight(
        self,
        key: str,
        name: str | None = None,
        rows: tuple[int, int] | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> str:
        name = name or key
        if name not in self.initializers:
            self.initializers[name] = self.stored.file.tensor(key, name, rows, shape)
        return name

    def constant(self, name: str, values: list[int]) -> str:
        if name not in self.initializers:
            self.initializers[name] = helper.make_tensor(name, _INT64, [len(values)], values)
        return name

    def takes(self, name: str, kind: int, shape: list[int | str]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def gives(self, name: str, shape: list[int | str], kind: int = _FLOAT) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def linear(self, x: str, matrix: Matrix, to: str, rows: tuple[int, int] | None = None) -> str:
        """x [1, tokens, columns] -> `to` [1, tokens, rows]; with `rows`, only those of the matrix."""
        count = matrix.rows if rows is None else rows[1] - rows[0]
        at = "" if rows is None else f"/{rows[0]}"
        key = matrix.key
        product = f"{to}/product" if matrix.biased else to
        if matrix.bits == FULL:
            weight = self.weight(f"{key}/weight", f"{key}/weight{at}", rows)
            self.microsoft("FusedMatMul", [x, weight], product, transB=1)
        else:
            parts = [
                self.weight(f"{key}/{part}", f"{key}/{part}{at}", rows) for part in matrix.parts
            ]
            self.microsoft(
                "MatMulNBits",
                [x, *parts],
                product,
                K=matrix.columns,
                N=count,
                bits=matrix.bits,
                block_size=matrix.block,
                accuracy_level=4,
            )
        if matrix.biased:
            self.node("Add", [product, self.weight(f"{key}/bias", f"{key}/bias{at}", rows)], to)
        return to

    def rows_of(self, ids: str, matrix: Matrix, to: str) -> str:
        """The rows of a matrix that `ids` [1, tokens] name: [1, tokens, columns]."""
        key = matrix.key
        if matrix.bits == FULL:
            return self.node("Gather", [self.weight(f"{key}/weight"), ids], to, axis=0)
        blocks = -(-matrix.columns // matrix.block)
        bytes_a_row = blocks * matrix.block * matrix.bits // 8
        values = self.weight(
            f"{key}/values", f"{key}/values/rows", shape=(matrix.rows, bytes_a_row)
        )
        inputs = [values, ids, *(self.weight(f"{key}/{part}") for part in matrix.parts[1:])]
        padded = blocks * matrix.block != matrix.columns
        found = self.microsoft(
            "GatherBlockQuantized",
            inputs,
            f"{to}/padded" if padded else to,
            bits=matrix.bits,
            block_size=matrix.block,
            gather_axis=0,
            quantize_axis=1,
        )
        if not padded:
            return found
        bounds = [
            self.constant(f"{to}/{name}", [at])
            for name, at in (("from", 0), ("to", matrix.columns), ("axis", 2))
        ]
        return self.node("Slice", [found, *bounds], to)

    def norm(self, x: str, key: str, to: str) -> str:
        shape = self.stored.shape
        if shape.norm == "rms":
            inputs = [x, self.weight(f"{key}/weight")]
            return self.node(
                "SimplifiedLayerNormalization",
                inputs,
                to,
                axis=-1,
                epsilon=shape.epsilon,
                stash_type=1,
            )
        inputs = [x, self.weight(f"{key}/weight"), self.weight(f"{key}/bias")]
        return self.node("LayerNormalization", inputs, to, axis=-1, epsilon=shape.epsilon)

    def added_norm(self, stream: Stream, key: str, to: str) -> tuple[str, str]:
        """The residual stream with what is to be added to it, and its norm: one node for both."""
        x, added = stream
        if added is None:
            return x, self.norm(x, key, to)
        shape = self.stored.shape
        operator, names = "SkipSimplifiedLayerNormalization", ["weight"]
        if shape.norm == "layer":
            operator, names = "SkipLayerNormalization", ["weight", "bias"]
        inputs = [x, added, *(self.weight(f"{key}/{name}") for name in names)]
        together = f"{to}/sum"
        self.microsoft(operator, inputs, to, "", "", together, epsilon=shape.epsilon)
        return together, to

    def words(self, ids: str, positions: str | None) -> str:
        """What the first layer takes of `ids` [1, tokens]."""
        stored = self.stored
        found = self.rows_of(ids, stored.words, "words/rows")
        if stored.widen is not None:
            found = self.linear(found, stored.widen, "words/wide")
        if positions is not None:
            places = self.node(
                "Gather", [self.weight(_POSITIONS), positions], "words/places", axis=0
            )
            found = self.node("Add", [found, places], "words/placed")
        return found

    def layer(self, number: int, stream: Stream, seqlens: str, total: str) -> Stream:
        """Hidden states after this layer; its keys and values become inputs and outputs of the graph."""
        shape, layer = self.stored.shape, self.stored.layers[number]
        at = f"layer.{number}"
        x, normed = self.added_norm(stream, f"{layer.key}/norm", f"{at}/normed")
        qkv = self.linear(normed, layer.qkv, f"{at}/qkv")
        cache: list[int | str] = [1, shape.kv_heads, "past", shape.head_size]
        kept: list[int | str] = [1, shape.kv_heads, "total", shape.head_size]
        past = [
            self.takes(f"past_key_values.{number}.{kind}", _FLOAT, list(cache))
            for kind in ("key", "value")
        ]
        present = [f"present.{number}.{kind}" for kind in ("key", "value")]
        for name in present:
            self.gives(name, list(kept))
        rotary = self.stored.rotary
        turned = [] if rotary is None else [self.weight(_COS), self.weight(_SIN)]
        options = (
            {}
            if rotary is None
            else {"do_rotary": 1, "rotary_interleaved": int(rotary.interleaved)}
        )
        self.microsoft(
            "GroupQueryAttention",
            [qkv, "", "", *past, seqlens, total, *turned],
            f"{at}/attended",
            *present,
            num_heads=shape.heads,
            kv_num_heads=shape.kv_heads,
            local_window_size=-1 if shape.window is None else shape.window,
            **options,
        )
        attended = self.linear(f"{at}/attended", layer.out, f"{at}/attention")
        if shape.parallel:
            beside = self._feed_forward(normed, layer, at)
            return x, self.node("Add", [attended, beside], f"{at}/both")
        middle, normed = self.added_norm((x, attended), f"{layer.key}/mlp_norm", f"{at}/mlp_normed")
        return middle, self._feed_forward(normed, layer, at)

    def _feed_forward(self, x: str, layer: StoredLayer, at: str) -> str:
        shape = self.stored.shape
        if shape.gated:
            inner = self.gated(x, layer.up, at, shape.activation)
        else:
            wide = self.linear(x, layer.up, f"{at}/up")
            inner = self._activated(wide, shape.activation, f"{at}/inner")
        return self.linear(inner, layer.down, f"{at}/down")

    def gated(self, x: str, up: Matrix, at: str, activation: Activation) -> str:
        """act(gate x) * up x, of a matrix with the rows of the gate, then of up."""
        # one large product is faster than two
        both = self.linear(x, up, f"{at}/gate_up")
        gate, wide = f"{at}/gate", f"{at}/up"
        self.node("Split", [both], gate, wide, axis=-1, num_outputs=2)
        gate = self._activated(gate, activation, f"{at}/gated")
        return self.node("Mul", [gate, wide], f"{at}/inner")

    def _activated(self, x: str, kind: Activation, to: str) -> str:
        if kind == "silu":
            return self.microsoft("QuickGelu", [x], to, alpha=1.0)
        if kind == "gelu_tanh":
            return self.microsoft("FastGelu", [x], to)
        if kind == "gelu":
            return self.microsoft("Gelu", [x], to)
        return self.node("Relu", [x], to)

    def state(self, stream: Stream, to: str) -> str:
        """What the head takes: hidden states after the last norm."""
        return self.added_norm(stream, "last_norm", to)[1]

    def logits(self, state: str, to: str) -> str:
        stored = self.stored
        if stored.narrow is not None:
            state = self.linear(state, stored.narrow, "head/narrow")
        return self.linear(state, stored.head, to)

    def save(self, path: Path) -> None:
        graph = helper.make_graph(
            self.nodes, path.stem, self.inputs, self.outputs, list(self.initializers.values())
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS.items()]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="codemill")
        model.ir_version = _IR_VERSION
        path.write_bytes(model.SerializeToString(deterministic=True))


def write_segment(stored: Stored, path: Path, start: int, end: int) -> None:
    """Layers [start, end). Takes input_ids int64 [1, tokens] (from layer 0) or hidden float32 [1, tokens, width].

    And seqlens_k int32 [1], one less than the tokens that are there with these, total_sequence_length int32 [1], and
    past_key_values.N.key, .value float32 [1, kv_heads, past, head_size] for each layer. Where positions are learned,
    the first one takes position_ids int64 [1, tokens]. Gives hidden_out [1, tokens, width] or, after the last layer,
    state (normalised), and present.N.key, .value.
    """
    shape = stored.shape
    graph = _Graph(stored)
    if start:
        x = graph.takes("hidden", _FLOAT, [1, "tokens", shape.width])
    else:
        ids = graph.takes("input_ids", _INT64, [1, "tokens"])
        positions = graph.takes("position_ids", _INT64, [1, "tokens"]) if shape.positions else None
        x = graph.words(ids, positions)
    seqlens = graph.takes("seqlens_k", _INT32, [1])
    total = graph.takes("total_sequence_length", _INT32, [1])
    stream: Stream = (x, None)
    for number in range(start, end):
        stream = graph.layer(number, stream, seqlens, total)
    if end == shape.layers:
        graph.node("Identity", [graph.state(stream, "last/state")], "state")
        graph.gives("state", [1, "tokens", shape.width])
    else:
        graph.node("Add", [part for part in stream if part is not None], "hidden_out")
        graph.gives("hidden_out", [1, "tokens", shape.width])
    graph.save(path)


def write_exit(stored: Stored, path: Path, exit: StoredExit, controller: Matrix) -> None:
    """hidden float32 [1, tokens, width] -> state, what the head takes, and decision [1, tokens, 3], probabilities."""
    shape = stored.shape
    graph = _Graph(stored)
    hidden = graph.takes("hidden", _FLOAT, [1, "tokens", shape.width])
    scaled = graph.node("Mul", [hidden, graph.weight(f"{exit.key}/scale")], "scaled")
    x = graph.node("Add", [scaled, graph.weight(f"{exit.key}/shift")], "shifted")
    normed = graph.norm(x, f"{exit.key}/norm", "normed")
    product = graph.gated(normed, exit.up, "exit", "silu")
    added = graph.linear(product, exit.down, "down")
    state = graph.node("Identity", [graph.state((x, added), "adapted")], "state")
    chosen = graph.linear(state, controller, "chosen")
    graph.node("Softmax", [chosen], "decision", axis=-1)
    graph.gives("state", [1, "tokens", shape.width])
    graph.gives("decision", [1, "tokens", controller.rows])
    graph.save(path)


def write_head(stored: Stored, path: Path) -> None:
    """state float32 [1, tokens, width] -> logits float32 [1, tokens, vocab]."""
    graph = _Graph(stored)
    state = graph.takes("state", _FLOAT, [1, "tokens", stored.shape.width])
    graph.logits(state, "logits")
    graph.gives("logits", [1, "tokens", stored.shape.vocab_size])
    graph.save(path)


def write_project(stored: Stored, path: Path, start: int) -> None:
    """Keys and values of the layers from `start`, from hidden states that were meant for the first of them.

    Takes hidden float32 [1, tokens, width] and position_ids int64 [1, tokens]; gives key.N, value.N
    [1, kv_heads, tokens, head_size], keys turned: what SEC (2401.09964) fills a skipped layer's cache with.
    """
    shape, rotary = stored.shape, stored.rotary
    graph = _Graph(stored)
    hidden = graph.takes("hidden", _FLOAT, [1, "tokens", shape.width])
    positions = None
    if rotary is not None:
        positions = graph.takes("position_ids", _INT64, [1, "tokens"])
    query, size = shape.query_size, shape.kv_size
    split = graph.constant("heads", [1, -1, shape.kv_heads, shape.head_size])
    for number in range(start, shape.layers):
        layer, at = stored.layers[number], f"layer.{number}"
        normed = graph.norm(hidden, f"{layer.key}/norm", f"{at}/normed")
        for kind, first in (("key", query), ("value", query + size)):
            flat = graph.linear(normed, layer.qkv, f"{at}/{kind}", (first, first + size))
            if kind == "key" and rotary is not None and positions is not None:
                flat = graph.microsoft(
                    "RotaryEmbedding",
                    [flat, positions, graph.weight(_COS), graph.weight(_SIN)],
                    f"{at}/turned",
                    interleaved=int(rotary.interleaved),
                    num_heads=shape.kv_heads,
                    rotary_embedding_dim=0 if rotary.turned == shape.head_size else rotary.turned,
                )
            heads = graph.node("Reshape", [flat, split], f"{at}/{kind}/heads")
            name = f"{kind}.{number}"
            graph.node("Transpose", [heads], name, perm=[0, 2, 1, 3])
            graph.gives(name, [1, shape.kv_heads, "tokens", shape.head_size])
    graph.save(path)


def write_whole(stored: Stored, path: Path) -> None:
    """All layers and the head as one graph, for other runtimes: onnxruntime-genai's names, over the same weights.

    input_ids, attention_mask int64 [1, tokens], [1, past + tokens]; past_key_values.N.*; logits [1, tokens, vocab],
    present.N.*.
    """
    shape = stored.shape
    graph = _Graph(stored)
    ids = graph.takes("input_ids", _INT64, [1, "tokens"])
    mask = graph.takes("attention_mask", _INT64, [1, "total"])
    positions = graph.takes("position_ids", _INT64, [1, "tokens"]) if shape.positions else None
    one, axis = graph.constant("one", [1]), graph.constant("axis", [1])
    total = graph.node(
        "Slice",
        [graph.node("Shape", [mask], "mask/shape"), one, graph.constant("two", [2])],
        "mask/total",
    )
    total = graph.node("Cast", [total], "mask/total32", to=_INT32)
    summed = graph.node("ReduceSum", [mask, axis], "mask/sum", keepdims=0)
    last = graph.node("Sub", [summed, one], "mask/last")
    seqlens = graph.node("Cast", [last], "mask/seqlens", to=_INT32)
    x = graph.words(ids, positions)
    stream: Stream = (x, None)
    for number in range(shape.layers):
        stream = graph.layer(number, stream, seqlens, total)
    graph.logits(graph.state(stream, "state"), "logits")
    graph.gives("logits", [1, "tokens", shape.vocab_size])
    graph.save(path)
