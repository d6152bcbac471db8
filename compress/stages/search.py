"""Stage `search`: the student's architecture under the budget, and the vocabulary that goes with it.

Writes search.json, architecture.json, tokenizer.json and vocabulary.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codemill.compress.architecture import Architecture
from codemill.compress.budget import Budget
from codemill.compress.models.load import fingerprint, load_teacher, resolve_model
from codemill.compress.models.tokenize import tokenize
from codemill.compress.models.wordpiece import count_tokens, keep_order, prune_tokenizer
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.search.cost import (
    CostModel,
    gflops,
    gflops_paper,
    interpolate,
    parameters,
    params_fp32_bytes,
)
from codemill.compress.search.genetic import Candidate, search
from codemill.compress.search.space import Choices, Space, default_space
from codemill.compress.stages.corpus import read_split

if TYPE_CHECKING:
    from transformers import BertConfig

__all__ = ["VERSION", "Chosen", "read_chosen", "stage"]

VERSION = 2
_SAMPLE = 1000
_SIZES_MEASURED = 6
_AUTO_SHARE = 1 / 6
"""`gflops: auto` is this share of the teacher's: about what one of MiniLM's six layers costs. GFLOPs without
a cap is the wrong goal: it picks the slowest architecture of its size."""


@dataclass(frozen=True)
class Chosen:
    """The searched architecture, its tokenizer, the teacher ids of its tokens, and how often they occur."""

    architecture: Architecture
    tokenizer_json: str
    kept: list[int]
    counts: list[int]


def stage(recipe: Recipe) -> Stage:
    """Depends on the corpus, the teacher's shape and tokenizer, the space and the budget."""
    source = resolve_model(recipe.teacher.model)
    settings = {
        "model": fingerprint(source),
        "search": recipe.search.model_dump(mode="json"),
        "budget": recipe.budget.model_dump(),
        "bits": 8 if recipe.quantize.method == "dynamic-int8" else 32,
        "max_tokens": recipe.student.max_tokens,
        "train_pairs": recipe.data.train_pairs,
        "seed": recipe.seed,
    }

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        teacher = load_teacher(source)
        _search(
            recipe, teacher.model.config, teacher.tokenizer_json, inputs["corpus"], folder, report
        )

    libraries = ("pygad", "tokenizers", "numpy")
    return Stage("search", VERSION, ("corpus",), settings, libraries, work, findings=_findings)


def _findings(folder: Path) -> str:
    best = json.loads((folder / "search.json").read_text())["best"]
    return (
        f"{best['layers']} layers of width {best['hidden_size']} from {best['copied_layers']}, {best['heads']} heads, "
        f"{best['intermediate_size']} inner, {best['vocab_size']:,} tokens at rank {best['embedding_rank']}: "
        f"{best['gflops']:.2f} GFLOPs, {best['size_bytes'] / 1e6:.2f} MB"
    )


