"""One small run, every stage real, in this process or as the command; also what the campaigns run."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from codemill.compress.recipe import Recipe, parse_recipe

from .conftest import make_pairs, tiny_bert, train_tokenizer, write_jsonl

BUDGET = 400_000
STAGES = [
    *("corpus", "search", "rehearsal", "teacher", "teacher-graphs", "labels", "student"),
    *("export", "bundle", "benchmark"),
]


def recipe_values(model: Path, data: Path) -> dict[str, Any]:
    """A whole recipe that takes seconds."""
    return {
        "name": "tiny",
        "license": "MIT",
        "threads": 1,
        "precision": "fp32",
        "teacher": {
            "model": str(model),
            "max_tokens": 60,
            "finetune": {"freeze_layers": 1, "pairs": 64, "batch_size": 16},
            "label_precision": "fp32",
        },
        "data": {"source": str(data), "max_tokens": 48},
        "student": {"max_tokens": 40},  # below the length of the training texts
        "budget": {"size_bytes": BUDGET, "gflops": None},
        "search": {
            "vocab_sizes": [200, 260],
            "embedding_ranks": [8, 16],
            "layers": [[0, 2], [1]],
            "heads": [2, 4],
            "intermediate_sizes": [32, 64],
        },
        "distill": {"batch_size": 16, "validations": 2, "epochs": 2},
        "quantize": {"max_loss": 1.0},
        "bench": {"rounds": 2, "tokens": [16], "batches": [1]},
    }


def recipe_of(model: Path, data: Path, *settings: str) -> Recipe:
    return parse_recipe(recipe_values(model, data), settings)


def prepare(folder: Path) -> Path:
    """A user's model folder, pairs and recipe in `folder`; returns the recipe's path."""
    pairs = make_pairs(300)
    tokenizer = train_tokenizer([text for pair in pairs for text in (pair.query, pair.code)])
    model = folder / "tiny-bert"
    tiny_bert(tokenizer.get_vocab_size() + 8).save_pretrained(model)
    tokenizer.save(str(model / "tokenizer.json"))
    data = write_jsonl(folder / "pairs.jsonl", pairs)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_values(model, data)))
    return recipe


def start(
    recipe: Path, work: Path, out: Path, *more: str, code: str = "from codemill.cli import main"
) -> subprocess.Popen[str]:
    """`compress run` as a process of its own; `code` brings `main` in, and may change what it does."""
    argv = [sys.executable, "-c", f"import sys; {code}; sys.exit(main())", "run", str(recipe)]
    argv += ["--work", str(work), "--out", str(out), *more]
    pipe = subprocess.PIPE
    # a group of its own: a signal to it does not reach the tests
    return subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def stages_begun(process: subprocess.Popen[str], said: list[str]) -> Iterator[str]:
    """The names of the stages as the run begins them; `said` takes every line of its stderr."""
    assert process.stderr is not None
    for line in process.stderr:
        said.append(line)
        if found := re.match(r"\[\d+/\d+\] (\S+): started", line):
            yield found[1]
