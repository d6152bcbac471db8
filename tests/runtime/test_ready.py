"""The bundle that codemill brings: what it is, that it is whole, and that it finds."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

import codemill
from codemill.errors import BundleError
from codemill.runtime import Encoder, Index, read_manifest, size_bytes, verify_bundle
from codemill.runtime.ready import READY, bundle_at, ready_bundle

DIGEST = "sha256:4796be069c8aee416bbb5253cd78a7006a258c46a14b886472a344ea3e355a7b"
LARGEST_BYTES = 3_000_000

FOUND = {
    "wrap a long paragraph to a given line width": {"wrap", "fill"},
    "strip common leading whitespace from every line": {"dedent"},
    "delete a whole directory tree": {"rmtree"},
    "insert an item into a sorted list": {"insort_right", "insort_left"},
    "median of numbers": {"median"},
    "decode base64 text": {"b64decode", "decodebytes"},
    "shuffle a list in place": {"Random.shuffle"},
    "is this a leap year": {"isleap"},
    "merge several sorted inputs": {"merge"},
    "find an executable on the path": {"which"},
}
"""A sentence -> functions of the standard library that do this: one is among the first five."""

MODULES = (
    "base64.py",
    "bisect.py",
    "calendar.py",
    "colorsys.py",
    "configparser.py",
    "csv.py",
    "difflib.py",
    "fractions.py",
    "functools.py",
    "getpass.py",
    "glob.py",
    "heapq.py",
    "mimetypes.py",
    "queue.py",
    "random.py",
    "sched.py",
    "shlex.py",
    "shutil.py",
    "smtplib.py",
    "statistics.py",
    "tarfile.py",
    "tempfile.py",
    "textwrap.py",
    "timeit.py",
    "uuid.py",
    "webbrowser.py",
)


@pytest.fixture(scope="module")
def encoder() -> Iterator[Encoder]:
    with codemill.load("code-search", threads=1) as encoder:
        assert isinstance(encoder, Encoder)
        yield encoder


def test_it_is_the_one_that_was_released() -> None:
    assert verify_bundle(ready_bundle("code-search"), expect=DIGEST) == DIGEST


def test_it_is_small_free_and_says_how_it_is_made_again() -> None:
    manifest = read_manifest(ready_bundle("code-search"))
    assert (
        sum(
            path.stat().st_size for path in ready_bundle("code-search").rglob("*") if path.is_file()
        )
        <= LARGEST_BYTES
    )
    assert all(size_bytes(ready_bundle("code-search"), name) for name in manifest.variants)
    assert manifest.license == "Apache-2.0"
    assert {"recipe", "teacher", "packages"} <= manifest.provenance.keys()
    assert manifest.provenance["recipe"]["name"].startswith("code-search")


def test_functions_of_the_standard_library_are_found_by_sentences(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODEMILL_CACHE", str(tmp_path / "cache"))
    stdlib = Path(sysconfig.get_path("stdlib"))
    folder = tmp_path / "stdlib"
    folder.mkdir()
    for name in MODULES:
        (folder / name).write_bytes((stdlib / name).read_bytes())
    index = Index.open(folder, encoder)
    for query, names in FOUND.items():
        hits = [hit.qualified_name for hit in index.search(query, top=5)]
        assert set(hits) & names, (query, hits)


def test_loading_it_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEMILL_CACHE", str(tmp_path / "cache"))
    codemill.load("code-search").close()
    assert not (tmp_path / "cache").exists()


def test_a_bundle_of_that_name_in_the_current_folder_comes_first(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert bundle_at("code-search") == ready_bundle("code-search")
    # a folder of that name which is no bundle
    Path("code-search").mkdir()
    assert bundle_at("code-search") == ready_bundle("code-search")
    (tmp_path / "code-search").rmdir()
    (tmp_path / "code-search").symlink_to(built)
    with codemill.load("code-search") as model:
        assert model.manifest.name == "tiny"


def test_other_names_are_paths() -> None:
    assert READY == ("code-search",)
    with pytest.raises(BundleError, match="there is no bundle at 'code-find'"):
        codemill.load("code-find")
