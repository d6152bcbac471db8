"""Small bundles that variants are made of: one that embeds, and one that labels with exits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tests.compress.exits.test_leaving import exiting_of
from transformers import BertModel

from codemill.compress.models.export import export_classifier
from codemill.compress.models.pooling import embed
from codemill.export.candidates import write_candidates

from .test_candidates import tokenizer_json


def embedding_bundle(
    folder: Path, model: BertModel, heads: int, precisions: tuple[str, ...] = ("plain",)
) -> Path:
    """Of `open`, `close` and `file`, as long as 40 tokens."""
    sample = np.array([[2, 4, 0], [3, 4, 2]]), np.array([[1, 1, 0], [1, 1, 1]])
    with torch.inference_mode():
        expected = embed(model, *map(torch.from_numpy, sample)).numpy()
    write_candidates(
        model,
        folder,
        heads=heads,
        tokenizer_json=tokenizer_json(),
        max_tokens=40,
        precisions=precisions,
        name="made-up",
        sample=sample,
        expected=expected,
        architecture={"heads": heads, "hidden_size": 64},
    )
    return folder


def labelling_bundle(
    home: Path, texts: int, precisions: tuple[str, ...] = ("plain",), max_tokens: int = 40
) -> Path:
    """Of rows of so many texts, with three labels and exits after layers 1 and 3 of 4."""
    exiting, tokenizer, architecture, heads = exiting_of("bert", home / "model", texts)
    export_classifier(
        exiting.whole,
        home / "bundle",
        labels=("a", "b", "c"),
        heads=heads,
        tokenizer_json=tokenizer,
        max_tokens=max_tokens,
        precisions=precisions,
        name="tiny",
        architecture=architecture,
        exiting=exiting,
    )
    return home / "bundle"