def _search(
    recipe: Recipe,
    config: BertConfig,
    tokenizer_json: str,
    corpus: Path,
    folder: Path,
    report: Report,
) -> None:
    report(0.0, "counting tokens")
    pairs = read_split(corpus, "train", recipe.data.train_pairs)
    counts = count_tokens(
        tokenizer_json, [text for pair in pairs for text in (pair.query, pair.code)]
    )
    order = keep_order(tokenizer_json, counts)
    space = _space(recipe, config, len(order))
    report(0.3, "measuring vocabularies")
    codes = [pair.code for pair in pairs[:_SAMPLE]]
    costs = _cost_model(recipe, tokenizer_json, counts, order, space, codes)
    teacher_shape = _teacher_architecture(config, recipe.student.max_tokens)
    full_length = _mean_length(tokenizer_json, codes, recipe.student.max_tokens)
    teacher_gflops = gflops(teacher_shape, full_length)
    budget = _budget(recipe, teacher_gflops)

    def on_generation(generation: int, best: Candidate) -> None:
        report(
            0.5 + 0.5 * min(1.0, generation / 200),
            f"generation {generation}, {best.gflops:.3f} GFLOPs",
        )

    result = search(space, budget, costs, recipe.seed, on_generation)
    best = result.best.architecture
    pruned = prune_tokenizer(tokenizer_json, counts, order, best.vocab_size)
    tokens = costs.tokens_per_function(best.vocab_size)
    summary: dict[str, Any] = {
        "best": {
            **best.to_json(),
            "gflops": result.best.gflops,
            "gflops_paper": gflops_paper(best, tokens),
            "parameters": parameters(best),
            "params_fp32_bytes": params_fp32_bytes(best),
            "size_bytes": result.best.size_bytes,
            "tokens_per_function": tokens,
        },
        "budget": {"size_bytes": budget.size_bytes, "gflops": budget.gflops},
        "teacher": {"gflops": teacher_gflops, "tokens_per_function": full_length},
        "space_size": space.size,
        "evaluations": result.evaluations,
        "seconds": result.seconds,
        "generations": result.generations,
        "seen": [
            {
                "size_bytes": item.size_bytes,
                "gflops": item.gflops,
                "architecture": item.architecture.to_json(),
            }
            for item in result.seen
        ],
    }
    (folder / "search.json").write_text(json.dumps(summary, indent=1))
    (folder / "architecture.json").write_text(json.dumps(best.to_json(), indent=1))
    (folder / "tokenizer.json").write_text(pruned.tokenizer_json, encoding="utf-8")
    (folder / "vocabulary.json").write_text(
        json.dumps({"kept": pruned.kept, "counts": pruned.counts})
    )


def _space(recipe: Recipe, config: BertConfig, tokens: int) -> Space:
    """`tokens`: of the tokenizer. A model's table is often padded beyond them."""
    wanted = recipe.search
    return default_space(
        hidden_size=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        vocab_size=min(config.vocab_size, tokens),
        max_tokens=recipe.student.max_tokens,
        choices=Choices(
            vocab_sizes=wanted.vocab_sizes,
            embedding_ranks=wanted.embedding_ranks,
            layers=wanted.layers,
            heads=wanted.heads,
            intermediate_sizes=wanted.intermediate_sizes,
        ),
    )


def _cost_model(
    recipe: Recipe,
    tokenizer_json: str,
    counts: np.ndarray,
    order: Sequence[int],
    space: Space,
    codes: Sequence[str],
) -> CostModel:
    """Tokens a function and tokenizer bytes, measured at a few vocabulary sizes and interpolated."""
    sizes = sorted(space.vocab_sizes)
    picked = {sizes[round(at)] for at in np.linspace(0, len(sizes) - 1, _SIZES_MEASURED)}
    lengths: dict[int, float] = {}
    lengths_bytes: dict[int, float] = {}
    for size in sorted(picked):
        pruned = prune_tokenizer(tokenizer_json, counts, order, size).tokenizer_json
        lengths[size] = _mean_length(pruned, codes, recipe.student.max_tokens)
        lengths_bytes[size] = len(pruned.encode())
    bits = 8 if recipe.quantize.method == "dynamic-int8" else 32
    return CostModel(interpolate(lengths), interpolate(lengths_bytes), bits=bits)


def _mean_length(tokenizer_json: str, codes: Sequence[str], max_tokens: int) -> float:
    return float(np.mean([len(ids) for ids in tokenize(tokenizer_json, codes, max_tokens)]))


def _teacher_architecture(config: BertConfig, max_tokens: int) -> Architecture:
    return Architecture(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        head_size=config.hidden_size // config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        max_tokens=max_tokens,
    )


def _budget(recipe: Recipe, teacher_gflops: float) -> Budget:
    cap = recipe.budget.gflops
    return Budget(recipe.budget.size_bytes, teacher_gflops * _AUTO_SHARE if cap == "auto" else cap)


def read_chosen(folder: Path) -> Chosen:
    """What the stage wrote."""
    vocabulary = json.loads((folder / "vocabulary.json").read_text())
    return Chosen(
        Architecture.from_json(json.loads((folder / "architecture.json").read_text())),
        (folder / "tokenizer.json").read_text(encoding="utf-8"),
        vocabulary["kept"],
        vocabulary["counts"],
    )
