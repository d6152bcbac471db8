from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from codemill.errors import DataError, InputError, MachineError
from codemill.targets import (
    BenchmarkResult,
    BundleSummary,
    Report,
    SearchPoint,
    Stage,
    TrainingPoint,
    limit,
    make_report,
    read_report,
    render,
    write_report,
)
from codemill.targets.ceiling import Ceiling
from codemill.targets.codec import to_json
from codemill.targets.figures import Latency
from codemill.targets.layer_cost import parts_of
from codemill.targets.metrics import Ratio
from codemill.targets.report import report_schema
from codemill.targets.tables import Cell, ceiling_cell, memory_share_cell, with_ratio

from . import reports


@pytest.fixture
def report(result: tuple[BenchmarkResult, list[str]]) -> Report:
    found = result[0]
    return make_report(
        found,
        title="code <search>",
        task="retrieval",
        bundle=BundleSummary("code-search", "sha256:00", "cpu-int8", 3_000_000, {"layers": 1}),
        limits=[
            limit("size_bytes", "at most", 3_000_000, found.engine("bundle").size.size_bytes),
            limit("mrr_kept", "at least", 2.0, 0.9, note="against teacher"),
            limit("gflops", "at most", 0.1, None),
        ],
        recipe={"seed": 0},
        provenance={"teacher": "</pre><script>alert(1)</script>"},
        stages=[Stage("data", 40.0, cached=True), Stage("distil", 400.5)],
        training=[TrainingPoint(1, 2.0, 0.1), TrainingPoint(2, 1.0), TrainingPoint(3, 0.5, 0.4)],
        search=[SearchPoint("a", 2.9e6, 0.1, chosen=True), SearchPoint("b", 2e6, 0.05)],
    )


def keys(data: Any) -> set[str]:
    if isinstance(data, dict):
        return set(data) | {key for value in data.values() for key in keys(value)}
    if isinstance(data, list):
        return {key for value in data for key in keys(value)}
    return set()


def test_a_report_survives_being_written_and_read(report: Report, tmp_path: Path) -> None:
    write_report(tmp_path / "report.json", report)
    assert read_report(tmp_path / "report.json") == report
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_a_report_fits_the_schema_that_is_published(report: Report) -> None:
    published = json.loads(Path("docs/report.schema.json").read_text())
    assert published == report_schema(), "run scripts/docs"
    Draft202012Validator.check_schema(published)
    checks = Draft202012Validator(published)
    data = json.loads(json.dumps(to_json(report)))
    checks.validate(data)
    data["benchmark"]["engines"][0]["latencies"][0]["calls"] = "many"
    del data["title"]
    said = sorted(error.message for error in checks.iter_errors(data))
    assert said == ["'many' is not of type 'integer'", "'title' is a required property"]


def test_a_report_of_the_schema_before_still_opens(report: Report, tmp_path: Path) -> None:
    data = to_json(report)
    data["schema"] = 1
    for name in ("round_clock_mhz", "doubts"):
        del data["benchmark"][name]
    del data["benchmark"]["environment"]["ceiling"]
    del data["bundle"]["files"], data["bundle"]["exits"]
    for engine in data["benchmark"]["engines"]:
        del engine["operators"]
        for name in ("examples", "evaluation_sha256"):
            del engine["quality"][name]
        for latency in engine["latencies"]:
            del latency["settled"]
    for point in data["search"]:
        for name in ("latency_ms", "front"):
            del point[name]
    del data["target"]
    (tmp_path / "old.json").write_text(json.dumps(data))
    Draft202012Validator(report_schema()).validate(data)
    found = read_report(tmp_path / "old.json")
    assert found.schema == 1
    assert found.benchmark.environment.ceiling is None
    render([found, report], tmp_path / "page.html")


def test_times_to_be_doubted_and_the_ceiling_are_shown(report: Report, tmp_path: Path) -> None:
    ceiling = Ceiling(120.0, 11.5, 2)
    environment = replace(report.benchmark.environment, ceiling=ceiling)
    benchmark = replace(
        report.benchmark, environment=environment, doubts=("The clock fell.", "Rounds differ.")
    )
    shape = {"layers": 1, "hidden_size": 64, "heads": 2, "head_size": 16, "intermediate_size": 96}
    shape["vocab_size"] = 100
    bundle = replace(report.bundle, architecture=shape)
    page = render(
        [replace(report, benchmark=benchmark, bundle=bundle)], tmp_path / "page.html"
    ).read_text()
    assert "2 reasons to doubt its times" in page
    assert "Rounds differ." in page
    assert "120 GFLOP/s of float32 products, 11.5 GB/s read, 2 threads" in page
    assert "its products at the processor" in page


