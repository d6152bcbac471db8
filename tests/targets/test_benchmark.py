from __future__ import annotations

from collections.abc import Callable

import pytest

from codemill.errors import InputError, MachineError
from codemill.targets import BenchmarkResult, Engine, Evaluation, Progress, Shape
from codemill.targets.benchmark import benchmark

Make = Callable[..., Engine]
Result = tuple[BenchmarkResult, list[str]]


def test_processes_alternate_and_no_two_are_ever_alive_together(result: Result) -> None:
    found, log = result
    # round zero, then three rounds, every other one turned round
    turns = ["teacher", "bundle", "teacher", "bundle", "bundle", "teacher", "teacher", "bundle"]
    assert log == [f"{event} {name}" for name in turns for event in ("start", "end")]
    assert found.order == (("teacher", "bundle"), ("bundle", "teacher"), ("teacher", "bundle"))


def test_ratios_are_formed_against_the_teacher_with_an_interval(result: Result) -> None:
    found, _ = result
    for shape in (Shape(8, 1), Shape(8, 2), Shape(16, 1)):
        ratio = found.ratio("bundle", "teacher", "latency", shape)
        assert ratio is not None
        assert ratio.low is not None
        assert ratio.pairs == 3
        assert 1 < ratio.value < 15
        assert ratio.low <= ratio.value
    size = found.ratio("bundle", "teacher", "size")
    assert size is not None
    assert size.value == 30
    assert found.ratio("teacher", "bundle", "latency", Shape(8, 1)) is None


def test_latency_is_per_function_whatever_the_batch(result: Result) -> None:
    found, _ = result
    latencies = {(x.tokens, x.batch): x for x in found.engine("teacher").latencies}
    for x in latencies.values():
        assert 20 <= x.latency_ms_p50 <= x.latency_ms_p90 <= x.latency_ms_p99
        assert x.calls == 9
        assert len(x.round_latency_ms_p50) == 3
        assert x.functions_per_s <= 50
    assert latencies[8, 2].latency_ms_p50 < 35


def test_every_engine_reports_its_own_token_count_of_the_same_texts(result: Result) -> None:
    found, _ = result
    assert found.token_counter == "teacher"
    teacher, bundle = found.engine("teacher").latencies, found.engine("bundle").latencies
    assert [x.engine_tokens for x in teacher] == [8, 8, 16]
    assert [x.engine_tokens for x in bundle] == [12, 12, 24]


def test_quality_is_that_of_each_engine(result: Result) -> None:
    found, _ = result
    teacher, bundle = found.engine("teacher").quality, found.engine("bundle").quality
    assert teacher is not None
    assert bundle is not None
    assert teacher.functions == 40
    assert teacher.mrr > bundle.mrr > 0
    kept = found.ratio("bundle", "teacher", "mrr")
    assert kept is not None
    assert kept.value == pytest.approx(bundle.mrr / teacher.mrr)


def test_cold_start_memory_and_energy_are_there_with_their_source(result: Result) -> None:
    bundle = result[0].engine("bundle")
    assert bundle.cold_start.starts == 3
    assert bundle.cold_start.cold_start_ms_p50 <= bundle.cold_start.cold_start_ms_max
    assert 1e6 < bundle.memory.cold_peak_rss_bytes <= bundle.memory.peak_rss_bytes
    assert bundle.energy is not None
    assert bundle.energy.source in ("measured", "estimate")
    assert ("assumption" in bundle.energy.how) == (bundle.energy.source == "estimate")


CUDA = "CUDAExecutionProvider"


def test_energy_that_was_counted_is_measured_at_one_shape(
    engine: Make, evaluation: Evaluation
) -> None:
    counted = engine("bundle", provider=CUDA, joules=6)
    found = benchmark([counted], evaluation, [Shape(8), Shape(16, 2)], 2, repeats=3, warmup=0)
    energy = found.engine("bundle").energy
    assert energy is not None
    # 12 joules in two rounds of three calls of two functions
    assert (energy.tokens, energy.batch, energy.energy_j_per_function) == (16, 2, 1.0)
    assert (energy.how, energy.source) == ("a made-up counter", "measured")


def test_energy_of_a_gpu_without_a_counter_is_absent_and_of_a_processor_an_estimate(
    engine: Make, evaluation: Evaluation
) -> None:
    sources = {}
    for provider in (CUDA, "DmlExecutionProvider", "OpenVINO"):
        one = engine("bundle", provider=provider)
        found = benchmark([one], evaluation, [Shape(8)], 1, repeats=1, warmup=0)
        energy = found.engine("bundle").energy
        sources[provider] = energy and energy.source
    assert sources[CUDA] is sources["DmlExecutionProvider"] is None
    assert sources["OpenVINO"] in ("measured", "estimate")


@pytest.mark.parametrize("elsewhere", [0, 4])
def test_products_that_run_on_another_provider_are_a_doubt(
    engine: Make, evaluation: Evaluation, elsewhere: int
) -> None:
    one = engine("bundle", provider=CUDA, elsewhere=elsewhere)
    found = benchmark([one], evaluation, [Shape(8)], 1, repeats=1, warmup=0)
    said = [doubt for doubt in found.doubts if "matrix products" in doubt]
    expected = (
        "bundle: 4 of its 10 matrix products run on OtherExecutionProvider, not on "
        "CUDAExecutionProvider."
    )
    assert said == ([expected] if elsewhere else [])


def test_progress_never_falls_and_ends_at_1(engine: Make, evaluation: Evaluation) -> None:
    seen: list[Progress] = []
    benchmark([engine("one")], evaluation, [Shape(8)], 1, seen.append, repeats=1)
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert seen[-1].left_s == 0
    assert any("8 tokens, batch 1" in progress.message for progress in seen)


def test_an_engine_that_dies_ends_the_benchmark_with_its_stderr(engine: Make) -> None:
    bad = Evaluation("bad", ("a", "b"), ("DIE " * 9, "c " * 9))
    with pytest.raises(MachineError, match=r"(?s)'bundle'.*the last words"):
        benchmark([engine("bundle")], bad, [Shape(8)], 1)


def test_settings_that_make_no_sense_are_errors(engine: Make, evaluation: Evaluation) -> None:
    with pytest.raises(InputError, match="names of their own"):
        benchmark([engine("a"), engine("a")], evaluation)
    with pytest.raises(InputError, match="rounds"):
        benchmark([engine("a")], evaluation, rounds=0)
    with pytest.raises(InputError, match="shapes"):
        benchmark([engine("a")], evaluation, shapes=[])
