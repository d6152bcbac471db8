"""A bundle that embeds in Node (examples/node) and in Python: the same tokens and neighbours, and how long each takes.

    (cd examples/node && npm install)
    python scripts/bench/node.py BUNDLE [--functions 200] [--rounds 5] [--variant NAME]

Functions of the standard library, queried with the docstrings of those that have one. Both use one thread and read one
text a call, taking turns round by round; Node's time is taken in its process, so no pipe is in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np

from codemill.runtime import Function, functions_of, load_encoder
from codemill.runtime.bundle import TOKENIZER
from codemill.runtime.texts import Texts, open_tokenizer

_WORKER = Path("examples/node/worker.mjs")
_CHARACTERS = 400
"""A function has more than so many, that there is something to compare."""


def functions(count: int) -> list[Function]:
    """So many of the standard library, from all over its top modules."""
    found: list[Function] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        found += [item for item in functions_of(path.read_bytes()) if len(item.code) > _CHARACTERS]
    return found[:: max(1, len(found) // count)][:count]


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--functions", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--variant")
    asked = parser.parse_args()
    found = functions(asked.functions)
    codes = [item.code for item in found]
    queries = [item.docstring.partition("\n")[0] for item in found if item.docstring]
    model = load_encoder(asked.bundle, variant=asked.variant, threads=1)
    command = ["node", str(_WORKER), str(asked.bundle), model.variant]
    worker = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    )

    def ask(**request: Any) -> dict[str, Any]:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(json.dumps(request) + "\n")
        worker.stdin.flush()
        answer: dict[str, Any] = json.loads(worker.stdout.readline())
        return answer

    content = (asked.bundle / TOKENIZER).read_bytes()
    reader = Texts(open_tokenizer(content, "here"), content, "here", model.manifest.max_tokens)
    texts = [*codes, *queries]
    ids = ask(op="tokens", texts=texts)["tokens"]
    same = sum(a == list(reader.cut(text).ids) for a, text in zip(ids, texts, strict=True))
    theirs = np.array(ask(op="encode", texts=texts)["rows"], np.float32)
    ours = np.concatenate([model.encode([text]) for text in texts])
    count = len(codes)
    first = [(rows[count:] @ rows[:count].T).argmax(1) for rows in (ours, theirs)]
    tens = [np.argsort(-(rows[count:] @ rows[:count].T), 1)[:, :10] for rows in (ours, theirs)]
    ratios, node_ms, python_ms = [], [], []
    for _ in range(asked.rounds):
        node_ms.append(ask(op="encode", texts=codes)["ms"])
        started = time.perf_counter()
        for code in codes:
            model.encode([code])
        python_ms.append(1e3 * (time.perf_counter() - started))
        ratios.append(node_ms[-1] / python_ms[-1])
    worker.communicate()
    print(
        f"variant {model.variant}; {count} functions, {len(queries)} queries, {sum(map(len, ids)):,} tokens"
    )
    print(f"same token ids: {same} of {len(texts)} texts")
    print(f"embeddings differ by {np.abs(ours - theirs).max():.2g} at most")
    print(f"same nearest function: {(first[0] == first[1]).sum()} of {len(queries)} queries")
    print(f"same ten nearest, in order: {(tens[0] == tens[1]).all(1).sum()} of {len(queries)}")
    print(
        f"a function: Node {statistics.median(node_ms) / count:.2f} ms, "
        f"Python {statistics.median(python_ms) / count:.2f} ms; "
        f"Node/Python {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
    )


if __name__ == "__main__":
    main()
