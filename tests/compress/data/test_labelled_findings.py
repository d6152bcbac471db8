"""What is told of labelled data before a model is trained: odd first rows, groups, labels, lengths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codemill.compress.data.labelled import (
    LabelledSource,
    SplitFile,
    findings,
    read_labelled,
    write_corpus,
)
from codemill.compress.data.lengths import sample_texts
from codemill.errors import DataError, RecipeError

from .labelled_rows import code, write_lines


def rows(first: int, count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"func": code(n), "target": n % 2, **more} for n in range(first, first + count)]


def test_a_first_row_without_a_label_does_not_make_a_file_unlabelled(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "data.jsonl", [{"func": code(500)}, *rows(0, 200)])
    report = write_corpus(tmp_path / "corpus", LabelledSource(source=path))
    assert report["labels"] == ["0", "1"]
    assert report["skipped"]["counts"] == {"missing field": 1}
    (example,) = report["skipped"]["examples"]["missing field"]
    assert example.startswith(f"{path}:1: expected 'target', found fields ['func']")
    assert example.endswith("a row without a label has null there")


def test_a_first_row_with_another_code_field_is_the_odd_one(tmp_path: Path) -> None:
    odd = {"code": code(500), "target": 1}
    path = write_lines(tmp_path / "data.jsonl", [odd, *rows(0, 200)])
    report = write_corpus(tmp_path / "corpus", LabelledSource(source=path))
    assert report["fields"][path]["texts"] == ["func"]
    assert report["rows_read"] == 200


def test_labels_that_begin_far_down_are_not_read_and_that_is_said(tmp_path: Path) -> None:
    unlabelled = [{"func": code(n)} for n in range(1000, 1060)]
    train = write_lines(tmp_path / "train.jsonl", [*unlabelled, *rows(0, 30)])
    test = write_lines(tmp_path / "test.jsonl", rows(200, 40))
    source = LabelledSource(train=(SplitFile(train),), test=(SplitFile(test),))
    report = write_corpus(tmp_path / "corpus", source)
    assert any(
        f"{train}: 30 rows have a label that none of the first 50 has" in warning
        for warning in report["warnings"]
    )
    meant = LabelledSource(train=(SplitFile(train, label_field=None),), test=(SplitFile(test),))
    report = write_corpus(tmp_path / "meant", meant)
    assert not any("none of the first" in warning for warning in report["warnings"])


def test_groups_that_given_splits_share_are_counted_with_examples(tmp_path: Path) -> None:
    train = write_lines(
        tmp_path / "train.jsonl",
        [*rows(0, 100, project="a"), *rows(100, 100, project="b")],
    )
    test = write_lines(
        tmp_path / "test.jsonl",
        [*rows(300, 20, project="c"), *rows(400, 10, project="b")],
    )
    source = LabelledSource(train=(SplitFile(train),), test=(SplitFile(test),))
    report = write_corpus(tmp_path / "corpus", source)
    shared = report["groups_shared"]["test"]
    assert (shared["groups"], shared["rows"]) == (1, 10)
    ((held, learned),) = shared["examples"]
    assert int(held.removeprefix(f"{test}:")) > 20
    assert int(learned.removeprefix(f"{train}:")) > 100
    said = "\n".join(findings(report))
    assert "1 of the 2 groups in test are in train too, with 10 of its 30 rows" in said


def test_splits_drawn_by_group_share_none(tmp_path: Path) -> None:
    many = [row | {"project": f"p{n % 20}"} for n, row in enumerate(rows(0, 400))]
    source = LabelledSource(source=write_lines(tmp_path / "data.jsonl", many))
    report = write_corpus(tmp_path / "corpus", source)
    assert report["splits_drawn"].endswith("by group")
    assert {found["groups"] for found in report["groups_shared"].values()} == {0}
    assert "groups in" not in "\n".join(findings(report))
    # as a corpus of an earlier version says nothing of it
    del report["groups_shared"]
    assert findings(report)


@pytest.mark.parametrize("label", ["two\nlines", "x" * 201, "bell \a"])
def test_a_label_that_no_bundle_can_hold_is_refused_where_it_is_read(
    tmp_path: Path, label: str
) -> None:
    some = rows(0, 60)
    some[7]["target"] = label
    path = write_lines(tmp_path / "data.jsonl", some)
    with pytest.raises(DataError, match=r":8: .* cannot be a label of a bundle"):
        write_corpus(tmp_path / "corpus", LabelledSource(source=path))
    with pytest.raises(RecipeError, match="no bundle can hold the label"):
        LabelledSource(source=path, labels=("0", label))


def test_problems_of_which_pairs_are_made_may_have_any_name(tmp_path: Path) -> None:
    some = [{"code": code(n), "label": f"problem\n{n % 40}"} for n in range(400)]
    source = LabelledSource(
        source=write_lines(tmp_path / "data.jsonl", some), pairs_from_label=True
    )
    assert write_corpus(tmp_path / "corpus", source)["labels"] == ["different", "same"]
    # a group would be the label of one of the two functions only
    held = read_labelled(tmp_path / "corpus", "test")
    assert set(held.groups.tolist()) == {-1}


def test_a_sample_of_texts_is_drawn_by_the_seed_from_what_is_learned_from(tmp_path: Path) -> None:
    train = write_lines(tmp_path / "train.jsonl", [{"func": 3}, *rows(0, 200)])
    test = write_lines(tmp_path / "test.jsonl", rows(300, 20))
    source = LabelledSource(train=(SplitFile(train),), test=(SplitFile(test),))
    found = sample_texts(source, 50, 0)
    assert len(set(found)) == 50
    assert set(found) <= {code(n) for n in range(200)}
    assert found == sample_texts(source, 50, 0)
    assert found != sample_texts(source, 50, 1)
    assert len(sample_texts(source, 1000, 0)) == 200


def test_texts_of_pairs_are_sampled_from_the_functions_or_both_sides(tmp_path: Path) -> None:
    functions = write_lines(
        tmp_path / "data.jsonl", ({"idx": n, "func": code(n)} for n in range(30))
    )
    (tmp_path / "train.txt").write_text("1\t2\t1\n")
    listed = LabelledSource(functions=functions, train=(SplitFile(str(tmp_path / "train.txt")),))
    assert len(sample_texts(listed, 100, 0)) == 30
    both = write_lines(
        tmp_path / "pairs.jsonl",
        ({"code1": code(n), "code2": code(n + 100), "label": 1} for n in range(10)),
    )
    assert len(sample_texts(LabelledSource(source=both), 100, 0)) == 20


def test_a_file_without_a_good_row_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"other": "x"}) + "\n")
    with pytest.raises(DataError, match="no row is good"):
        sample_texts(LabelledSource(source=str(path)), 10, 0)
