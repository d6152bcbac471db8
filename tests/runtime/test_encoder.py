from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from codemill.errors import BundleError, IntegrityError
from codemill.runtime import Encoder, load, read_manifest, verify_bundle

from .conftest import DIM, MAX_TOKENS, embedding_table, write_encoder

ENCODER = "variants/cpu-fp32/encoder.onnx"
TEXTS = ["parse a json file", "", "close", "read " * 40, "sort the list of data", "é ☃"]


@pytest.fixture
def encoder(built: Path) -> Iterator[Encoder]:
    with load(built, threads=1) as encoder:
        yield encoder


def reference(folder: Path, texts: list[str]) -> NDArray[np.float32]:
    """What the graph computes, one text at a time and without padding."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    table = embedding_table()
    rows = np.stack([table[tokenizer.encode(text).ids].sum(axis=0) for text in texts])
    result: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return result


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_rows_are_those_of_the_texts_in_their_order_whatever_the_batches(
    encoder: Encoder, built: Path, batch_size: int
) -> None:
    found = encoder.encode(TEXTS, batch_size=batch_size)
    assert found.dtype == np.float32
    assert found.shape == (len(TEXTS), DIM)
    np.testing.assert_allclose(found, reference(built, TEXTS), atol=1e-6)


def test_more_texts_than_are_tokenized_at_a_time_keep_their_order(
    encoder: Encoder, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codemill.runtime.encoder._WINDOW", 3)
    texts = [
        f"{word} data" for word in ["parse", "json", "file", "open", "close", "socket", "sort"]
    ]
    np.testing.assert_allclose(encoder.encode(texts), reference(built, texts), atol=1e-6)


def test_the_same_texts_give_the_same_bits(encoder: Encoder) -> None:
    assert np.array_equal(encoder.encode(TEXTS), encoder.encode(TEXTS))


def test_no_texts_give_no_rows(encoder: Encoder) -> None:
    found = encoder.encode([])
    assert found.dtype == np.float32
    assert found.shape == (0, DIM)


def test_one_text_instead_of_a_list_is_a_type_error_that_says_so(encoder: Encoder) -> None:
    with pytest.raises(TypeError, match=r"pass a list of texts, not one str: encode\(\[text\]\)"):
        encoder.encode("parse")
    with pytest.raises(TypeError, match="not one bytes"):
        encoder.encode(b"parse")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not generator"):
        encoder.encode(text for text in TEXTS)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [None, 3, b"x", ["x"]])
def test_a_text_that_is_none_is_a_type_error_with_its_index(encoder: Encoder, wrong: Any) -> None:
    with pytest.raises(TypeError, match=rf"texts\[1\] .*found {type(wrong).__name__}"):
        encoder.encode(["fine", wrong])
    with pytest.raises(TypeError, match=r"texts\[0\]"):
        encoder.count_tokens([wrong])


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True])
def test_a_batch_size_that_is_none_is_a_value_error(encoder: Encoder, batch_size: Any) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        encoder.encode(TEXTS, batch_size=batch_size)


def test_tokens_are_counted_with_the_special_ones_before_cutting(encoder: Encoder) -> None:
    assert encoder.count_tokens(["parse json", "", "read " * 40]) == [4, 2, 42]
    # and counting does not change what is encoded
    assert encoder.encode(["read " * 40]).shape == (1, DIM)


def test_what_is_beyond_the_last_token_makes_no_difference(encoder: Encoder) -> None:
    fits = "read " * (MAX_TOKENS - 2)
    assert np.array_equal(encoder.encode([fits]), encoder.encode([fits + "socket"]))


def test_half_a_surrogate_pair_is_text_like_any_other(encoder: Encoder) -> None:
    found = encoder.encode(["parse \ud800"])
    assert np.array_equal(found, encoder.encode(["parse ?"]))
    assert encoder.count_tokens(["parse \ud800"]) == [4]


def test_threads_may_share_an_encoder(encoder: Encoder) -> None:
    expected = encoder.encode(TEXTS)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: encoder.encode(TEXTS), range(64)))
        counts = list(pool.map(lambda _: encoder.count_tokens(TEXTS), range(64)))
    assert all(np.array_equal(item, expected) for item in found)
    assert counts == [encoder.count_tokens(TEXTS)] * 64


def test_a_closed_encoder_says_so(built: Path) -> None:
    with load(built) as encoder:
        pass
    encoder.close()
    with pytest.raises(RuntimeError, match="the encoder is closed"):
        encoder.encode(["parse"])


def test_an_encoder_tells_what_it_runs(encoder: Encoder, built: Path) -> None:
    assert (encoder.dim, encoder.variant) == (DIM, "cpu-fp32")
    assert encoder.manifest == read_manifest(built)
    assert encoder.digest == verify_bundle(built)
    assert repr(encoder) == f"Encoder('tiny', variant='cpu-fp32', dim={DIM})"


@pytest.mark.parametrize("name", ["tokenizer.json", ENCODER])
def test_a_bundle_with_one_changed_bit_is_not_loaded(bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[-5] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(IntegrityError, match="was changed"):
        load(bundle)


def test_no_bundle_there_is_a_bundle_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no bundle"):
        load(tmp_path / "none")


def test_another_task_is_a_bundle_error_that_names_what_runs(rewrite: Callable[..., Path]) -> None:
    with pytest.raises(BundleError, match=r"made for 'poetry'.*runs: retrieval"):
        load(rewrite(task="poetry"))
    with pytest.raises(BundleError, match="output 'labels'"):
        load(rewrite(output={"kind": "labels"}))


def test_another_width_than_the_manifests_is_a_bundle_error(rewrite: Callable[..., Path]) -> None:
    with pytest.raises(BundleError, match=rf"\[batch, {DIM + 1}\]"):
        load(rewrite(output={"kind": "embedding", "dim": DIM + 1}))


def test_a_graph_of_another_interface_is_a_bundle_error(
    bundle: Path, rewrite: Callable[..., Path]
) -> None:
    write_encoder(bundle / ENCODER, input_name="words")
    with pytest.raises(BundleError, match=r"takes .*'words'.*an encoder takes .*'input_ids'"):
        load(rewrite())


def test_a_tokenizer_that_cannot_be_read_is_a_bundle_error(
    bundle: Path, rewrite: Callable[..., Path]
) -> None:
    (bundle / "tokenizer.json").write_bytes(b"{}\xff")
    with pytest.raises(BundleError, match=r"tokenizer\.json of .* cannot be read"):
        load(rewrite())


class Recording:
    """A backend that answers `value` everywhere and keeps what it was given."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.inputs: list[Mapping[str, NDArray[np.int64]]] = []

    def outputs_for(
        self, inputs: Mapping[str, NDArray[np.int64]], _: Sequence[str]
    ) -> list[NDArray[np.float32]]:
        self.inputs.append(inputs)
        return [np.full((len(inputs["input_ids"]), DIM), self.value, dtype=np.float32)]

    def close(self) -> None:
        self.value = 0


