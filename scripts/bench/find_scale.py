"""How fast a large folder is indexed and searched: 100,000 short functions, and the standard library.

    python scripts/bench/find_scale.py [BUNDLE] [--functions 100000] [--json]

The functions are generated, no two alike, in equal shares of the languages that can be read here, twenty a
file. Each step runs in a process of its own, as a user's would: the first index; opening it again with nothing
changed; opening it with one file changed; queries on an open index. The first index is also told in seconds of
processor time, which other work on the machine changes less. BUNDLE is by default the one codemill
brings. The cache is a temporary folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

_A_FILE = 20
_OPENINGS = 5
_QUERIES = (
    "parse an ISO date",
    "remove the oldest entries of a cache",
    "read a configuration file",
    "merge sorted lists",
    "send a message over a socket",
)
_VERBS = (
    *("load", "store", "merge", "split", "count", "sort", "filter", "encode", "decode", "hash"),
    *("open", "close", "send", "fetch", "parse", "format", "check", "round", "scale", "clip"),
    *("copy", "move", "rename", "remove", "append", "insert", "find", "replace", "group", "pair"),
    *(
        "compress",
        "expand",
        "sign",
        "verify",
        "lock",
        "release",
        "draw",
        "measure",
        "sum",
        "invert",
    ),
)
_NOUNS = (
    *(
        "row",
        "column",
        "table",
        "matrix",
        "vector",
        "header",
        "packet",
        "socket",
        "session",
        "user",
    ),
    *("order", "invoice", "price", "account", "token", "key", "page", "index", "tree", "node"),
    *("edge", "graph", "path", "file", "folder", "image", "pixel", "sample", "signal", "frame"),
    *("event", "timer", "queue", "stack", "buffer", "cache", "record", "field", "label", "score"),
    *("batch", "layer", "weight", "gradient", "date", "city", "route", "message", "block", "chunk"),
)
_TEMPLATES = {
    "python": (
        "py",
        "def {a}_{b}_{c}({b}s, limit={n}):\n    result = []\n    for {b} in {b}s:\n"
        "        if {b}.{c} > limit:\n            result.append({a}({b}.{c}))\n    return result\n\n",
    ),
    "javascript": (
        "js",
        "export function {a}{B}{C}({b}s, limit = {n}) {{\n  return {b}s\n"
        "    .filter(({b}) => {b}.{c} > limit)\n    .map(({b}) => {a}({b}.{c}));\n}}\n\n",
    ),
    "typescript": (
        "ts",
        "export const {a}{B}{C} = ({b}s: {B}[], limit: number = {n}): {C}[] => {{\n"
        "  return {b}s.filter(({b}) => {b}.{c} > limit).map(({b}) => {a}({b}.{c}));\n}};\n\n",
    ),
    "java": (
        "java",
        "class {A}{B}{C}{n} {{\n    static List<{C}> {a}{B}(List<{B}> {b}s) {{\n"
        "        return {b}s.stream().filter({b} -> {b}.{c}() > {n}).map({b} -> {a}({b}.{c}())).toList();\n"
        "    }}\n}}\n\n",
    ),
    "c": (
        "c",
        "int {a}_{b}_{c}(struct {b} *{b}s, int count)\n{{\n    int found = 0;\n"
        "    for (int i = 0; i < count; i++)\n        if ({b}s[i].{c} > {n})\n"
        "            found += {a}({b}s[i].{c});\n    return found;\n}}\n\n",
    ),
    "cpp": (
        "cpp",
        "std::vector<{C}> {a}_{b}_{c}(const std::vector<{B}>& {b}s) {{\n    std::vector<{C}> found;\n"
        "    for (const auto& {b} : {b}s)\n        if ({b}.{c} > {n}) found.push_back({a}({b}.{c}));\n"
        "    return found;\n}}\n\n",
    ),
    "go": (
        "go",
        "func {a}{B}{C}({b}s []{B}) (found []{C}) {{\n\tfor _, {b} := range {b}s {{\n"
        "\t\tif {b}.{c} > {n} {{\n\t\t\tfound = append(found, {a}({b}.{c}))\n\t\t}}\n\t}}\n\treturn found\n}}\n\n",
    ),
    "rust": (
        "rs",
        "pub fn {a}_{b}_{c}({b}s: &[{B}]) -> Vec<{C}> {{\n    {b}s.iter()\n"
        "        .filter(|{b}| {b}.{c} > {n})\n        .map(|{b}| {a}({b}.{c}))\n        .collect()\n}}\n\n",
    ),
}


def _generate(root: Path, count: int, languages: list[str]) -> None:
    names = itertools.product(_VERBS, _NOUNS, _NOUNS)
    written = 0
    for number in itertools.count():
        chosen = list(itertools.islice(names, min(_A_FILE, count - written)))
        if not chosen:
            return
        suffix, template = _TEMPLATES[languages[number % len(languages)]]
        folder = root / f"package{number // 50:03}"
        folder.mkdir(parents=True, exist_ok=True)
        text = "".join(
            template.format(a=a, b=b, c=c, A=a.title(), B=b.title(), C=c.title(), n=written + place)
            for place, (a, b, c) in enumerate(chosen)
        )
        path = folder / f"module{number}.{suffix}"
        path.write_text(text)
        # else it would be mistrusted, and read again
        os.utime(path, (1e9, 1e9))
        written += len(chosen)


def _child(step: str, root: str, bundle: str, exclude: list[str]) -> dict[str, Any]:
    from codemill.runtime import Index, load_encoder
    from codemill.runtime.reading import read_functions
    from codemill.targets.worker import peak_rss_bytes

    began = time.perf_counter()
    with load_encoder(bundle) as encoder:
        loaded, worked = time.perf_counter(), time.process_time()
        index = Index.open(root, encoder, exclude=exclude)
        opened, worked = time.perf_counter(), time.process_time() - worked
        found: dict[str, Any] = {
            "load_s": loaded - began,
            "open_s": opened - loaded,
            "open_cpu_s": worked,
            "functions": len(index),
            "files": index.files,
            "peak_rss_bytes": peak_rss_bytes(),
        }
        if step == "query":
            index.search("warm up")
            times = []
            for _ in range(10):
                for query in _QUERIES:
                    start = time.perf_counter()
                    index.search(query)
                    times.append(1e3 * (time.perf_counter() - start))
            cut = statistics.quantiles(times, n=10)
            found |= {"query_ms_p50": statistics.median(times), "query_ms_p90": cut[-1]}
        if step == "tokens":
            paths = sorted(
                path
                for path in Path(root).rglob("*.*")
                if path.suffix in (".py", ".js", ".go", ".c")
            )
            codes = []
            for path in paths[:: max(1, len(paths) // 200)]:
                try:
                    codes += [
                        item.function.code
                        for item in read_functions(path.name, path.read_bytes()).functions
                    ]
                except ValueError:
                    continue
            counts = encoder.count_tokens(codes)
            found |= {
                "tokens_mean": statistics.mean(counts),
                "tokens_p50": statistics.median(counts),
            }
    return found


def _run(step: str, root: Path, bundle: str, exclude: list[str]) -> dict[str, Any]:
    command = [sys.executable, __file__, bundle, "--child", step, str(root), *exclude]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(out)
    return found


def _measured(root: Path, bundle: str, cache: Path, exclude: list[str]) -> dict[str, Any]:
    first = _run("first", root, bundle, exclude)
    again = [_run("again", root, bundle, exclude) for _ in range(_OPENINGS)]
    asked = _run("query", root, bundle, exclude)
    tokens = _run("tokens", root, bundle, exclude)
    return {
        "functions": first["functions"],
        "files": first["files"],
        "tokens_mean": tokens["tokens_mean"],
        "tokens_p50": tokens["tokens_p50"],
        "first_s": first["open_s"],
        "first_cpu_s": first["open_cpu_s"],
        "first_functions_per_s": first["functions"] / first["open_s"],
        "first_peak_rss_bytes": first["peak_rss_bytes"],
        "again_s": statistics.median(item["open_s"] for item in again),
        "again_worst_s": max(item["open_s"] for item in again),
        "again_peak_rss_bytes": again[0]["peak_rss_bytes"],
        "query_ms_p50": asked["query_ms_p50"],
        "query_ms_p90": asked["query_ms_p90"],
        "index_bytes": sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", default="code-search")
    parser.add_argument("--functions", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        step, root, *exclude = chosen.child
        print(json.dumps(_child(step, root, chosen.bundle, exclude)))
        return
    from codemill.runtime.languages import LANGUAGES, readable_languages

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CODEMILL_CACHE"] = f"{folder}/cache"
        tree = Path(folder) / "tree"
        _generate(
            tree, chosen.functions, [name for name in LANGUAGES if name in readable_languages()]
        )
        found["generated"] = _measured(tree, chosen.bundle, Path(folder) / "cache", [])
        changed = next(iter(sorted(tree.rglob("*.py"))))
        changed.write_text(changed.read_text() + "\ndef one_more(value):\n    return value + 1\n")
        found["generated"]["one_file_changed_s"] = _run("again", tree, chosen.bundle, [])["open_s"]
        os.environ["CODEMILL_CACHE"] = f"{folder}/second"
        stdlib = Path(sysconfig.get_path("stdlib"))
        without = ["test", "tests", "idlelib", "lib2to3"]
        found["standard library"] = _measured(
            stdlib, chosen.bundle, Path(folder) / "second", without
        )
    if chosen.json:
        print(json.dumps(found, indent=1))
        return
    for name, values in found.items():
        print(name)
        for key, value in values.items():
            print(
                f"  {key:24} {value:,.2f}" if isinstance(value, float) else f"  {key:24} {value:,}"
            )


if __name__ == "__main__":
    main()