def test_shares_of_the_ceiling_are_of_the_processor_and_withheld_where_they_cannot_be(
    report: Report,
) -> None:
    def cells(ceiling: Ceiling, provider: str | None, batch: int = 1) -> list[Cell | None]:
        environment = replace(report.benchmark.environment, ceiling=ceiling)
        files = {"variants/cpu/encoder.onnx": 2_000_000, "tokenizer.json": 10**9}
        bundle = replace(report.bundle, architecture=reports.ENCODER, files=files)
        x = Latency(8, batch, 8.0, 1.0, 1.0, 1.0, 1000.0, 3, (1.0,))
        engine = replace(report.student, provider=provider, latencies=(x,))
        benchmark = replace(report.benchmark, environment=environment)
        asked = replace(report, bundle=bundle, benchmark=benchmark)
        return [cell(asked, engine, [8], batch) for cell in (ceiling_cell, memory_share_cell)]

    gflops = sum(part.gflops for part in parts_of(reports.ENCODER, 8) or ())
    # 1 ms a call: products of 0.5 ms, and 2 MB at 10 GB/s of 0.2 ms
    plain = Ceiling(gflops / 0.5e-3, 10.0, 1)
    products, reading = cells(plain, "CPUExecutionProvider")
    assert products is not None
    assert reading is not None
    assert (products.main, products.small, products.source) == ("50%", "", "estimate")
    assert (reading.main, reading.small, reading.source) == ("20%", "", "estimate")
    assert cells(plain, "CUDAExecutionProvider") == [None, None]
    # of four in a call each has its own products, and a fourth of what is read
    several = [cell and cell.main for cell in cells(plain, None, 4)]
    assert several == ["50%", "5%"]
    products, reading = cells(Ceiling(gflops / 4.5e-3, 0.4, 1), None)
    assert products is not None
    assert reading is not None
    assert (products.main, reading.main) == ("?", "500%")
    assert "above 400%" in products.small
    # no rate is wrong: what a cache keeps is not read
    assert reading.small == "above 100%: kept in the processor's cache, or rows of a table not read"


@pytest.mark.parametrize(
    ("ratio", "said", "tone"),
    [
        (Ratio(1.15, 0.08, 16.0, 2), "1.15× [0.08\u2060–\u206016.0]: not told apart", "even"),
        (Ratio(8.9, 8.5, 9.4, 4), "8.90× faster [8.50\u2060–\u20609.40]", "better"),
        (Ratio(0.5, 0.4, 0.8, 4), "2.00× slower [1.25\u2060–\u20602.50]", "worse"),
        (Ratio(1.0, 1.0, 1.0, 1), "1.00× faster", "even"),
        (Ratio(3.0, None, None, 1), "3.00× faster", "even"),
    ],
)
def test_a_ratio_is_no_gain_where_its_interval_holds_1(ratio: Ratio, said: str, tone: str) -> None:
    cell = with_ratio(Cell("1 ms"), ratio, "faster")
    assert (cell.ratio, cell.tone) == (said, tone)


def test_reports_side_by_side_are_told_apart(report: Report, tmp_path: Path) -> None:
    busy = replace(report.benchmark.environment, cpu_busy_share=0.5)
    doubts = ("The clock fell.", "Rounds differ.")
    benchmark = replace(report.benchmark, environment=busy, doubts=doubts)
    other = replace(report, benchmark=benchmark, created_at="2026-11-30T14:22:31+00:00")
    page = render([report, other], tmp_path / "page.html").read_text()
    title = html.escape(report.title)
    for said in (f"1. {title}", f"2. {title}", "2026-11-30 14:22", "3, below"):
        assert said in page
    # on paper what is folded away is written out
    assert '<ul class="printed"><li>The clock fell.</li>' in page


