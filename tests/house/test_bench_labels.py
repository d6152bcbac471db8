"""`compress bench` of a bundle that labels, and what it cannot be compared with."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codemill.targets.evaluation import LabelledEvaluation, write_evaluation

Compress = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]
TEXTS = ("open the file", "connect a socket", "matrix multiply matrix", "read file " * 20)


def _made() -> Any:
    spec = importlib.util.spec_from_file_location("bench_c", ROOT / "tests/runtime/conftest.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that labels, its evaluation beside it."""
    folder = Path(_made().write_labels_bundle(tmp_path_factory.mktemp("labels") / "tiny"))
    texts = tuple(text + " of the data" * 80 for text in TEXTS)
    rows = tuple((n,) for n in range(4))
    evaluation = LabelledEvaluation("test", tuple(_made().LABELS), texts, rows, (0, 1, 2, 0))
    write_evaluation(folder / "evaluation.jsonl.gz", evaluation)
    return folder


def test_a_bundle_that_labels_is_measured_against_another(compress: Compress, labels: Path) -> None:
    ended = compress(
        *("bench", labels, "--against", labels, "--rounds", "1", "--threads", "1"),
        "--json",
    )
    assert ended.code == 0
    other, mine = ended.document["benchmark"]["engines"]
    assert (other["role"], mine["role"]) == ("reference", "bundle")
    assert mine["labelling"]["rows"] == 4
    assert mine["labelling"]["agreement"] == 1
    less = ended.document["benchmark"]["differences"]
    assert {item["quantity"] for item in less} >= {"accuracy"}


def test_what_it_cannot_be_measured_on_or_against_is_said_before_anything_is(
    compress: Compress, labels: Path, bundle: Path, tmp_path: Path
) -> None:
    other = LabelledEvaluation("test", ("a", "b"), TEXTS, ((0,), (1,)), (0, 1))
    write_evaluation(tmp_path / "other.jsonl.gz", other)
    for arguments, said in (
        (
            ("--evaluation", tmp_path / "other.jsonl.gz"),
            "has rows of 1 texts and the labels ['a', 'b']",
        ),
        (("--against", "owner/name"), "compress export MODEL --task classify"),
        (("--against", bundle), "it is made for 'retrieval'"),
    ):
        ended = compress("bench", labels, *arguments)
        assert (ended.code, said in ended.err) == (1, True), ended.err


@pytest.mark.parametrize("option", [("--places", "3"), ("--human-eval",)])
def test_options_of_completion_are_refused(
    compress: Compress, labels: Path, option: tuple[str, ...]
) -> None:
    ended = compress("bench", labels, *option)
    assert (ended.code, "is of a bundle that completes" in ended.err) == (2, True), ended.err
