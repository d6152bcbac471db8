"""The command run in this process, and a small bundle to run it on."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from codemill.cli import main
from codemill.runtime import write_bundle

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def compress(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """compress("run", ...) -> how it ended."""

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test in a folder of its own, with a cache of its own."""
    monkeypatch.setenv("CODEMILL_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def _runtime_conftest() -> ModuleType:
    """The module that makes the runtime's tests their bundle."""
    path = ROOT / "tests/runtime/conftest.py"
    spec = importlib.util.spec_from_file_location("runtime_conftest", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that knows a few words; not to be written to."""
    made = _runtime_conftest()
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    folder.mkdir()
    made.write_tokenizer(folder / "tokenizer.json")
    made.write_encoder(folder / "variants/cpu-fp32/encoder.onnx")
    write_bundle(folder, **made.fields())
    return folder


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A folder of Python to search."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "matrices.py").write_text("def multiply(x, y):\n    return matrix(x) * matrix(y)\n")
    (folder / "sockets.py").write_text("def connect(name):\n    return socket(name)\n")
    for path in folder.iterdir():
        # a file that was written just now is read again: it may be written once more
        os.utime(path, (1e9, 1e9))
    return folder
