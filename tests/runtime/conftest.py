"""Real bundles of a few kilobytes: a WordPiece tokenizer and a bag of words in ONNX, with heads or without."""

from __future__ import annotations

import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codemill.runtime import Variant, write_bundle

DIM = 64
MAX_TOKENS = 16
WORDS = [
    *("parse", "json", "file", "open", "close", "socket", "connect", "matrix", "multiply"),
    *("sort", "list", "read", "write", "def", "return", "self", "import", "value", "data"),
    *("text", "name", "the", "a", "of"),
]
MARKS = [*string.ascii_lowercase, *string.digits, *string.punctuation]
VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]"),
    *dict.fromkeys([*WORDS, *MARKS]),
    *(f"##{mark}" for mark in string.ascii_lowercase + string.digits),
]


def write_tokenizer(path: Path, pair: str | None = None) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    ids = {token: i for i, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=pair,
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    tokenizer.save(str(path))


def embedding_table() -> np.ndarray[Any, np.dtype[np.float32]]:
    table = np.random.default_rng(0).normal(size=(len(VOCABULARY), DIM))
    # words mean something, letters and marks hardly do
    table[4 + len(WORDS) :] *= 0.01
    table[:4] *= 0.01
    return table.astype(np.float32)


def write_encoder(path: Path, output: str = "embedding", input_name: str = "input_ids") -> None:
    """mean over the unmasked tokens of their embeddings, normalised: [batch, dim]"""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node
    graph = helper.make_graph(
        [
            node("Gather", ["table", input_name], ["rows"]),
            node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            node("Unsqueeze", ["mask", "last"], ["wide_mask"]),
            node("Mul", ["rows", "wide_mask"], ["kept"]),
            node("ReduceSum", ["kept", "tokens"], ["sum"], keepdims=0),
            node("LpNormalization", ["sum"], [output], axis=-1, p=2),
        ],
        "encoder",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
            for name in (input_name, "attention_mask")
        ],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", DIM])],
        [
            numpy_helper.from_array(embedding_table(), "table"),
            numpy_helper.from_array(np.array([-1], dtype=np.int64), "last"),
            numpy_helper.from_array(np.array([1], dtype=np.int64), "tokens"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())


LABELS = ("file", "socket", "matrix")
LAYERS = 6
JOINED = "[CLS] $A [SEP] $B [SEP]"
# what a part does to what it hands on
GROWTH = 2.0


def write_part(path: Path, first: bool, last: bool) -> None:
    """embedding: mean over the unmasked tokens; what it hands on: each token's, `GROWTH` times it"""
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node
    given, rows = ("input_ids", "rows") if first else ("hidden", "hidden")
    start = [node("Gather", ["table", "input_ids"], ["rows"])] if first else []
    after = "hidden" if first else "next_hidden"
    end = [] if last else [node("Mul", [rows, "growth"], [after])]
    kind = (TensorProto.INT64, ["batch", "tokens"])
    wide = (TensorProto.FLOAT, ["batch", "tokens", DIM])
    graph = helper.make_graph(
        [
            *start,
            node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            node("Unsqueeze", ["mask", "end"], ["wide_mask"]),
            node("Mul", [rows, "wide_mask"], ["kept"]),
            node("ReduceSum", ["kept", "tokens"], ["sum"], keepdims=0),
            node("ReduceSum", ["wide_mask", "tokens"], ["count"], keepdims=0),
            node("Div", ["sum", "count"], ["embedding"]),
            *end,
        ],
        "part",
        [
            helper.make_tensor_value_info(given, *(kind if first else wide)),
            helper.make_tensor_value_info("attention_mask", *kind),
        ],
        [
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", DIM]),
            *([] if last else [helper.make_tensor_value_info(after, *wide)]),
        ],
        [
            numpy_helper.from_array(embedding_table(), "table"),
            numpy_helper.from_array(np.array(GROWTH, dtype=np.float32), "growth"),
            numpy_helper.from_array(np.array([-1], dtype=np.int64), "end"),
            numpy_helper.from_array(np.array([1], dtype=np.int64), "tokens"),
        ],
    )
    _save(graph, path)


def head_weights() -> np.ndarray[Any, np.dtype[np.float32]]:
    """[dim, labels]: a label's logit is how much of the word there is"""
    found: np.ndarray[Any, np.dtype[np.float32]]
    found = embedding_table()[[VOCABULARY.index(label) for label in LABELS]].T / 4
    return found


def write_head(path: Path, pair: bool, scale: float = 1.0, output: str = "logits") -> None:
    """of the embedding, or of the product of two: how much of each label's word there is"""
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node
    names = ["first", "second"] if pair else ["first"]
    graph = helper.make_graph(
        [
            *([node("Mul", names, ["given"])] if pair else [node("Identity", names, ["given"])]),
            node("Tanh", ["given"], ["bounded"]),
            node("MatMul", ["bounded", "weights"], [output]),
        ],
        "head",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", DIM]) for n in names],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", len(LABELS)])],
        [numpy_helper.from_array((scale * head_weights()).astype(np.float32), "weights")],
    )
    _save(graph, path)


