"""The report of a classifier, from made-up answers: what the page says of it, and when it warns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from codemill.targets import BenchmarkResult, Report, make_report, read_report, render, write_report
from codemill.targets.classification import Interval
from codemill.targets.evaluation import LabelledEvaluation
from codemill.targets.figures import Difference, LabelQuality
from codemill.targets.label_tables import label_section
from codemill.targets.labelled import (
    Answered,
    TextLengths,
    quality_of,
    robustness_of,
    weights_of,
)

ROWS, FUNCTIONS = 600, 150
Measured = tuple[BenchmarkResult, list[str]]


def an_evaluation(pairs: bool = True) -> LabelledEvaluation:
    rng = np.random.default_rng(0)
    texts = FUNCTIONS if pairs else ROWS
    rows = rng.integers(0, texts, (ROWS, 2)).tolist() if pairs else [[i] for i in range(ROWS)]
    return LabelledEvaluation(
        "made-up set",
        ("different", "clone"),
        tuple(f"int f{i}() {{}}" for i in range(texts)),
        tuple(map(tuple, rows)),
        tuple((rng.random(ROWS) < 0.4).astype(int).tolist()),
    )


def answers(evaluation: LabelledEvaluation, skill: float, seed: int, exits: bool) -> Answered:
    rng, truth = np.random.default_rng(seed), np.array(evaluation.truth)
    p = 1 / (1 + np.exp(-(skill * (2 * truth - 1) + 1.5 * rng.normal(size=ROWS))))
    layers = np.where(np.abs(p - 0.5) > 0.4, 2, 4) if exits else np.full(ROWS, 4)
    both = np.stack([1 - p, p], axis=1).astype(np.float32)
    return Answered(both, layers, np.zeros(ROWS, dtype=bool), 900.0)


def qualities(
    skills: tuple[float, float] = (3.0, 2.0), pairs: bool = True, exits: bool = True
) -> tuple[LabelQuality, LabelQuality]:
    evaluation = an_evaluation(pairs)
    lengths = [20 + 3 * i for i in range(len(evaluation.texts))]
    weights = weights_of(evaluation)
    teacher, bundle = (
        answers(evaluation, skill, seed, exits and seed == 2)
        for seed, skill in enumerate(skills, start=1)
    )
    after = answers(evaluation, skills[1], 3, False).probabilities
    survived = robustness_of("rename", evaluation, range(200), bundle, after[:200])
    own = TextLengths(lengths, 320, "split")
    mine = quality_of(evaluation, bundle, lengths, weights, teacher, own)
    return (
        quality_of(evaluation, teacher, lengths, weights, None, TextLengths(lengths, 512)),
        replace(mine, robustness=(survived,)),
    )


def report_of(measured: Measured, teacher: LabelQuality, bundle: LabelQuality) -> Report:
    given = {"teacher": teacher, "bundle": bundle}
    engines = tuple(replace(e, quality=None, labelling=given[e.name]) for e in measured[0].engines)
    kept = tuple(c for c in measured[0].comparisons if c.quantity not in ("mrr", "recall_at_10"))
    less = Interval(-0.021, -0.034, -0.009)
    given_less = (Difference("bundle", "teacher", "accuracy", ROWS, less),)
    found = replace(measured[0], engines=engines, comparisons=kept, differences=given_less)
    return make_report(found, title="clones", task="pair-classification")


@pytest.fixture
def report(result: Measured) -> Report:
    return report_of(result, *qualities())


def test_a_classifiers_report_survives_being_written_and_read(
    report: Report, tmp_path: Path
) -> None:
    write_report(tmp_path / "report.json", report)
    assert read_report(tmp_path / "report.json") == report


def test_the_page_shows_what_is_confused_by_label_by_length_and_how_sure_it_is(
    report: Report, tmp_path: Path
) -> None:
    page = render([report], tmp_path / "report.html").read_text()
    for said in (
        *("teacher: what it decided", "bundle: what it decided", "By label", "By length"),
        *("Calibration", "Layers used", "local names changed", "majority baseline"),
        "bootstrap intervals that draw functions, because pairs share them",
    ):
        assert said in page, said
    assert "Equal scores count against the engine" not in page


def test_a_confusions_rows_are_the_rows_of_each_label(report: Report) -> None:
    section, mine = label_section(report), report.student.labelling
    assert section is not None
    assert mine is not None
    of_bundle = section.confusions[-1]
    assert (of_bundle.engine, of_bundle.labels) == ("bundle", ("different", "clone"))
    assert [sum(n for n, _ in cells) for _, cells in of_bundle.rows] == [
        x.rows for x in mine.per_label
    ]
    for _, cells in of_bundle.rows:
        assert sum(part for _, part in cells) == pytest.approx(1)


def test_tables_name_both_engines_and_lengths_hold_every_row(report: Report) -> None:
    section = label_section(report)
    assert section is not None
    assert section.per_label[0] == ("rows", "precision", "recall", "F1", "F1, teacher")
    assert section.per_length is not None
    heads, lines = section.per_length
    assert heads == ("rows", "accuracy, teacher", "accuracy, bundle")
    assert sum(int(line[1]) for line in lines) == ROWS
    assert all(len(line) == len(heads) + 1 for line in lines)


def test_a_good_classifier_beside_its_teacher_needs_no_warning(report: Report) -> None:
    section = label_section(report)
    assert section is not None
    assert section.notes == ()


def test_a_classifier_that_knows_nothing_is_said_to(result: Measured) -> None:
    section = label_section(report_of(result, *qualities((3.0, 0.0))))
    assert section is not None
    worse, chance = section.notes
    assert "the bundle is worse than always saying \u201cdifferent\u201d" in worse
    assert "does not separate the bundle from chance" in chance
    assert "which holds 0.5" in chance


def test_a_margin_that_may_be_none_is_said_of_bundle_and_teacher(result: Measured) -> None:
    teacher, bundle = qualities()
    maybe, against = Interval(0.02, -0.01, 0.05), Interval(0.4, 0.35, 0.45)
    unsure = (replace(x, margin=maybe) for x in (teacher, bundle))
    section = label_section(report_of(result, *unsure))
    assert section is not None
    assert [note.split(" from ")[0] for note in section.notes] == [
        "This set does not separate the bundle",
        "This set does not separate teacher",
    ]
    assert "+0.020 (\u22120.010\u00a0to\u00a0+0.050)" in section.notes[0]
    wrong = replace(bundle, figures={**bundle.figures, "auc": against})
    section = label_section(report_of(result, teacher, wrong))
    assert section is not None
    assert "ranks rows the wrong way round" in section.notes[0]


def test_the_page_sets_the_bundle_against_its_teacher_and_says_of_what_sample(
    report: Report, tmp_path: Path
) -> None:
    section = label_section(report)
    assert section is not None
    assert section.differences is not None
    heads, (accuracy, f1, auc) = section.differences
    assert heads == ("minus teacher",)
    assert accuracy.cells[0] is not None
    assert (accuracy.cells[0].main, "below it" in accuracy.cells[0].small) == ("\u22120.021", True)
    assert (f1.cells, auc.cells) == ((None,), (None,))
    page = render([report], tmp_path / "report.html").read_text()
    for said in (
        *("margin of accuracy over it", "row by row", "a sample of 200 of the 600 pairs over"),
        *("test texts longer than it reads at once", "than 320 tokens, read in pieces"),
        "a pair of two functions of 16 tokens each, batch 1",
    ):
        assert said in page, said
    # what another version left out is left out
    old = replace(report.benchmark, differences=())
    section = label_section(replace(report, benchmark=old))
    assert section is not None
    assert section.differences is None


def test_of_many_labels_the_page_shows_the_most_frequent_mistakes(
    report: Report, tmp_path: Path
) -> None:
    mine = report.student.labelling
    assert mine is not None
    labels = tuple(f"label {i}" for i in range(30))
    table = tuple(tuple(50 if i == j else 9 * (j == i + 1) for j in range(30)) for i in range(30))
    many = replace(mine, labels=labels, confusion=table)
    engines = tuple(replace(e, labelling=many) for e in report.benchmark.engines)
    found = replace(report, benchmark=replace(report.benchmark, engines=engines))
    section = label_section(found)
    assert section is not None
    assert section.confusions[0].rows == ()
    assert section.confusions[0].mistakes[0] == ("label 0", "label 1", 9, 9 / 59)
    assert len(section.confusions[0].mistakes) == 15
    assert "its most frequent mistakes" in render([found], tmp_path / "many.html").read_text()


def test_reports_of_classifiers_side_by_side_show_accuracy_and_no_mrr(
    report: Report, tmp_path: Path
) -> None:
    page = render([report, report], tmp_path / "two.html").read_text()
    assert "accuracy against the baseline" in page
    assert "MRR" not in page.split("</section>")[0]


def test_a_label_that_no_row_has_is_named(result: Measured) -> None:
    teacher, bundle = qualities()
    gone = tuple(replace(x, rows=0) if x.label == "clone" else x for x in bundle.per_label)
    section = label_section(report_of(result, teacher, replace(bundle, per_label=gone)))
    assert section is not None
    assert section.notes == ("No row of the test has the label clone.",)


def test_without_a_teacher_the_page_says_so(
    report: Report, result: Measured, tmp_path: Path
) -> None:
    found = report.benchmark
    bundle_only = replace(found, engines=(found.engine("bundle"),), comparisons=())
    alone = make_report(bundle_only, title="clones", task="pair-classification")
    assert alone.baseline is None
    page = render([alone], tmp_path / "alone.html").read_text()
    assert "No teacher was measured beside this bundle" in page
    engines = tuple(
        replace(e, role="reference") if e.name == "teacher" else e for e in found.engines
    )
    beside = make_report(replace(found, engines=engines), title="x", task="pair-classification")
    section = label_section(beside)
    assert section is not None
    assert "Shares kept are of teacher, a reference" in section.notes[0]


def test_engines_without_exits_have_no_plot_of_layers(result: Measured, tmp_path: Path) -> None:
    found = report_of(result, *qualities(pairs=False, exits=False))
    page = render([found], tmp_path / "plain.html").read_text()
    assert "Layers used" not in page
    assert "functions, each drawn by itself" in page


def test_a_bundle_that_embeds_has_no_section_on_decisions(result: Measured, tmp_path: Path) -> None:
    embeds = make_report(result[0], title="search", task="retrieval")
    assert label_section(embeds) is None
    page = render([embeds], tmp_path / "search.html").read_text()
    assert "<h2>Decisions</h2>" not in page
    assert "Equal scores count against the engine" in page
