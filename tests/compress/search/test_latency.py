"""The latency model finds the machine it was measured on, and the kit is what it should be."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from codemill.compress.architecture import Architecture
from codemill.compress.search.latency import LatencyModel, holdout, warn_if_foreign
from codemill.compress.search.latency_kit import SHAPES, kit_architectures, make_kit
from codemill.errors import DataError, RecipeError
from codemill.runtime.session import OnnxSession
from codemill.targets.environment import Environment
from codemill.targets.latency import (
    Anchor,
    AnchorLatency,
    LatencyProfile,
    LatencyRow,
    ProfiledTarget,
    read_kit,
)
from codemill.targets.profile import Precision, Shape, TargetSpec

TARGET = TargetSpec("laptop-cpu", "", "CPUExecutionProvider", Precision.INT8, 2, None)
ANCHOR_MS = 2.0


def truth_ms(item: Architecture, tokens: int, batch: int, bits: int) -> float:
    """A machine whose products are slower in float, with a cost for each layer and each norm."""
    attention = item.heads * item.head_size
    product = {8: 1e-8, 32: 3e-8}[bits]
    rows = tokens * batch
    matrices = 4 * item.hidden_size * attention + 2 * item.hidden_size * item.intermediate_size
    layer = 0.01 + rows * (product * matrices + 1e-5 * item.hidden_size)
    layer += 2e-8 * rows * tokens * attention
    widened = 1e-8 * rows * item.hidden_size * (item.embedding_rank or 0)
    return 0.02 + item.layers * layer + widened


def profile_of(
    measured: Callable[[Architecture, int, int, int], float] = truth_ms,
    architectures: Sequence[Architecture] | None = None,
) -> LatencyProfile:
    chosen = kit_architectures() if architectures is None else architectures
    rows = tuple(
        LatencyRow(
            architecture={**item.to_json(), "bits": bits},
            precision=precision,
            tokens=shape.tokens,
            batch=shape.batch,
            ratio=measured(item, shape.tokens, shape.batch, bits) / ANCHOR_MS,
            spread=0.01,
        )
        for item, shape in itertools.product(chosen, SHAPES)
        for precision, bits in (("int8", 8), ("fp32", 32))
    )
    at = tuple(AnchorLatency(shape.tokens, shape.batch, ANCHOR_MS) for shape in SHAPES)
    environment = Environment({"cpu": "A Processor"}, "abc", {}, 0.0, "2026-01-01T00:00:00+00:00")
    target = ProfiledTarget("laptop-cpu", "CPUExecutionProvider", ("int8", "fp32"))
    anchor = Anchor(chosen[0].to_json(), "int8", at)
    return LatencyProfile(1, "0", target, 2, 3, "0" * 64, environment, anchor, rows)


def noisy(sigma: float) -> Callable[[Architecture, int, int, int], float]:
    random = np.random.default_rng(0)
    return lambda *args: truth_ms(*args) * float(np.exp(random.normal(0, sigma)))


@pytest.fixture(scope="module")
def model() -> LatencyModel:
    return LatencyModel.fit(profile_of())


UNSEEN = Architecture(7000, 384, 2, 6, 32, 768, 256, embedding_rank=128)


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize(("tokens", "batch"), [(20, 1), (100, 1), (163.5, 1), (400, 1), (48, 4)])
def test_an_unseen_architecture_at_an_unseen_length_is_predicted(
    model: LatencyModel, bits: int, tokens: float, batch: int
) -> None:
    item = replace(UNSEEN, bits=bits)
    expected = truth_ms(item, tokens, batch, bits)  # type: ignore[arg-type]
    assert model.latency_ms(item, tokens, batch) == pytest.approx(expected, rel=0.01)


def test_arrays_give_what_each_architecture_gives_alone(model: LatencyModel) -> None:
    items = [replace(item, bits=bits) for item in kit_architectures()[:12] for bits in (8, 32)]
    fields = ("vocab_size", "hidden_size", "layers", "heads", "head_size", "intermediate_size")
    many = SimpleNamespace(
        **{name: np.array([getattr(item, name) for item in items]) for name in (*fields, "bits")},
        embedding_rank=np.array([item.embedding_rank or 0 for item in items]),
    )
    tokens = np.linspace(10, 500, len(items))
    alone = [model.latency_ms(item, t) for item, t in zip(items, tokens, strict=True)]
    assert all(type(value) is float for value in alone)
    np.testing.assert_allclose(model.latency_ms(many, tokens), alone, rtol=1e-12)
    # broadcast: every architecture at every length, one field a scalar, all with full tables
    many.embedding_rank, many.bits = None, 8
    wide = model.latency_ms(many, np.array([[32.0], [64.0]]), 2)
    assert wide.shape == (2, len(items))
    fresh = replace(items[0], embedding_rank=None, bits=8)
    assert wide[1, 0] == pytest.approx(model.latency_ms(fresh, 64, 2))


def test_more_of_anything_is_never_faster_even_after_a_noisy_measurement() -> None:
    model = LatencyModel.fit(profile_of(noisy(0.3)))
    for item, key in itertools.product(
        kit_architectures(),
        ("hidden_size", "layers", "heads", "intermediate_size", "embedding_rank"),
    ):
        more = replace(item, **{key: (getattr(item, key) or 0) + 8})
        for bits, tokens in itertools.product((8, 32), (32, 500)):
            before = model.latency_ms(replace(item, bits=bits), tokens)
            assert model.latency_ms(replace(more, bits=bits), tokens) >= before
            assert model.latency_ms(replace(item, bits=bits), tokens + 1) >= before


def test_the_held_out_error_is_that_of_the_measurement() -> None:
    exact = holdout(profile_of())
    assert set(exact) == {"int8", "fp32"}
    for found in exact.values():
        assert found.architectures == len(kit_architectures())
        assert found.worst < 0.03
        assert found.rank_correlation > 0.99
    for found in holdout(profile_of(noisy(0.2))).values():
        assert 0.1 < found.mape < 0.3


def test_what_architectures_do_not_explain_is_not_predicted() -> None:
    random = np.random.default_rng(0)
    for found in holdout(profile_of(lambda *_: float(random.uniform(1, 2)))).values():
        assert found.mape > 0.1
        assert abs(found.rank_correlation) < 0.5


def test_an_architecture_held_out_is_held_out_at_every_shape() -> None:
    """One that is ten times slower than it should be: its own rows must not teach the model so."""
    odd = kit_architectures()[5]

    def measured(item: Architecture, tokens: int, batch: int, bits: int) -> float:
        return truth_ms(item, tokens, batch, bits) * (10 if item == odd else 1)

    for found in holdout(profile_of(measured)).values():
        assert found.worst > 0.8


def test_too_few_architectures_are_refused() -> None:
    few = profile_of(architectures=kit_architectures()[:6])
    for use in (LatencyModel.fit, holdout):
        with pytest.raises(DataError, match="has 6 architectures in int8"):
            use(few)


def test_bits_and_families_that_were_not_measured_are_refused(model: LatencyModel) -> None:
    profile = profile_of()
    int8 = replace(profile, rows=tuple(row for row in profile.rows if row.precision == "int8"))
    with pytest.raises(RecipeError, match=r"no graphs of 32 bits, only of \[8\]"):
        LatencyModel.fit(int8).latency_ms(replace(UNSEEN, bits=32), 100)
    with pytest.raises(RecipeError, match="not 'llama'"):
        model.latency_ms(replace(UNSEEN, family="llama"), 100)
    other = replace(profile, rows=(replace(profile.rows[0], precision="int4"),))
    with pytest.raises(DataError, match="'int4' is none of"):
        LatencyModel.fit(other)


def test_a_profile_of_this_machine_and_target_gives_no_warning() -> None:
    assert warn_if_foreign(profile_of(), "abc", TARGET) is None
    assert warn_if_foreign(profile_of(), "abc", replace(TARGET, threads=None)) is None


def test_a_foreign_profile_is_warned_of_with_what_differs() -> None:
    said = warn_if_foreign(profile_of(), "def", replace(TARGET, threads=4))
    assert said is not None
    for part in ("A Processor", "machine abc", "2026-01-01", "(def)", "2 threads", "has 4"):
        assert part in said
    cuda = replace(TARGET, name="cuda-fp16", provider="CUDAExecutionProvider")
    said = warn_if_foreign(profile_of(), "abc", cuda)
    assert said == (
        "the latency profile is of CPUExecutionProvider; cuda-fp16 is of CUDAExecutionProvider: "
        "its milliseconds hold there"
    )


def test_the_kit_spans_the_space_and_holds_what_can_be_exported() -> None:
    items = kit_architectures()
    assert len(set(items)) == len(items) >= 24
    for key, least, most in (
        ("hidden_size", 64, 768),
        ("layers", 1, 12),
        ("head_size", 16, 64),
        ("intermediate_size", 64, 1536),
        ("vocab_size", 1000, 11000),
    ):
        values = [getattr(item, key) for item in items]
        assert (min(values), max(values)) == (least, most), key
    assert {item.embedding_rank is None for item in items} == {True, False}
    dropped = [item.heads * item.head_size < item.hidden_size for item in items]
    assert 0.3 < np.mean(dropped) < 0.7
    for item in items:
        # what transformers and ONNX Runtime's fusion take
        assert item.hidden_size % item.head_size == 0
        assert item.hidden_size % item.heads == 0
        assert item.heads * item.head_size <= item.hidden_size
        assert (item.embedding_rank or 0) <= min(item.hidden_size, item.vocab_size)
    assert max(shape.tokens for shape in SHAPES) <= min(item.max_tokens for item in items)


def test_a_kit_is_made_by_the_real_export_and_the_same_each_time(tmp_path: Path) -> None:
    from codemill.export.fuse import fused_operators

    small = (
        Architecture(100, 32, 1, 1, 16, 32, 16),
        Architecture(100, 32, 2, 2, 16, 32, 16, embedding_rank=8),
    )
    done: list[tuple[int, int]] = []
    kits = [
        make_kit(
            tmp_path / name,
            TARGET,
            architectures=small,
            shapes=[Shape(16)],
            progress=lambda number, total: done.append((number, total)),
        )
        for name in ("first", "second")
    ]
    assert done == [(1, 2), (2, 2)] * 2
    kit = read_kit(tmp_path / "first")
    assert kit == kits[0] == kits[1]
    assert [(graph.precision, graph.architecture["bits"]) for graph in kit.graphs] == [
        ("int8", 8),
        ("fp32", 32),
        ("int8", 8),
    ]
    assert kit.anchor == kit.graphs[0].id
    for graph in kit.graphs:
        path = tmp_path / "first" / graph.file
        attention = "QAttention" if graph.precision == "int8" else "Attention"
        assert fused_operators(path)[attention] == graph.architecture["layers"]
        session = OnnxSession(path, threads=1)
        assert session.outputs["embedding"][1][1] == graph.architecture["hidden_size"]
