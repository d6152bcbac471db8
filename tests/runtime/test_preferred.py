"""What was measured to be best is taken, where it still can be; what else lies in the cache is not believed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from codemill.runtime.bundle import Manifest, Variant
from codemill.runtime.cache import cache_folder
from codemill.runtime.engines import OPENVINO, TENSORRT_RTX
from codemill.runtime.preferred import prefer, preferred

CPU = "CPUExecutionProvider"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEMILL_CACHE", str(tmp_path))


def manifest(name: str = "made-up") -> Manifest:
    variants = {
        "cpu-int8": Variant(CPU, "int8", ("a",), ("a",)),
        "laptop-intel": Variant(OPENVINO, "int8", ("b",), ("b",)),
        "laptop-rtx": Variant(TENSORRT_RTX, "fp16", ("c",), ("c",)),
    }
    return Manifest(
        name=name,
        task="retrieval",
        codemill="0",
        input={"max_tokens": 8},
        output={"kind": "embedding", "dim": 4},
        variants=variants,
        files={},
    )


def test_nothing_is_preferred_before_it_was_measured_and_each_bundle_has_its_own() -> None:
    assert preferred(manifest(), (CPU, OPENVINO)) is None
    assert prefer(manifest(), "laptop-intel")
    assert preferred(manifest(), (CPU, OPENVINO)) == "laptop-intel"
    assert preferred(manifest("other"), (CPU, OPENVINO)) is None


def test_what_does_not_run_any_more_is_not_taken() -> None:
    prefer(manifest(), "laptop-intel")
    assert preferred(manifest(), (CPU,)) is None


def test_what_was_made_for_another_machine_is_not_taken() -> None:
    made = manifest()
    other = replace(
        made.variants["laptop-intel"], built_for={"architectures": ["abacus"], "systems": []}
    )
    made = replace(made, variants={**made.variants, "laptop-intel": other})
    prefer(made, "laptop-intel")
    assert preferred(made, (CPU, OPENVINO)) is None


def test_an_engine_is_never_taken() -> None:
    prefer(manifest(), "laptop-rtx")
    assert preferred(manifest(), (CPU, TENSORRT_RTX)) is None


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"variant": 7}', b'{"variant": "gone"}', b"x" * 9999]
)
def test_a_damaged_note_is_passed_over(content: bytes) -> None:
    prefer(manifest(), "laptop-intel")
    (note,) = cache_folder("preferred").iterdir()
    assert json.loads(note.read_text()) == {"bundle": "made-up", "variant": "laptop-intel"}
    note.write_bytes(content)
    assert preferred(manifest(), (CPU, OPENVINO)) is None


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CODEMILL_CACHE", str(tmp_path / "file"))
    assert not prefer(manifest(), "cpu-int8")
    assert preferred(manifest(), (CPU,)) is None
