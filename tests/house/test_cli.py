"""How every command ends: exit codes, messages, and JSON alone on stdout."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import codemill
from codemill.compress.commands import run as run_module
from codemill.compress.preflight import Check, Preflight
from codemill.errors import CodemillError, RefusedError, TrainingError
from codemill.runtime import pack, read_manifest, verify_bundle
from codemill.targets import BenchmarkResult, EngineResult, Report, make_report, write_report
from codemill.targets.environment import Environment
from codemill.targets.figures import ColdStart, Latency, Memory, Size

Compress = Callable[..., Any]


def test_version_is_the_packages(compress: Compress) -> None:
    ended = compress("--version")
    assert (ended.code, ended.out) == (0, f"codemill, version {codemill.__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("run",),
        ("run", "code-search", "--nonsense"),
        ("find", "query", ".", "--top", "0"),
        ("run", "owner/model"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_so_on_stderr(
    compress: Compress, arguments: tuple[str, ...]
) -> None:
    ended = compress(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert "Usage:" in ended.err


def test_every_command_has_help_of_its_own(compress: Compress) -> None:
    listed = compress("--help").out
    commands = [line.split()[0] for line in listed.partition("Commands:")[2].splitlines() if line]
    assert {"run", "init", "recipes", "inspect", "verify", "encode", "find"} < set(commands)
    for command in commands:
        ended = compress(command, "--help")
        assert ended.code == 0
        assert f"{command} " in ended.out
    # cut off by click where it is too long
    assert "..." not in listed.partition("Commands:")[2]


def test_an_unknown_recipe_names_the_nearest(
    compress: Compress, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _ship(monkeypatch, tmp_path)
    ended = compress("run", "code-serch")
    assert (ended.code, ended.out) == (1, "")
    assert "did you mean 'code-search'?" in ended.err
    assert "owner/name" in ended.err


def test_an_unknown_key_names_the_nearest(compress: Compress) -> None:
    Path("mine.yaml").write_text("name: mine\ndistill: {epoch: 2}\n")
    ended = compress("run", "mine.yaml", "--dry-run")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("error: ")
    assert "unknown key 'distill.epoch'; did you mean 'distill.epochs'?" in ended.err


def test_a_recipe_file_that_is_not_there_is_not_taken_for_a_model(compress: Compress) -> None:
    ended = compress("run", "recipes/mine.yaml")
    assert ended.code == 1
    assert "there is no recipe 'recipes/mine.yaml'" in ended.err


def report() -> Report:
    """A teacher of 90 MB and a bundle of 3 MB, each timed once."""
    engines = tuple(
        EngineResult(
            name=name,
            role=role,
            provider="CPUExecutionProvider",
            precision="fp32",
            threads=1,
            size=Size(size_bytes),
            cold_start=ColdStart(500.0, 500.0, None, None, 1),
            memory=Memory(1e8, 1e8),
            latencies=(Latency(128, 1, 128.0, ms, ms, ms, 1e3 / ms, 9, (ms,)),),
            quality=None,
            energy=None,
            packages={},
        )
        for name, role, size_bytes, ms in (
            ("MiniLM", "teacher", 90_000_000, 40.0),
            ("bundle", "bundle", 3_000_000, 4.0),
        )
    )
    environment = Environment({}, "id", {}, None, "2000-01-01T00:00:00+00:00")
    result = BenchmarkResult(engines, (), environment, 1, 9, "MiniLM", (), 1.0)
    return make_report(result, title="mine", task="retrieval")


class FakeRun:
    """Stands for `codemill.compress.run`; prints to stdout, as libraries do."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.asked: dict[str, Any] = {}

    def plan(self, recipe: Any, work: Path) -> Any:
        print("a library prints while it plans")
        self.asked |= {"recipe": recipe, "work": work}
        return SimpleNamespace(
            recipe=recipe,
            stages=[("corpus", True), ("search", False)],
            preflight=Preflight((Check("size", True, "fits"),), 0, 0),
            to_json=lambda: {"recipe": {"name": recipe.name}},
        )

    def run(self, recipe: Any, work: Path, out: Path, progress: Any, wait: bool) -> Any:
        print("a library prints while it runs")
        self.asked |= {"out": out, "wait": wait}
        said = progress.stage("corpus", 1, 2, False)
        said(0.5, "halfway")
        progress.finished("corpus", 1.5)
        if self.error is not None:
            raise self.error
        document = {"bundle": str(out), "size_bytes": 2_900_000, "quality_kept": 0.9}
        return SimpleNamespace(
            to_json=lambda: document,
            bundle=out,
            report=report(),
            report_html=out / "report.html",
        )


