"""`compress bench` of a bundle that completes, its report, and what it cannot be measured on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codemill.runtime import load_completer
from codemill.targets import completion_benchmark, human_eval
from codemill.targets.completion import CompletionEvaluation, write_completion_evaluation
from codemill.targets.completion_benchmark import read_completion_report
from codemill.targets.human_eval import Problem

from .test_complete_command import SOURCE, bundle, decoder

__all__ = ["bundle", "decoder"]

Compress = Callable[..., Any]
PLACES = CompletionEvaluation(
    "some lines", (SOURCE, "def f(x):\n    return ", "import "), ("add(2, 3)", "x", "os")
)


@pytest.fixture
def places(tmp_path: Path) -> Path:
    write_completion_evaluation(tmp_path / "places.jsonl.gz", PLACES)
    return tmp_path / "places.jsonl.gz"


def test_a_bundle_that_completes_is_measured_against_another(
    compress: Compress,
    bundle: Path,
    places: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    every = [Problem(str(n), "def one():\n", "", "one") for n in range(2)]
    monkeypatch.setattr(completion_benchmark, "read_problems", lambda: every)
    # what is written is run elsewhere
    ran: list[str] = []
    monkeypatch.setattr(
        human_eval, "passes", lambda problem, made: ran.append(made) or problem.name != "1"
    )
    # as recipes call it, and as the bundle's own engines are called
    other = tmp_path / "bundle"
    shutil.copytree(bundle, other)
    ended = compress(
        *("bench", bundle, "--evaluation", places, "--against", other, "--threads", "1"),
        *("--out", "found", "--human-eval", "--json"),
    )
    assert ended.code == 0, ended.err
    names = [engine["name"] for engine in ended.document["engines"]]
    assert names == [
        "reference bundle, full depth",
        "reference bundle, as it ships: drafts",
        "bundle, full depth",
        "bundle, as it ships: drafts",
    ]
    assert ended.document["baseline"] == names[0]
    assert [engine["role"] for engine in ended.document["engines"]] == [
        *("reference", "reference", "bundle", "bundle")
    ]
    report = read_completion_report(Path("found/report.json"))
    own = report.engine(report.bundle_engine)
    assert own.figures.places == 3
    assert own.exact_match_loss is None or own.exact_match_loss.value == 0
    assert own.next_token_accuracy == report.engines[0].next_token_accuracy
    assert own.pass_at_1 is not None
    assert own.pass_at_1.value == 0.5
    # that of the fence itself, and of four engines two each
    assert len(ran) == 1 + 4 * 2
    assert all(made.startswith("def one():\n") for made in ran[1:])
    page = Path("found/report.html").read_text(encoding="utf-8")
    assert "next token right" in page
    again = compress("report", "found/report.json", "--out", "again.html")
    assert again.code == 0
    assert Path("again.html").read_text(encoding="utf-8") == page
    two = compress("report", "found/report.json", "found/report.json", "--out", "two.html")
    assert two.code == 0
    assert "2 reports side by side" in Path("two.html").read_text(encoding="utf-8")


def test_fewer_places_and_a_table(compress: Compress, bundle: Path, places: Path) -> None:
    ended = compress("bench", bundle, "--evaluation", places, "--places", "1", "--threads", "1")
    assert ended.code == 0, ended.err
    assert "next token right" in ended.out
    assert "bundle, full depth" in ended.out


def test_what_it_cannot_be_measured_on_is_said(
    compress: Compress, bundle: Path, places: Path, tmp_path: Path
) -> None:
    (tmp_path / "queries.jsonl").write_text(json.dumps({"query": "a", "code": "b"}))
    (tmp_path / "empty.jsonl").write_text("")
    for arguments, code, said in (
        ((), 1, "with `prefix` and `line`"),
        (("--evaluation", tmp_path / "queries.jsonl"), 1, "prefix"),
        (("--evaluation", tmp_path / "empty.jsonl"), 1, "empty"),
        (("--evaluation", places, "--rounds", "2"), 2, "give --places"),
        (("--evaluation", places, "--against", "nowhere"), 1, "nowhere"),
        (("--evaluation", places, "--variant", "gpu"), 1, "gpu"),
    ):
        ended = compress("bench", bundle, *arguments)
        assert ended.code == code, (arguments, ended.err)
        assert said in ended.err, (arguments, ended.err)
        assert "Traceback" not in ended.err


def test_predictions_are_what_the_loop_says(bundle: Path) -> None:
    with load_completer(bundle) as model:
        ids, said = model.predictions(SOURCE)
        made = model.complete(SOURCE, max_tokens=1)
        assert said[-1] == made.tokens[0] or not made.tokens
        assert len(ids) == len(said)
        long, _ = model.predictions(SOURCE * 100)
        assert len(long) <= model.manifest.max_tokens
    with pytest.raises(RuntimeError, match="closed"):
        model.predictions("a")
