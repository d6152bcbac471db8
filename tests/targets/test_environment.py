"""What tells two machines apart."""

from __future__ import annotations

from dataclasses import replace

import pytest

from codemill.runtime import machine
from codemill.targets.environment import machine_id


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
