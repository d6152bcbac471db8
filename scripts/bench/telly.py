"""What freezing saves in time and memory: full fine-tuning, frozen layers, and frozen layers computed once.

    python scripts/bench/telly.py [--layers 12] [--hidden 768] [--tokens 256] [--frozen 8] [--epochs 5]
        [--texts 256] [--batch 16] [--cache fp16] [--threads N] [--folder DIR] [--json]

An encoder with random weights learns random labels: the time and the memory are those of any weights. Each way is a
process of its own. Time is of all steps, what is computed once included; the peak is of the training alone, and stands
beside what the process held before. The ceiling printed beside it counts products: a step takes a layer three times
its forward pass where it is trained, once where it is frozen, and that once in all where it is kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_WAYS = ("full", "frozen", "kept")


def _share(way: str, layers: int, frozen: int, epochs: int) -> float:
    """Of the products of full fine-tuning."""
    if way == "full":
        return 1.0
    once = frozen / (epochs if way == "kept" else 1)
    return (once + 3 * (layers - frozen)) / (3 * layers)


def _train(way: str, asked: dict[str, Any]) -> dict[str, Any]:
    """One way, in this process."""
    import numpy as np
    import torch
    from transformers import BertConfig, BertModel

    from codemill.compress.distill.labels import LabelTargets, label_loss
    from codemill.compress.distill.loop import Schedule, fit
    from codemill.compress.freeze.freeze import freeze_bottom, trained_of
    from codemill.compress.freeze.resume import computed_once
    from codemill.compress.models.classifier import Classifier, Head
    from codemill.compress.pipeline import forget_peak
    from codemill.compress.recipe import Distill, Finetune
    from codemill.compress.tasks.classification import plan_row_batches
    from codemill.targets.worker import peak_rss_bytes

    torch.set_num_threads(asked["threads"])
    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=asked["layers"],
        hidden_size=asked["hidden"],
        num_attention_heads=asked["hidden"] // 64,
        intermediate_size=4 * asked["hidden"],
        max_position_embeddings=max(512, asked["tokens"]),
    )
    encoder = BertModel(config, add_pooling_layer=False).eval()
    classifier = Classifier(encoder, Head(asked["hidden"], 2), 1)
    chance = np.random.default_rng(0)
    tokens = list(chance.integers(5, config.vocab_size, (asked["texts"], asked["tokens"])))
    rows = np.arange(asked["texts"])[:, None]
    targets = LabelTargets(tokens, rows, chance.integers(0, 2, asked["texts"]))
    settings = Distill(
        epochs=asked["epochs"], batch_size=asked["batch"], validations=1, learning_rate=1e-5
    )
    loss_of = label_loss(classifier, targets, settings, False)
    lengths = [len(text) for text in tokens]
    batches = plan_row_batches(rows, lengths, asked["batch"], asked["epochs"], 0)
    layers = None if way == "full" else asked["frozen"]
    freeze_bottom(encoder, layers)
    finetune = Finetune(cache=asked["cache"] if way == "kept" else "none")
    runs = sum(map(len, batches))
    forget_peak()
    before = peak_rss_bytes()
    with tempfile.TemporaryDirectory(dir=asked["folder"]) as named:
        folder = Path(named)
        start = time.perf_counter()
        with computed_once(
            encoder, layers, tokens, runs, finetune, folder, False, lambda *_: None
        ) as kept:
            fit(
                classifier,
                batches,
                loss_of,
                Schedule.of(settings, False),
                lambda: 0.0,
                folder,
                lambda *_: None,
            )
        seconds = time.perf_counter() - start
    trainable, parameters = trained_of(classifier)
    return {
        "way": way,
        "seconds": seconds,
        "kept_s": kept.seconds,
        "kept_bytes": kept.size_bytes,
        "why_not_kept": kept.why_not,
        "peak_rss_bytes": peak_rss_bytes(),
        "before_rss_bytes": before,
        "trainable_parameters": trainable,
        "parameters": parameters,
        "steps": len(batches),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    defaults = {
        **{"layers": 12, "hidden": 768, "tokens": 256, "frozen": 8, "epochs": 5},
        **{"texts": 256, "batch": 16, "threads": 2},
    }
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--cache", choices=["fp16", "bf16", "fp32"], default="fp16")
    parser.add_argument(
        "--folder", help="where what is kept lies; by default among temporary files"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--way", choices=_WAYS, help=argparse.SUPPRESS)
    asked = vars(parser.parse_args())
    as_json, way = asked.pop("json"), asked.pop("way")
    if way is not None:
        print(json.dumps(_train(way, asked)))
        return
    arguments = [f"--{name}={value}" for name, value in asked.items() if value is not None]
    found = []
    for each in _WAYS:
        command = [sys.executable, __file__, *arguments, f"--way={each}"]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found.append(json.loads(out.splitlines()[-1]))
    full = found[0]
    for row in found:
        row["time_share"] = row["seconds"] / full["seconds"]
        row["ceiling_time_share"] = _share(
            row["way"], asked["layers"], asked["frozen"], asked["epochs"]
        )
        row["peak_share"] = row["peak_rss_bytes"] / full["peak_rss_bytes"]
    if as_json:
        print(json.dumps({"asked": asked, "rows": found}, indent=1))
        return
    print("way     seconds  share  by products  kept s  kept MB  peak MB  share")
    for row in found:
        print(
            f"{row['way']:6} {row['seconds']:8.1f} {row['time_share']:6.1%} {row['ceiling_time_share']:12.1%} "
            f"{row['kept_s']:7.1f} {row['kept_bytes'] / 1e6:8.0f} {row['peak_rss_bytes'] / 1e6:8.0f} "
            f"{row['peak_share']:6.1%}"
        )


if __name__ == "__main__":
    main()
