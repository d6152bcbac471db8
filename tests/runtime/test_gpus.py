"""GPUs as NVML tells of them, of a stand-in: none here is needed."""

from __future__ import annotations

import pytest

from codemill.runtime.gpus import Gpu, energy_j, first_gpu, gpus, power_w, used_bytes

from .fake_nvml import FakeNvml, install, uuid_of


def test_gpus_are_described_in_nvmls_order(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml(2))
    assert gpus() == (
        Gpu("Made-up 0", uuid_of(0), "8.6", 8_000_000_000, "999.1"),
        Gpu("Made-up 1", uuid_of(1), "8.7", 8_000_000_000, "999.1"),
    )


def test_a_gpu_without_memory_of_its_own_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml(memory=False))
    assert [gpu.memory_bytes for gpu in gpus()] == [None]
    assert used_bytes(gpus()[0]) is None


@pytest.mark.parametrize("nvml", [None, FakeNvml(starts=False), FakeNvml(0), object()])
def test_without_a_driver_there_are_none(
    monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml | None
) -> None:
    install(monkeypatch, nvml)
    assert gpus() == ()
    assert first_gpu() is None


@pytest.mark.parametrize(("visible", "count"), [("", 0), ("-1", 0), ("0", 2), ("1", 2)])
def test_gpus_that_are_all_hidden_from_cuda_are_not_there(
    monkeypatch: pytest.MonkeyPatch, visible: str, count: int
) -> None:
    install(monkeypatch, FakeNvml(2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert len(gpus()) == count


def test_of_several_the_first_is_cudas(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml(3, cudas_first=2))
    assert first_gpu() == gpus()[2]
    install(monkeypatch, FakeNvml(3, cudas_first=7))
    assert first_gpu() is None


def test_readings_have_their_units_and_none_where_they_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, FakeNvml(energy_mj=lambda: 2_500, power_mw=lambda: 30_000))
    (gpu,) = gpus()
    assert (energy_j(gpu), power_w(gpu), used_bytes(gpu)) == (2.5, 30.0, 1_000_000_000)
    install(monkeypatch, FakeNvml(energy_mj=lambda: None, power_mw=lambda: None))
    assert (energy_j(gpu), power_w(gpu)) == (None, None)
    install(monkeypatch, None)
    assert energy_j(gpu) is None
