from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.runtime.fake_nvml import FakeNvml, install, readings

from codemill.runtime.engines import OPENVINO, TENSORRT, TENSORRT_RTX
from codemill.targets import energy
from codemill.targets.energy import meter_of, on_processor, rapl_counter

CUDA = "CUDAExecutionProvider"


def zone(root: Path, folder: str, name: str, energy_uj: int) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(name + "\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    (path / "max_energy_range_uj").write_text("1000000000\n")
    return path


def test_only_whole_packages_are_counted_and_a_wrap_is_undone(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 999_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 5_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 1)
    zone(tmp_path, "intel-rapl:2", "psys", 1)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1)
    counter = rapl_counter(tmp_path)
    assert counter is not None
    assert counter.files == (first / "energy_uj", second / "energy_uj")
    before = counter.read_uj()
    (first / "energy_uj").write_text("2000000\n")
    (second / "energy_uj").write_text("6500000\n")
    assert counter.spent_j(before, counter.read_uj()) == 3.0 + 1.5


def test_no_counter_or_one_that_may_not_be_read_is_none(tmp_path: Path) -> None:
    assert rapl_counter(tmp_path) is None
    broken = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    (broken / "energy_uj").unlink()
    assert rapl_counter(tmp_path) is None


@pytest.mark.parametrize("provider", [None, "CPUExecutionProvider", "PyTorch CPU", OPENVINO])
def test_on_a_processor_its_packages_are_counted(
    provider: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    monkeypatch.setattr(energy, "rapl_counter", lambda: rapl_counter(tmp_path))
    meter = meter_of(provider)
    assert on_processor(provider)
    assert meter is not None
    assert (meter.least_s, "RAPL" in meter.how) == (0, True)
    end = meter.begin()
    (package / "energy_uj").write_text("3500000\n")
    assert end() == 2.5


@pytest.mark.parametrize(
    "provider",
    [CUDA, "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider", TENSORRT, TENSORRT_RTX],
)
def test_on_an_nvidia_gpu_its_own_counter_is_read(
    provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, FakeNvml(energy_mj=readings([0, 7_000, 19_000])))
    meter = meter_of(provider)
    assert not on_processor(provider)
    assert meter is not None
    # a card says how much it has taken some ten times a second
    assert meter.least_s >= 1
    assert meter.how.startswith("NVML's energy counter of the whole Made-up 0")
    assert meter.begin()() == 12.0


def test_a_counter_that_begins_anew_or_stops_gives_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for values in ([0, 9_000, 100], [0, 9_000, None]):
        install(monkeypatch, FakeNvml(energy_mj=readings(values)))
        meter = meter_of(CUDA)
        assert meter is not None
        assert meter.begin()() is None


def sampled(
    monkeypatch: pytest.MonkeyPatch, power_mw: Callable[[float], int | None]
) -> tuple[float | None, float, str]:
    """Joules of a power that is read at least thrice, when the last reading was, and how it is called.

    A clock of its own goes on by a second a look, the first at 1.
    """
    looks = itertools.count(1)
    now = [0]

    def look() -> float:
        now[0] = next(looks)
        return now[0]

    monkeypatch.setattr(energy, "time", SimpleNamespace(perf_counter=look))
    install(monkeypatch, FakeNvml(energy_mj=lambda: None, power_mw=lambda: power_mw(now[0])))
    meter = meter_of(CUDA)
    assert meter is not None
    end = meter.begin()
    while now[0] < 3:
        time.sleep(0.005)
    return end(), now[0], meter.how


def test_a_card_that_does_not_count_has_its_power_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    joules, last, how = sampled(monkeypatch, lambda _: 40_000)
    assert joules == pytest.approx((last - 1) * 40)
    assert "NVML's power of the whole Made-up 0" in how
    assert "every 20 ms" in how
    # 2 W after a second, 3 W after two ...
    joules, last, _ = sampled(monkeypatch, lambda now: int(now * 1_000))
    assert joules == pytest.approx((last**2 - 1) / 2)


def test_a_reading_of_power_that_fails_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sampled(monkeypatch, lambda now: None if now == 2 else 40_000)[0] is None


@pytest.mark.parametrize(
    "provider", ["DmlExecutionProvider", "CoreMLExecutionProvider", "onnxruntime-web"]
)
def test_elsewhere_nothing_is_counted(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml())
    assert meter_of(provider) is None
    assert not on_processor(provider)


def test_without_a_counter_of_any_kind_there_is_no_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml(energy_mj=lambda: None, power_mw=lambda: None))
    assert meter_of(CUDA) is None
    install(monkeypatch, None)
    assert meter_of(CUDA) is None
    monkeypatch.setattr(energy, "rapl_counter", lambda: None)
    assert meter_of("CPUExecutionProvider") is None
