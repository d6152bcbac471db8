from __future__ import annotations

import random
import sysconfig
from pathlib import Path

import pytest

from codemill.runtime.functions import Function
from codemill.runtime.reading import code_at, embedded, read_functions

STDLIB = Path(sysconfig.get_path("stdlib"))


def function(docstring: str | None) -> Function:
    return Function("f", 1, 1, 2, "def f():\n    pass", docstring)


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        (None, "def f():\n    pass"),
        ("Open\n  a file.\n\nMore.", "Open a file.\ndef f():\n    pass"),
        ("Open.\n@param x y", "Open.\ndef f():\n    pass"),
        (":param x: y", "def f():\n    pass"),
        ("a" * 500, "a" * 300 + "\ndef f():\n    pass"),
    ],
)
def test_the_first_paragraph_about_a_function_is_embedded_with_its_code(
    docstring: str | None, expected: str
) -> None:
    assert embedded(function(docstring)) == expected


def test_a_functions_bytes_give_its_code_without_the_rest_of_the_file() -> None:
    paths = sorted(STDLIB.glob("*.py"))
    for path in random.Random(0).sample(paths, 40):
        content = path.read_bytes()
        found = read_functions(path.name, content).functions
        for item in found:
            assert code_at(path.name, content, item.start, item.end) == item.function.code


@pytest.mark.parametrize(
    "content",
    [
        "# coding: latin-1\r\ndef f():\r\n    '''é'''\r\n    return 'é'\r\n".encode("latin-1"),
        "\ufeffdef f(): return 'é'\n\n\nclass A:\n\n\tdef g(self):\n\t\t'x'\n\t\treturn 2".encode(),
        b"class A:\r  @x\r  @property\r  def g(self): return 1",
        b"if x:\n\x0c    def f(): return 1\n",
    ],
)
def test_whatever_its_encoding_and_line_ends(content: bytes) -> None:
    found = read_functions("a.py", content)
    assert found.functions
    assert found.problem is None
    for item in found.functions:
        assert code_at("a.py", content, item.start, item.end) == item.function.code


BROKEN = b'''import os
print "python 2"

@cached
def first(a,
          b):
    """Say."""
    return a

class A(object):
    def second(self):
        def inner(x):
            y = x
            return y
        return inner

    def wrong(self):
        print self.x

    class B:
        async def third(self):
            return 3

def last(x): return x
'''


def test_of_a_python_file_that_does_not_parse_those_that_do_are_read() -> None:
    found = read_functions("a.py", BROKEN)
    assert [item.function.qualified_name for item in found.functions] == [
        *("first", "A.second", "A.second.inner", "A.B.third", "last"),
    ]
    assert found.problem is not None
    assert "print" in found.problem
    lines = BROKEN.decode().split("\n")
    for item in found.functions:
        assert f"def {item.function.qualified_name.split('.')[-1]}" in lines[item.function.line - 1]
        assert code_at("a.py", BROKEN, item.start, item.end) == item.function.code
    assert found.functions[0].function.code == "@cached\ndef first(a,\n          b):\n    return a"


@pytest.mark.parametrize(
    "content",
    [
        b"if x:\n    pass\nelse: key = lambda name: name.lower()\n",
        b"try:\n    pass\nexcept Exception: key = lambda p: p\n",
        b"try:\n    pass\nfinally: key = lambda p: p\n",
        b"match x:\n    case 1: key = lambda p: p\n",
        b"class A:\n\f    @property\n    def key(self): return 1\n",
    ],
)
def test_a_function_that_is_nothing_by_itself_is_shown_with_its_line(content: bytes) -> None:
    (found,) = read_functions("a.py", content).functions
    code = code_at("a.py", content, found.start, found.end)
    assert "key" in code
    assert code in content.decode() or "@property\ndef key(self)" in code