@pytest.fixture
def fake_run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeRun]:
    def install(error: BaseException | None = None) -> FakeRun:
        fake = FakeRun(error)
        monkeypatch.setitem(sys.modules, "codemill.compress.run", fake)
        Path("mine.yaml").write_text("name: mine\n")
        return fake

    return install


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (TrainingError("the loss at step 7 is not a number"), 1, "step 7"),
        (RefusedError("the bundle has 4 MB, at most 3 MB are allowed"), 3, "4 MB"),
        (CodemillError("something"), 1, "something"),
        (MemoryError(), 1, "out of memory"),
        (OSError(28, "No space left on device"), 1, "No space left"),
        (KeyError("hidden"), 70, "bug of codemill: KeyError: 'hidden'"),
        (OSError(22, "Invalid argument"), 70, "bug of codemill"),
        (KeyboardInterrupt(), 130, "run the same command again to continue"),
    ],
)
def test_every_failure_has_its_exit_code_and_one_message(
    compress: Compress,
    fake_run: Callable[..., FakeRun],
    error: BaseException,
    code: int,
    said: str,
) -> None:
    fake_run(error)
    ended = compress("run", "mine.yaml", "--json")
    assert (ended.code, ended.out) == (code, "")
    assert said in ended.err
    assert "Traceback" not in ended.err


def test_debug_prints_the_traceback(compress: Compress, fake_run: Callable[..., FakeRun]) -> None:
    fake_run(KeyError("hidden"))
    ended = compress("--debug", "run", "mine.yaml")
    assert ended.code == 70
    assert "Traceback" in ended.err


def test_json_of_a_run_stands_alone_on_stdout(
    compress: Compress, fake_run: Callable[..., FakeRun]
) -> None:
    fake = fake_run()
    ended = compress("run", "mine.yaml", "--json")
    assert ended.code == 0
    assert ended.document["size_bytes"] == 2_900_000
    assert fake.asked["out"] == Path("mine-bundle")
    assert fake.asked["work"] == Path(".codemill")
    # what is predicted is said before the work, and the work says how far it is
    assert ended.err.index("size: fits") < ended.err.index("[1/2] corpus: started")


def test_a_run_ends_with_a_table_and_the_paths(
    compress: Compress, fake_run: Callable[..., FakeRun]
) -> None:
    fake_run()
    ended = compress("run", "mine.yaml", "--out", "made")
    assert ended.out.splitlines()[0].split() == ["MiniLM", "bundle"]
    for said in ("90.00 MB", "3.00 MB", "40.0 ms", "made/report.html"):
        assert said in ended.out


def test_a_dry_run_shows_the_recipe_the_stages_and_the_preflight(
    compress: Compress, fake_run: Callable[..., FakeRun]
) -> None:
    fake = fake_run()
    ended = compress("run", "mine.yaml", "--dry-run", "--seed", "3", "--set", "distill.epochs=2")
    assert ended.code == 0
    assert "out" not in fake.asked
    assert "seed: 3" in ended.out
    assert "epochs: 2.0" in ended.out
    assert "corpus  done before" in ended.out
    assert "search  to do" in ended.out
    assert "size: fits" in ended.out
    ended = compress("run", "mine.yaml", "--dry-run", "--json")
    assert (ended.code, ended.document) == (0, {"recipe": {"name": "mine"}})


def test_a_model_needs_no_recipe(compress: Compress, fake_run: Callable[..., FakeRun]) -> None:
    fake = fake_run()
    Path("my-model").mkdir()
    pairs = "with a: colon, and # more.jsonl"
    ended = compress(
        *("run", "./my-model", "--data", pairs, "--task", "retrieval", "--size", "2.5MB"),
        *("--set", "seed=5", "--seed", "4"),
    )
    assert ended.code == 0
    recipe = fake.asked["recipe"]
    assert (recipe.name, recipe.teacher.model) == ("my-model", "./my-model")
    assert (recipe.data.source, recipe.budget.size_bytes) == (pairs, 2_500_000)
    # --set comes last
    assert recipe.seed == 5


@pytest.mark.parametrize(
    ("model", "name"),
    [("owner/Model_1", "Model_1"), ("package:some-model", "some-model"), ("a b/c d", "c-d")],
)
def test_a_model_names_its_bundle(model: str, name: str) -> None:
    recipe = run_module.resolve(model, ["data.source=pairs.jsonl"])
    assert (recipe.name, recipe.teacher.model) == (name, model)


def test_a_packed_bundle_is_verified_like_a_folder(compress: Compress, bundle: Path) -> None:
    pack(bundle, "tiny.mill")
    assert compress("verify", "tiny.mill").out.strip() == verify_bundle(bundle)


