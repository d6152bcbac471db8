"""Mining installed packages: what is taken, what is left, and always the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from codemill.compress.data import installed
from codemill.compress.data.installed import installed_packages, mine, pairs_of_file, query_of
from codemill.compress.data.leakage import remove_overlap
from codemill.compress.data.pairs import Pair
from codemill.errors import DataError


def install(root: Path, name: str, version: str, files: dict[str, str], requires: str = "") -> None:
    """A package as pip leaves it: modules, dist-info and RECORD."""
    info = root / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    needs = "".join(f"Requires-Dist: {line}\n" for line in requires.splitlines())
    meta = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
    (info / "METADATA").write_text(meta)
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content.encode(errors="surrogateescape"))
    lines = [f"{path},," for path in [*files, f"{info.name}/METADATA", f"{info.name}/RECORD"]]
    (info / "RECORD").write_text("\n".join(reversed(lines)) + "\n")


def module(pairs: list[Pair]) -> str:
    """A module of functions with docstrings."""
    parts = []
    for pair in pairs:
        first, *rest = pair.code.split("\n")
        parts.append("\n".join([first, f'    """{pair.query}."""', *rest]))
    return "\n\n".join(parts) + "\n"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: list[Pair]) -> Path:
    """Two installed packages, a large and a small one, and a short standard library test."""
    root = tmp_path / "site"
    files = {f"large/part{n}.py": module(pairs[n * 20 : n * 20 + 20]) for n in range(13)}
    boilerplate = "".join(
        f'def make_{n}(x):\n    """Get the right thing done."""\n    y = x[{n}]\n    return y + {n} * f{n}(x)\n'
        for n in range(9)
    )
    files |= {
        "large/tests/test_it.py": module(pairs[260:270]),
        "large/broken.py": "def (:\n",
        "large/binary.py": "\x00",
        "large/latin.py": "# caf\udce9\n",
        "large/data.json": "{}",
        "large/boilerplate.py": boilerplate,
        "large/twice.py": module(pairs[:5]),
        "large/surrogate.py": 'def f(a):\n    "Half of a pair is \\ud800 this."\n    a += 1\n    return a\n',
    }
    install(root, "Large.Package", "1.0", files, "small-package\nother; extra == 'more'\n")
    install(root, "small-package", "2.0", {"small.py": module(pairs[270:])})
    monkeypatch.syspath_prepend(str(root))
    test_list = tmp_path / "test.txt"
    test_list.write_text("# a comment\nbisect:insort_right\nbisect:gone\ntextwrap:dedent\n")
    monkeypatch.setattr(installed, "TEST_LIST", test_list)
    return root


def both() -> dict[str, str]:
    return installed_packages(["large.package", "Small_Package"])


def test_named_packages_are_found_under_their_canonical_names(site: Path) -> None:
    assert both() == {"large-package": "1.0", "small-package": "2.0"}


@pytest.mark.parametrize("name", ["no-such-package", ""])
def test_a_package_that_is_not_installed_is_a_data_error(name: str) -> None:
    with pytest.raises(DataError, match=f"data.packages names '{name}', which is not installed"):
        installed_packages([name])


def test_by_default_what_the_root_requires_is_mined_directly_or_through_others(
    site: Path,
) -> None:
    needs = "large.package; extra == 'compress'\nsmall-package; python_version < '3'\nabsent"
    install(site, "root-package", "0.1", {}, needs)
    # small-package comes through the large one; what an extra of that one needs does not
    assert installed_packages(root="root-package") == both()


def test_functions_with_docstrings_become_pairs_and_tests_do_not(
    site: Path, pairs: list[Pair]
) -> None:
    corpus = mine(both(), workers=1)
    everything = [*corpus.splits.train, *corpus.splits.validation]
    queries = [pair.query for pair in everything]
    assert not {pair.query + "." for pair in pairs[260:270]} & set(queries)
    assert {pair.query + "." for pair in [*pairs[:260], *pairs[270:]]} <= set(queries)
    by_query = {pair.query: pair for pair in everything}
    found = by_query[pairs[0].query + "."]
    assert found.code == pairs[0].code
    name = pairs[0].code.split("(")[0].removeprefix("def ")
    assert found.origin == f"large-package:large/part0.py:{name}"
    assert queries.count("Get the right thing done.") == 3, "boilerplate is limited"
    assert corpus.splits.duplicates_removed == 5
    assert not [pair for pair in everything if "surrogate" in pair.origin]


def test_the_test_is_the_listed_functions_of_the_standard_library(site: Path) -> None:
    corpus = mine(both(), workers=1)
    assert [pair.origin for pair in corpus.splits.test] == [
        "bisect:insort_right",
        "textwrap:dedent",
    ]
    assert corpus.test_missing == 1
    assert corpus.splits.test[1].query.startswith("Remove any common leading whitespace")
    assert '"""' not in corpus.splits.test[1].code.split("\n")[1]


