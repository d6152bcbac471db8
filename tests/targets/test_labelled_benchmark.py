"""A benchmark of classifiers: two real bundles of a few kilobytes, served by the worker's own command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime.conftest import LABELS, MAX_TOKENS, write_labels_bundle

from codemill.errors import DataError, MachineError
from codemill.targets import BenchmarkResult, EngineProcess, Progress, Shape, bundle_engine
from codemill.targets.benchmark import _Clock, benchmark
from codemill.targets.evaluation import (
    LabelledEvaluation,
    read_labelled_evaluation,
    write_evaluation,
)

TEXTS = (
    *("open the file", "connect a socket", "matrix multiply matrix", "read file " * 20),
    *("file socket matrix", "the value of a socket", "a matrix list", "file file name"),
)
ROWS = tuple((i, j) for i in range(8) for j in range(i, 8))
TRUTH = tuple((i + j) % 3 if (i, j) != (0, 1) else -1 for i, j in ROWS)
EVALUATION = LabelledEvaluation("made up", LABELS, TEXTS, ROWS, TRUTH)
RENAMED = (*(f"{text} name" for text in TEXTS[:4]), *(None,) * 4)
Found = tuple[BenchmarkResult, list[Progress]]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labels_bundle(tmp_path_factory.mktemp("pairs") / "tiny", texts=2)


@pytest.fixture(scope="module")
def found(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    # reads in pieces what the other cuts
    given = {"max_tokens": MAX_TOKENS, "texts": 2, "long": "split"}
    split = write_labels_bundle(tmp_path_factory.mktemp("split") / "tiny", texts=2, input=given)
    seen: list[Progress] = []
    engines = [
        replace(bundle_engine(pairs, threads=1, name="teacher"), role="teacher"),
        bundle_engine(split, threads=1, name="bundle"),
    ]
    rewrites = {"rename": RENAMED, "reformat": (None,) * len(TEXTS)}
    made = benchmark(engines, EVALUATION, [Shape(8)], 1, seen.append, repeats=3, rewrites=rewrites)
    return made, seen


def test_quality_is_over_the_rows_whose_label_is_known(found: Found) -> None:
    quality = found[0].engine("bundle").labelling
    assert quality is not None
    assert (quality.rows, quality.texts, quality.clusters) == (len(ROWS) - 1, 2, "functions")
    assert sum(sum(row) for row in quality.confusion) == quality.rows
    assert quality.margin is not None
    assert quality.margin.value == pytest.approx(quality.accuracy - quality.majority)
    assert found[0].engine("bundle").quality is None


def test_the_bundle_is_set_against_its_teacher_row_by_row(found: Found) -> None:
    teacher, bundle = (found[0].engine(name).labelling for name in ("teacher", "bundle"))
    assert teacher is not None
    assert bundle is not None
    less, kept = (
        found[0].difference("bundle", "teacher", "accuracy"),
        found[0].ratio("bundle", "teacher", "accuracy"),
    )
    assert less is not None
    assert kept is not None
    assert less.value == pytest.approx(bundle.accuracy - teacher.accuracy)
    assert kept.value == pytest.approx(bundle.accuracy / teacher.accuracy)
    assert found[0].difference("teacher", "bundle", "accuracy") is None


def test_robustness_is_of_the_rows_all_of_whose_texts_were_rewritten(found: Found) -> None:
    quality = found[0].engine("bundle").labelling
    assert quality is not None
    # of four texts, and none could be formatted otherwise
    (renamed,) = quality.robustness
    assert (renamed.rewrite, renamed.rows, renamed.texts) == ("rename", 10, 4)
    assert renamed.survived_low is not None
    assert renamed.survived_high is not None
    assert renamed.survived_low <= renamed.survived <= renamed.survived_high


def test_how_long_texts_are_and_what_is_done_with_them_is_each_engines_own(found: Found) -> None:
    teacher, bundle = (found[0].engine(name).labelling for name in ("teacher", "bundle"))
    assert teacher is not None
    assert bundle is not None
    assert (teacher.long, bundle.long) == ("truncate", "split")
    assert teacher.longest_tokens == bundle.longest_tokens == MAX_TOKENS
    assert teacher.texts_longer == bundle.texts_longer == 1 / len(TEXTS)
    assert teacher.text_tokens_mean is not None
    assert teacher.text_tokens_mean > 5
    # the one long text is in eight rows
    assert (teacher.truncated, bundle.truncated) == (8 / len(ROWS), 0)


def test_progress_names_the_rewriting_and_ends_at_1(found: Found) -> None:
    fractions = [progress.fraction for progress in found[1]]
    assert fractions == sorted(fractions)
    assert (fractions[-1], found[1][-1].left_s) == (1, 0)
    assert any("rewritten: rename" in progress.message for progress in found[1])
    assert not any("reformat" in progress.message for progress in found[1])


def test_the_time_left_counts_what_each_step_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step over ten times the texts is not taken for one like the others."""
    now, seen = [0.0], []
    monkeypatch.setattr("codemill.targets.benchmark.time.perf_counter", lambda: now[0])
    engines: Any = [replace(bundle_engine_like("one")), replace(bundle_engine_like("two"))]
    clock = _Clock(engines, {"quality": 1000}, {"short": 100}, 2, 5.0, seen.append)
    with clock.step("one", "quality", 0):
        now[0] += 100.0
    # another pass of 100 s, four starts of a second, and four times calls, which end after five seconds
    assert seen[-1].left_s == pytest.approx(100 + 4 * 1 + 4 * 5)
    with clock.step("two", "quality", 0):
        now[0] += 10.0
    assert seen[-1].left_s == pytest.approx(4 * 1 + 2 * 5 + 2 * 1)