def encoder_on(built: Path, backend: Recording, tokenizer: Tokenizer | None = None) -> Encoder:
    content = (built / "tokenizer.json").read_bytes()
    tokenizer = tokenizer or Tokenizer.from_buffer(content)
    return Encoder(read_manifest(built), "cpu-fp32", tokenizer, backend, content)


def test_numbers_that_are_none_are_a_bundle_error(built: Path) -> None:
    with pytest.raises(BundleError, match="not numbers"):
        encoder_on(built, Recording(np.nan)).encode(["parse"])


def test_batches_hold_texts_of_similar_length_and_are_padded_to_their_longest(built: Path) -> None:
    backend = Recording(1)
    texts = ["read", "read read read read", "read", "read read read"]
    encoder_on(built, backend).encode(texts, batch_size=2)
    assert [inputs["input_ids"].shape for inputs in backend.inputs] == [(2, 6), (2, 3)]
    mask = backend.inputs[0]["attention_mask"]
    assert mask.tolist() == [[1] * 6, [1] * 5 + [0]]
    assert backend.inputs[0]["input_ids"][1, 5] == 0


def test_one_run_holds_1024_padded_tokens_at_most(built: Path) -> None:
    backend = Recording(1)
    texts = ["read"] * 500 + ["read " * MAX_TOKENS] * 70
    encoder_on(built, backend).encode(texts, batch_size=200)
    shapes = [inputs["input_ids"].shape for inputs in backend.inputs]
    assert shapes == [(1024 // MAX_TOKENS, MAX_TOKENS)] * 2 + [(200, 3), (200, 3), (42, 3)]


def test_padding_is_what_the_tokenizer_says(built: Path) -> None:
    tokenizer = Tokenizer.from_file(str(built / "tokenizer.json"))
    tokenizer.enable_padding(pad_id=7, pad_token="?", length=32)
    backend = Recording(1)
    encoder_on(built, backend, tokenizer).encode(["read", "read read"])
    assert backend.inputs[0]["input_ids"].shape == (2, 4)
    assert backend.inputs[0]["input_ids"][1, 3] == 7


def test_a_text_without_a_token_has_something_to_pool(built: Path) -> None:
    data = json.loads((built / "tokenizer.json").read_bytes())
    data["post_processor"] = None
    backend = Recording(1)
    encoder_on(built, backend, Tokenizer.from_str(json.dumps(data))).encode([""])
    assert backend.inputs[0]["attention_mask"].tolist() == [[1]]


COLD = """
import codemill, json, sys
with codemill.load(sys.argv[1]) as model:
    shape = model.encode(["def f(): return 1"]).shape
with open("/proc/self/status") as file:
    peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
print(json.dumps({"shape": shape, "modules": sorted(sys.modules), "peak_rss_bytes": peak * 1024}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_fresh_process_encodes_without_the_toolchain_and_within_its_memory(
    built: Path,
) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", COLD, str(built)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    loaded = {name.partition(".")[0] for name in found["modules"]}
    assert found["shape"] == [1, DIM]
    assert not loaded & {"torch", "transformers", "click", "onnx", "psutil", "rich", "pydantic"}
    assert found["peak_rss_bytes"] <= 150e6


def test_importing_the_package_imports_no_library() -> None:
    code = "import codemill, sys; print(*sorted(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert not {"numpy", "onnxruntime", "tokenizers"} & set(result.stdout.split())
