"""`compress search` from the command line: the paper's search, and what its JSON holds."""

from __future__ import annotations

import json

import pytest

from codemill.cli import main

PAPER = ("search", "--space", "compressor", "--objective", "gflops", "--fitness", "paper", "--json")
NAMED = ("vocab_size", "hidden_size", "layers", "heads", "intermediate_size")


@pytest.mark.parametrize("seed", [0, 3])
def test_the_paper_s_search_prints_its_optimum_as_json(
    capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    assert main([*PAPER, "--budget", "size=3MB", "--seed", str(seed)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [found["best"][key] for key in NAMED] == [1000, 96, 12, 8, 64]
    assert found["fitness"] == pytest.approx(2.1915, abs=5e-5)
    assert found["params_fp32_bytes"] == 3_061_640
    assert found["gflops"] == pytest.approx(2.2529, abs=5e-4)
    assert found["exact"] is True
    assert found["evaluations"] > 0
    assert found["seconds"] > 0
    assert 0.25 < found["size_bytes"] / found["params_fp32_bytes"] < 0.35
    for key in ("gflops", "params_fp32_bytes", "size_bytes", "fitness"):
        assert found["best"][key] == found[key]


def test_a_hard_limit_has_another_optimum(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["search", "--space", "compressor", "--budget", "size=3MB", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert [found["best"][key] for key in NAMED] == [1000, 96, 12, 8, 32]
    assert found["params_fp32_bytes"] == 2_765_192


@pytest.mark.parametrize(
    "extra",
    [
        ("--pick", "knee"),
        ("--quality", "reference"),
        ("--latency", "reference"),
        ("--objective", "pareto"),
        ("--budget", "latency=2"),
        ("--work", "elsewhere"),
    ],
)
def test_the_paper_s_space_takes_nothing_of_a_recipe_s(
    capsys: pytest.CaptureFixture[str], extra: tuple[str, str]
) -> None:
    assert main(["search", "--space", "compressor", *extra]) == 2
    assert extra[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--budget", "latency=2", "--set", "search.latency=null"), "--latency"),
        (("--objective", "gflops", "--pick", "knee"), "--objective pareto"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    latency = ("--set", "search.objectives=[quality, size_bytes]")
    assert main(["search", "code-search", *latency, *arguments]) == 2
    assert said in capsys.readouterr().err