def test_names_in_the_json_carry_their_units(report: Report) -> None:
    data = to_json(report)
    assert data["schema"] == 2
    assert {
        *("size_bytes", "latency_ms_p50", "cold_start_ms_p50", "peak_rss_bytes"),
        *("functions_per_s", "energy_j_per_function", "mrr", "recall_at_10"),
    } <= keys(data)


def test_every_group_of_figures_says_where_it_comes_from(report: Report) -> None:
    for engine in to_json(report)["benchmark"]["engines"]:
        groups = [engine[name] for name in ("size", "cold_start", "memory", "quality", "energy")]
        for group in [*groups, *engine["latencies"]]:
            assert group["source"] in ("measured", "estimate")


def test_the_teacher_is_the_baseline_and_quality_kept_is_against_it(report: Report) -> None:
    assert (report.bundle_engine, report.baseline) == ("bundle", "teacher")
    assert report.teacher is not None
    assert report.teacher.quality is not None
    assert report.student.quality is not None
    kept = report.student.quality.mrr / report.teacher.quality.mrr
    assert report.quality_kept == pytest.approx(kept)


@pytest.mark.parametrize(
    ("bound", "value", "met"),
    [
        ("at most", 3.0, True),
        ("at most", 3.1, False),
        ("at least", 3.0, True),
        ("at least", 2, False),
    ],
)
def test_a_limit_is_met_up_to_and_with_its_value(bound: Any, value: float, met: bool) -> None:
    assert limit("x", bound, 3.0, value).met is met
    assert limit("x", bound, 3.0, None).met is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"schema": 3, "codemill": "9.9"},
            r"schema 3, made by codemill 9\.9; this version reads 1 and 2; install a newer codemill",
        ),
        ({"schema": None}, "no schema number"),
        ({"title": 3}, r"report\.json\.title: expected a value of type str, found 3"),
        ({"bundle_engine": "gone"}, "no engine 'gone'"),
        ({"stages": [{"name": "data"}]}, r"stages\[0\]: the key 'seconds' is missing"),
        ({"limits": 3}, r"limits: expected a list"),
    ],
)
def test_what_is_wrong_with_a_report_is_named(
    report: Report, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(to_json(report) | change))
    with pytest.raises(InputError, match=message):
        read_report(path)


def changed(data: Any, path: str, value: Any) -> Any:
    """`data` with another value under a dotted path; numbers are places in lists."""
    key, _, rest = path.partition(".")
    copy = list(data) if isinstance(data, list) else dict(data)
    place: Any = int(key) if isinstance(data, list) else key
    copy[place] = changed(data[place], rest, value) if rest else value
    return copy


