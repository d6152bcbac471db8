"""Kits and profiles: what is read, what is refused, and that drift and kills do not show in a ratio."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from codemill.errors import BundleError, DataError, InputError
from codemill.targets import Shape
from codemill.targets.latency import (
    KIT,
    Kit,
    KitGraph,
    KitTarget,
    LatencyProfile,
    measure,
    read_kit,
    read_profile,
    write_kit,
    write_profile,
)

SHAPES = (Shape(8), Shape(16, 2))
CPU = "CPUExecutionProvider"
COST_S = {"anchor.onnx": 2e-4, "slow.onnx": 8e-4, "quick.onnx": 1e-4}


def architecture(layers: int) -> dict[str, Any]:
    numbers = {"vocab_size": 50, "hidden_size": 16, "heads": 2, "head_size": 8}
    return {**numbers, "layers": layers, "intermediate_size": 32, "max_tokens": 16}


def write_graph(path: Path, operator: str = "Abs") -> None:
    """ids and mask [batch, tokens] -> [batch, 1]"""
    given = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    out = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 1])
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["kept"]),
        helper.make_node("Cast", ["kept"], ["real"], to=TensorProto.FLOAT),
        helper.make_node(operator, ["real"], ["changed"]),
        helper.make_node("ReduceL1", ["changed"], ["embedding"], axes=[1], keepdims=1),
    ]
    graph = helper.make_graph(nodes, "graph", given, [out])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "kit"
    folder.mkdir()
    graphs = []
    for layers, name in enumerate(COST_S, start=1):
        write_graph(folder / name)
        sha256 = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        graphs.append(KitGraph(name[:-5], name, sha256, "int8", architecture(layers)))
    target = KitTarget("laptop-cpu", CPU, 1)
    write_kit(folder, Kit(1, "0", target, "anchor", SHAPES, tuple(graphs)))
    return folder


class Machine:
    """Sessions that take the time they are said to, by a clock that only they move."""

    def __init__(self, drift_a_s: float = 0.0, dies_after: int | None = None) -> None:
        self.time = 0.0
        self.drift_a_s = drift_a_s
        self.left = dies_after
        self.opened: list[str] = []
        self.inputs: list[dict[str, np.ndarray]] = []

    def open(self, path: Path, *, provider: str, threads: int) -> Any:
        assert provider == CPU
        self.opened.append(path.name)
        machine, cost = self, COST_S[path.name]

        class Session:
            outputs = ("embedding",)

            def outputs_for(self, inputs: dict[str, np.ndarray], _: Any) -> None:
                machine.inputs.append(inputs)
                if machine.left is not None:
                    machine.left -= 1
                    if machine.left < 0:
                        raise KeyboardInterrupt
                slower = 1 + machine.drift_a_s * machine.time
                machine.time += cost * inputs["input_ids"].size * slower

            def close(self) -> None: ...

        return Session()

    def measure(self, folder: Path, **settings: Any) -> LatencyProfile:
        kit = read_kit(folder)
        settings = {"minutes": 0.01, "open_graph": self.open, "now": lambda: self.time, **settings}
        return measure(folder, kit, **settings)


def ratios(profile: LatencyProfile) -> list[float]:
    return [row.ratio for row in profile.rows]


def test_ratios_are_the_graphs_costs_over_the_anchors(folder: Path) -> None:
    profile = Machine().measure(folder)
    assert ratios(profile) == pytest.approx([1, 1, 4, 4, 0.5, 0.5])
    assert [(row.tokens, row.batch) for row in profile.rows[:2]] == [(8, 1), (16, 2)]
    assert [at.latency_ms for at in profile.anchor.latencies] == pytest.approx([1.6, 6.4])
    assert profile.kit_sha256 == hashlib.sha256((folder / KIT).read_bytes()).hexdigest()


def test_a_machine_that_slows_down_to_a_third_does_not_move_the_ratios(folder: Path) -> None:
    machine = Machine(drift_a_s=0.2)
    profile = machine.measure(folder, minutes=10 / 60)
    assert 1 + 0.2 * machine.time > 3
    assert ratios(profile) == pytest.approx([1, 1, 4, 4, 0.5, 0.5], rel=0.03)


def test_rounds_fill_the_minutes_and_are_three_at_least(folder: Path) -> None:
    assert Machine().measure(folder, minutes=1e-9).rounds == 3
    for minutes in (0.05, 0.2):
        machine = Machine()
        profile = machine.measure(folder, minutes=minutes)
        assert profile.rounds > 3
        assert 0.9 * 60 * minutes < machine.time <= 60 * minutes


def test_every_call_has_other_ids_of_the_vocabulary_and_a_full_mask(folder: Path) -> None:
    machine = Machine()
    machine.measure(folder)
    assert {inputs["input_ids"].shape for inputs in machine.inputs} == {(1, 8), (2, 16)}
    for inputs in machine.inputs:
        assert inputs["attention_mask"].all()
        assert inputs["input_ids"].dtype == np.int64
        assert 0 <= inputs["input_ids"].min() <= inputs["input_ids"].max() < 50
    assert (machine.inputs[0]["input_ids"] != machine.inputs[1]["input_ids"]).any()


def test_progress_never_falls_and_stays_a_share(folder: Path) -> None:
    shares: list[float] = []
    Machine().measure(folder, progress=lambda share, _: shares.append(share))
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert 0.6 < shares[-1] <= 1


def test_a_measurement_that_was_killed_goes_on(folder: Path, tmp_path: Path) -> None:
    journal = tmp_path / "latency.json.partial"
    whole = Machine()
    expected = whole.measure(folder)
    calls = len(whole.inputs)
    killed = Machine(dies_after=calls // 2)
    with pytest.raises(KeyboardInterrupt):
        killed.measure(folder, journal=journal)
    # what a kill in the middle of a write leaves
    with journal.open("a") as file:
        file.write('{"graph": "slow", "ms"')
    second = Machine()
    found = second.measure(folder, journal=journal)
    assert len(second.inputs) < 0.6 * calls
    assert found.rounds == expected.rounds
    assert ratios(found) == pytest.approx(ratios(expected))
    # and once more from the end: nothing is left to do
    third = Machine()
    assert ratios(third.measure(folder, journal=journal)) == ratios(found)
    assert third.opened == ["anchor.onnx"]


def test_a_journal_of_other_threads_is_not_gone_on_from(folder: Path, tmp_path: Path) -> None:
    journal = tmp_path / "latency.json.partial"
    machine = Machine()
    machine.measure(folder, journal=journal)
    again = Machine()
    again.measure(folder, journal=journal, threads=2)
    assert len(again.inputs) == len(machine.inputs)


def test_a_journal_that_cannot_be_written_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        Machine().measure(folder, journal=tmp_path / "none" / "latency.json.partial")


def test_a_profile_measured_for_real_is_read_back_as_it_was(folder: Path, tmp_path: Path) -> None:
    profile = measure(folder, read_kit(folder), minutes=1e-9)
    assert (profile.rounds, profile.threads, profile.target.precisions) == (3, 1, ("int8",))
    assert {"cpu", "onnxruntime"} <= set(profile.environment.machine)
    path = tmp_path / "latency.json"
    write_profile(path, profile)
    assert read_profile(path) == profile


@pytest.fixture
def changed(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """A profile's file with one change made to it."""
    profile = Machine().measure(folder)
    path = tmp_path / "latency.json"

    def change(make: Callable[[dict[str, Any]], object]) -> Path:
        write_profile(path, profile)
        data = json.loads(path.read_text())
        make(data)
        path.write_text(json.dumps(data))
        return path

    return change


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda data: data.update(schema=2), "schema: expected 1, found 2"),
        (lambda data: data.update(schema=True), "schema: expected 1, found True"),
        (lambda data: data.pop("schema"), "schema: expected 1, found None"),
        (lambda data: data.pop("threads"), "the key 'threads' is missing"),
        (lambda data: data.update(threads="2"), "threads: expected a value of type int"),
        (lambda data: data.update(threads=0), "threads: expected 1 or more"),
        (lambda data: data.update(colour="red"), "the key 'colour' is unknown"),
        (lambda data: data["rows"][1].update(colour=1), r"the key 'rows\[1\].colour' is unknown"),
        (lambda data: data.update(rows=[]), "rows: there are none"),
        (lambda data: data["rows"][0].update(ratio=float("nan")), r"rows\[0\].ratio.*nan"),
        (lambda data: data["rows"][0].update(ratio=-1.0), r"rows\[0\]: expected a ratio above 0"),
        (lambda data: data["rows"][0].update(tokens=9), r"rows\[0\]: the anchor was not measured"),
        (lambda data: data["rows"][0].update(precision="fp64"), r"rows\[0\].precision: 'fp64'"),
        (
            lambda data: data["rows"][0]["architecture"].pop("layers"),
            r"rows\[0\]: architecture.layers: expected a whole number from 1, found None",
        ),
        (
            lambda data: data["rows"][0]["architecture"].update(embedding_rank="x"),
            r"rows\[0\]: architecture.embedding_rank",
        ),
        (
            lambda data: data["anchor"]["latencies"][0].update(latency_ms=0),
            r"anchor.latencies\[0\].latency_ms: expected more than 0",
        ),
        (lambda data: data["environment"].pop("machine_id"), "environment: the key 'machine_id'"),
    ],
)
def test_a_profile_that_is_not_right_is_refused_with_its_file_and_key(
    changed: Callable[..., Path], make: Callable[[dict[str, Any]], object], said: str
) -> None:
    path = changed(make)
    with pytest.raises(DataError, match=said) as refused:
        read_profile(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"3"])
