from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import textwrap
import typing
from types import ModuleType

import pytest

from codemill.runtime import Function, functions_of


def only(source: str | bytes) -> Function:
    (found,) = functions_of(source)
    return found


def test_names_are_dotted_through_classes_and_come_in_the_order_written() -> None:
    source = (
        "class A:\n  class B:\n    def m(self): pass\n  async def n(self): pass\ndef f(): pass\n"
    )
    assert [f.qualified_name for f in functions_of(source)] == ["A.B.m", "A.n", "f"]


def test_code_has_the_decorators_and_line_is_that_of_def() -> None:
    function = only(
        "import x\n\nclass A:\n    @x.y\n    @x.z(\n        1)\n    def f(self):\n        pass\n"
    )
    assert function.code == "@x.y\n@x.z(\n    1)\ndef f(self):\n    pass"
    assert (function.line, function.end_line) == (7, 8)


def test_a_decorator_whose_expression_begins_below_its_sign_is_whole() -> None:
    assert only("@(\n  x\n)\ndef f(): pass").code == "@(\n  x\n)\ndef f(): pass"


def test_the_docstring_is_taken_out_and_cleaned() -> None:
    source = 'def f(x):\n  """Add one.\n\n  Even:\n    to minus one.\n  """\n\n  return x + 1\n'
    function = only(source)
    assert function.docstring == "Add one.\n\nEven:\n  to minus one."
    assert function.code == "def f(x):\n  return x + 1"


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ('def f():\n    """Text."""\n', "def f():\n    ..."),
        ('def f(): "Text."', "def f(): ..."),
        ('def f():\n    "Text."; return 1', "def f():\n    ...; return 1"),
        ('def f():\n    ("Text.")\n    return 1', "def f():\n    (...)\n    return 1"),
        ('def f():\n    "Te" "xt."  # why\n    return 1', "def f():\n    return 1"),
        ('def f(é="é"): "Text."; return é', 'def f(é="é"): ...; return é'),
    ],
)
def test_what_is_left_without_a_docstring_is_python(source: str, code: str) -> None:
    function = only(source)
    assert (function.docstring, function.code) == ("Text.", code)
    ast.parse(code)


def test_an_empty_docstring_is_none() -> None:
    assert only('def f():\n    """ """\n    return 1').docstring is None


def test_a_string_that_is_not_a_statement_of_its_own_is_no_docstring() -> None:
    assert only('def f():\n    x = "text"').docstring is None
    assert only('def f():\n    f"text"').docstring is None
    assert only('def f():\n    b"text"').docstring is None


def test_dedenting_leaves_text_that_is_indented_less() -> None:
    source = 'class A:\n    def f(self):\n        return """\nleft\n        """\n'
    assert only(source).code == 'def f(self):\n    return """\nleft\n    """'


def test_a_function_inside_a_function_belongs_to_it() -> None:
    function = only(
        "def f():\n    def g(): pass\n    class A:\n        def h(self): pass\n    return g"
    )
    assert "def g" in function.code


@pytest.mark.parametrize(
    "block",
    [
        "if x:\n    {}\nelse:\n    {}",
        "if x: pass\nelif y:\n    {}\nelse:\n    {}",
        "try:\n    {}\nexcept E:\n    {}\nelse:\n    {}\nfinally:\n    {}",
        "with x:\n    {}",
        "for x in y:\n    {}\nelse:\n    {}",
        "while x:\n    {}",
        "match x:\n    case 1:\n        {}\n    case _:\n        {}",
    ],
)
def test_functions_in_blocks_are_found_in_order(block: str) -> None:
    count = block.count("{}")
    source = block.format(*(f"def f{i}(): pass" for i in range(count)))
    assert [f.qualified_name for f in functions_of(source)] == [f"f{i}" for i in range(count)]


def test_a_thousand_branches_are_no_problem() -> None:
    branches = "".join(f"elif x == {i}:\n    pass\n" for i in range(1000))
    try:
        ast.parse("if x:\n    pass\n" + branches)
    except (RecursionError, MemoryError):
        pytest.skip("this Python's parser does not take it")
    source = "if x:\n    pass\n" + branches + "else:\n    def f(): pass\n"
    assert only(source).qualified_name == "f"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_of_every_system_are_lines(end: str) -> None:
    function = only(f'x = 1{end}def f():{end}    "Text."{end}    return 1{end}')
    assert (function.line, function.code) == (2, "def f():\n    return 1")
    assert functions_of(f"x = 1{end}def f(): pass".encode())[0].line == 2


def test_characters_that_only_look_like_line_ends_are_not() -> None:
    function = only("x = '\u2028\x0b'\n\x0c\ndef f():\n    return 1")
    assert (function.line, function.code) == (3, "def f():\n    return 1")


def test_bytes_are_decoded_as_python_does_it() -> None:
    assert "é" in only("# coding: latin-1\ndef f(): return 'é'".encode("latin-1")).code
    assert only(b"\xef\xbb\xbfdef f(): pass").code == "def f(): pass"
    assert only("\ufeffdef f(): pass").code == "def f(): pass"


@pytest.mark.parametrize(
    "source",
    [
        "def f(:",
        b"def f(): '\xff'",
        b"# coding: no-such-thing\ndef f(): pass",
        "def f(): pass\0",
        "def f(): return " + "(" * 100_000,
        "def f(): return " + "-" * 100_000 + "1",
        "def f(): return " + "x+" * 100_000 + "1",
        "def f(): '\ud800'",
    ],
    ids=["syntax", "bytes", "coding", "null", "parentheses", "signs", "sum", "surrogate"],
)
def test_what_cannot_be_read_is_a_syntax_or_value_error(source: str | bytes) -> None:
    try:
        functions_of(source)
    except (SyntaxError, ValueError):
        pass
    else:
        # newer parsers take some of these
        assert isinstance(source, str)
        assert len(source) > 1000


def test_an_odd_escape_in_somebody_elses_code_is_no_warning() -> None:
    assert only("def f(): return '\\d'").code == "def f(): return '\\d'"


@pytest.mark.parametrize("module", [argparse, dataclasses, inspect, textwrap, typing, ast])
def test_code_is_the_syntax_tree_without_the_docstring(module: ModuleType) -> None:
    source = inspect.getsource(module)
    nodes = {
        node.lineno: node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    found = functions_of(source)
    assert len(found) > 5
    for function in found:
        node = nodes[function.line]
        docstring = ast.get_docstring(node)
        assert function.docstring == (docstring or None)
        assert function.end_line == node.end_lineno
        if docstring is not None:
            node.body = node.body[1:] or ast.parse("...").body
        assert ast.dump(ast.parse(function.code).body[0]) == ast.dump(node)