def _ship(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr("codemill.compress.recipe._FOLDER", folder)
    (folder / "code-search.yaml").write_text(
        "# Search code\n# by meaning. And more.\n\nname: code-search\n"
    )


def test_recipes_lists_those_that_ship(
    compress: Compress, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _ship(monkeypatch, tmp_path)
    assert compress("recipes").out == "code-search  Search code by meaning\n"
    assert compress("recipes", "--json").document == [
        {
            "name": "code-search",
            "summary": "Search code by meaning",
            "path": str(tmp_path / "code-search.yaml"),
        }
    ]


def test_init_writes_a_recipe_once(compress: Compress) -> None:
    assert compress("init", "--out", "new.yaml").code == 0
    text = Path("new.yaml").read_text()
    Path("new.yaml").write_text("name: mine\n")
    ended = compress("init", "--out", "new.yaml")
    assert ended.code == 1
    assert "--force" in ended.err
    assert Path("new.yaml").read_text() == "name: mine\n"
    assert compress("init", "--out", "new.yaml", "--force").code == 0
    assert Path("new.yaml").read_text() == text


def test_inspect_and_verify_say_what_a_bundle_is(compress: Compress, bundle: Path) -> None:
    digest = verify_bundle(bundle)
    shown = compress("inspect", bundle).out
    assert digest in shown
    assert "cpu-fp32" in shown
    document = compress("inspect", bundle, "--json").document
    assert document["manifest"] == read_manifest(bundle).to_json()
    assert document["variants"]["cpu-fp32"]["runs_here"] is True
    assert compress("verify", bundle, "--expect", digest).out == f"{digest}\n"
    ended = compress("verify", bundle, "--expect", "sha256:" + "0" * 64, "--json")
    assert (ended.code, ended.out) == (1, "")
    assert digest in ended.err


@pytest.mark.parametrize("command", ["inspect", "verify", "encode"])
def test_a_bundle_that_is_not_there_is_named(compress: Compress, command: str) -> None:
    ended = compress(command, "no/such.mill")
    assert (ended.code, ended.out) == (1, "")
    assert "no/such.mill" in ended.err


def test_encode_gives_what_the_encoder_gives(compress: Compress, bundle: Path) -> None:
    Path("texts.txt").write_bytes("\ufeffopen a socket\r\n\nsort the list".encode())
    with codemill.load(bundle) as encoder:
        expected = encoder.encode(["open a socket", "", "sort the list"])
    rows = [json.loads(line) for line in compress("encode", bundle, "texts.txt").out.splitlines()]
    np.testing.assert_array_equal(np.array(rows, dtype=np.float32), expected)
    document = compress("encode", bundle, "texts.txt", "--json").document
    np.testing.assert_array_equal(np.array(document["embeddings"], dtype=np.float32), expected)
    ended = compress("encode", bundle, "texts.txt", "--out", "rows.npy", "--json")
    assert ended.document["texts"] == 3
    np.testing.assert_array_equal(np.load("rows.npy"), expected)


def test_encode_reads_stdin_and_texts_of_several_lines(
    compress: Compress, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "def f():\n    return 1"
    stdin = SimpleNamespace(buffer=io.BytesIO(f"{json.dumps(text)}\n".encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    rows = json.loads(compress("encode", bundle, "--jsonl").out)
    with codemill.load(bundle) as encoder:
        expected = encoder.encode([text])[0]
    np.testing.assert_array_equal(np.array(rows, dtype=np.float32), expected)


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [(b"fine\n\xff\n", (), "line 2"), (b'"fine"\n7\n', ("--jsonl",), "expected a JSON string")],
)
def test_encode_names_the_line_that_is_wrong(
    compress: Compress, bundle: Path, content: bytes, options: tuple[str, ...], said: str
) -> None:
    Path("texts").write_bytes(content)
    ended = compress("encode", bundle, "texts", *options, "--json")
    assert (ended.code, ended.out) == (1, "")
    assert said in ended.err


def test_targets_says_of_each_whether_it_runs_here(compress: Compress) -> None:
    found = {item["name"]: item for item in compress("targets", "--json").document}
    assert found["laptop-cpu"]["provider"] == "CPUExecutionProvider"
    assert found["browser"]["why_not"].startswith("it runs in a browser")
    assert found["browser"]["builds_here"] is True
    assert found["gpu-datacenter"]["builds_here"] is False
    assert all(item["runs_here"] == (item["why_not"] is None) for item in found.values())
    shown = compress("targets").out
    assert all(name in shown for name in found)


def test_detect_prints_this_machine_as_a_profile_that_is_read_again(compress: Compress) -> None:
    from codemill.runtime import this_machine
    from codemill.targets.profile import read_target

    ended = compress("detect")
    target = read_target(ended.out, "detected")
    machine = this_machine()
    assert (target.name, target.threads) == ("this-machine", machine.physical_cores)
    assert target.instruction_sets == machine.instruction_sets
    assert target.reduced_range is not machine.has_int8_products
    document = compress("detect", "--json").document
    assert document["machine"]["cpu"] == machine.cpu
    assert document["profile"]["name"] == "this-machine"
    assert (
        "laptop-cpu" in document["runs"] or "laptop-arm" in document["runs"] or not document["runs"]
    )


def test_bench_measures_and_report_draws(compress: Compress, bundle: Path, tmp_path: Path) -> None:
    evaluation = tmp_path / "evaluation.jsonl"
    words = ["parse", "json", "socket", "matrix", "sort", "write"]
    lines = [
        {"query": word, "code": f"def {word}(value):\n" + f"    {word} = value\n" * 60}
        for word in words
    ]
    evaluation.write_text("\n".join(map(json.dumps, lines)))
    ended = compress(
        *("bench", bundle, "--evaluation", evaluation, "--rounds", "1", "--threads", "1"),
        *("--against", bundle, "--out", "measured", "--json"),
    )
    assert ended.code == 0, ended.err
    assert ended.document["bundle"]["digest"] == verify_bundle(bundle)
    roles = [engine["role"] for engine in ended.document["benchmark"]["engines"]]
    assert roles == ["reference", "bundle"]
    assert ended.document["files"] == ["measured/report.json", "measured/report.html"]
    assert compress("report", "measured/report.json", "--out", "pages/two.html").code == 0
    assert "<html" in Path("pages/two.html").read_text(encoding="utf-8")


def test_reports_that_cannot_be_compared_are_refused_and_named(compress: Compress) -> None:
    for name, task in (("a.json", "retrieval"), ("b.json", "classification")):
        write_report(name, replace(report(), task=task))
    ended = compress("report", "a.json", "b.json", "--out", "page.html")
    assert ended.code == 1
    assert ended.err == (
        "error: reports of different tasks cannot be put side by side: a.json is of retrieval, b.json is of "
        "classification; give those of one task\n"
    )
    assert not Path("page.html").exists()
    write_report("c.json", report())
    assert compress("report", "a.json", "c.json", "--out", "page.html").code == 0
    assert "2 reports side by side" in Path("page.html").read_text(encoding="utf-8")


def test_names_in_a_report_are_text_and_no_formulas(compress: Compress) -> None:
    strange = "a $\\frac{$ of 字, 100 %"
    engines = tuple(
        replace(engine, name=strange) if engine.role == "teacher" else engine
        for engine in report().benchmark.engines
    )
    result = replace(report().benchmark, engines=engines)
    write_report("report.json", make_report(result, title=strange, task="retrieval"))
    ended = compress("report", "report.json", "--out", "page.html")
    assert (ended.code, ended.out, ended.err) == (0, "", "wrote page.html\n")
    assert "a $\\frac{$ of 字" in Path("page.html").read_text(encoding="utf-8")


def test_bench_without_an_evaluation_set_says_what_to_give(
    compress: Compress, bundle: Path
) -> None:
    ended = compress("bench", bundle)
    assert ended.code == 1
    assert "--evaluation" in ended.err


def test_an_interrupt_that_a_library_made_another_error_of_is_an_interrupt(
    compress: Compress, monkeypatch: pytest.MonkeyPatch
) -> None:
    def import_numpy() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error

    monkeypatch.setattr("codemill.targets.all_targets", import_numpy)
    # tests may have been started in the background, where shells have Ctrl-C ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        ended = compress("targets")
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.code == 130
    assert ended.err == "interrupted\n"


def test_a_command_that_is_asked_to_end_clears_away_what_is_half_done(
    compress: Compress, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleared = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            cleared.append(True)

    monkeypatch.setattr("codemill.targets.all_targets", work)
    before = signal.getsignal(signal.SIGTERM)
    ended = compress("targets")
    assert ended.code == 143
    assert ended.err.strip() == "interrupted"
    assert cleared == [True]
    signal.signal(signal.SIGTERM, before)


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("delay_s", [0.03, 0.1, 0.15, 0.25])
def test_ctrl_c_while_libraries_load_prints_no_traceback(delay_s: float) -> None:
    # what Python does before it runs a line of ours is not ours: it says when that is over
    code = "import sys; from codemill.__main__ import main; print(flush=True); sys.exit(main())"
    argv = [sys.executable, "-c", code, "targets"]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay_s)
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1]
    # late, the command was done
    assert process.returncode in (130, 0)
    if process.returncode == 130:
        assert said.strip() == "interrupted"
