"""The report of a classifier, from made-up answers: what the page says of it, and when it warns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from codemill.targets import BenchmarkResult, Report, make_report, read_report, render, write_report
from codemill.targets.evaluation import LabelledEvaluation
from codemill.targets.figures import LabelQuality
from codemill.targets.label_tables import label_section
from codemill.targets.labelled import Answered, quality_of, robustness_of, weights_of

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
    survived = robustness_of("rename", evaluation, range(ROWS), bundle, after)
    mine = quality_of(evaluation, bundle, lengths, weights, teacher)
    return (
        quality_of(evaluation, teacher, lengths, weights, None),
        replace(mine, robustness=(survived,)),
    )


def report_of(measured: Measured, teacher: LabelQuality, bundle: LabelQuality) -> Report:
    given = {"teacher": teacher, "bundle": bundle}
    engines = tuple(replace(e, quality=None, labelling=given[e.name]) for e in measured[0].engines)
    kept = tuple(c for c in measured[0].comparisons if c.quantity not in ("mrr", "recall_at_10"))
    found = replace(measured[0], engines=engines, comparisons=kept)
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
    majority, chance = section.notes
    assert "cannot tell the bundle's accuracy from that of always saying" in majority
    assert "cannot tell the bundle's order of rows from chance" in chance


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
