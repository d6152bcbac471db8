"""Freezing a Llama-style decoder: perplexity and time of full fine-tuning and of frozen layers computed once.

    python scripts/bench/telly_decoder.py MODEL [--gguf FILE] [--frozen 20] [--epochs 5] [--texts 512] [--tokens 256]
        [--batch 8] [--learning-rate 2e-5] [--cache fp16] [--threads N] [--folder DIR] [--bf16] [--json]

MODEL is a folder with a Llama (SmolLM2); --gguf names a GGUF file in it. It learns to continue pieces of the standard
library's modules, and is judged on pieces of other modules. The embeddings, and a head tied to them, are frozen too.
Each way is a process of its own. Time is of all steps, what is computed once included, and without validation.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

_WAYS = ("full", "kept")
_HELD_OUT = 8
"""One module in so many is held out."""


def _pieces(tokenizer: Any, tokens: int, texts: int) -> tuple[list[Any], list[Any]]:
    """Pieces of `tokens` tokens to learn from, and an eighth as many of other modules."""
    import numpy as np

    train: list[Any] = []
    held_out: list[Any] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        last = hashlib.sha256(path.name.encode()).digest()[0] % _HELD_OUT == 0
        into, most = (held_out, texts // _HELD_OUT) if last else (train, texts)
        ids = tokenizer(path.read_text(encoding="utf-8", errors="replace"))["input_ids"]
        for start in range(0, min(len(ids), 8 * tokens) - tokens + 1, tokens):
            if len(into) < most:
                into.append(np.asarray(ids[start : start + tokens], dtype=np.int32))
    return train, held_out


def _train(way: str, asked: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    import torch
    from torch.nn import functional
    from transformers import AutoTokenizer, LlamaForCausalLM

    from codemill.compress.distill.loop import Schedule, fit, plan_batches
    from codemill.compress.freeze.freeze import freeze_bottom
    from codemill.compress.freeze.resume import computed_once
    from codemill.compress.models.pooling import pad
    from codemill.compress.pipeline import forget_peak
    from codemill.compress.recipe import Distill, Finetune
    from codemill.targets.worker import peak_rss_bytes

    torch.set_num_threads(asked["threads"])
    options = {"gguf_file": asked["gguf"]} if asked["gguf"] else {}
    tokenizer = AutoTokenizer.from_pretrained(asked["model"], **options)
    model = LlamaForCausalLM.from_pretrained(
        asked["model"], torch_dtype=torch.float32, attn_implementation="sdpa", **options
    ).eval()
    model.config.use_cache = False
    train, held_out = _pieces(tokenizer, asked["tokens"], asked["texts"])

    def loss(texts: list[Any]) -> torch.Tensor:
        ids, mask = pad(texts)
        with torch.autocast("cpu", torch.bfloat16, enabled=asked["bf16"]):
            hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
            logits = model.lm_head(hidden[:, :-1]).flatten(0, 1)
        return functional.cross_entropy(logits.float(), ids[:, 1:].flatten())

    paused = 0.0

    @torch.inference_mode()
    def validate() -> float:
        nonlocal paused
        start = time.perf_counter()
        size = asked["batch"]
        found = [float(loss(held_out[at : at + size])) for at in range(0, len(held_out), size)]
        paused += time.perf_counter() - start
        return -float(np.mean(found))

    original = validate()
    layers = None if way == "full" else asked["frozen"]
    trainable, parameters = freeze_bottom(model, layers)
    settings = Distill(
        epochs=asked["epochs"],
        batch_size=asked["batch"],
        learning_rate=asked["learning_rate"],
        validations=asked["epochs"],
        patience=asked["epochs"],
    )
    batches = plan_batches(list(map(len, train)), asked["batch"], asked["epochs"], 0)
    finetune = Finetune(cache=asked["cache"] if way == "kept" else "none")
    forget_peak()
    paused = 0.0
    with tempfile.TemporaryDirectory(dir=asked["folder"]) as named:
        folder = Path(named)
        start = time.perf_counter()
        runs = sum(map(len, batches))
        with computed_once(
            model.model, layers, train, runs, finetune, folder, asked["bf16"], lambda *_: None
        ) as kept:
            points = fit(
                model,
                batches,
                lambda batch: loss([train[at] for at in batch]),
                Schedule.of(settings, asked["bf16"]),
                validate,
                folder,
                lambda *_: None,
            )
        seconds = time.perf_counter() - start - paused
    return {
        "way": way,
        "original_perplexity": float(np.exp(-original)),
        "perplexity": float(np.exp(-max(point.metric for point in points))),
        "perplexities": [float(np.exp(-point.metric)) for point in points],
        "seconds": seconds,
        "kept_s": kept.seconds,
        "kept_bytes": kept.size_bytes,
        "why_not_kept": kept.why_not,
        "peak_rss_bytes": peak_rss_bytes(),
        "trainable_parameters": trainable,
        "parameters": parameters,
        "pieces": [len(train), len(held_out)],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--gguf")
    defaults = {"frozen": 20, "epochs": 5, "texts": 512, "tokens": 256, "batch": 8, "threads": 2}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--cache", choices=["fp16", "bf16", "fp32"], default="fp16")
    parser.add_argument(
        "--folder", help="where what is kept lies; by default among temporary files"
    )
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16 where that is fast")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--way", choices=_WAYS, help=argparse.SUPPRESS)
    asked = vars(parser.parse_args())
    as_json, way = asked.pop("json"), asked.pop("way")
    if way is not None:
        print(json.dumps(_train(way, asked)))
        return
    found = []
    for each in _WAYS:
        command = [sys.executable, *sys.argv, f"--way={each}"]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found.append(json.loads(out.splitlines()[-1]))
    full = found[0]
    for row in found:
        row["time_share"] = row["seconds"] / full["seconds"]
        row["perplexity_ratio"] = row["perplexity"] / full["perplexity"]
    if as_json:
        print(json.dumps({"asked": asked, "rows": found}, indent=1))
        return
    for row in found:
        print(
            f"{row['way']:5} perplexity {row['original_perplexity']:.3f} -> {row['perplexity']:.3f} "
            f"({row['perplexity_ratio']:.3f} of full), {row['seconds']:.0f} s ({row['time_share']:.1%}), of that "
            f"{row['kept_s']:.0f} s and {row['kept_bytes'] / 1e6:.0f} MB kept; "
            f"peak {row['peak_rss_bytes'] / 1e6:.0f} MB"
        )


if __name__ == "__main__":
    main()
