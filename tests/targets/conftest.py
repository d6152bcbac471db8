"""Mock engines in processes of their own, and an evaluation set they can be measured on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from codemill.targets import BenchmarkResult, Engine, Evaluation, Shape
from codemill.targets.benchmark import benchmark

MOCK = Path(__file__).with_name("mock_engine.py")
SHAPES = (Shape(8, 1), Shape(8, 2), Shape(16, 1))


def mock_engine(
    name: str, role: str = "bundle", size_bytes: int = 1000, **options: object
) -> Engine:
    settings = (f"{key}={value}" for key, value in options.items())
    return Engine(name, (sys.executable, str(MOCK), name, *settings), role, size_bytes)  # type: ignore[arg-type]


@pytest.fixture
def engine() -> Callable[..., Engine]:
    return mock_engine


@pytest.fixture(scope="session")
def evaluation() -> Evaluation:
    names = [f"word{i}" for i in range(40)]
    return Evaluation(
        "made up",
        tuple(f"{name} of the file" for name in names),
        tuple(f"def {n}(value):\n    {n} = value + {i}\n" * 4 for i, n in enumerate(names)),
    )


@pytest.fixture(scope="session")
def result(
    evaluation: Evaluation, tmp_path_factory: pytest.TempPathFactory
) -> tuple[BenchmarkResult, list[str]]:
    """A benchmark of a slow teacher and a quick bundle, and the log of their starts and ends."""
    log = tmp_path_factory.mktemp("log") / "log.txt"
    teacher = mock_engine("teacher", "teacher", 90_000_000, busy_ms=20, log=log)
    bundle = mock_engine("bundle", "bundle", 3_000_000, busy_ms=2, noise=8, factor=1.5, log=log)
    found = benchmark(
        [teacher, bundle], evaluation, SHAPES, rounds=3, repeats=3, max_s=1, examples=6
    )
    return found, log.read_text().splitlines()
