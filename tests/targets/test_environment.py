"""What tells two machines apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.runtime.fake_nvml import FakeNvml, install

from codemill.runtime import machine
from codemill.targets.environment import machine_id, this_environment


def test_a_machine_id_is_that_of_this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine.this_machine()
    first = machine_id()
    assert len(first) == 12
    # free memory changes from minute to minute
    monkeypatch.setattr(machine, "this_machine", lambda: replace(here, memory_available_bytes=1))
    assert machine_id() == first
    others = (
        {"cpu": "another"},
        {"logical_cores": 96},
        {"instruction_sets": ("avx2",)},
        {"architecture": "arm64"},
    )
    for other in others:
        changed = replace(here, **other)  # type: ignore[arg-type]
        monkeypatch.setattr(machine, "this_machine", lambda changed=changed: changed)
        assert machine_id() != first


def test_gpus_are_noted_with_their_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml(2))
    assert this_environment().gpus == (
        "Made-up 0, compute capability 8.6, driver 999.1",
        "Made-up 1, compute capability 8.7, driver 999.1",
    )
    install(monkeypatch, None)
    assert this_environment().gpus == ()
