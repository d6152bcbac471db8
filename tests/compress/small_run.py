"""One small run, every stage real, in this process or as the command; also what the campaigns run."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
    return subprocess.Popen(
        argv,
        stdout=pipe,
        stderr=pipe,
        text=True,
        # a group of its own: a signal to it does not reach the tests
        start_new_session=True,
        # tests may have been started in the background, where shells have Ctrl-C ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def stages_begun(process: subprocess.Popen[str], said: list[str]) -> Iterator[str]:
    """The names of the stages as the run begins them; `said` takes every line of its stderr."""
    assert process.stderr is not None
    for line in process.stderr:
        said.append(line)
        if found := re.match(r"\[\d+/\d+\] (\S+): started", line):
            yield found[1]


def can_mount() -> bool:
    unshare = shutil.which("unshare")
    if unshare is None:
        return False
    with_mount = [unshare, "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(with_mount, capture_output=True, check=False).returncode == 0


@dataclass(frozen=True)
class Attempt:
    """One try of a run on a disk of some size."""

    size: str
    code: int
    finished: int
    """stages"""
    said: list[str]
    left: bool
    """whether a half-delivered bundle is left, or `--out` holds one that is not whole"""


# what the estimate would refuse at once is what is to be met here
_NO_ESTIMATE = """
import codemill.compress.preflight as p; p._disk = lambda needed, work: p.Check('disk', True, '')
from codemill.cli import main
"""
_ON_A_SMALL_DISK = """
set -e
disk=$1 sizes=$2
shift 2
mount -t tmpfs -o size=$(set -- $sizes; echo $1) none "$disk"
for size in $sizes; do
    mount -o remount,size=$size "$disk"
    "$@" && code=0 || code=$?
    finished=$(find "$disk/work" -name done.json | wc -l)
    left=$(find "$disk" -maxdepth 1 -name '.out.partial-*' | wc -l)
    [ $code = 0 ] || [ ! -e "$disk/out" ] || left=1
    echo "attempt $size $code $finished $left" >&2
    [ $code != 0 ] || break
done
"""


def run_on_a_small_disk(recipe: Path, disk: Path, sizes: Sequence[str]) -> list[Attempt]:
    """The run on a tmpfs that is made larger after each attempt, in a namespace of its own; see `can_mount`."""
    disk.mkdir()
    code = f"import sys; exec({_NO_ESTIMATE!r}); sys.exit(main())"
    run = [sys.executable, "-c", code, "run", str(recipe), "--work", str(disk / "work")]
    run += ["--out", str(disk / "out")]
    shell = ["sh", "-c", _ON_A_SMALL_DISK, "sh", str(disk), " ".join(sizes), *run]
    argv = ["unshare", "--map-root-user", "--mount", *shell]
    ended = subprocess.run(argv, capture_output=True, text=True, check=True)
    attempts, said = [], []
    for line in ended.stderr.splitlines():
        if not line.startswith("attempt "):
            said.append(line)
            continue
        _, size, exit_code, finished, left = line.split()
        attempts.append(Attempt(size, int(exit_code), int(finished), said, left != "0"))
        said = []
    return attempts