def _save(graph: Any, path: Path) -> None:
    import onnx
    from onnx import helper

    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())


def write_labels_bundle(
    folder: Path,
    *,
    texts: int = 1,
    joined: bool = False,
    exits: tuple[dict[str, Any], ...] = (),
    temperature: float = 1.0,
    **changes: Any,
) -> Path:
    """A bundle that labels, by the words of its labels; a later part sees them `GROWTH` times as clearly."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder / "tokenizer.json", JOINED if joined else None)
    home = "variants/cpu-fp32"
    names = [f"-{i}" for i in range(len(exits) + 1)] if exits else [""]
    segments = []
    for i, name in enumerate(names):
        segments += [f"{home}/encoder{name}.onnx", f"{home}/head{name}.onnx"]
        write_part(folder / segments[-2], first=i == 0, last=i + 1 == len(names))
        write_head(folder / segments[-1], pair=texts == 2 and not joined)
    variant = Variant("CPUExecutionProvider", "fp32", tuple(segments), tuple(segments))
    output = {"kind": "labels", "labels": list(LABELS), "dim": DIM, "temperature": temperature}
    known = {
        "task": "classification" if texts == 1 else "pair-classification",
        "input": {"max_tokens": MAX_TOKENS, "texts": texts, "joined": joined},
        "output": output,
        "architecture": {"layers": LAYERS},
        "exits": list(exits),
        "variants": {"cpu-fp32": variant},
    }
    write_bundle(folder, **fields(**{**known, **changes}))
    return folder


def cpu_variant(name: str, precision: str = "fp32", **changes: Any) -> Variant:
    path = f"variants/{name}/encoder.onnx"
    fields: dict[str, Any] = {
        "provider": "CPUExecutionProvider",
        "precision": precision,
        "segments": (path,),
        "files": (path,),
        **changes,
    }
    return Variant(**fields)


def fields(**changes: Any) -> dict[str, Any]:
    """What `write_bundle` needs besides the folder."""
    return {
        "name": "tiny",
        "task": "retrieval",
        "license": "Apache-2.0",
        "input": {"max_tokens": MAX_TOKENS},
        "output": {"kind": "embedding", "dim": DIM},
        "variants": {"cpu-fp32": cpu_variant("cpu-fp32")},
        "provenance": {"seed": 0},
        **changes,
    }


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle, made once; not to be written to."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    folder.mkdir()
    write_tokenizer(folder / "tokenizer.json")
    write_encoder(folder / "variants/cpu-fp32/encoder.onnx")
    write_bundle(folder, **fields())
    return folder


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to do with as a test likes."""
    return Path(shutil.copytree(built, tmp_path / "tiny"))


@pytest.fixture
def rewrite(bundle: Path) -> Callable[..., Path]:
    """Write the bundle's manifest again with other fields."""

    def write(**changes: Any) -> Path:
        write_bundle(bundle, **fields(**changes))
        return bundle

    return write


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("CODEMILL_CACHE", str(folder))
    return folder
