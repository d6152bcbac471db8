"""The frozen layers as a graph: the same states, taken only where it is faster and right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from codemill.compress.freeze import bottom
from codemill.compress.freeze.bottom import fastest, in_torch
from codemill.compress.models.pooling import pad, positions
from codemill.errors import CodemillError

from .test_cache import FROZEN, encoder_of, kept, texts


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph is worth making for anything, and counts as faster."""
    monkeypatch.setattr(bottom, "_LEAST_TOKENS", 1)
    monkeypatch.setattr(bottom, "_WORTH_S", 0.0)
    monkeypatch.setattr(bottom, "_FASTER", 0.0)


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "t5", "gated-t5"])
def test_a_graph_gives_what_the_layers_give(name: str, eager: None) -> None:
    model, some = encoder_of(name), texts()
    with torch.inference_mode():
        run, by = fastest(model, FROZEN, False, some)
        assert by == "onnx"
        ids, mask = pad(some, positions(model))
        real = mask.bool()
        found, wanted = (r(ids, mask)[real] for r in (run, in_torch(model, FROZEN, False)))
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)


def test_states_that_a_graph_computed_are_kept_and_said_to_be(eager: None, tmp_path: Path) -> None:
    model, some = encoder_of("bert"), texts()
    found = kept(model, tmp_path / "graph", some, "fp16")
    assert found.by == "onnx"
    # without rounding, what torch gives is wanted
    exact = kept(model, tmp_path / "torch", some, "fp32")
    assert exact.by == "torch"
    ids, mask = pad(some)
    states, wanted = found.of(ids, mask), exact.of(ids, mask)
    assert states is not None
    assert wanted is not None
    torch.testing.assert_close(states, wanted, atol=4e-3, rtol=1e-3)
    # training goes on with the encoder as it was
    assert all(not value.is_inference() for value in model.parameters())


def test_a_decoder_is_run_in_torch(eager: None) -> None:
    assert fastest(encoder_of("llama"), FROZEN, False, texts())[1] == "torch"


def fails(*_: Any) -> Any:
    raise CodemillError("no such graph")


def lies(*_: Any) -> Any:
    return lambda ids, mask: torch.zeros(*ids.shape, 32)


@pytest.mark.parametrize("made", [fails, lies])
def test_a_graph_that_fails_or_lies_is_not_taken(
    made: Any, eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bottom, "_as_graph", made)
    assert fastest(encoder_of("bert"), FROZEN, False, texts())[1] == "torch"


def test_a_graph_that_is_no_faster_is_not_taken(
    eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bottom, "_FASTER", 1e9)
    assert fastest(encoder_of("bert"), FROZEN, False, texts())[1] == "torch"


def test_no_graph_is_made_for_little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("it takes longer than the work")

    monkeypatch.setattr(bottom, "_as_graph", never)
    monkeypatch.setattr(bottom, "_LEAST_TOKENS", 1)
    assert fastest(encoder_of("bert"), FROZEN, False, texts())[1] == "torch"
    assert fastest(encoder_of("bert"), FROZEN, False, [])[1] == "torch"
