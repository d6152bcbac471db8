from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from codemill.runtime.split import pieces_of, split_text
from codemill.runtime.texts import Texts

from .conftest import MAX_TOKENS


def starts(text: str) -> list[int]:
    """A token is a word or a mark."""
    return [found.start() for found in re.finditer(r"\w+|[^\w\s]", text)]


def split(text: str, most: int) -> list[str]:
    return split_text(text, starts(text), most)


PYTHON = """import os

def first(a):
    b = a + 1

    return b

def second(c):
    if c:
        return 1
    else:
        return 2
"""

C = """int first(int a) {
\tint b = a + 1;
\treturn b;
}
int second(int c) {
\tif (c) {
\t\treturn 1;
\t}
\treturn 2;
}
"""


def test_a_text_that_fits_is_one_piece() -> None:
    assert split(PYTHON, 1000) == [PYTHON]
    assert split("", 1) == [""]


def test_python_is_divided_before_a_function() -> None:
    first, second = split(PYTHON, 20)
    assert first.startswith("import os")
    assert second.startswith("def second")


def test_c_is_divided_before_a_function_and_not_before_its_closing_bracket() -> None:
    pieces = split(C, 26)
    assert [piece.split("(")[0] for piece in pieces] == ["int first", "int second"]
    for piece in split(C, 14):
        assert not piece.lstrip().startswith("}")


def test_a_long_function_is_divided_between_its_outermost_statements() -> None:
    code = "".join(f"    x{i} = {i}\n    for y in z:\n        w(y)\n" for i in range(20))
    for piece in split(code, 30)[1:]:
        assert re.match(r"    (x\d+ =|for y)", piece)


def test_a_blank_line_is_preferred_among_equals() -> None:
    pieces = split("a = 1\nb = 2\nc = 3\n\nd = 4\ne = 5\nf = 6\n", 15)
    assert pieces[0] == "a = 1\nb = 2\nc = 3\n\n"


def test_a_statement_is_not_divided_where_its_end_is_near() -> None:
    text = "a(1,\n2,\n3);\nb(1,\n2,\n3);\nc(1,\n2,\n3);\n"
    assert all(piece.endswith(";\n") for piece in split(text, 20))


def test_only_a_line_that_is_too_long_by_itself_is_divided() -> None:
    text = "short = 1\n" + "word " * 50 + "\nshort = 2\n"
    pieces = split(text, 10)
    assert pieces[0] == "short = 1\n"
    assert all(len(starts(piece)) == 10 for piece in pieces[1:-1])
    assert "".join(pieces) == text


@pytest.mark.parametrize("most", [0, -1])
def test_pieces_of_no_tokens_are_a_value_error(most: int) -> None:
    with pytest.raises(ValueError, match="most_tokens"):
        split_text("x", [0], most)


LINES = st.lists(st.sampled_from(["", "  ", "a", "  b;", "}", "\tc(d, e) {", "x " * 9, "é☃"]))


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(lines=LINES, most=st.integers(1, 12), end=st.sampled_from(["\n", "\r\n", ""]))
def test_pieces_are_the_text_and_none_has_too_many_tokens(
    lines: list[str], most: int, end: str
) -> None:
    text = end.join(lines) + end
    pieces = split(text, most)
    assert "".join(pieces) == text
    assert all(pieces) or text == ""
    if end:
        assert all(len(starts(piece)) <= most for piece in pieces)
    # inside a line only where the line has too many by itself
    places = [len("".join(pieces[:i])) for i in range(1, len(pieces))]
    for place in places:
        if text[place - 1] != "\n":
            line = text[text.rfind("\n", 0, place) + 1 :].split("\n")[0]
            assert len(starts(line)) > most


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(
    text=st.text(max_size=60),
    places=st.lists(st.integers(0, 60), max_size=80),
    most=st.integers(1, 9),
)
def test_whatever_a_tokenizer_says_the_pieces_are_the_text(
    text: str, places: list[int], most: int
) -> None:
    pieces = split_text(text, sorted(min(place, len(text)) for place in places), most)
    assert "".join(pieces) == text


def test_pieces_that_a_model_reads_fit_it_and_miss_nothing(built: Path) -> None:
    content = (built / "tokenizer.json").read_bytes()
    texts = Texts(Tokenizer.from_buffer(content), content, "tiny", MAX_TOKENS)
    text = "".join(f"parse the file {i}\nclose\n\n" for i in range(20)) + "read " * 40
    cuts = pieces_of(text, texts)
    assert len(cuts) > 5
    assert not any(cut.truncated for cut in cuts)
    assert all(len(cut.ids) <= MAX_TOKENS for cut in cuts)
    ids = [i for cut in cuts for i in cut.ids[1:-1]]
    whole = Tokenizer.from_buffer(content).encode(text).ids[1:-1]
    assert ids == whole
    assert all(len(a.ids) > MAX_TOKENS // 4 for a, _ in pairwise(cuts))
