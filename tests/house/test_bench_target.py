"""`compress bench --target`: what a profile sets of a measurement, and what is said of its memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codemill.compress.commands.bench_target import (
    AskedTarget,
    memory_limits,
    memory_line,
    variant_for,
)
from codemill.runtime import read_manifest
from codemill.runtime.bundle import update_bundle
from codemill.runtime.engines import OPENVINO
from codemill.targets import Shape, read_report, target_named
from codemill.targets.engine import EngineProcess

from .test_bench_completion import places
from .test_complete_command import bundle as completing
from .test_complete_command import decoder

__all__ = ["completing", "decoder", "places"]

Compress = Callable[..., Any]
WORDS = ("parse", "json", "socket", "matrix", "sort", "write")
OFFICE = """
name: office
description: What stands there
provider: CPUExecutionProvider
precision: fp32
threads: 1
memory_bytes: 1_000_000
shapes: [{tokens: 16}, {tokens: 24, batch: 2}, {tokens: 16, batch: 1}]
"""


@pytest.fixture
def office(tmp_path: Path) -> Path:
    """A profile that this machine can stand for, and no process keeps to."""
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/own.yaml").write_text(OFFICE)
    return tmp_path / "profiles/own.yaml"


@pytest.fixture
def made(bundle: Path, tmp_path: Path) -> Path:
    """A bundle with a variant for the office, which is not the first one; its evaluation beside it."""
    folder = Path(shutil.copytree(bundle, tmp_path / "made"))
    variants = read_manifest(folder).variants
    update_bundle(folder, variants={**variants, "office": variants["cpu-fp32"]})
    lines = [
        {"query": word, "code": f"def {word}(value):\n" + f"    {word} = value\n" * 60}
        for word in WORDS
    ]
    (tmp_path / "evaluation.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture
def measured_by(tmp_path: Path) -> tuple[object, ...]:
    """As briefly as may be."""
    return ("--evaluation", tmp_path / "evaluation.jsonl", "--rounds", "1", "--examples", "0")


def test_a_target_sets_threads_lengths_and_the_variant_and_its_memory_is_compared(
    compress: Compress, made: Path, office: Path, measured_by: tuple[object, ...]
) -> None:
    ended = compress("bench", made, "--target", office, *measured_by, "--out", "found")
    assert ended.code == 0, ended.err
    report = read_report("found/report.json")
    assert report.student.threads == 1
    assert [(x.tokens, x.batch) for x in report.student.latencies] == [(16, 1), (24, 2)]
    assert report.bundle.variant == "office"
    # a folder of this machine says nothing elsewhere
    assert report.target == "own.yaml"
    (memory,) = report.limits
    assert (memory.name, memory.bound, memory.limit) == ("peak_rss_bytes", "at most", 1e6)
    assert (memory.value, memory.met) == (report.student.memory.peak_rss_bytes, False)
    shown = f"{report.student.memory.peak_rss_bytes / 1e6:.0f}"
    *_, last = ended.out.splitlines()
    assert last.startswith(f"peak memory {shown}"[:-1])
    assert last.endswith(" MB: more than office's 1.00 MB")
    page = Path("found/report.html").read_text(encoding="utf-8")
    assert "--variant office --threads 1 --target own.yaml --rounds 1 --out FOLDER" in page
    assert "Limit not met: peak rss (of office) is" in page


def test_what_is_given_beside_a_target_counts(
    compress: Compress, made: Path, office: Path, measured_by: tuple[object, ...]
) -> None:
    office.write_text(OFFICE.replace("1_000_000", "null").replace("name: office", "name: other"))
    asked = ("--target", office, "--threads", "2", *measured_by)
    document = compress("bench", made, *asked, "--json").document
    # there is no variant called other
    assert document["bundle"]["variant"] == "cpu-fp32"
    assert document["benchmark"]["engines"][0]["threads"] == 2
    assert (document["target"], document["limits"]) == ("own.yaml", [])
    office.write_text(OFFICE)
    document = compress(
        "bench", made, *asked, "--variant", "cpu-fp32", "--against", made, "--json"
    ).document
    assert document["bundle"]["variant"] == "cpu-fp32"
    assert [item["met"] for item in document["limits"]] == [False]
    assert {item["threads"] for item in document["benchmark"]["engines"]} == {2}


def test_what_cannot_be_measured_is_refused_before_anything_is(
    compress: Compress, made: Path, office: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(EngineProcess, "__init__", start)
    elsewhere = office.with_name("elsewhere.yaml")
    elsewhere.write_text(OFFICE.replace("threads: 1", "threads: 100_000"))
    for arguments, code, said in (
        (("--target", elsewhere), 1, "cannot be measured on this machine: it takes 100000 threads"),
        (("--target", "browser"), 1, "it runs in a browser; npm"),
        (("--target", "browser"), 1, "; give --browser PAGES in its place\n"),
        (("--target", "nowhere.yaml"), 1, "cannot read the profile nowhere.yaml"),
        (("--target", "laptop-cpus"), 1, "did you mean 'laptop-cpu'?"),
        (("--target", office, "--variants"), 2, "--target does not go with --variants"),
    ):
        evaluation = made.with_name("evaluation.jsonl")
        ended = compress("bench", made, "--evaluation", evaluation, *arguments)
        assert (ended.code, said in ended.err) == (code, True), ended.err
        assert "Traceback" not in ended.err


def test_of_a_bundle_that_completes_it_sets_threads_and_the_memory(
    compress: Compress, completing: Path, places: Path, office: Path
) -> None:
    asked = ("--evaluation", places, "--places", "1", "--target", office)
    ended = compress("bench", completing, *asked, "--json")
    assert ended.code == 0, ended.err
    document = ended.document
    assert document["target"] == "own.yaml"
    own = next(x for x in document["engines"] if x["name"] == document["bundle_engine"])
    (memory,) = document["limits"]
    assert (memory["value"], memory["met"]) == (own["peak_rss_bytes"], False)
    ended = compress("bench", completing, *asked)
    assert ended.out.splitlines()[-1].endswith(" MB: more than office's 1.00 MB")


def test_peak_memory_is_said_beside_the_limit() -> None:
    lowmem = AskedTarget("laptop-cpu-lowmem", target_named("laptop-cpu-lowmem"))
    said = {
        103_400_000: "peak memory 103.4 MB: more than laptop-cpu-lowmem's 100.0 MB",
        97_350_000: "peak memory 97.35 MB: within laptop-cpu-lowmem's 100.0 MB",
        100_000_001: "peak memory 100,000,001 bytes: more than laptop-cpu-lowmem's 100,000,000 bytes",
    }
    assert {peak: memory_line(lowmem, peak) for peak in said} == said
    (limit,) = memory_limits(lowmem, 100_000_000)
    assert limit.met
    free = AskedTarget("windows", target_named("windows"))
    assert memory_line(free, 1e8) == "peak memory 100.0 MB: windows sets no limit"
    assert memory_limits(free, 1e8) == memory_limits(None, 1e8) == ()


def test_a_variant_that_only_bears_a_targets_name_is_not_taken(made: Path) -> None:
    manifest = read_manifest(made)
    laptop = target_named("laptop-cpu")
    office = AskedTarget("office", replace(laptop, name="office", shapes=(Shape(8),)))
    assert variant_for(office, manifest) == "office"
    other = replace(office, spec=replace(office.spec, provider=OPENVINO))
    assert variant_for(other, manifest) is None
    assert variant_for(replace(office, spec=laptop), manifest) is None
    assert variant_for(None, manifest) is None
