"""On functions as they are in data sets: nearly all can be rewritten, and all still parse."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from codemill.compress.rewrite import Rewrite, language_of, rewrite
from codemill.compress.rewrite.syntax import grammar_of, parse

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
FEWEST = {"bcb_functions": 0.95, "juliet_c_functions": 0.9, "csn_python_pairs": 0.75}


def some(name: str, count: int) -> list[str]:
    path = DATA / f"{name}.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"no {path.name} in ../shared/data")
    with gzip.open(path, "rt") as lines:
        codes = [json.loads(line)["code"] for line in lines]
    return codes[:: len(codes) // count][:count]


@pytest.mark.parametrize(
    ("name", "language"),
    [("bcb_functions", "java"), ("juliet_c_functions", "cpp"), ("csn_python_pairs", "python")],
)
def test_most_functions_are_rewritten_and_parse_as_well_as_before(name: str, language: str) -> None:
    codes = some(name, 20)
    grammar = grammar_of(language)
    for kind in (Rewrite.RENAME, Rewrite.DEAD_CODE, Rewrite.REFORMAT):
        written = [(code, rewrite(code, language, kind, 1)) for code in codes]
        assert sum(new is not None for _, new in written) >= FEWEST[name] * len(codes)
        for code, new in written:
            if new is not None:
                before, after = parse(code, grammar), parse(new, grammar)
                assert before is not None
                assert after is not None
                assert after.errors <= before.errors


def test_a_java_method_without_its_class_is_taken_for_java() -> None:
    codes = some("bcb_functions", 40)
    assert sum(language_of(code) == "java" for code in codes) >= 38
