"""Labelled data: the formats people have, splits, what is taken out, what is reported, the corpus on disk."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codemill.compress.data.labelled import (
    LabelledSource,
    SplitFile,
    findings,
    read_labelled,
    read_report,
    write_corpus,
)
from codemill.errors import DataError, RecipeError

from .labelled_rows import code, write_lines

SHARED = Path(__file__).parents[4] / "shared" / "data"


def defects(count: int = 200, **more: Any) -> list[dict[str, Any]]:
    return [{"func": code(n), "target": n % 2, "idx": n, **more} for n in range(count)]


def labels_of(folder: Path, split: str) -> dict[str, int]:
    held = read_labelled(folder, split)
    return {
        held.texts[row]: int(label) for row, label in zip(held.rows[:, 0], held.labels, strict=True)
    }


def test_defect_detection_needs_nothing_but_the_file(tmp_path: Path) -> None:
    source = LabelledSource(source=write_lines(tmp_path / "data.jsonl", defects()))
    report = write_corpus(tmp_path / "corpus", source)
    assert report == read_report(tmp_path / "corpus")
    assert report["labels"] == ["0", "1"]
    assert report["counts"] == {"train": 160, "validation": 20, "test": 20}
    assert report["balance"]["test"] == {"0": 10, "1": 10}
    found = {}
    for split in ("train", "validation", "test"):
        found |= labels_of(tmp_path / "corpus", split)
    assert found == {code(n): n % 2 for n in range(200)}
    held = read_labelled(tmp_path / "corpus", "test", 5)
    assert held.texts == [code(int(name)) for name in held.function_ids]
    assert held.soft is None
    assert held.groups.tolist() == [-1] * 5


def test_equal_data_make_equal_bytes_and_another_seed_makes_another_split(tmp_path: Path) -> None:
    source = LabelledSource(source=write_lines(tmp_path / "data.jsonl", defects()))
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_corpus(tmp_path / name, source, seed=seed)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["corpus.json", "test.npz", "texts.jsonl.gz", "train.npz", "validation.npz"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert labels_of(tmp_path / "a", "test") != labels_of(tmp_path / "c", "test")


def test_the_order_of_the_file_and_more_rows_leave_a_row_in_its_order(tmp_path: Path) -> None:
    rows = defects()
    for name, some in (("a", rows), ("b", rows[::-1])):
        source = LabelledSource(source=write_lines(tmp_path / f"{name}.jsonl", some))
        write_corpus(tmp_path / name, source)
    assert labels_of(tmp_path / "a", "test") == labels_of(tmp_path / "b", "test")


def test_the_first_rows_are_those_of_a_longer_read(tmp_path: Path) -> None:
    source = LabelledSource(source=write_lines(tmp_path / "data.jsonl", defects()))
    write_corpus(tmp_path / "corpus", source)
    few, all_rows = (read_labelled(tmp_path / "corpus", "train", most) for most in (7, None))
    assert len(few.texts) == 7
    assert [few.texts[at] for at in few.rows[:, 0]] == [
        all_rows.texts[at] for at in all_rows.rows[:7, 0]
    ]


def test_a_cap_on_train_keeps_rows_of_the_uncapped_train(tmp_path: Path) -> None:
    source = LabelledSource(source=write_lines(tmp_path / "data.jsonl", defects()))
    write_corpus(tmp_path / "all", source)
    report = write_corpus(tmp_path / "few", source, train_examples=50, test_examples=8)
    assert report["counts"] == {"train": 50, "validation": 20, "test": 8}
    write_corpus(tmp_path / "fifty", source, train_examples=50)
    assert (
        labels_of(tmp_path / "fifty", "train").items()
        <= labels_of(tmp_path / "all", "train").items()
    )


def big_clone_bench(folder: Path, **more: Any) -> LabelledSource:
    write_lines(folder / "data.jsonl", ({"idx": str(n), "func": code(n)} for n in range(100)))
    gold = "".join(f"{n}\t{(n * 7 + 1) % 60}\t{n % 2}\n" for n in range(60))
    taught = "".join(f"{n}\t{(n * 11 + 3) % 60}\t{n % 2}\t{1 - n % 2}\n" for n in range(60))
    test = "".join(f"{n}\t{n - 30}\t{n % 2}\n" for n in range(60, 100))
    for name, text in (("gold", gold), ("taught", taught), ("test", test)):
        (folder / f"{name}.txt").write_text(text)
    taught_file = SplitFile(str(folder / "taught.txt"), label_field=None, teacher_field="teacher")
    return LabelledSource(
        functions=str(folder / "data.jsonl"),
        train=(SplitFile(str(folder / "gold.txt")), taught_file),
        test=(SplitFile(str(folder / "test.txt")),),
        **more,
    )


def test_pair_lists_over_a_file_of_functions_with_a_teachers_column(tmp_path: Path) -> None:
    report = write_corpus(tmp_path / "corpus", big_clone_bench(tmp_path))
    assert report["labels"] == ["0", "1"]
    assert report["texts"] == 2
    train = read_labelled(tmp_path / "corpus", "train")
    assert train.soft is not None
    taught = train.labels < 0
    assert np.isnan(train.soft[~taught]).all()
    first = [int(train.function_ids[at]) for at in train.rows[taught, 0]]
    # the fourth column, as a distribution; the third is unseen
    assert train.soft[taught].argmax(axis=1).tolist() == [1 - n % 2 for n in first]
    assert (train.soft[taught].sum(axis=1) == 1).all()
    assert report["teacher"]["train"]["rows"] == int(taught.sum()) > 0
    # what is held out has a label to be judged by
    train, held_out = (
        read_labelled(tmp_path / "corpus", split) for split in ("train", "validation")
    )
    seen = set(train.texts)
    for row in held_out.rows.tolist():
        assert any(held_out.texts[text] not in seen for text in row)
    assert (held_out.labels >= 0).any()
    test = read_labelled(tmp_path / "corpus", "test")
    ids = [tuple(int(test.function_ids[at]) for at in row) for row in test.rows]
    assert sorted(ids) == [(n, n - 30) for n in range(60, 100)]
    assert [test.texts[at] for at in test.rows[:, 0]] == [code(n) for n, _ in ids]


def test_a_pair_says_how_much_of_it_recurs_in_train(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", big_clone_bench(tmp_path))
    train, test = (read_labelled(tmp_path / "corpus", split) for split in ("train", "test"))
    known = {train.texts[at] for at in train.rows.ravel()}
    expected = [sum(test.texts[at] in known for at in row) for row in test.rows]
    assert test.recurs.tolist() == expected
    assert {0, 1} <= set(expected)


@pytest.mark.parametrize(("symmetric", "whole"), [(True, 1), (False, 0)])
def test_a_test_pair_that_train_has_the_other_way_round(
    tmp_path: Path, symmetric: bool, whole: int
) -> None:
    source = big_clone_bench(tmp_path, symmetric=symmetric)
    with (tmp_path / "gold.txt").open("a") as stream:
        stream.write("33\t63\t1\n")
    report = write_corpus(tmp_path / "corpus", source)
    drawn = int((read_labelled(tmp_path / "corpus", "test").recurs == 3).sum())
    # the line may have been drawn for validation; then train does not have it
    validation = read_labelled(tmp_path / "corpus", "validation")
    ids = {tuple(validation.function_ids[at] for at in row) for row in validation.rows}
    assert ("33", "63") not in ids
    assert report["leakage"]["test"]["same_pair"] == drawn == whole


def test_unknown_ids_are_counted_and_the_first_five_named(tmp_path: Path) -> None:
    source = big_clone_bench(tmp_path)
    with (tmp_path / "gold.txt").open("a") as stream:
        stream.writelines(f"no{n}\t{n}\t1\n" for n in [*range(8), 0])
    report = write_corpus(tmp_path / "corpus", source)
    assert report["unknown_ids"] == {"rows": 9, "ids": 8, "first": [f"no{n}" for n in range(5)]}
    assert report["skipped"]["counts"] == {"unknown function id": 9}
    assert report["skipped"]["examples"]["unknown function id"][0].startswith(
        f"{tmp_path / 'gold.txt'}:61: "
    )
    assert any("9 pairs name 8 ids" in line for line in findings(report))


def test_a_pair_list_of_which_most_ids_are_unknown_is_refused(tmp_path: Path) -> None:
    source = big_clone_bench(tmp_path)
    (tmp_path / "test.txt").write_text("x\ty\t1\n" * 3 + "1\t2\t0\n" * 2)
    with pytest.raises(DataError, match=r"(?s)test.txt: 3 of 5 rows are bad.*unknown function id"):
        write_corpus(tmp_path / "corpus", source)


def test_one_bad_row_of_each_kind_is_skipped_counted_and_reported(tmp_path: Path) -> None:
    bad: list[Any] = [
        {"func": "", "target": 0},
        {"func": 5, "target": 0},
        {"func": "int f();"},
        {"target": 1},
        {"func": "int g();", "target": 7},
        {"func": "\ud800", "target": 1},
        {"func": "x" * 1_000_001, "target": 1},
    ]
    path = write_lines(tmp_path / "data.jsonl", [*defects(), *bad])
    report = write_corpus(tmp_path / "corpus", LabelledSource(source=path, labels=("0", "1")))
    assert report["skipped"]["counts"] == {
        "empty text": 1, "not text": 1, "missing field": 2, "label outside the declared set": 1,
        "not Unicode": 1, "text too long": 1,
    }  # fmt: skip
    assert report["rows_read"] == 200
    shown = "\n".join(findings(report))
    assert f"{path}:205: 'target' is 7; declared are ['0', '1']" in shown
    assert "7 of 207 rows were skipped" in shown


def test_labels_are_in_numeric_order_or_as_declared(tmp_path: Path) -> None:
    rows = [{"code": code(n), "label": [2, 10, 1][n % 3]} for n in range(90)]
    path = write_lines(tmp_path / "data.jsonl", rows)
    assert write_corpus(tmp_path / "a", LabelledSource(source=path))["labels"] == ["1", "2", "10"]
    declared = LabelledSource(source=path, labels=("10", "2", "1"))
    write_corpus(tmp_path / "b", declared)
    expected = {code(n): [1, 0, 2][n % 3] for n in range(90)}
    assert labels_of(tmp_path / "b", "train").items() <= expected.items()


@pytest.mark.parametrize("label", [True, 1, 1.0, "1"])
def test_one_label_may_be_written_in_several_ways(tmp_path: Path, label: Any) -> None:
    rows = [{"code": code(n), "label": label if n % 2 else 0} for n in range(60)]
    source = LabelledSource(source=write_lines(tmp_path / "data.jsonl", rows))
    assert write_corpus(tmp_path / "corpus", source)["labels"] == ["0", "1"]


def test_rows_without_any_label_are_taken_for_a_teacher_to_label(tmp_path: Path) -> None:
    rows = ({"code": code(n), "func_name": "f"} for n in range(60))
    source = LabelledSource(source=write_lines(tmp_path / "data.jsonl", rows))
    report = write_corpus(tmp_path / "corpus", source)
    assert report["labels"] == []
    assert set(read_labelled(tmp_path / "corpus", "train").labels.tolist()) == {-1}
    assert "for a teacher to label" in report["warnings"][0]


def test_one_class_only_is_refused(tmp_path: Path) -> None:
    rows = ({"code": code(n), "label": "safe"} for n in range(60))
    source = LabelledSource(source=write_lines(tmp_path / "data.jsonl", rows))
    with pytest.raises(DataError, match=r"one class only: all 48 rows of train .* 'safe'"):
        write_corpus(tmp_path / "corpus", source)


def test_a_field_of_free_text_is_no_label(tmp_path: Path) -> None:
    rows = ({"code": code(n, 3), "label": f"text {n}"} for n in range(1_100))
    with pytest.raises(DataError, match="name the right field with label_field"):
        write_corpus(
            tmp_path / "corpus", LabelledSource(source=write_lines(tmp_path / "data.jsonl", rows))
        )


def test_a_missing_code_field_names_the_fields_there_are(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "data.jsonl", [{"body": "int f();", "label": 1}] * 3)
    with pytest.raises(
        DataError, match=r"(?s)data.jsonl:1.*found fields \['body', 'label'\].*code_field"
    ):
        write_corpus(tmp_path / "corpus", LabelledSource(source=path))
    good = write_lines(
        tmp_path / "good.jsonl", ({"body": code(n), "label": n % 2} for n in range(60))
    )
    assert (
        write_corpus(tmp_path / "b", LabelledSource(source=good, code_field="body"))["texts"] == 1
    )


def test_soft_labels_may_be_probabilities_or_logits(tmp_path: Path) -> None:
    rows = defects()
    for n, row in enumerate(rows):
        row["said"] = [0.25, 0.75] if n % 2 else [np.log(3.0) + 5, 5.0]
    source = LabelledSource(source=write_lines(tmp_path / "a.jsonl", rows), teacher_field="said")
    report = write_corpus(tmp_path / "corpus", source)
    held = read_labelled(tmp_path / "corpus", "train")
    assert held.soft is not None
    expected = [[0.25, 0.75] if label else [0.75, 0.25] for label in held.labels]
    np.testing.assert_allclose(held.soft, expected, atol=1e-6)
    assert report["teacher"]["test"] == {"rows": 20, "with_label": 20, "right": 20}


@pytest.mark.parametrize("declared", [("0", "1"), None])
def test_a_teacher_with_another_number_of_labels_is_an_error(
    tmp_path: Path, declared: tuple[str, ...] | None
) -> None:
    path = write_lines(tmp_path / "data.jsonl", defects(said=[0.2, 0.3, 0.5]))
    source = LabelledSource(source=path, teacher_field="said", labels=declared)
    with pytest.raises(DataError, match=r"3 numbers a row, but .*2 labels"):
        write_corpus(tmp_path / "corpus", source)


def test_duplicates_up_to_white_space_are_removed_and_contradictions_decided(
    tmp_path: Path,
) -> None:
    rows = defects()
    rows += [{"func": f" {code(0)} \n", "target": 0}]
    rows += [{"func": code(1), "target": 0}]
    rows += [{"func": code(2), "target": 1}, {"func": code(2), "target": 0}]
    path = write_lines(tmp_path / "data.jsonl", rows)
    report = write_corpus(tmp_path / "corpus", LabelledSource(source=path))
    found = report["repeats"]["all"]
    assert (found["duplicates"], found["conflicting_texts"], found["dropped_for_conflict"]) == (
        2,
        2,
        3,
    )
    assert found["duplicate_examples"] == [[f"{path}:1", f"{path}:201"]]
    assert found["conflict_examples"] == [
        [f"{path}:2", f"{path}:202"],
        [f"{path}:3", f"{path}:203"],
    ]
    assert sum(report["counts"].values()) == 199
    held = {}
    for split in ("train", "validation", "test"):
        held |= labels_of(tmp_path / "corpus", split)
    assert code(1) not in held
    assert held[code(2)] == 0


def split_files(tmp_path: Path, **rows: list[dict[str, Any]]) -> LabelledSource:
    files = {
        name: (SplitFile(write_lines(tmp_path / f"{name}.jsonl", some)),)
        for name, some in rows.items()
    }
    return LabelledSource(**files)  # type: ignore[arg-type]


def test_texts_of_train_that_a_held_out_split_has_are_removed_near_ones_too(tmp_path: Path) -> None:
    rows = defects()
    near = code(195).replace("int f195", "long f195")
    train = [*rows[:180], rows[190], {"func": near, "target": 1}]
    source = split_files(tmp_path, train=train, validation=rows[180:190], test=rows[190:])
    report = write_corpus(tmp_path / "corpus", source)
    assert report["splits_drawn"] == "given"
    assert report["counts"] == {"train": 180, "validation": 10, "test": 10}
    found = report["leakage"]["train"]
    assert (found["same_text"], found["similar_text"]) == (1, 1)
    assert sorted(found["examples"]) == [
        [f"{tmp_path}/train.jsonl:181", f"{tmp_path}/test.jsonl:1"],
        [f"{tmp_path}/train.jsonl:182", f"{tmp_path}/test.jsonl:6"],
    ]


def test_a_given_test_stays_whole_and_its_duplicates_are_counted(tmp_path: Path) -> None:
    rows = defects()
    source = split_files(tmp_path, train=rows[:150], test=[*rows[150:], rows[150]])
    report = write_corpus(tmp_path / "corpus", source)
    assert report["counts"] == {"train": 135, "validation": 15, "test": 51}
    assert report["repeats"]["test"]["duplicates"] == 1
    assert report["splits_drawn"] == "validation drawn by label"


@pytest.mark.parametrize("field", ["project", "author"])
def test_rows_of_one_group_stay_in_one_split(tmp_path: Path, field: str) -> None:
    rows = [{**row, field: f"g{n // 5}"} for n, row in enumerate(defects(300))]
    source = LabelledSource(
        source=write_lines(tmp_path / "data.jsonl", rows),
        # `project` is known by its name
        group_field=None if field == "project" else field,
    )
    report = write_corpus(tmp_path / "corpus", source)
    groups = [
        set(read_labelled(tmp_path / "corpus", split).groups.tolist())
        for split in ("train", "validation", "test")
    ]
    assert report["splits_drawn"] == "validation and test drawn by group"
    assert len(set.union(*groups)) == sum(map(len, groups)) == 60
    assert report["counts"] == {"train": 240, "validation": 30, "test": 30}


def test_too_few_groups_are_an_error_where_asked_for_and_a_warning_where_not(
    tmp_path: Path,
) -> None:
    rows = [{**row, "repo": n % 3} for n, row in enumerate(defects())]
    path = write_lines(tmp_path / "data.jsonl", rows)
    with pytest.raises(DataError, match="cannot be split by group: 3 groups"):
        write_corpus(tmp_path / "a", LabelledSource(source=path, group_field="repo"))
    report = write_corpus(tmp_path / "b", LabelledSource(source=path))
    assert report["warnings"][0].startswith("not split by group: 3 groups")


def test_a_field_may_name_the_split_and_its_only_held_out_rows_are_the_test(tmp_path: Path) -> None:
    rows = [{**row, "split": "valid" if n < 40 else "train"} for n, row in enumerate(defects())]
    path = write_lines(tmp_path / "data.jsonl", rows)
    report = write_corpus(tmp_path / "corpus", LabelledSource(source=path, split_field="split"))
    assert labels_of(tmp_path / "corpus", "test").keys() == {code(n) for n in range(40)}
    assert report["counts"] == {"train": 144, "validation": 16, "test": 40}
    assert (
        "split_field: split"
        in write_corpus(tmp_path / "b", LabelledSource(source=path))["warnings"][0]
    )


def test_pairs_are_made_of_labels_balanced_and_label_disjoint(tmp_path: Path) -> None:
    rows = ({"label": n % 30, "index": n, "code": code(n)} for n in range(300))
    source = LabelledSource(
        source=write_lines(tmp_path / "data.jsonl", rows), pairs_from_label=True
    )
    report = write_corpus(tmp_path / "corpus", source)
    assert report["labels"] == ["different", "same"]
    problems = []
    for split in ("train", "validation", "test"):
        held = read_labelled(tmp_path / "corpus", split)
        problem = np.array([int(name) % 30 for name in held.function_ids])[held.rows]
        assert (held.labels == (problem[:, 0] == problem[:, 1])).all()
        assert held.labels.sum() * 2 == len(held.labels) > 0
        assert (held.rows[:, 0] != held.rows[:, 1]).all()
        assert max(Counter(map(tuple, np.sort(held.rows, axis=1).tolist())).values()) == 1
        problems.append(set(problem.ravel().tolist()))
    assert len(set.union(*problems)) == sum(map(len, problems))


def test_pairs_of_too_few_labels_are_an_error(tmp_path: Path) -> None:
    rows = ({"label": n % 12, "code": code(n)} for n in range(120))
    source = LabelledSource(
        source=write_lines(tmp_path / "data.jsonl", rows), pairs_from_label=True
    )
    with pytest.raises(DataError, match="different pairs need two"):
        write_corpus(tmp_path / "corpus", source)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either `source`"),
        ({"source": "a", "train": (SplitFile("b"),)}, "found both"),
        ({"test": (SplitFile("b"),)}, "`train` is missing"),
        ({"train": (SplitFile("b"),), "split_field": "split"}, "split_field"),
        ({"source": "a", "labels": ("x", "x")}, "distinct names"),
        ({"source": "a", "texts": 1, "code2_field": "b"}, "which make pairs"),
    ],
)
def test_a_source_that_contradicts_itself_is_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        LabelledSource(**settings)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("texts.jsonl.gz", lambda folder: read_labelled(folder, "train")),
        ("train.npz", lambda folder: read_labelled(folder, "train")),
        ("corpus.json", read_report),
    ],
    ids=["texts", "split", "report"],
)
def test_a_damaged_corpus_is_an_error_that_names_the_file(
    tmp_path: Path, name: str, read: Callable[[Path], object]
) -> None:
    source = LabelledSource(source=write_lines(tmp_path / "data.jsonl", defects()))
    write_corpus(tmp_path / "corpus", source)
    path = tmp_path / "corpus" / name
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=name):
        read(tmp_path / "corpus")


def test_memory_does_not_grow_with_the_texts(tmp_path: Path) -> None:
    rows = (
        {"func": " ".join(f"name{n}x{k}" for k in range(900)), "target": n % 2}
        for n in range(3_000)
    )
    path = write_lines(tmp_path / "data.jsonl", rows)
    size_bytes = Path(path).stat().st_size
    assert size_bytes > 25_000_000
    tracemalloc.start()
    try:
        report = write_corpus(
            tmp_path / "corpus",
            LabelledSource(source=path),
            train_examples=100,
            validation_examples=10,
            test_examples=10,
        )
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report["rows_read"] == 3_000
    assert report["counts"]["train"] == 100
    assert peak_bytes < 0.25 * size_bytes
    assert not (tmp_path / "corpus" / ".texts.spill").exists()


needs_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason="needs ../shared/data, which is not here"
)


@needs_data
def test_the_real_clone_pairs_with_a_real_teachers_labels(tmp_path: Path) -> None:
    lists = {
        name: str(SHARED / f"bcb_pairs_{name}.tsv.gz")
        for name in ("label_train", "unlabel_train", "valid")
    }
    source = LabelledSource(
        functions=str(SHARED / "bcb_functions.jsonl.gz"),
        train=(
            SplitFile(lists["label_train"]),
            SplitFile(lists["unlabel_train"], label_field=None, teacher_field="teacher"),
        ),
        test=(SplitFile(lists["valid"]),),
    )
    report = write_corpus(tmp_path / "corpus", source)
    assert report["skipped"]["counts"] == {}
    assert report["counts"]["test"] == 4_000
    assert report["balance"]["test"] == {"0": 2_000, "1": 2_000}
    assert report["teacher"]["train"]["rows"] > 35_000
    # the third column there is unseen
    assert report["teacher"]["train"]["with_label"] == 0
    assert report["leakage"]["test"]["same_pair"] > 0
    test = read_labelled(tmp_path / "corpus", "test")
    with gzip.open(SHARED / "bcb_functions.jsonl.gz") as stream:
        codes = {row["idx"]: row["code"] for row in map(json.loads, stream)}
    assert all(
        codes[name] == text for name, text in zip(test.function_ids, test.texts, strict=True)
    )


@needs_data
def test_the_real_problem_pairs(tmp_path: Path) -> None:
    source = LabelledSource(
        train=(SplitFile(str(SHARED / "poj15_pairs_train.jsonl.gz")),),
        test=(SplitFile(str(SHARED / "poj15_pairs_valid.jsonl.gz")),),
    )
    report = write_corpus(tmp_path / "corpus", source)
    assert report["counts"] == {"train": 3_599, "validation": 401, "test": 600}
    # the problems of the two lists are disjoint
    assert report["leakage"]["test"]["both_texts"] == report["leakage"]["test"]["same_pair"] == 0


@needs_data
def test_the_real_vulnerable_functions_split_by_their_pairs(tmp_path: Path) -> None:
    source = LabelledSource(source=str(SHARED / "sven_pairs.jsonl.gz"), group_field="pair")
    report = write_corpus(tmp_path / "corpus", source)
    assert report["repeats"]["all"]["conflicting_texts"] == 5
    for counts in report["balance"].values():
        assert counts["0"] == pytest.approx(counts["1"], abs=5)
