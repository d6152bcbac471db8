"""Whether reports can be put side by side: of one task, and of one test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from codemill.errors import InputError
from codemill.targets.completion_benchmark import CompletionReport
from codemill.targets.report import Report

__all__ = ["check_comparable"]

AnyReport = Report | CompletionReport


@dataclass(frozen=True)
class _Test:
    """What quality was measured on, in words, and the hash of its rows where the report has it."""

    said: str
    rows: int
    labels: tuple[str, ...]
    sha256: str | None

    def differs(self, other: _Test) -> bool:
        known = self.sha256 is not None and other.sha256 is not None
        return (
            (known and self.sha256 != other.sha256)
            or self.rows != other.rows
            or set(self.labels) != set(other.labels)
        )


def check_comparable(named: Sequence[tuple[str, AnyReport]]) -> None:
    """Raise InputError, naming files, where (file, report) of several differ in their task or in their test.

    Tests are the same where their rows are; of reports that do not say, where there are as many, with the same labels.
    Each is held against each: one that does not say, or has no quality, does not vouch for two others.
    """
    if len({report.task for _, report in named}) > 1:
        tasks = ", ".join(f"{file} is of {report.task}" for file, report in named)
        raise InputError(
            f"reports of different tasks cannot be put side by side: {tasks}; give those of one task"
        )
    tests = [(file, test) for file, report in named if (test := _test_of(report)) is not None]
    for (file, test), (other, of_other) in combinations(tests, 2):
        if test.differs(of_other):
            raise InputError(
                f"{file} and {other} cannot be put side by side, since their quality is of different tests: "
                f"{test.said}, and {of_other.said}; measure both on one with `compress bench BUNDLE --evaluation FILE`"
            )


def _test_of(report: AnyReport) -> _Test | None:
    if isinstance(report, CompletionReport):
        places = report.engine(report.bundle_engine).figures.places
        said = f"{places:,} lines of \u201c{report.evaluation}\u201d"
        return _Test(
            _with_hash(said, report.evaluation_sha256), places, (), report.evaluation_sha256
        )
    student = report.student
    if (labelling := student.labelling) is not None:
        rows, sha256 = labelling.rows, labelling.evaluation_sha256
        labels = ", ".join(labelling.labels)
        said = f"{rows:,} rows of \u201c{labelling.evaluation}\u201d with the labels {labels:.100}"
        return _Test(_with_hash(said, sha256), rows, labelling.labels, sha256)
    if (quality := student.quality) is not None:
        sha256 = quality.evaluation_sha256
        said = f"{quality.functions:,} functions of \u201c{quality.evaluation}\u201d"
        return _Test(_with_hash(said, sha256), quality.functions, (), sha256)
    return None


def _with_hash(said: str, sha256: str | None) -> str:
    return said if sha256 is None else f"{said} ({sha256[:12]})"
