"""A bundle in Node (examples/node): the same tokens, the same decisions, and nearly the same numbers as in Python."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.compress.conftest import make_pairs, train_tokenizer
from tests.compress.exits.test_leaving import EXITS
from tests.compress.models.families import train_bpe
from tests.export.bundles import embedding_bundle, labelling_bundle
from tests.export.conftest import tiny_bert
from tokenizers import processors

from codemill.compress.models.vocabulary import Pruned, Trained
from codemill.compress.models.wordpiece import count_tokens
from codemill.runtime import load_classifier, load_encoder, read_manifest
from codemill.runtime.bundle import update_bundle
from codemill.runtime.texts import Texts, open_tokenizer

NODE, BROWSER = Path("examples/node").absolute(), Path("examples/browser").absolute()
INSTALL_S, ANSWER_S = 300, 120
LONGEST = 24
CODE = [text for pair in make_pairs(60, seed=4) for text in (pair.query, pair.code)]
TEXTS = [
    "open a file",
    "close the socket and the file",
    "def read(path):\n    return 1",
    "",
    "a file " * 60,
]
ODD = [
    "",
    " \t\r\n",
    "naïve café e\u0301 İı ß ﬁ ½",
    "日本語 中文 한국어 🚀 𝒳",
    "\x00\x7f\u200b\ufeff\u00a0\u2028\x85",
    "[CLS] [SEP] [MASK] <s></s> <pad> x[UNK]y",
    "don't snake_case camelCase __init__ a->b::c 1_000.5e-3",
    "$ ^ ` ~ | + < > = ¿ € ≤",
    "a" * 99 + " " + "b" * 101,
    "\n\n  indented\n\n\n",
]


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """examples/node with its packages, beside the part of examples/browser that it uses."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}, which is not on the path")
    version = subprocess.run(["node", "--version"], capture_output=True, encoding="utf-8").stdout
    if int(version.lstrip("v").partition(".")[0] or 0) < 20:
        pytest.skip(f"needs Node 20 or newer, found {version.strip()}")
    home = tmp_path_factory.mktemp("examples")
    installed = shutil.ignore_patterns("node_modules")
    shutil.copytree(NODE, home / "node", ignore=installed)
    shutil.copytree(BROWSER, home / "browser", ignore=installed)
    try:
        ended = subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--prefer-offline"],
            cwd=home / "node",
            capture_output=True,
            encoding="utf-8",
            timeout=INSTALL_S,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"`npm install` did not end within {INSTALL_S} s")
    if ended.returncode:
        # a version that is not there is ours to mend; a registry that does not answer is not
        assert "ETARGET" not in ended.stderr, ended.stderr
        pytest.skip(f"`npm install` failed: {ended.stderr.strip()[:300]}")
    yield home / "node"
    # 300 MB
    shutil.rmtree(home / "node")


def run(*command: object, lines: str = "") -> subprocess.CompletedProcess[str]:
    arguments = ["node", *map(str, command)]
    return subprocess.run(
        arguments, input=lines, capture_output=True, encoding="utf-8", timeout=ANSWER_S
    )


