"""Training texts in other words of the same meaning."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from codemill.compress.compute import Compute
from codemill.compress.distill import augment
from codemill.compress.distill.augment import augmented, clear, language_among
from codemill.compress.recipe import Distill, Recipe, parse_recipe
from codemill.compress.rewrite import LANGUAGES
from codemill.compress.stages.classify import student
from codemill.errors import DataError, RecipeError


def functions(count: int) -> list[str]:
    return [
        f"def total_{number}(values, start):\n    result = start\n    for value in values:\n"
        f"        result += value * {number}\n    return result\n"
        for number in range(count)
    ]


def quiet(_fraction: float, _note: str) -> None:
    pass


def made(texts: list[str], folder: Path, seed: int = 0, workers: int = 1, **more: object) -> list:
    folder.mkdir(exist_ok=True)
    settings = Distill.model_validate({"augment": 0.5, **more})
    return list(augmented(texts, settings, seed, folder, workers, quiet).variants)


def test_variants_mean_the_same_and_read_differently(tmp_path: Path) -> None:
    texts = functions(6)
    first, second = made(texts, tmp_path)
    for number, (old, one, two) in enumerate(zip(texts, first, second, strict=True)):
        assert len({old, one, two}) == 3
        for text in (old, one, two):
            scope: dict = {}
            exec(compile(ast.parse(text), "text", "exec"), scope)
            assert scope[f"total_{number}"]([1, 2, 3], 10) == 10 + 6 * number


def test_variants_are_a_function_of_texts_and_seed(tmp_path: Path) -> None:
    texts = functions(5)
    once, again = (made(texts, tmp_path / name) for name in ("a", "b"))
    assert once == again
    assert made(texts, tmp_path / "c", seed=1) != once
    more = made(texts, tmp_path / "d", variants=3)
    assert more[:2] == once, "more of them leave the first as they are"


def test_processes_rewrite_what_one_rewrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment, "_SHARD", 3)
    texts = functions(8)
    assert made(texts, tmp_path / "a", workers=2) == made(texts, tmp_path / "b")


def test_what_was_rewritten_is_not_rewritten_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment, "_SHARD", 2)
    texts = functions(8)
    expected = made(texts, tmp_path)
    shards = sorted(tmp_path.iterdir())
    assert len(shards) == 8
    shards[3].unlink()
    calls = []
    rewrite = augment.rewrite
    monkeypatch.setattr(augment, "rewrite", lambda *a: (calls.append(a), rewrite(*a))[1])
    assert made(texts, tmp_path) == expected
    assert len(calls) == 2
    clear(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [b"", b'["cut', b"\xff\xfe", b"[]", b"[1, 2]", b'{"a": 1}'])
def test_a_damaged_file_is_as_good_as_none(
    damage: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment, "_SHARD", 2)
    texts = functions(4)
    expected = made(texts, tmp_path)
    sorted(tmp_path.iterdir())[1].write_bytes(damage)
    assert made(texts, tmp_path) == expected


def test_texts_that_cannot_be_rewritten_stay_and_are_counted(tmp_path: Path) -> None:
    texts = [*functions(3), "this is no code at all (", ""]
    found = augmented(texts, Distill(augment=1.0), 0, tmp_path, 1, quiet)
    assert [variant[3:] for variant in found.variants] == [texts[3:]] * 2
    assert found.rewritten == 3
    assert "3 of 5 training texts (python)" in found.said
    assert "2 (40.0%) could not be rewritten" in found.said


def test_a_language_that_is_not_known_is_an_error_that_says_what_to_set(tmp_path: Path) -> None:
    prose = ["Dear all, the meeting is moved (again) to Tuesday!"] * 5
    with pytest.raises(DataError, match=r"distill\.language"):
        language_among(prose)
    with pytest.raises(DataError, match="none of the 5 training texts can be rewritten as java"):
        augmented(prose, Distill(augment=1.0, language="java"), 0, tmp_path, 1, quiet)


def test_a_recipe_names_the_languages_that_there_are() -> None:
    for language in LANGUAGES:
        assert Distill.model_validate({"language": language}).language == language
    with pytest.raises(ValueError, match="language"):
        Distill.model_validate({"language": "cobol"})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"distill": {"augment": 0.5}}, r"distill\.augment: of classifiers only"),
        ({"distill": {"losses": {"hidden": 1}}}, r"losses\.hidden: of classifiers only"),
    ],
)
def test_a_retrieval_student_has_neither(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate({"name": "x", **changed})


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"init": "fresh"}, r"losses\.relations cannot be had with student\.init: fresh"),
        ({"tokenizer": "bpe"}, r"losses\.relations cannot be had with student\.tokenizer: bpe"),
    ],
)
def test_without_the_origins_tokens_and_layers_its_losses_are_refused_at_once(
    student: dict[str, str], message: str
) -> None:
    values = {
        "name": "x",
        "task": "classification",
        "data": {"source": "a.jsonl"},
        "student": student,
        "distill": {"losses": {"relations": 1.0}},
    }
    with pytest.raises(RecipeError, match=message):
        parse_recipe(values)


def test_a_student_of_rewritten_texts_depends_on_what_parses_them() -> None:
    values = {"name": "x", "task": "classification", "data": {"source": "a.jsonl"}}
    plain, java = (
        student.stage(parse_recipe({**values, "distill": distill}), Compute(1, False)).libraries
        for distill in ({"augment": 0.0}, {"augment": 0.5, "language": "java"})
    )
    assert not any(name.startswith("tree-sitter") for name in plain)
    assert java == (*plain, "tree-sitter", "tree-sitter-java")
