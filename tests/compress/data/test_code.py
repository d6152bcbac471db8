"""Files of code: which are used, what is left out of train, places to complete."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from codemill.compress.data.code import CodeFile, given, piece_of, place_in
from codemill.errors import DataError

FILE = '''"""A docstring
of two lines."""

import os


# a comment that stands alone
def first(path):
    """Not code.

    Nor is this line, which is long enough.
    """
    # nor this one here
    found = os.path.join(path, "name")
    return found.strip().lower()
'''


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"code": text}) + "\n" for text in texts))
    return path


def source(seed: int) -> str:
    drawn = random.Random(seed)
    return "\n".join(f"name_{drawn.randrange(10**6)} = {drawn.randrange(10**6)}" for _ in range(40))


def test_places_are_in_code_and_give_back_their_line() -> None:
    generator = random.Random(0)
    seen = set()
    for _ in range(60):
        place = place_in(CodeFile("a.py", FILE), 10_000, generator)
        assert place is not None
        number = int(place.origin.rpartition(":")[2])
        assert (place.prefix + place.line).split("\n")[-1] == FILE.split("\n")[number - 1]
        assert FILE.startswith(place.prefix)
        seen.add(number)
    # the first lines have too little before them; comments and texts in quotes are none
    assert seen == {14, 15}


def test_what_is_before_a_place_is_cut_at_a_line() -> None:
    place = place_in(CodeFile("a.py", source(0)), 120, random.Random(1))
    assert place is not None
    assert len(place.prefix) <= 120
    assert place.prefix.startswith("name_")


def test_a_file_without_code_has_no_place() -> None:
    assert place_in(CodeFile("a.py", "# no code\n" * 30), 100, random.Random(0)) is None


def test_a_piece_begins_with_a_line() -> None:
    text = source(0)
    piece = piece_of(text, 100, random.Random(3))
    assert len(piece) == 100
    assert text[text.index(piece) - 1] == "\n" or text.startswith(piece)
    assert piece_of("short", 100, random.Random(3)) == "short"


def test_files_that_equal_or_resemble_held_out_ones_are_left_out(tmp_path: Path) -> None:
    texts = [source(seed) for seed in range(150)]
    plain = given(write(tmp_path / "a.jsonl", texts), "code", 10**9, 0, lambda _: None)
    held = plain.test[0].text
    more = [*texts, held.replace("name_", " name_"), held + "\nlast = 1"]
    found = given(write(tmp_path / "b.jsonl", more), "code", 10**9, 0, lambda _: None)
    assert found.equal + found.near >= 1
    assert all(file.text != held for file in found.train)


def test_too_little_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected some of each"):
        given(write(tmp_path / "a.jsonl", [source(0)]), "code", 10**9, 0, lambda _: None)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'text'"):
        given(write(tmp_path / "a.jsonl", [source(0)]), "text", 10**9, 0, lambda _: None)
