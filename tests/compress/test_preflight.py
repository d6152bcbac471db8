"""What is checked before anything is made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from codemill.compress import preflight as module
from codemill.compress.preflight import Preflight, preflight
from codemill.compress.recipe import Recipe, parse_recipe
from codemill.errors import MachineError, ModelError, RecipeError, RefusedError


def recipe(model: Path, **sections: dict[str, Any]) -> Recipe:
    values: dict[str, Any] = {
        "name": "tiny",
        "teacher": {"model": str(model), "max_tokens": 60},
        "data": {"max_tokens": 48},
        "student": {"max_tokens": 60},
        "target": "laptop-cpu",
    }
    return parse_recipe({**values, **sections})


def failed(found: Preflight) -> list[str]:
    return [check.name for check in found.checks if not check.passed]


def test_a_run_that_is_possible_passes_every_check(made_model: Path, tmp_path: Path) -> None:
    found = preflight(recipe(made_model), tmp_path / "not/yet/there")
    assert failed(found) == []
    found.raise_if_impossible()
    assert [line[:3] for line in found.lines()] == ["ok "] * 4
    assert "bert, 3 layers" in found.lines()[0]
    assert found.to_json()["memory_bytes"] == found.memory_bytes > 0
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize("section", ["teacher", "data", "student"])
def test_inputs_longer_than_the_teacher_takes_are_a_recipe_error(
    made_model: Path, tmp_path: Path, section: str
) -> None:
    values: dict[str, Any] = {section: {"max_tokens": 61}}
    if section == "teacher":
        values["teacher"]["model"] = str(made_model)
    message = rf"{section}\.max_tokens is 61, but the teacher takes inputs of 60 tokens"
    with pytest.raises(RecipeError, match=message):
        preflight(recipe(made_model, **values), tmp_path)


def test_a_teacher_that_cannot_be_opened_is_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        preflight(recipe(tmp_path), tmp_path)


@pytest.mark.parametrize("target", ["laptop-rtx", "no-such-target"])
def test_a_target_that_cannot_be_built_for_stops_the_run(
    made_model: Path, tmp_path: Path, target: str
) -> None:
    found = preflight(recipe(made_model).model_copy(update={"target": target}), tmp_path)
    assert failed(found) == ["target"]
    with pytest.raises(MachineError, match=f"target: .*{target}"):
        found.raise_if_impossible()


def test_too_little_memory_or_disk_stops_the_run_and_says_how_much_is_needed(
    made_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = SimpleNamespace(memory_available_bytes=10_000_000)
    monkeypatch.setattr(module, "this_machine", lambda: small)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    found = preflight(recipe(made_model), tmp_path)
    assert failed(found) == ["memory", "disk"]
    with pytest.raises(MachineError, match=r"memory: about .* GB needed.*disk: about .* GB needed"):
        found.raise_if_impossible()
    monkeypatch.setattr(
        module, "this_machine", lambda: SimpleNamespace(memory_available_bytes=None)
    )
    assert failed(preflight(recipe(made_model), tmp_path)) == ["disk"]


def test_gflops_that_no_architecture_keeps_to_are_refused_with_the_fewest(
    made_model: Path, tmp_path: Path
) -> None:
    def refused(gflops: float | str | None) -> str | None:
        return preflight(recipe(made_model, budget={"gflops": gflops}), tmp_path).refused

    said = refused(1e-9)
    assert said is not None
    least = float(said.partition("the least takes ")[2].split()[0])
    assert refused(least) is None
    assert refused(least * 0.99) is not None
    # none of them is known to be impossible without the data
    assert refused("auto") is refused(None) is refused(100.0) is None
    with pytest.raises(RefusedError, match="gflops <= 1e-09"):
        preflight(recipe(made_model, budget={"gflops": 1e-9}), tmp_path).raise_if_refused()


def test_functions_of_a_data_file_tell_how_many_gflops_are_needed(
    made_model: Path, tmp_path: Path
) -> None:
    def least(words: int) -> float:
        path = tmp_path / f"{words}.jsonl"
        path.write_text(
            "\n".join(
                json.dumps({"query": f"get {i}", "code": f"f{i} " + f"v{i} " * words})
                for i in range(120)
            )
        )
        values = {"data": {"source": str(path), "max_tokens": 48}, "bench": {"tokens": [8]}}
        found = preflight(recipe(made_model, budget={"gflops": 1e-9}, **values), tmp_path)
        assert found.refused is not None
        return float(found.refused.partition("the least takes ")[2].split()[0])

    assert 1.5 * least(8) < least(16)


def test_more_trained_layers_and_larger_batches_take_more_memory(
    made_model: Path, tmp_path: Path
) -> None:
    def memory(**finetune: int) -> int:
        teacher = {"model": str(made_model), "max_tokens": 60, "finetune": finetune}
        return preflight(recipe(made_model, teacher=teacher), tmp_path).memory_bytes

    none, few, many = memory(pairs=0), memory(freeze_layers=2), memory(freeze_layers=0)
    assert none < few < many < memory(freeze_layers=0, batch_size=512)


def test_a_work_path_that_is_a_file_stops_the_run(made_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for work in (tmp_path / "file", tmp_path / "file/below"):
        assert failed(preflight(recipe(made_model), work)) == ["disk"]