def bundle_engine_like(name: str) -> Any:
    from codemill.targets import Engine

    return Engine(name, (), "bundle", 1)


def test_the_worker_labels_pairs_and_says_what_it_does_with_long_texts(
    pairs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.npz"
    with EngineProcess(bundle_engine(pairs, threads=1)) as process:
        assert process.ready["long"] == "truncate"
        assert process.ready["max_tokens"] == MAX_TOKENS
        rows = [["file", "file"], ["read " * 40, "socket"]]
        assert process.ask({"op": "predict", "rows": rows, "out": str(out)})["rows"] == 2
        # two texts a row: four of them are two calls of one pair
        timed = process.ask({"op": "time", "texts": ["a"] * 4, "batch": 1, "repeats": 3})
        assert len(timed["ms"]) == 3
        with pytest.raises(MachineError, match="do not fill one batch of 4"):
            process.ask({"op": "time", "texts": ["a"] * 3, "batch": 2, "repeats": 3})
    with np.load(out, allow_pickle=False) as stored:
        assert stored["probabilities"].shape == (2, len(LABELS))
        np.testing.assert_allclose(stored["probabilities"].sum(axis=1), 1, rtol=1e-5)
        assert stored["truncated"].tolist() == [False, True]
        assert stored["layers_used"].shape == (2,)


def test_a_labelled_evaluation_survives_being_written(tmp_path: Path) -> None:
    groups = tuple(f"project {i % 5}" for i in range(len(ROWS)))
    for number, wanted in enumerate((EVALUATION, replace(EVALUATION, groups=groups))):
        path = tmp_path / f"{number}.jsonl.gz"
        write_evaluation(path, wanted)
        assert read_labelled_evaluation(path, "made up") == wanted


def test_an_evaluation_file_of_another_task_is_an_error_that_says_so(tmp_path: Path) -> None:
    file = tmp_path / "other.jsonl"
    file.write_text('{"query": "sort", "code": "def sort(): pass"}\n')
    with pytest.raises(DataError, match="has 'query', 'code'; this bundle labels"):
        read_labelled_evaluation(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"truth": TRUTH[:-1]}, "a truth for each"),
        ({"rows": (*ROWS[:-1], (0,))}, "rows of one text, or of two"),
        ({"rows": (*ROWS[:-1], (0, 99))}, "rows of texts that it has not"),
        ({"truth": (*TRUTH[:-1], 3)}, "rows of labels that it has not"),
        ({"groups": ("a",)}, "a group for each row"),
    ],
)
def test_an_evaluation_that_does_not_hang_together_is_an_error(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        replace(EVALUATION, **changes)


def test_a_test_without_any_label_is_an_error_before_it_is_compared(pairs: Path) -> None:
    blind = replace(EVALUATION, truth=(-1,) * len(ROWS))
    with pytest.raises(DataError, match="no row whose label is known"):
        benchmark([bundle_engine(pairs, threads=1)], blind, [Shape(8)], 1, repeats=1)