ENGINE = "benchmark.engines.0"
BUNDLE = "benchmark.engines.1"
RATIO = "benchmark.comparisons.0.ratio"
MACHINE = "benchmark.environment.machine"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (f"{ENGINE}.latencies", [], r"benchmark\.engines\[0\]\.latencies: expected at least one"),
        (
            f"{ENGINE}.latencies.0.latency_ms_p50",
            0,
            r"\.latency_ms_p50: expected a number of at lea",
        ),
        (f"{ENGINE}.latencies.0.latency_ms_p99", -1, r"latencies\[0\]\.latency_ms_p99: expected"),
        (f"{ENGINE}.latencies.0.latency_ms_p50", 1e-300, "of at least 1e-09, found 1e-300"),
        (f"{ENGINE}.latencies.0.latency_ms_p50", 1e300, "expected a number of at most 1e18"),
        (f"{ENGINE}.latencies.0.latency_ms_p50", float("nan"), "at most 1e18, found nan"),
        (f"{ENGINE}.latencies.0.latency_ms_p50", float("inf"), "at most 1e18, found inf"),
        (f"{ENGINE}.latencies.0.latency_ms_p50", 10**4000, "at most 1e18, found 1000"),
        (f"{ENGINE}.latencies.0.latency_ms_p50", "1", "expected a number, found '1'"),
        (f"{ENGINE}.latencies.0.latency_ms_p50", True, "expected a number, found True"),
        (f"{ENGINE}.latencies.0.tokens", 0, r"tokens: expected a number of at least 1, found 0"),
        (f"{ENGINE}.latencies.0.batch", 7, r"the same tokens and batches as every other engine's"),
        (f"{ENGINE}.latencies.0.batch", 1.5, "batch: expected a value of type int, found 1.5"),
        (f"{BUNDLE}.size.size_bytes", 0, r"engines\[1\]\.size\.size_bytes: .* at least 1, found 0"),
        (f"{ENGINE}.size.size_bytes", 10**30, r"engines\[0\]\.size\.size_bytes: .* at most 1e18"),
        (f"{ENGINE}.quality.mrr", 1.5, r"quality\.mrr: expected a number of at most 1, found 1\.5"),
        (f"{ENGINE}.quality", None, "expected a quality for all engines or for none"),
        (f"{ENGINE}.role", "boss", r"role: expected one of \['teacher', 'bundle', 'reference'\]"),
        (f"{ENGINE}.role", [], "role: expected one of"),
        (f"{ENGINE}.name", "bundle", r"benchmark\.engines: two have one name|no engine 'teacher'"),
        (f"{ENGINE}.packages", {"torch": 2}, r"packages\.torch: expected a value of type str"),
        (
            f"{RATIO}.value",
            0,
            r"comparisons\[0\]\.ratio\.value: expected a number of at least 1e-09",
        ),
        (f"{RATIO}.low", -1, r"comparisons\[0\]\.ratio\.low: expected a number of at least 0"),
        (f"{MACHINE}.providers", 7, r"environment\.machine\.providers: expected a list, found 7"),
        (
            f"{MACHINE}.instruction_sets",
            [1],
            r"instruction_sets\[0\]: expected a value of type str",
        ),
        (f"{MACHINE}.memory_bytes", "much", r"machine\.memory_bytes: expected a value of type int"),
        ("benchmark.engines", [], r"\.bundle_engine: no engine 'bundle' was measured"),
        (
            "benchmark.order",
            [["a", 1]],
            r"benchmark\.order\[0\]\[1\]: expected a value of type str",
        ),
        (
            "stages.0.seconds",
            -1,
            r"stages\[0\]\.seconds: expected a number of at least 0, found -1",
        ),
        ("stages.0.name", "\ud800", r"stages\[0\]\.name: expected Unicode text"),
        ("title", "half \ud800", r"report\.json\.title: expected Unicode text, found half a surr"),
        ("recipe", {"a": {"\ud800": 1}}, r"report\.json\.recipe\.a: expected Unicode text"),
        ("recipe", {"a": [float("nan")]}, r"recipe\.a\[0\]: expected a number of at most 1e18"),
        ("provenance", {"a": {"b": 10**30}}, r"provenance\.a\.b: expected a number of at"),
        ("schema", True, "is not a report: it has no schema number"),
        ("baseline", "", "no engine '' was measured"),
    ],
)
def test_what_the_page_cannot_draw_is_refused_with_its_key(
    report: Report, tmp_path: Path, path: str, value: object, message: str
) -> None:
    file = tmp_path / "report.json"
    file.write_text(json.dumps(changed(to_json(report), path, value)))
    with pytest.raises(DataError, match=message) as caught:
        read_report(file)
    assert str(caught.value).startswith(str(file))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[" * 60 + "]" * 60, "nested more than 50 deep"),
        ("[" * 900 + "]" * 900, "nested more than 50 deep|is not a report: maximum recursion"),
        ("[" * 100_000, "is not a report: maximum recursion"),
        ("9" * 5000, "is not a report: Exceeds the limit"),
    ],
)
def test_endless_brackets_and_digits_are_refused(
    report: Report, tmp_path: Path, value: str, message: str
) -> None:
    file = tmp_path / "report.json"
    whole = json.dumps(changed(to_json(report), "recipe", {"a": "HERE"}))
    file.write_text(whole.replace('"HERE"', value))
    with pytest.raises(DataError, match=message):
        read_report(file)