def test_a_file_that_is_no_profile_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "latency.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match="a latency profile, made by"):
        read_profile(path)


def test_a_profile_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; expected a latency profile"):
        read_profile(tmp_path / "none.json")
    with pytest.raises(DataError, match="is a folder"):
        read_profile(tmp_path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda data: data.update(schema=9), "schema: expected 1, found 9"),
        (lambda data: data.pop("anchor"), "the key 'anchor' is missing"),
        (lambda data: data.update(anchor="x"), "anchor: no graph is called 'x'"),
        (lambda data: data.update(shapes=[]), "shapes: expected one or more"),
        (lambda data: data["shapes"][0].update(tokens=0), "tokens and batch of 1 or more"),
        (lambda data: data["shapes"][0].update(tokens=17), "max_tokens is below the longest shape"),
        (lambda data: data["graphs"][1].update(id="anchor"), "two have the same id"),
        (lambda data: data["graphs"][1].update(extra=1), r"the key 'graphs\[1\].extra' is unknown"),
        (lambda data: data["graphs"][1].update(sha256="0" * 64), "expected 0000"),
        (lambda data: data["graphs"][1].update(file="../kit/slow.onnx"), "a path inside the kit"),
        (lambda data: data["graphs"][1].update(file="/etc/passwd"), "a path inside the kit"),
        (lambda data: data["graphs"][1].update(file="C:\\slow.onnx"), "a path inside the kit"),
        (lambda data: data["graphs"][1].update(file="slow\0.onnx"), r"graphs\[1\].file"),
        (lambda data: data["graphs"][1].update(file="none.onnx"), "is not there"),
        (
            lambda data: data["graphs"][1]["architecture"].update(vocab_size=0),
            r"graphs\[1\]: architecture.vocab_size",
        ),
    ],
)
def test_a_kit_that_is_not_right_is_refused_with_its_file_and_key(
    folder: Path, make: Callable[[dict[str, Any]], object], said: str
) -> None:
    path = folder / KIT
    data = json.loads(path.read_text())
    make(data)
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match=said) as refused:
        read_kit(folder)
    assert str(path) in str(refused.value)


def test_a_kit_whose_graph_was_changed_or_is_a_link_is_refused(folder: Path) -> None:
    graph = folder / "slow.onnx"
    content = graph.read_bytes()
    graph.write_bytes(content + b"\0")
    with pytest.raises(DataError, match="copy the kit again"):
        read_kit(folder)
    graph.rename(folder / "elsewhere.onnx")
    (folder / "elsewhere.onnx").write_bytes(content)
    graph.symlink_to(folder / "elsewhere.onnx")
    with pytest.raises(DataError, match="not there as a plain file"):
        read_kit(folder)


def test_a_graph_that_a_bundle_may_not_hold_is_refused(folder: Path) -> None:
    graph = folder / "slow.onnx"
    write_graph(graph, operator="Asinh")
    data = json.loads((folder / KIT).read_text())
    data["graphs"][1]["sha256"] = hashlib.sha256(graph.read_bytes()).hexdigest()
    (folder / KIT).write_text(json.dumps(data))
    with pytest.raises(BundleError, match="Asinh"):
        read_kit(folder)
