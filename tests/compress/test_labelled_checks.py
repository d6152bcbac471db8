"""What is known of a classifier's run beforehand, and what robustness is sampled on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from codemill.compress.commands.estimate import estimate_command
from codemill.compress.preflight import preflight
from codemill.compress.recipe import Recipe, parse_recipe
from codemill.compress.stages.classify.rewrites import rewritten, sampled_texts
from codemill.errors import DataError, RecipeError
from codemill.targets.evaluation import LabelledEvaluation


def recipe(model: Path, source: Path, **sections: dict[str, Any]) -> Recipe:
    values: dict[str, Any] = {
        "name": "tiny",
        "task": "classification",
        "teacher": {"model": str(model), "max_tokens": 60},
        "data": {"max_tokens": 48, "source": str(source)},
        "student": {"max_tokens": 40},
        "target": "laptop-cpu",
        "bench": {"tokens": [16]},
    }
    return parse_recipe({**values, **sections})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    rows = [{"func": "a " * (10 if n % 10 else 55), "target": n % 2} for n in range(100)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_checks_say_how_long_texts_are_and_how_many_are_cut(
    made_model: Path, source: Path, tmp_path: Path
) -> None:
    def said(**sections: dict[str, Any]) -> str:
        checks = preflight(recipe(made_model, source, **sections), tmp_path / "work").checks
        return next((check.found for check in checks if check.name == "lengths"), "")

    found = said()
    assert found.startswith("of 100 texts: ")
    # ten of them have 55 words and two special tokens
    assert "0.0% are longer than teacher.max_tokens 60;" in found
    assert "10.0% are longer than student.max_tokens 40 and are cut off" in found
    assert "half over 12" in found
    assert said(student={"max_tokens": 40, "long": "split"}).endswith("and are read in pieces")


def test_a_data_file_that_is_not_usable_is_said_before_anything_is_made(
    made_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"unheard_of": 1}\n' * 20)
    with pytest.raises(DataError, match="no row is good"):
        preflight(recipe(made_model, path), tmp_path / "work")


def test_an_estimate_without_a_model_is_refused_before_the_data_are_looked_at(
    made_model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.json"
    values = recipe(made_model, tmp_path / "not-there.jsonl").model_dump(mode="json")
    values["teacher"]["model"] = None
    values["student"] |= {"init": "fresh", "tokenizer": "bpe"}
    values["quality"]["min_kept"] = 0
    file.with_suffix(".yaml").write_text(json.dumps(values))
    with pytest.raises(
        RecipeError, match="compares students of one model, and this recipe names none"
    ):
        CliRunner().invoke(
            estimate_command,
            [
                *(str(file.with_suffix(".yaml")), "--out", str(tmp_path / "quality.json")),
                *("--work", str(tmp_path / "work")),
            ],
            catch_exceptions=False,
        )


def whole(rows: list[tuple[int, ...]], chosen: np.ndarray) -> int:
    return sum(all(chosen[text] for text in row) for row in rows)


def test_all_texts_are_the_sample_where_they_are_few() -> None:
    assert sampled_texts([(0,), (1,)], 2, 0, 2).all()


def test_of_single_functions_the_seed_draws_as_many_as_are_asked_for() -> None:
    rows = [(n,) for n in range(1000)]
    one, again, other = (sampled_texts(rows, 1000, seed, 400) for seed in (0, 0, 1))
    assert one.sum() == 400
    assert (one == again).all()
    assert (one != other).any()


def test_functions_that_meet_in_many_pairs_are_drawn_and_leave_the_labels_as_they_are() -> None:
    """Clones come in clusters: a sample that prefers functions of many pairs would be of clones."""
    rng = np.random.default_rng(0)
    clones = [(a, b) for a, b in rng.integers(0, 60, (2000, 2)).tolist() if a != b]
    others = [(a, b) for a, b in rng.integers(0, 800, (20000, 2)).tolist() if a != b]
    rows = clones + others
    chosen = sampled_texts(rows, 800, 0, 400)
    assert chosen.sum() == 400
    share = whole(clones, chosen) / whole(rows, chosen)
    assert share == pytest.approx(len(clones) / len(rows), abs=0.05)


def test_pairs_whose_functions_hardly_meet_are_drawn_themselves() -> None:
    rows = [(2 * n, 2 * n + 1) for n in range(2000)]
    chosen = sampled_texts(rows, 4000, 0, 400)
    assert chosen.sum() == 400
    assert whole(rows, chosen) == 200


def test_only_the_sample_is_rewritten() -> None:
    texts = tuple(
        f"def f{n}(value):\n    other = value + {n}\n    return other\n" for n in range(9)
    )
    rows = tuple((n,) for n in range(9))
    evaluation = LabelledEvaluation("test", ("a", "b"), texts, rows, (0,) * 9)
    found = rewritten(evaluation, 0, 4)
    chosen = sampled_texts(rows, 9, 0, 4)
    assert [text is not None for text in found["rename"]] == chosen.tolist()
    assert all(made != text for made, text in zip(found["rename"], texts, strict=True))
    prose = LabelledEvaluation("test", ("a", "b"), (" ",), ((0,),), (0,))
    assert rewritten(prose, 0) == {}