def ask(node: Path, folder: Path, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    ended = run(node / "worker.mjs", folder, lines=lines)
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


def tokenizers() -> dict[str, str]:
    """Of the kinds that bundles have: a BERT's and a RoBERTa's, whole and pruned, and one that was trained."""
    wordpiece, bpe = train_tokenizer(CODE), train_bpe(CODE)
    found = {"wordpiece": wordpiece.to_str(), "bpe": bpe.to_str()}
    for name, size in (("wordpiece", 200), ("bpe", 330)):
        counts = count_tokens(found[name], CODE)
        found[f"{name}, pruned"] = Pruned(found[name], counts).at(size).tokenizer_json
    return {**found, "trained": Trained(CODE).at(400).tokenizer_json}


@pytest.mark.parametrize(
    "kind", ["wordpiece", "wordpiece, pruned", "bpe", "bpe, pruned", "trained"]
)
def test_it_reads_texts_as_the_same_tokens(kind: str, node: Path, tmp_path: Path) -> None:
    folder = embedding_bundle(tmp_path / "bundle", tiny_bert(), 4)
    content = tokenizers()[kind].encode()
    (folder / "tokenizer.json").write_bytes(content)
    update_bundle(folder, input={"max_tokens": LONGEST})
    texts = [*CODE, *ODD]
    joined = [[a, b] for a, b in zip(texts, texts[::-1], strict=True)]
    alone, together = ask(
        node, folder, {"op": "tokens", "texts": texts}, {"op": "tokens", "texts": joined}
    )
    reader = Texts(open_tokenizer(content, "here"), content, "here", LONGEST)
    assert alone["tokens"] == [list(reader.cut(text).ids) for text in texts]
    # one that was trained has no template for two texts: no bundle joins them by it
    if kind != "trained":
        assert together["tokens"] == [list(reader.cut_pair(*pair).ids) for pair in joined]
    assert any(reader.cut(text).truncated for text in texts)


def test_it_embeds_as_the_python_runtime_does(node: Path, tmp_path: Path) -> None:
    folder = embedding_bundle(tmp_path / "bundle", tiny_bert(), 4)
    texts = ["open file", "close", "open close file open", "", "file " * 60]
    (answer,) = ask(node, folder, {"op": "encode", "texts": texts})
    with load_encoder(folder, threads=1) as model:
        expected = model.encode(texts)
    assert np.abs(np.array(answer["rows"]) - expected).max() < 1e-4


@pytest.mark.parametrize("texts", [1, 2])
def test_it_decides_as_the_python_runtime_does(texts: int, node: Path, tmp_path: Path) -> None:
    folder = labelling_bundle(tmp_path, texts, max_tokens=LONGEST)
    given = [*TEXTS, *CODE]
    items: list[Any] = (
        given if texts == 1 else [list(pair) for pair in zip(given, given[::-1], strict=True)]
    )
    update_bundle(
        folder, exits=[{**item, "threshold": 0.6} for item in read_manifest(folder).exits]
    )
    found, embedded = ask(
        node, folder, {"op": "predict", "items": items}, {"op": "encode", "texts": given}
    )
    with load_classifier(folder, threads=1) as model:
        expected = model.run(items)
        rows = model.encode(given)
        labels = [model.labels[best] for best in expected.probabilities.argmax(1)]
    answers = found["found"]
    assert [item["label"] for item in answers] == labels
    assert [item["layersUsed"] for item in answers] == expected.layers_used.tolist()
    assert {item["layersUsed"] for item in answers} == {*EXITS, 4}
    assert [item["truncated"] for item in answers] == expected.truncated.tolist()
    probabilities = np.array([item["probabilities"] for item in answers])
    assert np.abs(probabilities - expected.probabilities).max() < 1e-4
    assert np.abs(np.array(embedded["rows"]) - rows).max() < 1e-4


def test_it_reads_two_texts_in_one_sequence_as_the_python_runtime_does(
    node: Path, tmp_path: Path
) -> None:
    folder = labelling_bundle(tmp_path, 1, max_tokens=LONGEST)
    tokenizer = open_tokenizer((folder / "tokenizer.json").read_bytes(), "here")
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ids
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    shape = {"max_tokens": LONGEST, "texts": 2, "joined": True}
    update_bundle(folder, task="pair-classification", input=shape)
    items = [list(pair) for pair in zip(TEXTS, TEXTS[::-1], strict=True)]
    (answer,) = ask(node, folder, {"op": "predict", "items": items})
    with load_classifier(folder, threads=1) as model:
        expected = model.run(items)
    probabilities = np.array([item["probabilities"] for item in answer["found"]])
    assert np.abs(probabilities - expected.probabilities).max() < 1e-4
    assert [item["truncated"] for item in answer["found"]] == expected.truncated.tolist()
    assert any(expected.truncated)


def test_the_command_names_the_nearest_piece_first(node: Path, tmp_path: Path) -> None:
    folder = embedding_bundle(tmp_path / "bundle", tiny_bert(), 4)
    code = tmp_path / "code.txt"
    code.write_text("close file\n\n\nopen file\n\nclose\n")
    ended = run(node / "search.mjs", folder, "open file", code)
    assert ended.returncode == 0, ended.stderr
    first, *others = ended.stdout.splitlines()
    assert first == f"{code}:4  1.000  open file"
    assert sorted(line.split()[0] for line in others) == [f"{code}:1", f"{code}:6"]


def test_the_command_labels_files(node: Path, tmp_path: Path) -> None:
    folder = labelling_bundle(tmp_path, 2, max_tokens=LONGEST)
    paths = [tmp_path / "a.py", tmp_path / "b.py"]
    for path, text in zip(paths, CODE, strict=False):
        path.write_text(text)
    ended = run(node / "search.mjs", folder, *paths)
    with load_classifier(folder, threads=1) as model:
        (expected,) = model.predict([tuple(CODE[:2])])
    assert ended.stdout.startswith(f"{paths[0]} {paths[1]}  {expected.label}  ")
    ended = run(node / "search.mjs", folder, paths[0])
    assert (ended.returncode, ended.stderr) == (
        1,
        "error: tiny labels pairs of files; found 1\n",
    )


def test_what_is_wrong_with_a_bundle_is_said_in_a_line(node: Path, tmp_path: Path) -> None:
    folder = embedding_bundle(tmp_path / "bundle", tiny_bert(), 4)
    code = tmp_path / "code.txt"
    code.write_text("open file\n")
    manifest = json.loads((folder / "manifest.json").read_text())
    graph = folder / manifest["variants"]["plain-fp32"]["segments"][0]

    def said() -> str:
        ended = run(node / "search.mjs", folder, "open file", code)
        assert ended.returncode == 1
        assert ended.stderr.startswith("error: ")
        assert ended.stderr.count("\n") == 1
        return ended.stderr

    def written(**changes: object) -> None:
        (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))

    content = graph.read_bytes()
    graph.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "encoder.onnx was changed: its sha256 is " in said()
    graph.write_bytes(content[:-1])
    assert f"has {len(content) - 1} bytes, the manifest says {len(content)}" in said()
    graph.unlink()
    assert "no such file or directory" in said()
    written(schema=2)
    assert "is of schema 2; this reads schema 1" in said()
    written(task="completion", output={"kind": "tokens", "vocab_size": 5})
    assert "made for completion; this reads bundles that embed or label" in said()
    variant = {**manifest["variants"]["plain-fp32"], "provider": "CUDAExecutionProvider"}
    written(variants={"cuda": variant})
    assert "no variant of made-up runs here. It has: cuda (CUDAExecutionProvider)" in said()
    away = {**manifest["variants"]["plain-fp32"], "segments": ["../code.txt"]}
    written(
        variants={"away": away},
        files={**manifest["files"], "../code.txt": {"sha256": "", "size_bytes": 10}},
    )
    assert "../code.txt is not a file that the manifest may name" in said()
    (folder / "manifest.json").write_text("{")
    assert "manifest.json is not valid JSON" in said()


def test_packages_are_of_one_version_each_and_the_tokenizer_is_the_browsers() -> None:
    said, browsers = (
        json.loads((home / "package.json").read_text())["dependencies"] for home in (NODE, BROWSER)
    )
    assert all(version[0].isdigit() for version in said.values())
    assert said["@huggingface/tokenizers"] == browsers["@huggingface/tokenizers"]
