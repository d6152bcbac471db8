"""Decoders as a user has them: a folder of each family, shards, a GGUF file; what their tokenizers say of prompts."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    CodeGenConfig,
    GPT2Config,
    GPTBigCodeConfig,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
    Starcoder2Config,
)

from codemill.compress.models.causal import open_causal, prompting_of
from codemill.compress.models.gguf_tokenizer import GgufTokenizer, read_gguf_tokenizer
from codemill.errors import ModelError
from codemill.export.decoder.families import of_module
from codemill.export.decoder.shape import DecoderWeights

LLAMA: dict[str, Any] = {
    **{"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
}
GPT2: dict[str, Any] = {
    "vocab_size": 300,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
}
CONFIGS = [
    LlamaConfig(**LLAMA, tie_word_embeddings=True),
    Qwen2Config(**LLAMA),
    Starcoder2Config(**LLAMA),
    GPT2Config(**GPT2),
    GPTBigCodeConfig(**GPT2),
    CodeGenConfig(**GPT2, n_ctx=64, rotary_dim=4),
]
MARKS = ("<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>")


def tokenizer(*marks: str, begin: str | None = None) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    found = Tokenizer(models.BPE({token: n for n, token in enumerate(alphabet)}, []))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens(list(marks))
    if begin is not None:
        found.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, found.token_to_id(begin))]
        )
    return found


def saved(config: Any, folder: Path, **options: Any) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        model.save_pretrained(folder, **options)
    tokenizer(*MARKS).save(str(folder / "tokenizer.json"))
    return model


def arrays(weights: DecoderWeights) -> list[np.ndarray]:
    found = [weights.words(), weights.last_norm().weight, weights.head().weight]
    for number in range(weights.shape.layers):
        layer = weights.layer(number)
        found += [getattr(layer, name).weight for name in ("norm", "qkv", "out", "up", "down")]
    return found


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_a_folder_is_what_was_saved_there(config: Any, tmp_path: Path) -> None:
    model = saved(config, tmp_path)
    opened = open_causal(tmp_path)
    assert opened.weights.shape == of_module(model).shape
    if not opened.weights.shape.tied:
        for found, wanted in zip(arrays(opened.weights), arrays(of_module(model)), strict=True):
            np.testing.assert_array_equal(found, wanted)
    prompting = opened.prompting
    assert prompting.begin == ()
    assert 256 in prompting.end
    assert prompting.fill == (257, 259, 258)


def test_shards_and_half_precision_are_read(tmp_path: Path) -> None:
    config = LlamaConfig(**LLAMA)
    model = saved(config, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    opened = open_causal(tmp_path)
    for found, wanted in zip(arrays(opened.weights), arrays(of_module(model)), strict=True):
        np.testing.assert_array_equal(found, wanted)
    model.bfloat16().save_pretrained(tmp_path / "half")
    tokenizer(*MARKS).save(str(tmp_path / "half" / "tokenizer.json"))
    opened = open_causal(tmp_path / "half")
    assert opened.weights.words().dtype == np.float32
    np.testing.assert_array_equal(opened.weights.words(), of_module(model).words())


def test_too_little_memory_is_not_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(LlamaConfig(**LLAMA), tmp_path)
    opened = open_causal(tmp_path)

    def full(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 byte")

    monkeypatch.setattr(torch.Tensor, "float", full)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        opened.weights.words()


def test_a_bin_is_read_as_plain_weights_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved(LlamaConfig(**LLAMA), tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    load, loaded = torch.load, []

    def counted(*args: Any, **options: Any) -> Any:
        loaded.append(args)
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", counted)
    opened = open_causal(tmp_path)
    for found, wanted in zip(arrays(opened.weights), arrays(of_module(model)), strict=True):
        np.testing.assert_array_equal(found, wanted)
    # all of it is unpickled each time
    assert len(loaded) == 1
    torch.save({"model.norm.weight": Path()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model.bin cannot be read"):
        open_causal(tmp_path)


def test_what_the_tokenizer_puts_before_a_text_begins_a_prompt(tmp_path: Path) -> None:
    saved(LlamaConfig(**LLAMA), tmp_path)
    tokenizer("<s>", begin="<s>").save(str(tmp_path / "tokenizer.json"))
    opened = open_causal(tmp_path)
    assert opened.prompting.begin == (256,)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tokenizer.json", "has no tokenizer.json"),
        ("model.safetensors", "neither model.safetensors nor"),
        ("config.json", "no config.json"),
    ],
)
def test_a_file_that_is_missing_is_named(tmp_path: Path, name: str, said: str) -> None:
    saved(LlamaConfig(**LLAMA), tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ModelError, match=said):
        open_causal(tmp_path)


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    saved(LlamaConfig(**LLAMA), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"model.safetensors cannot be read"):
        open_causal(tmp_path)


def test_another_family_is_named(tmp_path: Path) -> None:
    saved(LlamaConfig(**LLAMA), tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "model_type": "bloom"}))
    with pytest.raises(ModelError, match=r"type 'bloom'; completion knows llama"):
        open_causal(tmp_path)


def test_marks_of_several_families_are_known() -> None:
    for names in (
        ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
        ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ):
        found = prompting_of(tokenizer(*names).to_str(), (), ())
        assert found.fill == (256, 257, 258)
    assert prompting_of(tokenizer("<fim_prefix>").to_str(), (), (3,)).fill is None


def gguf_fields(**changed: Any) -> dict[str, Any]:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    space = "\u0120"
    merged = [space * 2, space * 3, space + "1"]
    return {
        **{"model": "gpt2", "pre": "smollm", "tokens": ["<|endoftext|>", *alphabet, *merged]},
        "token_type": [3, *[1] * (len(alphabet) + len(merged))],
        "merges": [f"{space} {space}", f"{space * 2} {space}", f"{space} 1"],
        **{"bos_token_id": 1, "eos_token_id": 0, "add_bos_token": False},
        **changed,
    }


def test_a_gguf_tokenizer_divides_text_as_the_file_says() -> None:
    def pieces(text: str, **changed: Any) -> list[str]:
        found = Tokenizer.from_str(GgufTokenizer(gguf_fields(**changed), "a.gguf").json)
        encoded = found.encode(text)
        assert found.decode(encoded.ids, skip_special_tokens=False) == text
        return [token.replace("\u0120", "_") for token in encoded.tokens]

    # before a digit all spaces stay together, and none joins it
    assert pieces("   12") == ["___", "1", "2"]
    assert pieces("   12", pre="gpt-2") == ["__", "_1", "2"]
    assert pieces("a ▁b") == ["a", "_", "\u00e2", "\u0138", "\u0123", "b"]
    assert pieces("<|endoftext|>x") == ["<|endoftext|>", "x"]


def test_a_gguf_says_whether_a_text_begins_with_a_mark() -> None:
    assert GgufTokenizer(gguf_fields(), "a.gguf").begin == ()
    assert GgufTokenizer(gguf_fields(add_bos_token=True), "a.gguf").begin == (1,)


@pytest.mark.parametrize("changed", [{"model": "llama"}, {"pre": "deepseek-coder"}])
def test_another_kind_of_gguf_tokenizer_is_named(changed: dict[str, str]) -> None:
    with pytest.raises(ModelError, match="Give the folder of the original model"):
        GgufTokenizer(gguf_fields(**changed), "a.gguf")


def test_what_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUFnothing")
    with pytest.raises(ModelError, match="cannot be read as GGUF"):
        read_gguf_tokenizer(tmp_path / "a.gguf")
