"""The wheel and the sdist hold all houses, and nothing is built without them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

HOUSES = ("compress", "export", "runtime", "server", "targets")
DATA = {".py", ".yaml", ".json", ".txt", ".j2", ".css", ".onnx", ".typed"}


def shipped_files(root: Path) -> set[str]:
    """Every file of the houses and of src/codemill, under the name it is installed by."""
    found = {"codemill/" + path.name for path in (root / "src/codemill").glob("*.*")}
    for house in HOUSES:
        for path in (root / house).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found.add("codemill/" + path.relative_to(root).as_posix())
    return found


@pytest.fixture(scope="module")
def built(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], set[str]]:
    """The names in the sdist, and in the wheel that is made from the sdist."""
    copy = tmp_path_factory.mktemp("source") / "codemill"
    copy.mkdir()
    for name in (*HOUSES, "src"):
        ignored = shutil.ignore_patterns("*.egg-info", "__pycache__")
        shutil.copytree(root / name, copy / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(root / name, copy)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", "."]
    ended = subprocess.run(command, cwd=copy, capture_output=True, encoding="utf-8", check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (sdist,) = (copy / "dist").glob("*.tar.gz")
    (wheel,) = (copy / "dist").glob("*.whl")
    with tarfile.open(sdist) as archive:
        in_sdist = {member.name.partition("/")[2] for member in archive if member.isfile()}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    return in_sdist, in_wheel


def test_the_wheel_holds_every_file_of_the_houses(
    root: Path, built: tuple[set[str], set[str]]
) -> None:
    expected = shipped_files(root)
    assert {Path(name).suffix for name in expected} <= DATA, "a new kind of file: see package-data"
    assert {name for name in built[1] if name.startswith("codemill/")} == expected
    assert "codemill/py.typed" in expected


def test_the_wheel_puts_nothing_else_on_the_import_path(
    built: tuple[set[str], set[str]],
) -> None:
    folders = {name.partition("/")[0] for name in built[1]}
    assert {name for name in folders if not name.endswith(".dist-info")} == {"codemill"}


def test_the_sdist_holds_what_the_wheel_is_made_of(
    root: Path, built: tuple[set[str], set[str]]
) -> None:
    assert {f"src/{name}" for name in shipped_files(root)} <= built[0]
    assert {"pyproject.toml", "setup.py", "README.md", "LICENSE"} <= built[0]


def test_plain_files_in_place_of_the_links_stop_the_build(root: Path, tmp_path: Path) -> None:
    shutil.copy(root / "setup.py", tmp_path)
    package = tmp_path / "src/codemill"
    (package / "runtime").mkdir(parents=True)
    (package / "runtime/__init__.py").touch()
    for house in set(HOUSES) - {"runtime"}:
        # what git leaves where it cannot make a link
        (package / house).write_text(f"../../{house}")
    command = [sys.executable, "setup.py", "--version"]
    ended = subprocess.run(
        command, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False
    )
    assert ended.returncode != 0
    assert "core.symlinks" in ended.stderr
    for house in HOUSES:
        assert (f"src/codemill/{house}" in ended.stderr) == (house != "runtime")


def test_the_links_are_links(root: Path) -> None:
    for house in HOUSES:
        link = root / "src/codemill" / house
        assert link.is_symlink()
        assert link.resolve() == root / house


def test_constraints_pin_what_the_extras_name_and_no_cuda(root: Path) -> None:
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (root / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): pin for pin in pins}
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        wanted += extra
    for requirement in map(Requirement, wanted):
        if requirement.name != "codemill":
            pin = pinned[canonicalize_name(requirement.name)]
            (version,) = (item.version for item in pin.specifier)
            assert version in requirement.specifier, f"{pin} is not {requirement}"
    assert "+" not in str(pinned["torch"])
    # bindings alone, of the extra that builds engines: no CUDA build of torch, which takes gigabytes
    bindings = {"cuda-python", "cuda-bindings", "cuda-core", "cuda-pathfinder"}
    assert not [
        name for name in pinned if "nvidia" in name or ("cuda" in name and name not in bindings)
    ]
