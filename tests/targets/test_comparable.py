"""Which reports may stand side by side."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest

from codemill.errors import InputError
from codemill.targets import BenchmarkResult, Report, make_report
from codemill.targets.comparable import check_comparable

from . import reports
from .test_label_report import qualities, report_of

Measured = tuple[BenchmarkResult, list[str]]


@pytest.fixture
def search(result: Measured) -> Report:
    return make_report(result[0], title="search", task="retrieval")


def with_quality(report: Report, **changes: object) -> Report:
    engines = tuple(
        replace(engine, quality=engine.quality and replace(engine.quality, **changes))  # type: ignore[arg-type]
        for engine in report.benchmark.engines
    )
    return replace(report, benchmark=replace(report.benchmark, engines=engines))


def test_reports_of_one_test_are_put_side_by_side_whatever_it_is_called(search: Report) -> None:
    renamed = with_quality(search, evaluation="evaluation")
    check_comparable([("a.json", search), ("b.json", renamed)])
    # one that an older version wrote says no more than how many there were
    check_comparable([("a.json", search), ("b.json", with_quality(search, evaluation_sha256=None))])


def test_of_different_tasks_every_file_is_named_with_its_task(
    search: Report, result: Measured
) -> None:
    labels = report_of(result, *qualities())
    named = [("a.json", search), ("b.json", labels), ("c.json", reports.completion())]
    with pytest.raises(InputError) as caught:
        check_comparable(named)
    assert str(caught.value) == (
        "reports of different tasks cannot be put side by side: a.json is of retrieval, b.json is of "
        "pair-classification, c.json is of completion; give those of one task"
    )


def test_of_different_tests_both_are_said(search: Report, result: Measured) -> None:
    other = with_quality(search, evaluation_sha256="0" * 64)
    with pytest.raises(
        InputError,
        match=r"a\.json and b\.json cannot be .*40 functions of .made up. .*and 40 .*000\); measure",
    ):
        check_comparable([("a.json", search), ("b.json", other)])
    fewer = with_quality(search, functions=39, evaluation_sha256=None)
    with pytest.raises(InputError, match=r"40 functions .*, and 39 functions"):
        check_comparable([("a.json", search), ("b.json", fewer)])
    teacher, bundle = qualities()
    labels = report_of(result, teacher, bundle)
    swapped = report_of(result, teacher, replace(bundle, labels=("different", "copy")))
    with pytest.raises(
        InputError, match=r"with the labels different, clone, and .*different, copy"
    ):
        check_comparable([("a.json", labels), ("b.json", swapped)])
    with pytest.raises(InputError, match=r"4 lines of .* and 3 lines"):
        check_comparable(
            [("a.json", reports.completion()), ("b.json", reports.completion(places=3))]
        )


def test_a_report_that_does_not_say_its_test_vouches_for_no_two_others(search: Report) -> None:
    other = with_quality(search, evaluation_sha256="0" * 64)
    without = tuple(replace(engine, quality=None) for engine in search.benchmark.engines)
    for silent in (
        with_quality(search, evaluation_sha256=None),
        replace(search, benchmark=replace(search.benchmark, engines=without)),
    ):
        check_comparable([("a.json", search), ("silent.json", silent), ("c.json", search)])
        for named in permutations([("a.json", search), ("b.json", other), ("silent.json", silent)]):
            first, second = (file for file, _ in named if file != "silent.json")
            with pytest.raises(InputError, match=rf"^{first} and {second} cannot be"):
                check_comparable(named)
