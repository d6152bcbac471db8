"""Time by operator, of a real bundle with exits."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.export.bundles import labelling_bundle

from codemill.errors import MachineError
from codemill.targets import Shape, bundle_engine
from codemill.targets.benchmark import _operators
from codemill.targets.engine import EngineProcess
from codemill.targets.operators import profiled

TEXTS = {16: ["open a file and close the file"] * 4 + ["close"] * 4}


def test_every_graph_that_ran_says_what_its_operators_take(tmp_path: Path) -> None:
    engine = bundle_engine(labelling_bundle(tmp_path, 1, ("int8",), 24), "cpu-int8", 1)
    found = _operators(engine, TEXTS, Shape(16, 1))
    assert found is not None
    assert found.calls == 20
    graphs = {item.graph for item in found.times}
    # without thresholds no row leaves early: all three parts ran, each with its head
    assert graphs == {
        f"{part}-{number}.onnx" for part in ("encoder", "head") for number in range(3)
    }
    times = [item.time_ms for item in found.times]
    assert times == sorted(times, reverse=True)
    assert 0 < sum(times) < 1000
    assert any("MatMul" in item.operator for item in found.times)
    assert all(item.nodes > 0 for item in found.times)


def test_what_ran_before_the_calls_is_left_out(tmp_path: Path) -> None:
    from codemill.runtime import load_classifier

    folder = labelling_bundle(tmp_path, 1, ("int8",), 24)
    with profiled() as profile, load_classifier(folder, threads=1) as model:
        # of what ran before, none counts
        for _ in range(50):
            model.run(["open a file"])
        assert {session.runs for _, session in profile.sessions} == {50}
        profile.begin()
        assert profile.times(1) == []
    with profiled() as profile, load_classifier(folder, threads=1) as model:
        model.run(["open a file"])
        profile.begin()
        model.run(["open a file"])
        assert profile.times(1)


def test_an_engine_that_does_not_say_costs_no_benchmark(tmp_path: Path) -> None:
    engine = bundle_engine(labelling_bundle(tmp_path, 1, ("int8",), 24), "cpu-int8", 1)
    with EngineProcess(engine) as process, pytest.raises(MachineError, match="--operators"):
        process.ask({"op": "operators", "texts": TEXTS[16], "batch": 1, "calls": 1})
    broken = bundle_engine(tmp_path / "bundle", "cpu-int8", 1)
    (tmp_path / "bundle" / "tokenizer.json").write_text("{}")
    assert _operators(broken, TEXTS, Shape(16, 1)) is None
