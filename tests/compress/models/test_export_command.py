"""`compress export` of a reranker, whose head gives a score and no label: its encoder can be had all the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer

from codemill.compress.commands.export import export_command
from codemill.compress.models.load import load_teacher
from codemill.compress.models.pooling import pool
from codemill.compress.models.tokenize import tokenize
from codemill.errors import ModelError
from codemill.runtime import load_encoder

from .families import HEADED, LONGEST, noisy, save

TEXT = "def open_file(path): return path"


@pytest.fixture(params=sorted(HEADED))
def reranker(request: pytest.FixtureRequest, byte_pairs: Tokenizer, tmp_path: Path) -> Path:
    """A model with one output, saved as its library saves it."""
    model = noisy(HEADED[request.param](byte_pairs.get_vocab_size()))
    last = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 2]
    for layer in last:
        layer.weight = torch.nn.Parameter(layer.weight[:1].clone())
        layer.bias = torch.nn.Parameter(layer.bias[:1].clone())
    folder = save(model, byte_pairs, tmp_path / "reranker", old_files=False)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "id2label": {"0": "score"}, "label2id": {"score": 0}}))
    return folder


def test_a_rerankers_encoder_is_exported_without_its_head(reranker: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    CliRunner().invoke(
        export_command,
        [str(reranker), "--task", "encode", "--out", str(out)],
        catch_exceptions=False,
    )
    teacher = load_teacher(reranker, head=False)
    assert teacher.head is None
    ids = torch.from_numpy(tokenize(teacher.tokenizer_json, [TEXT], LONGEST)[0].astype("int64"))[
        None
    ]
    mask = torch.ones_like(ids)
    with torch.no_grad():
        hidden = teacher.model(input_ids=ids, attention_mask=mask).last_hidden_state
        expected = torch.nn.functional.normalize(pool(hidden, mask, "mean"))[0]
    with load_encoder(out) as encoder:
        assert encoder.encode([TEXT])[0] == pytest.approx(expected.numpy(), abs=1e-4)


def test_a_rerankers_score_is_no_label(reranker: Path, tmp_path: Path) -> None:
    arguments = [str(reranker), "--task", "classify", "--out", str(tmp_path / "out")]
    with pytest.raises(ModelError, match="has 1 output and is for"):
        CliRunner().invoke(export_command, arguments, catch_exceptions=False)
    assert not (tmp_path / "out").exists()
