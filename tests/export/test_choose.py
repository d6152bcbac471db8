"""Which of several measured variants ships."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from codemill.compress.stages.quantized import FACTS, said_of
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


def test_the_fastest_that_keeps_quality_ships() -> None:
    rows = tried()
    assert why(rows) == {
        "fp32": None,
        "fast": None,
        "exact": None,
        "coarse": "loses 20.0%, more than 2.0%",
        "slow": "0.80 times as fast as fp32 [0.70, 0.90]",
    }
    best = chosen(rows)
    assert best is not None
    assert best.variant == "fast"
    assert best.lost == pytest.approx(0.01)


def test_a_tighter_bound_takes_the_more_exact_one_and_none_takes_fp32() -> None:
    best = chosen(tried(0.005))
    assert best is not None
    assert best.variant == "exact"
    best = chosen(tried(0.0))
    assert best is not None
    assert best.variant == "fp32"


def test_what_is_too_large_is_refused_fp32_too() -> None:
    rows = tried(most=31)
    assert why(rows)["fp32"] == "100 bytes, more than 31"
    assert why(rows)["exact"] == "32 bytes, more than 31"
    assert chosen(tried(most=1)) is None


def test_a_share_of_nothing_is_never_kept() -> None:
    rows = tried(1.0, fp32_quality=0.0)
    assert all(row.why for row in rows[1:])
    best = chosen(rows)
    assert best is not None
    assert best.variant == "fp32"


def test_nothing_that_ships_is_dominated() -> None:
    one = Tried("one", 10, 0.5, 0.0, 5.0, 2.0, None, None)
    smaller = Tried("smaller", 9, 0.5, 0.0, 5.0, 2.0, None, None)
    assert smaller.dominates(one)
    assert not one.dominates(smaller)
    assert not one.dominates(one)
    best = chosen([one, smaller])
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