def test_mining_twice_or_elsewhere_gives_the_same_corpus(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages, shares = both(), [0.0]
    first = mine(packages, workers=1, report=shares.append)
    assert mine(packages, workers=1) == first
    assert shares == sorted(shares)
    moved = site.rename(tmp_path / "a-place-elsewhere")
    monkeypatch.syspath_prepend(str(moved))
    assert mine(packages, workers=1) == first


@pytest.mark.slow
def test_mining_in_processes_gives_the_same_corpus(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "_CHUNK", 4)
    assert mine(both(), workers=2) == mine(both(), workers=1)


def test_validation_is_whole_packages_where_some_are_small_enough(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "_VALIDATION_LARGEST", 0.2)
    corpus = mine(both(), workers=1)
    assert corpus.validation_packages == ["small-package"]
    assert {pair.origin.split(":")[0] for pair in corpus.splits.validation} == {"small-package"}
    assert {pair.origin.split(":")[0] for pair in corpus.splits.train} == {"large-package"}


def test_validation_is_whole_files_where_no_package_is_small_enough(site: Path) -> None:
    corpus = mine(both(), workers=1)
    assert corpus.validation_packages == []

    def files(pairs: list[Pair]) -> set[str]:
        return {pair.origin.rpartition(":")[0] for pair in pairs}

    assert corpus.splits.validation
    assert not files(corpus.splits.validation) & files(corpus.splits.train)
    assert len(corpus.splits.validation) < 0.2 * len(corpus.splits.train)


def test_nothing_held_out_is_in_train(site: Path) -> None:
    corpus = mine(both(), workers=1)
    held_out = [*corpus.splits.test, *corpus.splits.validation]
    assert remove_overlap(corpus.splits.train, held_out)[0] == corpus.splits.train


def test_too_little_code_is_a_data_error_that_says_what_to_do(site: Path) -> None:
    with pytest.raises(DataError, match=r"only \d+ training .* or bring data with --data"):
        mine(installed_packages(["small-package"]), workers=1)
    with pytest.raises(DataError, match="only 0 training"):
        mine({}, workers=1)


@pytest.mark.parametrize(
    ("docstring", "query"),
    [
        ("Open the file.", "Open the file."),
        ("Open the\n   file   now.\n\nMore of it.", "Open the file now."),
        ("  \n\nOpen the file.\n  \t\nMore.", "Open the file."),
        ("Too short", None),
        ("", None),
        (">>> open the file", None),
        (":param file: to be opened", None),
        ("@param file to be opened", None),
        ("1 2 3 4 5 6", None),
        ("word " * 101, None),
        ("half of a pair \ud800 here", None),
    ],
)
def test_a_query_is_the_first_paragraph_if_it_is_words(docstring: str, query: Any) -> None:
    assert query_of(docstring) == query


def test_a_file_that_cannot_be_read_has_no_pairs(tmp_path: Path) -> None:
    assert pairs_of_file((str(tmp_path / "nowhere.py"), "x")) == []
    assert pairs_of_file((str(tmp_path), "x")) == []
