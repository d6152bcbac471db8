from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codemill.errors import DataError
from codemill.targets import BenchmarkResult, make_report, read_report, render, write_report
from codemill.targets.analysis import (
    CodeProperty,
    LayerAnalysis,
    LayerFigures,
    Probe,
    Recommendation,
    read_analysis,
    write_analysis,
)
from codemill.targets.analysis_page import analysis_page, layer_table


def analysis(finetuned: str | None = "tuned") -> LayerAnalysis:
    def probe(accuracy: float) -> Probe:
        return Probe("token-type", accuracy, 0.4, accuracy - 0.4, 0.01)

    compared = finetuned is not None
    return LayerAnalysis(
        schema=1,
        codemill="0",
        model="models/<b>teacher</b>",
        family="bert",
        layers=3,
        hidden_size=8,
        finetuned=finetuned,
        data="d.jsonl",
        language="python",
        texts=40,
        max_tokens=128,
        seed=0,
        properties=(CodeProperty("token-type", "lexical", "which kind?", 7, 100, 50, 0.3),),
        by_layer=tuple(
            LayerFigures(
                layer,
                (probe(0.5 + layer / 10),),
                (probe(0.55),) if compared else (),
                1 - layer / 10 if compared else None,
                1 - layer / 20 if compared else None,
            )
            for layer in range(4)
        ),
        recommendation=Recommendation(1, "similarity", "Because of <this>."),
        notes=("1 of 41 snippets cannot be parsed as python.",),
    )


@pytest.mark.parametrize("finetuned", ["tuned", None])
def test_an_analysis_survives_being_written_and_read(tmp_path: Path, finetuned: str | None) -> None:
    write_analysis(tmp_path / "analysis.json", analysis(finetuned))
    assert read_analysis(tmp_path / "analysis.json") == analysis(finetuned)
    assert [path.name for path in tmp_path.iterdir()] == ["analysis.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "not an analysis of schema 1"),
        ({"layers": 4}, r"by_layer: expected the layers 0 to 4, found \[0, 1, 2, 3\]"),
        (
            {"recommendation": {"freeze_layers": 9, "rule": "probes", "reason": ""}},
            "expected 0 to 3",
        ),
        ({"texts": "many"}, r"texts: expected a value of type int"),
        (
            {
                "layers": 0,
                "by_layer": [{"layer": 0, "probes": [], "cka": 3.0}],
                "recommendation": {"freeze_layers": 0, "rule": "probes", "reason": ""},
            },
            r"by_layer\[0\]\.cka: expected a number from 0 to 1, found 3\.0",
        ),
    ],
)
def test_what_is_wrong_with_an_analysis_is_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "analysis.json"
    write_analysis(path, analysis())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message):
        read_analysis(path)


def test_an_analysis_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="compress analyze"):
        read_analysis(tmp_path / "analysis.json")


def test_the_page_shows_figures_and_reason_and_nothing_of_others_as_markup() -> None:
    page = analysis_page(analysis())
    assert "Freeze the lowest 1 of 3 layers" in page
    assert "Because of &lt;this&gt;." in page
    assert "<b>teacher" not in page
    assert page.count("<svg") == 3
    assert "0.600 → 0.550" in page
    assert "http" not in page
    assert page == analysis_page(analysis())
    assert analysis_page(analysis(None)).count("<svg") == 2


def test_the_table_has_a_row_for_each_layer() -> None:
    heads, rows = layer_table(analysis())
    assert heads == [("token-type", "lexical"), ("RSA", ""), ("CKA", "")]
    assert [name for name, _ in rows] == ["embeddings", "1", "2", "3"]
    assert rows[2][1] == [("0.700 → 0.550", "+0.300"), ("0.800", ""), ("0.900", "")]


def test_a_report_carries_an_analysis_and_shows_it(
    result: tuple[BenchmarkResult, list[str]], tmp_path: Path
) -> None:
    plain = make_report(result[0], title="search", task="retrieval")
    with_it = replace(plain, analysis=analysis())
    write_report(tmp_path / "report.json", with_it)
    assert read_report(tmp_path / "report.json") == with_it
    pages = [render([report], tmp_path / "report.html").read_text() for report in (plain, with_it)]
    assert ["Freeze the lowest 1 of 3 layers" in page for page in pages] == [False, True]
    ids = [part.split('"')[0] for part in pages[1].split(' id="')[1:]]
    assert len(ids) == len(set(ids))


def test_a_report_with_an_impossible_analysis_is_refused(
    result: tuple[BenchmarkResult, list[str]], tmp_path: Path
) -> None:
    report = make_report(result[0], title="search", task="retrieval")
    write_report(tmp_path / "report.json", replace(report, analysis=replace(analysis(), layers=7)))
    with pytest.raises(DataError, match=r"analysis\.by_layer: expected the layers 0 to 7"):
        read_report(tmp_path / "report.json")
