"""The teacher's worker speaks the benchmark's protocol and encodes as the teacher does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from codemill.compress.models.load import TeacherModel
from codemill.compress.models.pooling import embed_all
from codemill.compress.models.tokenize import tokenize

TEXTS = ["def open_file(name): return open(name)", "close", "sort the table " * 20]


def talk(arguments: list[str], *requests: object) -> tuple[int, list[dict[str, object]]]:
    command = [sys.executable, "-m", "codemill.compress.teacher_worker", *arguments]
    ended = subprocess.run(
        command,
        input="".join(json.dumps(request) + "\n" for request in requests),
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=120,
    )
    # nothing but the protocol is on stdout
    return ended.returncode, [json.loads(line) for line in ended.stdout.splitlines()]


@pytest.mark.slow
def test_the_worker_encodes_counts_and_times_like_the_teacher(
    made_model: Path, teacher: TeacherModel, tmp_path: Path
) -> None:
    with torch.no_grad():
        teacher.model.encoder.layer[2].output.dense.weight.mul_(0.5)
    save_file(teacher.model.state_dict(), tmp_path / "tuned.safetensors")
    out = tmp_path / "rows.npy"
    arguments = [str(made_model), "--max-tokens", "50", "--threads", "1", "--name", "tuned"]
    code, answers = talk(
        [*arguments, "--weights", str(tmp_path / "tuned.safetensors")],
        {"op": "encode", "texts": TEXTS, "out": str(out)},
        {"op": "count", "texts": TEXTS},
        {"op": "time", "texts": TEXTS, "repeats": 2, "warmup": 0},
        {"op": "nonsense"},
        {"op": "info"},
        {"op": "close"},
    )
    ready, encoded, counted, timed, wrong, info = answers
    assert code == 0
    assert (ready["ready"], ready["engine"], ready["threads"]) == (True, "tuned", 1)
    assert encoded["rows"] == 3
    tokens = tokenize(teacher.tokenizer_json, TEXTS, 50)
    assert np.allclose(np.load(out), embed_all(teacher.model, tokens), atol=1e-5)
    full = tokenize(teacher.tokenizer_json, TEXTS, 10_000)
    assert counted["tokens"] == [len(ids) for ids in full], "not cut"
    assert len(full[2]) > 50
    assert len(timed["ms"]) == 2  # type: ignore[arg-type]
    assert "nonsense" in str(wrong["error"])
    assert (info["provider"], info["precision"]) == ("PyTorch CPU", "fp32")
    assert int(str(info["peak_rss_bytes"])) > 10_000_000


def test_a_model_that_cannot_be_loaded_is_an_answer_and_an_exit_code(tmp_path: Path) -> None:
    code, answers = talk([str(tmp_path)])
    assert code == 1
    assert answers[0]["kind"] == "ModelError"
    assert "no config.json" in str(answers[0]["error"])
