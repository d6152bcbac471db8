"""A bundle folder with its variants, accepted by the runtime; what does not reproduce torch is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertModel

from codemill import load
from codemill.compress.models.pooling import embed
from codemill.errors import CodemillError, ModelError
from codemill.export import candidates, encoder, fuse
from codemill.export.candidates import FP32, INT8, graph_file, write_candidates
from codemill.runtime import read_manifest, verify_bundle


def tokenizer_json() -> str:
    words = {
        word: number for number, word in enumerate(["[PAD]", "[UNK]", "open", "close", "file"])
    }
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return str(tokenizer.to_str())


@pytest.fixture
def arguments(graphs: Any) -> dict[str, Any]:
    ids = np.array([[2, 4, 0], [3, 4, 2]], dtype=np.int64)
    mask = np.array([[1, 1, 0], [1, 1, 1]], dtype=np.int64)
    return {
        "heads": graphs.heads,
        "tokenizer_json": tokenizer_json(),
        "max_tokens": 40,
        "precisions": ("fp32", "int8"),
        "name": "made-up",
        "sample": (ids, mask),
        "expected": graphs.in_torch((ids, mask)),
        "architecture": {"layers": 1},
    }


def test_a_bundle_with_both_variants_loads_and_encodes_like_torch(
    graphs: Any, arguments: dict[str, Any], tmp_path: Path
) -> None:
    write_candidates(graphs.model, tmp_path, **arguments)
    verify_bundle(tmp_path)
    manifest = read_manifest(tmp_path)
    assert set(manifest.variants) == {FP32, INT8}
    assert dict(manifest.output) == {"kind": "embedding", "dim": 64}
    assert dict(manifest.architecture) == {"layers": 1}
    for variant, tolerance in ((FP32, 1e-5), (INT8, 0.1)):
        with load(tmp_path, variant=variant, threads=1) as model:
            found = model.encode(["open file", "close file open"])
        assert np.abs(found - arguments["expected"]).max() < tolerance


def test_only_the_asked_for_variants_are_written(
    graphs: Any, arguments: dict[str, Any], tmp_path: Path
) -> None:
    write_candidates(graphs.model, tmp_path, **{**arguments, "precisions": ("fp32",)})
    assert set(read_manifest(tmp_path).variants) == {FP32}
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {"manifest.json", "tokenizer.json", graph_file(FP32)}


def test_a_graph_that_differs_from_torch_is_refused_with_the_difference(
    graphs: Any, arguments: dict[str, Any], tmp_path: Path
) -> None:
    wrong = arguments["expected"].copy()
    wrong[1, 3] += 0.01
    with pytest.raises(CodemillError, match=r"the plain ONNX graph differs from torch by 0\.01"):
        write_candidates(graphs.model, tmp_path, **{**arguments, "expected": wrong})
    with pytest.raises(CodemillError, match="by nan"):
        write_candidates(graphs.model, tmp_path, **{**arguments, "expected": wrong * np.nan})
    assert not (tmp_path / "manifest.json").exists()


def test_a_fused_graph_that_differs_is_refused_too(
    graphs: Any, arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(plain: Path, fused: Path, heads: int, hidden_size: int) -> None:
        fuse.fuse_encoder(plain, fused, heads, hidden_size)
        graph = onnx.load(str(fused))
        # a mean over a hundred tokens at least
        (tiny,) = [t for t in graph.graph.initializer if t.name == "pool/tiny"]
        tiny.CopyFrom(onnx.numpy_helper.from_array(np.array(100, dtype=np.float32), "pool/tiny"))
        onnx.save(graph, str(fused))

    monkeypatch.setattr(candidates, "fuse_encoder", spoiled)
    with pytest.raises(CodemillError, match="the fused ONNX graph differs from torch"):
        write_candidates(graphs.model, tmp_path, **arguments)


# ONNX Runtime's optimizer leaves its temporary folder to the garbage collector when it fails
@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
def test_what_the_optimizer_raises_is_translated(tmp_path: Path) -> None:
    (tmp_path / "plain.onnx").write_bytes(b"no graph")
    with pytest.raises(CodemillError, match=r"optimizer failed on plain\.onnx"):
        fuse.fuse_encoder(tmp_path / "plain.onnx", tmp_path / "fused.onnx", 4, 64)


def test_a_family_the_exporters_do_not_know_is_a_model_error(
    graphs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs.model.config, "model_type", "mystery")
    with pytest.raises(ModelError, match="models of type 'mystery' cannot be exported"):
        encoder.export_encoder(graphs.model, tmp_path / "plain.onnx")


def test_an_embedding_of_no_token_is_no_division_by_zero(graphs: Any, tmp_path: Path) -> None:
    import onnxruntime

    ids = np.zeros((1, 4), dtype=np.int64)
    for path in (graphs.plain, graphs.fused):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"input_ids": ids, "attention_mask": ids})
        assert np.isfinite(found).all()
    with torch.inference_mode():
        assert torch.isfinite(
            embed(graphs.model, torch.from_numpy(ids), torch.from_numpy(ids))
        ).all()


def test_exporting_leaves_the_model_as_it_was(graphs: Any, tmp_path: Path) -> None:
    model: BertModel = graphs.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    encoder.export_encoder(model, tmp_path / "plain.onnx")
    assert not model.training
    assert all(torch.equal(before[name], v) for name, v in model.state_dict().items())
