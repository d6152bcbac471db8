#!/usr/bin/env python3
"""A bundle against the published 3 MB architecture and a CodeBERT-shaped model, on the same functions.

    scripts/bench/against_published.py BUNDLE [--data FILE] [--functions 60] [--rounds 4] [--json]

Compressor's published 3 MB architecture (1000 tokens, 96 wide, 12 layers, 8 heads, 64 inner, 514 positions)
is made with random weights, given a byte-level BPE of 1,000 tokens trained on the functions of this Python's
packages, and exported to int8 by the path that made BUNDLE. The other is a BERT of CodeBERT's shape (12 x 768,
50,265 tokens) with random weights in PyTorch fp32, with a byte-level BPE of 50,000 tokens trained likewise.
Timed: functions of the bundle's evaluation set, or of FILE (.jsonl or .jsonl.gz with a `code` a line), one a call,
that no engine cuts off. Each engine runs in a process of
its own, processes alternate, ratios are formed round by round. Random weights take as long as trained ones.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from published import published_tokenizer

PUBLISHED = {
    "vocab_size": 1000,
    "hidden_size": 96,
    "layers": 12,
    "heads": 8,
    "head_size": 12,
    "intermediate_size": 64,
    "max_tokens": 514,
}
CODEBERT = {
    "vocab_size": 50_265,
    "hidden_size": 768,
    "layers": 12,
    "heads": 12,
    "head_size": 64,
    "intermediate_size": 3072,
    "max_tokens": 512,
}
_BPE_TOKENS = 50_000


def _engines(bundle: Path, texts: list[str], folder: Path) -> dict[str, Any]:
    from transformers import BertConfig

    from codemill.compress.architecture import Architecture
    from codemill.compress.models.bert import fresh_student
    from codemill.compress.models.export import export_bundle
    from codemill.compress.teacher_worker import teacher_engine
    from codemill.targets.engine import bundle_engine

    base = BertConfig()
    small = fresh_student(Architecture(**PUBLISHED), base, seed=0)
    export_bundle(
        small,
        folder / "published",
        heads=PUBLISHED["heads"],
        tokenizer_json=published_tokenizer(texts, PUBLISHED["vocab_size"]),
        max_tokens=PUBLISHED["max_tokens"],
        precisions=("int8",),
        name="published",
    )
    large = fresh_student(Architecture(**CODEBERT), base, seed=0)
    large.save_pretrained(folder / "codebert")
    tokens = published_tokenizer(texts, _BPE_TOKENS)
    (folder / "codebert" / "tokenizer.json").write_text(tokens, encoding="utf-8")
    return {
        "bundle": bundle_engine(bundle, name="bundle"),
        "published 3 MB architecture, int8": bundle_engine(folder / "published", name="published"),
        "CodeBERT's shape, PyTorch fp32": teacher_engine(
            str(folder / "codebert"), "codebert", CODEBERT["max_tokens"]
        ),
    }


def _codes(bundle: Path, data: Path | None) -> list[str]:
    from codemill.targets.evaluation import read_evaluation
    from codemill.targets.json_lines import json_lines

    if data is not None:
        return [str(row["code"]) for _, row in json_lines(data, "data file", ("code",))]
    return list(read_evaluation(bundle / "evaluation.jsonl.gz", "standard library").codes)


def _functions(
    bundle: Path, codes: list[str], tokenizers: list[str], count: int
) -> tuple[list[str], list[float]]:
    """So many functions, none longer than any engine takes, and their mean tokens for each engine."""
    from tokenizers import Tokenizer

    from codemill.runtime import read_manifest

    most = [read_manifest(bundle).max_tokens, PUBLISHED["max_tokens"], CODEBERT["max_tokens"]]
    made = [Tokenizer.from_str(text) for text in tokenizers]
    for tokenizer in made:
        tokenizer.no_truncation()
    whole = [
        code
        for code in dict.fromkeys(codes)
        if all(
            len(tokenizer.encode(code).ids) <= limit
            for tokenizer, limit in zip(made, most, strict=True)
        )
    ]
    drawn = random.Random(0).sample(whole, min(count, len(whole)))
    return drawn, [
        statistics.fmean(len(tokenizer.encode(code).ids) for code in drawn) for tokenizer in made
    ]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--functions", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    from codemill.compress.data.installed import installed_packages, mine
    from codemill.targets.engine import EngineProcess

    pairs = mine(installed_packages(None), 1).splits.train
    texts = [text for pair in pairs for text in (pair.query, pair.code)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        engines = _engines(asked.bundle, texts, folder)
        paths = [asked.bundle, folder / "published", folder / "codebert"]
        tokenizers = [(path / "tokenizer.json").read_text(encoding="utf-8") for path in paths]
        codes = _codes(asked.bundle, asked.data)
        functions, tokens = _functions(asked.bundle, codes, tokenizers, asked.functions)
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(asked.rounds):
            for name, engine in engines.items():
                request = {
                    "op": "time",
                    "texts": functions,
                    "batch": 1,
                    "repeats": len(functions),
                    "warmup": 5,
                }
                with EngineProcess(engine) as process:
                    seconds[name].append(sum(process.ask(request)["ms"]) / 1e3)
    first = next(iter(engines))
    found = {
        "functions": len(functions),
        "rounds": asked.rounds,
        "engines": {
            name: {
                "size_bytes": engine.size_bytes,
                "tokens_per_function": mean,
                "ms_per_function": statistics.median(seconds[name]) / len(functions) * 1e3,
                "bundle_is_times_faster": sorted(
                    slow / fast for slow, fast in zip(seconds[name], seconds[first], strict=True)
                ),
            }
            for (name, engine), mean in zip(engines.items(), tokens, strict=True)
        },
    }
    if asked.json:
        print(json.dumps(found, indent=1))
        return 0
    for name, figures in found["engines"].items():
        ratios = figures["bundle_is_times_faster"]
        print(
            f"{name:34} {figures['size_bytes']:>12,} bytes {figures['tokens_per_function']:4.0f} tokens "
            f"{figures['ms_per_function']:8.2f} ms a function  "
            f"{statistics.median(ratios):6.1f}x [{ratios[0]:.1f}, {ratios[-1]:.1f}]"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
