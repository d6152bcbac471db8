#!/usr/bin/env python3
"""A bundle that labels pairs against the published 3 MB clone detector's architecture in PyTorch, on the same pairs.

    scripts/bench/pairs_against_published.py BUNDLE --functions FILE --pairs FILE [--count 100] [--rounds 5] [--json]

FILE of functions: .jsonl.gz with `idx` and `code` a line; of pairs: .tsv.gz, two ids first. Compressor's published
architecture (1000 tokens, 96 wide, 12 layers, 8 heads, 64 inner, 400 tokens a function) is made with random weights
and a byte-level BPE of 1,000 tokens trained on the functions; it encodes the two functions of a pair as one batch,
padded to the longer one only, and labels them with one dense layer over both. Random weights take as long as
trained ones. One pair a call; each engine in a process of its own, processes alternate, ratios round by round.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from published import published_tokenizer

SHAPE = {
    "vocab_size": 1000,
    "hidden_size": 96,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 514,
}
TOKENS = 400
_WARMUP = 10


def _pairs(functions: Path, pairs: Path, count: int) -> list[tuple[str, str]]:
    with gzip.open(functions, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    code = {str(row["idx"]): row["code"] for row in rows}
    with gzip.open(pairs, "rt", encoding="utf-8") as lines:
        ids = [line.rstrip("\n").split("\t")[:2] for line in lines]
    drawn = random.Random(0).sample(ids, count)
    return [(code[first], code[second]) for first, second in drawn]


def _serve_published(work: Path) -> list[float]:
    import torch
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    from codemill.runtime.machine import physical_cores

    torch.set_num_threads(physical_cores())
    torch.manual_seed(0)
    encoder = BertModel(BertConfig(**SHAPE), add_pooling_layer=False).eval()
    head = torch.nn.Linear(2 * SHAPE["hidden_size"], 2)
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding()

    def label(pair: tuple[str, str]) -> None:
        batch = tokenizer.encode_batch(list(pair))
        ids = torch.tensor([item.ids for item in batch])
        mask = torch.tensor([item.attention_mask for item in batch])
        with torch.inference_mode():
            first = encoder(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
            head(first.reshape(1, -1)).softmax(-1).numpy()

    return _timed(label, work)


def _serve_bundle(work: Path, bundle: str) -> list[float]:
    import codemill

    with codemill.load(bundle) as model:
        return _timed(lambda pair: model.predict([pair]), work)


def _timed(label: Any, work: Path) -> list[float]:
    pairs = [tuple(pair) for pair in json.loads((work / "pairs.json").read_text())]
    for pair in pairs[:_WARMUP]:
        label(pair)
    taken = []
    for pair in pairs:
        start = time.perf_counter()
        label(pair)
        taken.append((time.perf_counter() - start) * 1e3)
    return taken


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle")
    parser.add_argument("--functions", type=Path)
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        engine, work = asked.serve[0], Path(asked.serve[1])
        found = (
            _serve_published(work) if engine == "published" else _serve_bundle(work, asked.bundle)
        )
        print(json.dumps(found))
        return 0
    pairs = _pairs(asked.functions, asked.pairs, asked.count)
    with gzip.open(asked.functions, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["code"] for line in lines]
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        (work / "pairs.json").write_text(json.dumps(pairs))
        tokens = published_tokenizer(texts, SHAPE["vocab_size"])
        (work / "tokenizer.json").write_text(tokens, encoding="utf-8")
        totals: dict[str, list[float]] = {"published": [], "bundle": []}
        for number in range(asked.rounds):
            for engine in list(totals)[:: 1 if number % 2 == 0 else -1]:
                argv = [sys.executable, __file__, asked.bundle, "--serve", engine, scratch]
                ended = subprocess.run(argv, capture_output=True, text=True, check=True)
                totals[engine].append(statistics.fmean(json.loads(ended.stdout)))
    ratios = sorted(slow / fast for slow, fast in zip(*totals.values(), strict=True))
    found = {
        "pairs": len(pairs),
        "rounds": asked.rounds,
        "ms_per_pair": {engine: statistics.median(taken) for engine, taken in totals.items()},
        "bundle_is_times_faster": ratios,
    }
    if asked.json:
        print(json.dumps(found, indent=1))
        return 0
    for engine, taken in found["ms_per_pair"].items():
        print(f"{engine:10} {taken:8.2f} ms a pair")
    print(f"{statistics.median(ratios):.1f} times as fast [{ratios[0]:.1f}, {ratios[-1]:.1f}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
