"""`__all__` is what a module offers, everywhere, and the documents name it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import codemill

ROOT = Path(__file__).resolve().parents[2]
HOUSES = ("compress", "export", "runtime", "server", "targets")


def modules() -> list[str]:
    found = ["codemill", "codemill.cli", "codemill.errors"]
    for house in HOUSES:
        for path in sorted((ROOT / house).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append(".".join(("codemill", *parts)).removesuffix(".__init__"))
    return found


@pytest.mark.parametrize("name", modules())
def test_every_name_in_all_is_there(name: str) -> None:
    module = importlib.import_module(name)
    names = getattr(module, "__all__", ())
    assert len(set(names)) == len(names)
    for public in names:
        assert hasattr(module, public), f"{name} has no {public}"


@pytest.mark.parametrize("name", ["codemill", *(f"codemill.{house}" for house in HOUSES)])
def test_every_house_opens_with_what_it_is(name: str) -> None:
    assert importlib.import_module(name).__doc__


def test_the_public_api_is_load_and_the_version() -> None:
    assert codemill.__all__ == ["__version__", "load"]


def test_the_runtimes_functions_are_in_its_document(root: Path) -> None:
    document = (root / "docs/runtime.md").read_text(encoding="utf-8")
    runtime = importlib.import_module("codemill.runtime")
    # the plain records are described by the tables of the bundle's format
    records = {"FileRecord", "Manifest", "Variant", "Function", "Hit"}
    for public in set(runtime.__all__) - records:
        assert public in document, public
