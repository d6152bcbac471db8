"""What the page says of a bundle's cost, of a search, and of what a bundle finds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from codemill.errors import DataError
from codemill.targets import (
    BenchmarkResult,
    BundleSummary,
    SearchPoint,
    read_report,
    render,
    write_report,
)
from codemill.targets.completion_benchmark import (
    completion_schema,
    read_completion_report,
    write_completion_report,
)
from codemill.targets.completion_page import render_completion
from codemill.targets.cost_section import cost_section
from codemill.targets.report import report_schema
from codemill.targets.search_section import search_section

from . import reports

BUNDLE = BundleSummary("x", None, "cpu-int8", 2_158_793, reports.ENCODER, reports.FILES, (1,))


def test_parts_add_up_and_say_what_leaving_at_an_exit_costs() -> None:
    found = cost_section(BUNDLE, 128, "int8", reports.OPERATORS, "r0")
    assert found is not None
    assert found.parts is not None
    heads, rows = found.parts
    assert heads[3] == "bytes at int8, about"
    assert [row[0] for row in rows] == [
        "embedding",
        "layer 1, then an exit (the teacher's 0)",
        "layer 2 (the teacher's 2)",
        "layer 3 (the teacher's 5)",
    ]
    shares = [[int(row[column].rstrip("%")) for row in rows] for column in (2, 5)]
    assert all(99 <= sum(part) <= 101 for part in shares)
    up_to = [int(row[6].rstrip("%")) for row in rows]
    assert up_to == sorted(up_to)
    assert up_to[-1] == 100
    # what a layer is measured by does not depend on precision; what it takes does
    plain = cost_section(BUNDLE, 128, None, None, "r0")
    assert plain is not None
    assert plain.parts is not None
    assert "bytes" not in " ".join(plain.parts[0])


def test_files_and_operators_are_listed_the_largest_first() -> None:
    found = cost_section(BUNDLE, 128, "int8", reports.OPERATORS, "r0")
    assert found is not None
    assert found.files is not None
    assert [row[0] for row in found.files[1]] == list(reports.FILES)
    assert found.files[1][0][1:] == ("2,060,000", "95.4%")
    assert found.operators is not None
    assert found.operators[1][0] == ("DynamicQuantizeMatMul", "encoder.onnx", "9", "1.90 ms")
    operators = found.drawings[1][2].text
    assert "QAttention" in operators
    # nine have a bar of their own
    assert "5 others" in operators


def test_of_many_layers_those_between_two_exits_share_a_row() -> None:
    deep = replace(BUNDLE, architecture={**reports.ENCODER, "layers": 30}, exits=(12, 24))
    found = cost_section(deep, 128, "int8", None, "r0")
    assert found is not None
    assert found.parts is not None
    assert [row[0] for row in found.parts[1]] == [
        *("embedding", "layers 1 to 12, then an exit", "layers 13 to 24, then an exit"),
        "layers 25 to 30",
    ]
    assert len(found.drawings[0][2].spots) == 2 * 3


def test_of_a_bundle_of_which_nothing_is_known_nothing_is_said() -> None:
    assert cost_section(BundleSummary("x", None, None, 1, {}), 128, None, None, "r0") is None


def test_the_front_is_in_both_drawings_and_in_the_table_once() -> None:
    found = search_section(reports.front(60), "r0")
    assert found is not None
    assert found.lead.startswith("No architecture within the budget beats one of these 60 ")
    assert found.chosen is not None
    assert found.chosen.startswith("4 layers (0, 5) x 384, 59 heads")
    assert len(found.drawings) == 2
    for _, _, drawing in found.drawings:
        assert len(drawing.spots) == 61
        assert all(0 < spot.left < 100 and 0 < spot.top < 100 for spot in drawing.spots)
        assert drawing.spots[-1].title.startswith("Chosen: ")
    assert len(found.rows) == 60
    assert found.rows[0][0].endswith("(chosen)")
    assert found.rows[0][1:] == ("0.418", "2.17", "0.89", "0.64")


def test_where_quality_and_latency_are_unknown_gflops_stand_against_size() -> None:
    seen = [SearchPoint(f"shape {i}", 1e6 + 1e5 * i, 0.1 + 0.01 * (i % 5)) for i in range(20)]
    found = search_section([*seen, replace(seen[4], chosen=True)], "r0")
    assert found is not None
    ((_, title, drawing),) = found.drawings
    assert title.startswith("GFLOPs against size")
    # what nothing smaller beats, and the chosen one
    assert len(drawing.spots) == 5 + 1
    assert len(found.rows) == 5
    assert found.rows[-1][1:] == ("0.100", "1.00", "–", "0.10")
    assert "looked at 20 architectures" in found.lead


def test_without_a_search_there_is_no_section_and_of_one_point_no_drawing() -> None:
    assert search_section([], "r0") is None
    found = search_section([SearchPoint("only", 1e6, 0.1, chosen=True)], "r0")
    assert found is not None
    assert found.drawings == ()


def test_a_full_report_is_read_as_it_was_written_and_fits_the_page(
    result: tuple[BenchmarkResult, list[str]], tmp_path: Path
) -> None:
    report = reports.retrieval(result[0])
    write_report(tmp_path / "report.json", report)
    assert read_report(tmp_path / "report.json") == report
    Draft202012Validator(report_schema()).validate(
        json.loads((tmp_path / "report.json").read_text())
    )
    page = render([report], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "What it finds" in page
    assert "✓ found first" in page
    assert "✗ found at place" in page
    assert "by teacher" in page
    assert "compress run recipe.yaml" in page


def test_a_page_of_four_reports_stays_below_a_megabyte_and_draws_one_search(
    result: tuple[BenchmarkResult, list[str]], tmp_path: Path
) -> None:
    report = replace(reports.retrieval(result[0]), search=tuple(reports.front(140)))
    for count, drawn in ((1, 1), (2, 2), (4, 1)):
        page = render([report] * count, tmp_path / "page.html").read_text(encoding="utf-8")
        assert page.count("<h2>Architecture search</h2>") == count
        assert page.count("The front as a table") == drawn
        assert page.count("only the first search is drawn") == count - drawn
        assert page.count("Chosen, the large dot") == drawn
        assert len(page.encode()) < 1_000_000


def test_the_bundles_examples_know_the_other_engines_ranks(
    result: tuple[BenchmarkResult, list[str]],
) -> None:
    teacher, bundle = (result[0].engine(name).quality for name in ("teacher", "bundle"))
    assert teacher is not None
    assert bundle is not None
    assert teacher.examples == ()
    assert len(bundle.examples) == 6
    assert all(example.ranks.keys() == {"teacher"} for example in bundle.examples)
    assert any(example.rank > example.ranks["teacher"] for example in bundle.examples)
    assert teacher.evaluation_sha256 == bundle.evaluation_sha256


def test_a_report_of_completion_shows_what_was_written(tmp_path: Path) -> None:
    report = reports.completion()
    write_completion_report(tmp_path / "report.json", report)
    assert read_completion_report(tmp_path / "report.json") == report
    published = json.loads(Path("docs/completion-report.schema.json").read_text())
    assert published == completion_schema(), "run scripts/docs"
    Draft202012Validator(published).validate(json.loads((tmp_path / "report.json").read_text()))
    page = render_completion([report], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<mark>return</mark>" in page
    assert "✗ not what the file says" in page
    assert "layers 1 to 12, then an exit" in page
    assert "They are not in this bundle" not in page
    left_out = replace(report, bundle=replace(report.bundle, exits=()))
    page = render_completion([left_out], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "They are not in this bundle" in page
    two = render_completion([report, reports.completion("other")], tmp_path / "two.html")
    assert "2 reports side by side" in two.read_text(encoding="utf-8")


def test_a_report_of_completion_of_the_version_before_still_opens(tmp_path: Path) -> None:
    report = reports.completion()
    write_completion_report(tmp_path / "report.json", report)
    data = json.loads((tmp_path / "report.json").read_text())
    del data["evaluation_sha256"], data["bundle"]["files"], data["bundle"]["exits"]
    for engine in data["engines"]:
        del engine["examples"]
    (tmp_path / "old.json").write_text(json.dumps(data))
    found = read_completion_report(tmp_path / "old.json")
    page = render_completion([found, report], tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("What it writes") == 1
    # it does not say what the bundle holds
    assert "They are not in this bundle" not in page
    for schema, said in ((2, "this version reads 1; install a newer codemill"), ("x", "no schema")):
        (tmp_path / "old.json").write_text(json.dumps({**data, "schema": schema}))
        with pytest.raises(DataError, match=said):
            read_completion_report(tmp_path / "old.json")


@pytest.mark.parametrize("left", [0.0, 33.0, 50.0, 67.0, 100.0])
def test_a_card_hangs_inwards(left: float) -> None:
    from codemill.targets.drawing import Spot

    assert Spot(left, 20.0, "x", ()).side == (
        "first below" if left < 34 else "last below" if left > 66 else "middle below"
    )
    assert Spot(left, 80.0, "x", ()).side.endswith("above")
