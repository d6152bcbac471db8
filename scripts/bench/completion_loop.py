"""What the completion loop promises, measured on a bundle and real files.

    python scripts/bench/completion_loop.py identity BUNDLE MODEL [--prompts 200] [--tokens 32] [--threads N]
    python scripts/bench/completion_loop.py typing BUNDLE [--keystrokes 500] [--threads N]
    python scripts/bench/completion_loop.py sessions BUNDLE [--sessions 1000] [--threads N]

identity: greedy tokens of BUNDLE at full depth (fp32) against transformers' of MODEL, a folder; where they differ, by
how much the two likeliest differ there. typing: time to the first token after each keystroke, edits further up among
them, and what moved keys and values cost: completions against those after reading everything again. sessions: memory
after many texts were opened and closed, tokens after a cancel, and the peak.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sysconfig
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_CONTEXT = 1600
_EDIT_EVERY = 10
_MOVED_LINES = 14
"""An edit is so many lines above the end, at least: enough tokens for their keys to be moved."""
_COMPARED = 16


def texts(least: int) -> Iterator[str]:
    """Modules of the standard library with so many characters."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if len(text) >= least:
            yield text


def identity(asked: argparse.Namespace) -> dict[str, Any]:
    """Tokens that differ from transformers'."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    import codemill

    torch.set_num_threads(asked.threads)
    theirs = AutoModelForCausalLM.from_pretrained(asked.model, torch_dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(Path(asked.model) / "tokenizer.json"))
    ours = codemill.load(asked.bundle, threads=asked.threads)
    end = list(ours.manifest.output["end"])
    drawn = random.Random(0)
    every = list(texts(4 * _CONTEXT))
    differ, same, tokens = [], 0, 0
    for number in range(asked.prompts):
        text = every[number % len(every)]
        start = text.find("\n", drawn.randrange(len(text) - _CONTEXT)) + 1
        prompt = text[start : start + drawn.randrange(200, _CONTEXT)]
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        alone: dict[str, Any] = {"exits": False, "drafts": False, "ngrams": False}
        found = ours.complete(prompt, max_tokens=asked.tokens, **alone).tokens
        ours.forget()
        with torch.inference_mode():
            made = theirs.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=asked.tokens,
                do_sample=False,
                eos_token_id=end,
                pad_token_id=end[0],
                return_dict_in_generate=True,
                output_scores=True,
            )
        wanted = [token for token in made.sequences[0, len(ids) :].tolist() if token not in end]
        tokens += len(wanted)
        if list(found) == wanted:
            same += 1
            continue
        pairs = zip(found, wanted, strict=False)
        at = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(found), len(wanted)))
        best = made.scores[at][0].topk(2).values if at < len(made.scores) else None
        gap = None if best is None else float(best[0] - best[1])
        differ.append({"prompt": number, "at": at, "gap": gap})
    return {"prompts": asked.prompts, "identical": same, "tokens": tokens, "differ": differ}


def typing(asked: argparse.Namespace) -> dict[str, Any]:
    """Time to the first token while a file is typed."""
    import codemill

    model = codemill.load(asked.bundle, threads=asked.threads)
    plain: dict[str, Any] = {"exits": False, "drafts": False}
    drawn = random.Random(0)
    source = next(iter(texts(12_000)))
    start = source.find("\n", 5000) + 1
    before, typed = source[:start][-3 * _CONTEXT :], source[start:]
    before = before[before.find("\n") + 1 :]
    model.complete(before, max_tokens=1, **plain)
    steps, first, after_edit, equal, alike = [], [], [], 0, []
    edits = 0
    for number in range(asked.keystrokes):
        edited = number % _EDIT_EVERY == _EDIT_EVERY - 1
        if edited:
            lines = before.split("\n")
            at = drawn.randrange(max(1, len(lines) - 2 * _MOVED_LINES), len(lines) - _MOVED_LINES)
            # a name is renamed, a letter at a time
            lines[at] = (
                lines[at] + drawn.choice("abcdefgh") if drawn.random() < 0.7 else lines[at][:-1]
            )
            before = "\n".join(lines)
        else:
            before, typed = before + typed[0], typed[1:]
        started = time.perf_counter()
        made = model.complete(before, max_tokens=1, **plain)
        seconds = time.perf_counter() - started
        (after_edit if edited else first).append(seconds)
        if number % 5 == 0:
            started = time.perf_counter()
            more = model.complete(before, max_tokens=9, **plain)
            took = time.perf_counter() - started
            # the first one is a step as well: all of the prompt but its last token is there
            steps.append(took / max(1, len(more.tokens)))
        if edited:
            edits += 1
            moved = model.complete(before, max_tokens=_COMPARED, **plain)
            model.forget()
            whole = model.complete(before, max_tokens=_COMPARED, **plain)
            equal += moved.tokens == whole.tokens
            pairs = zip(moved.tokens, whole.tokens, strict=False)
            alike.append(np.mean([a == b for a, b in pairs]))
    step = float(np.median(steps))
    every = [*first, *after_edit]

    def said(values: list[float]) -> dict[str, float]:
        return {
            f"p{share}_ms": float(np.quantile(values, share / 100)) * 1e3 for share in (50, 90, 99)
        }

    return {
        "keystrokes": asked.keystrokes,
        "tokens_of_the_prompt": made.prompt_tokens,
        "step_ms": step * 1e3,
        "first_token": said(every),
        "first_token_in_steps_p50": float(np.median(every)) / step,
        "first_token_appending": said(first),
        "first_token_after_an_edit": said(after_edit),
        "edits": edits,
        "moved_completions_equal_to_read_again": equal / max(1, edits),
        "moved_tokens_equal": float(np.mean(alike)) if alike else None,
    }


def resident(name: str = "VmRSS") -> int:
    """Bytes of this process, as Linux says."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def sessions(asked: argparse.Namespace) -> dict[str, Any]:
    """Memory after many texts, and tokens after a cancel."""
    import codemill
    from codemill.compress.pipeline import forget_peak
    from codemill.runtime import read_manifest, size_bytes

    started = resident()
    model = codemill.load(asked.bundle, threads=asked.threads)
    every = [text[:600] for text in texts(1000)]

    def use(count: int) -> None:
        for number in range(count):
            model.complete(every[number % len(every)], max_tokens=4)
            if number % 10 == 9:
                model.forget()
        model.forget()
        gc.collect()

    use(50)
    before = resident()
    use(asked.sessions)
    after = resident()
    late = []
    for text in every[:20]:
        cancel = threading.Event()
        with model.stream(text, max_tokens=64, cancel=cancel) as stream:
            for _ in stream:
                known = len(stream.completion.tokens)
                cancel.set()
                break
            for _ in stream:
                pass
        late.append(len(stream.completion.tokens) - known)
    # what was kept of these was used as well, and is no part of what one text takes
    model.forget()
    gc.collect()
    forget_peak()
    long = "\n".join(every)[:20_000]
    found = model.complete(long, max_tokens=64, drafts=False)
    manifest = read_manifest(Path(asked.bundle))
    weights = size_bytes(Path(asked.bundle), model.variant)
    shape = manifest.architecture
    kept = 2 * 4 * shape["layers"] * shape["kv_heads"] * shape["head_size"]
    cached = (found.prompt_tokens + len(found.tokens)) * kept
    peak = resident("VmHWM")
    return {
        "sessions": asked.sessions,
        "before_mb": before / 1e6,
        "after_mb": after / 1e6,
        "grown": after / before - 1,
        "tokens_after_cancel": max(late),
        "started_mb": started / 1e6,
        "peak_mb": peak / 1e6,
        "bundle_mb": weights / 1e6,
        "keys_and_values_mb": cached / 1e6,
        "peak_beyond_weights_and_kv_mb": (peak - weights - cached) / 1e6,
    }


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["identity", "typing", "sessions"])
    parser.add_argument("bundle")
    parser.add_argument("model", nargs="?")
    parser.add_argument("--threads", type=int, default=2)
    for name, value in (("prompts", 200), ("tokens", 32), ("keystrokes", 500), ("sessions", 1000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    asked = parser.parse_args()
    found = {"identity": identity, "typing": typing, "sessions": sessions}[asked.what](asked)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