@pytest.mark.parametrize("most", [True, False])
def test_the_page_draws_the_furthest_figures_that_are_read(
    report: Report, tmp_path: Path, most: bool
) -> None:
    from codemill.targets.report import _bounded

    data = to_json(report)
    for key, value, least, limit_ in _bounded(report):
        # places are written as [0] in messages
        path = key.replace("[", ".").replace("]", "")
        if value is not None and not path.endswith((".tokens", ".batch")):
            figure = limit_ if most else least
            data = changed(data, path, int(figure) if isinstance(value, int) else figure)
    for number in range(len(report.training)):
        data = changed(data, f"training.{number}.loss", 1e18 if most and number else -1e18)
    data = changed(data, "recipe", {"a": "\0\x1b]]> \u2028 \U0001f600"})
    file = tmp_path / "report.json"
    file.write_text(json.dumps(data))
    page = render([read_report(file)], tmp_path / "page.html").read_text(encoding="utf-8")
    # no time at all has no place on a logarithmic axis, and one point alone is no plot
    assert page.count("<svg") == (7 if most else 6)


def test_a_file_that_is_no_report_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("[1, 2")
    with pytest.raises(DataError, match="is not a report"):
        read_report(tmp_path / "report.json")
    with pytest.raises(DataError, match="there is no report"):
        read_report(tmp_path / "none.json")
    with pytest.raises(DataError, match="is not a report: Is a directory"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not a report: 'utf-8' codec"):
        read_report(tmp_path / "report.json")
    (tmp_path / "report.json").write_bytes(b" " * 20_000_001)
    with pytest.raises(DataError, match="it has more than 20,000,000 bytes"):
        read_report(tmp_path / "report.json")


def test_a_key_of_a_later_minor_version_is_passed_over(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(to_json(report) | {"robustness": 0.9}))
    assert read_report(path) == report


def test_the_page_is_one_file_that_fetches_nothing(report: Report, tmp_path: Path) -> None:
    page = render([report, report], tmp_path / "report.html").read_text()
    assert "http:" not in page
    assert "https:" not in page
    assert not re.search(r"<(script|link|iframe|img|object|embed)\b", page)
    # what an href or url() names is in the page itself, once
    targets = set(re.findall(r'href="([^"]*)"', page)) | set(re.findall(r"url\(([^)]*)\)", page))
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert targets
    assert all(target.startswith("#") and target[1:] in ids for target in targets)
    assert len(ids) == len(set(ids))


def test_the_page_is_well_formed_and_escapes_what_it_is_given(
    report: Report, tmp_path: Path
) -> None:
    from html.parser import HTMLParser

    open_tags: list[str] = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta", "br", "hr"):
                open_tags.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    page = render([report], tmp_path / "report.html").read_text()
    Checker().feed(page)
    assert not open_tags
    assert "<h1>code &lt;search&gt;</h1>" in page


def test_the_page_shows_the_headline_figures_and_the_limits(report: Report, tmp_path: Path) -> None:
    page = render([report], tmp_path / "report.html").read_text()
    assert "3.00 MB" in page
    assert "30.0× smaller" in page
    assert "Limit not met: mrr kept (against teacher) is 0.900, allowed is at least 2.000." in page
    assert page.count("✓ met") == 1
    for name in ("Quality against size", "Latency by length", "Where the time went", "Training"):
        assert name in page


def test_colours_of_the_plots_follow_the_page(report: Report, tmp_path: Path) -> None:
    page = render([report], tmp_path / "report.html").read_text()
    body = page[page.index("<body>") :]
    assert "var(--series-0)" in body
    assert not re.findall(r"#0102[0-9a-f]{2}", body)
    assert not re.findall(r"(?:fill|stroke): #[0-9a-f]{6}", body)


def test_a_report_from_another_machine_is_marked_imported(report: Report, tmp_path: Path) -> None:
    here = render([report], tmp_path / "here.html").read_text()
    assert "imported</span>" not in here
    assert 'data-source="imported"' not in here
    environment = replace(report.benchmark.environment, machine_id="0" * 12)
    other = replace(report, benchmark=replace(report.benchmark, environment=environment))
    page = render([report, other], tmp_path / "both.html").read_text()
    assert 'data-source="imported"' in page
    assert 'data-source="measured"' in page
    assert "2 reports" in page


def test_a_bundle_that_is_slower_than_its_teacher_says_so(report: Report, tmp_path: Path) -> None:
    slower = tuple(
        replace(c, ratio=Ratio(0.8, 0.75, 0.85, 3)) if c.quantity == "latency" else c
        for c in report.benchmark.comparisons
    )
    bad = replace(report, benchmark=replace(report.benchmark, comparisons=slower))
    page = render([bad], tmp_path / "bad.html").read_text()
    assert "The bundle is slower than teacher at 8 tokens, batch 1" in page
    assert "1.25× slower" in page


def test_a_report_of_a_bundle_alone_has_no_ratios(
    result: tuple[BenchmarkResult, list[str]], tmp_path: Path
) -> None:
    alone = replace(result[0], engines=(result[0].engine("bundle"),), comparisons=())
    report = make_report(alone, title="alone", task="retrieval")
    assert report.baseline is None
    assert report.quality_kept is None
    environment = replace(alone.environment, cpu_busy_share=0.5)
    doubted = replace(alone, environment=environment, doubts=("The clock fell.",))
    page = render([replace(report, benchmark=doubted)], tmp_path / "alone.html").read_text()
    assert "Ratios are against" not in page
    assert "1 reason to doubt its times." in page
    assert "Something else was running" in page
    assert "trust the ratios" not in page


def test_a_page_without_a_recipe_says_how_to_measure_again(report: Report, tmp_path: Path) -> None:
    bundle = replace(report.bundle, variant="cpu int8")
    engines = tuple(replace(engine, threads=2) for engine in report.benchmark.engines)
    benchmark = replace(report.benchmark, engines=engines)
    again = replace(report, bundle=bundle, benchmark=benchmark, recipe=None, provenance=None)
    page = render([again], tmp_path / "page.html").read_text()
    assert "compress run recipe.yaml" not in page
    command = (
        "compress bench BUNDLE --variant &#39;cpu int8&#39; --threads 2 --rounds 3 --out FOLDER"
    )
    assert command in page
    own = replace(again, target="an own.yaml")
    assert (
        "--threads 2 --target &#39;an own.yaml&#39; --rounds 3"
        in render([own], tmp_path / "own.html").read_text()
    )
    assert report.student.quality is not None
    assert str(report.student.quality.evaluation_sha256) in page


@pytest.mark.parametrize(
    ("in_browser", "named"),
    [
        ("cpu-int8", "--browser PAGES"),
        ("browser", "--browser PAGES --browser-variant browser"),
        # of a report from before it was said
        (None, "--browser PAGES"),
    ],
)
def test_a_page_says_what_a_browser_ran(
    report: Report, tmp_path: Path, in_browser: str | None, named: str
) -> None:
    own = replace(report.student, threads=2, variant="cpu-int8")
    web = replace(own, name="in Chromium", provider="onnxruntime-web", variant=in_browser)
    again = replace(
        report,
        bundle=replace(report.bundle, variant="cpu-int8"),
        benchmark=replace(report.benchmark, engines=(web, own), comparisons=()),
        baseline=None,
        recipe=None,
    )
    write_report(tmp_path / "report.json", again)
    page = render([read_report(tmp_path / "report.json")], tmp_path / "page.html").read_text()
    assert f"compress bench BUNDLE --variant cpu-int8 --threads 2 {named} --rounds 3" in page
    assert ("in a browser variant" in page) == (in_browser is not None)
    if in_browser is not None:
        assert f"variant cpu-int8, in a browser variant {in_browser}" in page


def test_a_report_without_a_bundle_or_a_page_without_reports_is_an_error(
    result: tuple[BenchmarkResult, list[str]], tmp_path: Path
) -> None:
    teacher = replace(result[0], engines=(result[0].engine("teacher"),), comparisons=())
    with pytest.raises(DataError, match="role 'bundle'"):
        make_report(teacher, title="x", task="retrieval")
    with pytest.raises(InputError, match="at least one report"):
        render([], tmp_path / "none.html")


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_a_missing_extra_says_what_to_install(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MachineError, match=re.escape("pip install 'codemill[bench]'")):
        render([report], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_importing_targets_and_the_worker_imports_nothing_heavy() -> None:
    code = (
        "import sys, codemill.targets, codemill.targets.worker\n"
        "heavy = {'numpy', 'matplotlib', 'jinja2', 'yaml', 'psutil', 'onnxruntime', 'torch'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_public_name_is_there() -> None:
    import codemill.targets

    for name in codemill.targets.__all__:
        assert getattr(codemill.targets, name).__name__ == name
    assert sorted(codemill.targets.__all__) == codemill.targets.__all__
