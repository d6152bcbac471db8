#!/usr/bin/env python3
"""What Compressor's published 3 MB architecture reaches on the pairs and labels of a finished run.

    scripts/bench/distil_published.py WORK [--recipe code-search] [--max-tokens 320] [--architecture FILE]

WORK is the run's work folder. The architecture (1000 tokens, 96 wide, 12 layers, 8 heads, 64 inner, 514
positions) starts from random weights, with a byte-level BPE of 1,000 tokens trained on the run's pairs, and is
distilled on as many pairs and epochs as the run's student, by the same loop. Its tokens are shorter, so training
texts are cut to more of them. FILE, an architecture.json of a search, is distilled instead, as the recipe says.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def main() -> None:
    """Distil and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--recipe", default="code-search")
    parser.add_argument("--max-tokens", type=int, default=320)
    parser.add_argument("--architecture", type=Path)
    asked = parser.parse_args()
    from codemill.compress.architecture import Architecture
    from codemill.compress.compute import compute_of
    from codemill.compress.pipeline import folder_of, keys_of
    from codemill.compress.recipe import read_recipe
    from codemill.compress.run import stages_of
    from codemill.compress.trial import run_trial, trial

    recipe = read_recipe(asked.recipe)
    keys = keys_of(stages_of(recipe))
    folders = {
        name: folder_of(asked.work, name, keys[name]) for name in ("corpus", "teacher", "labels")
    }
    if asked.architecture is None:
        fresh = ["student.init=fresh", "student.tokenizer=bpe", "student.max_tokens=514"]
        lengths = [f"data.max_tokens={asked.max_tokens}", "bench.tokens=[32,128]"]
        recipe = read_recipe(asked.recipe, [*fresh, *lengths])
        architecture = Architecture(1000, 96, 12, 8, 12, 64, 514)
    else:
        architecture = Architecture.from_json(json.loads(asked.architecture.read_text()))
    item = trial(recipe, folders, architecture, recipe.data.train_pairs, compute_of(recipe).threads)
    print(json.dumps({"architecture": architecture.to_json(), **run_trial(item)}))


if __name__ == "__main__":
    main()
