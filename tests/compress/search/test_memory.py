"""Formulas of peak activation memory against what ONNX Runtime takes from the system in a real run."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from codemill.compress.architecture import Architecture
from codemill.compress.models.bert import cut_student
from codemill.compress.search.memory import activation_bytes
from codemill.errors import RecipeError
from codemill.export.encoder import export_encoder
from codemill.export.fuse import fuse_encoder
from codemill.export.quantize.dynamic import quantize_dynamic_int8

ENCODERS = [
    # scores lead, feed-forward leads, one narrow layer
    (Architecture(300, 256, 2, 8, 32, 320, 256, None, (0, 1)), 8, 256),
    (Architecture(300, 256, 2, 4, 32, 1024, 256, 32, (0, 1)), 32, 128),
    (Architecture(300, 256, 1, 1, 32, 64, 256, 128, (0,)), 32, 128),
]
# One run's peak of resident memory over what the session and its inputs hold. Large blocks go straight
# to the system and back, in pages of the smallest size, so that the peak is what was alive.
MEASURE = """
import ctypes, sys
from pathlib import Path
libc = ctypes.CDLL(None)
libc.mallopt(-3, 1 << 16)
libc.prctl(41, 1, 0, 0, 0)
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.enable_cpu_mem_arena = options.enable_mem_pattern = False
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
batch, tokens = map(int, sys.argv[2:4])
feeds = {}
for item in session.get_inputs():
    if item.name == "position_ids":
        feeds[item.name] = np.arange(tokens)[None].repeat(batch, 0)
    elif len(item.shape) == 2:
        feeds[item.name] = np.ones((batch, tokens), np.int64)
    else:
        feeds[item.name] = np.zeros((batch, item.shape[1], 0, item.shape[3]), np.float32)
def kib(key):
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1])
session.run(None, feeds)
libc.malloc_trim(0)
Path("/proc/self/clear_refs").write_text("5")
before = kib("VmRSS")
session.run(None, feeds)
print(1024 * (kib("VmHWM") - before))
"""


def measured_bytes(graph: Path, batch: int, tokens: int) -> int:
    command = [sys.executable, "-c", MEASURE, str(graph), str(batch), str(tokens)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def check(architecture: Architecture, batch: int, tokens: int, graphs: dict[int, Path]) -> None:
    for bits, graph in graphs.items():
        predicted = activation_bytes(replace(architecture, bits=bits), tokens, batch)
        assert predicted == pytest.approx(measured_bytes(graph, batch, tokens), rel=0.1), bits


only_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")


@only_linux
@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "batch", "tokens"), ENCODERS)
def test_an_encoder_s_peak_is_within_a_tenth_of_a_real_run_s(
    architecture: Architecture, batch: int, tokens: int, tmp_path: Path
) -> None:
    config = BertConfig(
        vocab_size=300,
        hidden_size=256,
        num_hidden_layers=2,
        num_attention_heads=8,
        intermediate_size=1024,
        max_position_embeddings=256,
    )
    torch.manual_seed(0)
    teacher = BertModel(config, add_pooling_layer=False).eval()
    student = cut_student(teacher, architecture, range(300), [1] * 300)
    plain, fused, quantized = (tmp_path / f"{name}.onnx" for name in ("plain", "fused", "int8"))
    export_encoder(student, plain)
    fuse_encoder(plain, fused, architecture.heads, architecture.hidden_size)
    quantize_dynamic_int8(fused, quantized, reduce_range=True)
    check(architecture, batch, tokens, {32: fused, 8: quantized})


def test_a_decoder_has_no_formula() -> None:
    decoder = Architecture(300, 256, 3, 6, 32, 320, 512, None, family="llama", kv_heads=2)
    with pytest.raises(RecipeError, match="not of decoders"):
        activation_bytes(decoder, 40)


def test_arrays_take_what_their_numbers_take() -> None:
    for base, rank, bits in product((ENCODERS[0][0],), (None, 16), (8, 32)):
        hidden, layers = np.array([[256], [96]]), np.array([[1, 2, 5]])
        many = SimpleNamespace(**{**vars(base), "hidden_size": hidden, "layers": layers})
        many.embedding_rank, many.bits = rank, bits
        found = np.broadcast_to(activation_bytes(cast(Any, many), 40, 3), (2, 3))
        for row, column in product(range(2), range(3)):
            one = replace(
                base,
                hidden_size=int(hidden[row, 0]),
                layers=int(layers[0, column]),
                copied_layers=(),
                embedding_rank=rank,
                bits=bits,
            )
            assert found[row, column] == activation_bytes(one, 40, 3)
            assert type(activation_bytes(one, 40, 3)) is int


def test_scores_grow_with_the_square_of_the_length_and_all_else_with_the_batch() -> None:
    architecture = ENCODERS[0][0]
    short, long = (activation_bytes(architecture, tokens) for tokens in (4000, 8000))
    assert 3.5 < long / short < 4
    assert activation_bytes(architecture, 64, 8) == pytest.approx(
        8 * activation_bytes(architecture, 64), rel=0.01
    )
