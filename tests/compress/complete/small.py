"""A small decoder with a trained tokenizer, files of code, and recipes that take seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from codemill.compress.recipe import Recipe, parse_recipe

NAMES = ("total", "count", "value", "first", "second", "path", "size", "index", "result", "name")


def source(seed: int) -> str:
    """A file of some functions that are much alike, as code is."""
    drawn = random.Random(seed)
    parts = ["import os\n\n"]
    for number in range(10):
        a, b = drawn.sample(NAMES, 2)
        parts.append(
            f"def {a}_{number}({a}, {b}):\n"
            f"    {b} = {a} + {drawn.randrange(100)}\n"
            f"    if {b} > {drawn.randrange(100)}:\n"
            f"        return {a}\n"
            f"    return {b}\n\n\n"
        )
    return "".join(parts)


def write_decoder_folder(folder: Path, layers: int = 4) -> Path:
    """A Llama as transformers saves it, with a BPE of 400 tokens and an end mark."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([source(seed) for seed in range(50)], trainer)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_code(path: Path, files: int = 120) -> Path:
    """A file of texts."""
    path.write_text("".join(json.dumps({"code": source(seed)}) + "\n" for seed in range(files)))
    return path


def recipe_values(model: Path, data: Path) -> dict[str, Any]:
    return {
        "name": "tiny-complete",
        "task": "completion",
        "license": "MIT",
        "threads": 1,
        "precision": "fp32",
        "teacher": {"model": str(model)},
        "data": {"source": str(data)},
        "student": {"init": "whole", "max_tokens": 512},
        "budget": {"size_bytes": None},
        "distill": {"validations": 2, "epochs": 1},
        "exits": {"after": [1, 3], "epochs": 1, "max_loss": 1.0},
        "complete": {
            "tokens": 8000,
            "piece_tokens": 64,
            "likeliest": 8,
            "adapter_size": 32,
            "batch_tokens": 512,
            "context": 400,
            "calibration_places": 10,
            "test_places": 12,
            "max_new_tokens": 6,
        },
    }


def recipe_of(model: Path, data: Path, *settings: str) -> Recipe:
    return parse_recipe(recipe_values(model, data), settings)


SMALL = (
    "student.init=teacher",
    "budget.size_bytes=150000",
    "search.layers=[[0, 3], [0, 1, 3]]",
    "search.vocab_sizes=[300, 350]",
    "exits.after=[1]",
)
"""Of a student that is cut out."""
