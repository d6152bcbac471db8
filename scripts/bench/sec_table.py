"""The figures of *When Neural Code Completion Models Size up the Situation* (SEC, 2401.09964) for a bundle with exits.

    python scripts/bench/sec_table.py BUNDLE [--data FILE.jsonl.gz] [--texts 200] [--threads N] [--json]

Texts are modules of the standard library, or `prefix` and `target` of a file's rows put together. Token by token, from
the file's own tokens: which exit is right first, and how often none is. Then, as the paper does it: each text is cut at
a random place behind its 50th token, 10 tokens follow, one text at a time; ROUGE-L and BLEU against the text's own,
layers, time, with each of the paper's thresholds, and with stops beside exits.
"""

from __future__ import annotations

import argparse
import json
import random
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np

_GRID = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
_LEAST, _LONGEST, _NEW = 50, 256, 10
PAPER = (
    "the paper (GPT-2 124M and CodeGen-350M, Java and Python): 54.4 % right at the first layer, 14.5 % at none; "
    "1.7 of 16 layers skipped, 11.2 % faster, ROUGE-L -1.1 %"
)


def texts_of(data: Path | None, tokenizer: Any, count: int) -> list[list[int]]:
    """Token ids of texts that are long enough, cut."""
    if data is None:
        paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        every = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
        drawn = random.Random(0)
        texts = []
        for number in range(count):
            text = every[number % len(every)]
            start = text.find("\n", drawn.randrange(max(1, len(text) - 2000))) + 1
            texts.append(text[start : start + 1500])
    else:
        from codemill.targets.json_lines import json_lines

        rows = (row for _, row in json_lines(data, "--data", ("prefix", "target")))
        texts = [row["prefix"] + row["target"] for row in rows]
        random.Random(0).shuffle(texts)
    found = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids[:_LONGEST]
        if len(ids) > _LEAST + _NEW:
            found.append(ids)
        if len(found) == count:
            break
    return found


def token_by_token(model: Any, texts: list[list[int]]) -> dict[str, Any]:
    """Which exit says first what the text says."""
    from codemill.runtime.completion.cache import Cache

    parts = model._backend
    exits = parts.decoding.exits
    cache = Cache(parts.decoding, _LONGEST)
    right: list[np.ndarray] = []
    for ids in texts:
        found: Any = np.array(ids, np.int64)
        said = []
        for number in range(len(exits) + 1):
            found = parts.segment(number, found, cache, 0)
            state = found
            if number < len(exits):
                state = parts._exits[number].outputs_for({"hidden": found[None]}, ("state",))[0][0]
            said.append(parts.logits(state).argmax(-1)[:-1])
        right.append(np.stack(said) == np.array(ids[1:]))
    every = np.concatenate(right, 1)
    layers = [*(item.layer for item in exits), parts.decoding.layers]
    first = np.where(every.any(0), every.argmax(0), len(layers))
    return {
        "tokens": int(every.shape[1]),
        "right_first_at": {
            str(layer): float((first == n).mean()) for n, layer in enumerate(layers)
        },
        "right_at": {str(layer): float(every[n].mean()) for n, layer in enumerate(layers)},
        "never_right": float((first == len(layers)).mean()),
    }


def generated(model: Any, texts: list[list[int]]) -> list[dict[str, Any]]:
    """Ten tokens at a random place of each text, with each threshold."""
    from codemill.targets.completion import Completed, figures_of, in_turn

    tokenizer = model._tokenizer
    count = len(model._decoding.exits)
    settings: dict[str, Any] = {"full depth": False}
    for value in _GRID:
        settings[f"exit {value:g}"] = [(value, None)] * count
        settings[f"stop and exit {value:g}"] = [(value, value)] * count
    drawn = random.Random(0)
    done: dict[str, list[Completed]] = {name: [] for name in settings}
    wanted = []
    for number, ids in enumerate(texts):
        at = drawn.randrange(_LEAST, len(ids) - _NEW)
        prefix = tokenizer.decode(ids[:at], skip_special_tokens=False)
        wanted.append(tokenizer.decode(ids[at : at + _NEW], skip_special_tokens=False))
        for name in in_turn(list(settings), number):
            model.complete(prefix, max_tokens=1, exits=False, drafts=False)
            started = time.perf_counter()
            leave: Any = settings[name]
            made = model.complete(prefix, max_tokens=_NEW, exits=leave, drafts=False, ngrams=False)
            seconds = time.perf_counter() - started
            done[name].append(
                Completed(made.text, seconds, seconds, made.layers_used, 0, made.finish_reason)
            )
        model.forget()
    full = figures_of(done["full depth"], wanted)
    rows = []
    for name, items in done.items():
        found = figures_of(items, wanted)
        rows.append(
            {
                "setting": name,
                "layers_skipped": model._decoding.layers - found.layers_mean,
                "time_saved": 1 - found.completion_ms_mean / full.completion_ms_mean,
                "rouge_l": found.rouge_l,
                "rouge_l_change": found.rouge_l / full.rouge_l - 1 if full.rouge_l else None,
                "bleu": found.bleu,
                "stopped": found.stopped,
                "tokens": found.tokens_mean,
            }
        )
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    import codemill

    model: Any = codemill.load(asked.bundle, threads=asked.threads)
    if not model._decoding.exits:
        parser.error(
            f"{asked.bundle} has no exits; `compress run completion --set 'exits.after=[12,18,24]'` keeps them"
        )
    texts = texts_of(asked.data, model._tokenizer, asked.texts)
    found = {"texts": len(texts), **token_by_token(model, texts), "rows": generated(model, texts)}
    if asked.json:
        print(json.dumps(found, indent=1))
        return
    print(PAPER)
    shares = ", ".join(
        f"{share:.1%} after {layer}" for layer, share in found["right_first_at"].items()
    )
    print(f"{found['tokens']:,} tokens: right first {shares}; never {found['never_right']:.1%}")
    print(
        f"{'':22} {'skipped':>8} {'time':>7} {'ROUGE-L':>8} {'change':>8} {'BLEU':>6} {'stopped':>8}"
    )
    for row in found["rows"]:
        change = row["rouge_l_change"]
        print(
            f"{row['setting']:22} {row['layers_skipped']:8.2f} {-row['time_saved']:+7.1%} {row['rouge_l']:8.3f} "
            f"{0 if change is None else change:+8.1%} {row['bleu']:6.3f} {row['stopped']:8.1%}"
        )


if __name__ == "__main__":
    main()
