"""Python before and after a rewriting does the same, when run."""

from __future__ import annotations

import ast
import io
import tokenize
from typing import Any

import pytest

from codemill.compress.rewrite import Rewrite, rewrite

SEEDS = range(4)

# each defines f; the arguments are called one after the other
PROGRAMS: dict[str, tuple[str, list[tuple[Any, ...]]]] = {
    "closure": (
        "def f(n):\n    total = 0\n    def add(step):\n        nonlocal total\n"
        "        total += step\n        return total\n    for i in range(n):\n        add(i)\n"
        "    return total\n",
        [(0,), (7,)],
    ),
    "comprehension": (
        "def f(rows):\n    x = 3\n    ys = [x for x in rows if x > 1]\n"
        "    zs = {k: v for k, v in enumerate(ys)}\n    return x, ys, zs, sum(y * x for y in ys)\n",
        [([1, 2, 3],)],
    ),
    "global": (
        "COUNT = 0\ndef f(n):\n    global COUNT\n    COUNT += n\n    got = COUNT\n    return got\n",
        [(2,), (3,)],
    ),
    "f-string": (
        "def f(name, width=4):\n    rest = 'abc'\n"
        "    return f'{name!r:>{width}} {rest[0]} {name + rest}' f'{rest}'\n",
        [("q",), ("q", 9)],
    ),
    "shown f-string": (
        "def f(name):\n    other = name * 2\n    return f'{name=} {other + 1 = }'\n",
        [(4,)],
    ),
    "keyword arguments": (
        "def f(first):\n    def inner(first, second=2):\n        return first - second\n"
        "    result = inner(second=first, first=1)\n    return dict(result=result, first=first)\n",
        [(5,)],
    ),
    "defaults and lambda": (
        "def f(n, seen=()):\n    fs = [lambda k, n=n: k + n for k in range(n)]\n"
        "    return [g(j) for j, g in enumerate(fs)], seen\n",
        [(3,), (3, 4)],
    ),
    "class inside": (
        "def f(value):\n    class Box:\n        value = 1\n        def get(self):\n"
        "            return self.value + value\n    box = Box()\n    return box.get()\n",
        [(5,)],
    ),
    "except and with": (
        "def f(text):\n    import contextlib\n    error = None\n    try:\n        number = int(text)\n"
        "    except ValueError as e:\n        number, error = -1, str(e)\n"
        "    with contextlib.suppress(Exception) as guard:\n        number //= 0\n"
        "    return number, error, guard  # what came of it\n",
        [("12",), ("x",)],
    ),
    "star and walrus": (
        "def f(*args, **kwargs):\n    first, *rest = args\n"
        "    if (size := len(rest)) > 1:\n        del first\n        return size, rest\n"
        "    return size, first, kwargs\n",
        [(1,), (1, 2, 3)],
    ),
    "pattern": (
        "def f(point):\n    match point:\n        case {'x': x, **others}:\n            return x, others\n"
        "        case [first, *rest] if first:\n            return first, rest\n"
        "        case other:\n            return other\n",
        [({"x": 1, "y": 2},), ([1, 2],), (3,)],
    ),
    "method": (
        "class A:\n    x = 4\n    def g(self, y):\n        # c\n        x = self.x + y\n"
        "        return [x, A.x]\n\ndef f(n):\n    'a docstring'\n    a = A()\n    return a.g(n), f.__doc__\n",
        [(2,)],
    ),
    "spread out": (
        "def f(a,\n      b=(1,\n         2)):\n    text = '''two\n  lines'''\n"
        "    value = a + \\\n        b[0] -\\\n        1\n    if a > 4: return text\n    return (value,\n"
        "     -a**2,  a if not b else ~a)\n",
        [(0,), (5,)],
    ),
    "generator": (
        "def f(n):\n    def gen(limit):\n        at = 0\n        while at < limit:\n            at += 1\n"
        "            got = yield at\n            if got: at = got\n    g = gen(n)\n"
        "    return [next(g), g.send(2), list(g)]\n",
        [(6,)],
    ),
}


def results(code: str, calls: list[tuple[Any, ...]]) -> list[Any]:
    space: dict[str, Any] = {}
    exec(compile(code, "program", "exec"), space)
    return [space["f"](*arguments) for arguments in calls]


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("kind", Rewrite)
def test_what_a_function_returns_survives(name: str, kind: Rewrite) -> None:
    code, calls = PROGRAMS[name]
    expected = results(code, calls)
    for seed in SEEDS:
        written = rewrite(code, "python", kind, seed)
        if written is None:
            # the spread of blank space may draw what is there already
            assert kind in (Rewrite.REFORMAT, Rewrite.RENAME)
            continue
        assert written != code
        assert results(written, calls) == expected, written


def variables(code: str) -> set[str]:
    tree = ast.parse(code)
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | {
        n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)
    }


def test_locals_and_parameters_get_new_names_and_nothing_else_does() -> None:
    code = (
        "def f(path, self):\n    import os\n    size = os.stat(path).size\n    print(size, LIMIT, self)\n"
        "    def helper(): return size\n    return helper\n"
    )
    written = rewrite(code, "python", Rewrite.RENAME, 0)
    assert written is not None
    kept = {"os", "print", "LIMIT", "helper", "self"}
    assert variables(written) >= kept
    assert not variables(written) & {"path", "size"}
    assert ").size\n" in written
    assert "def f(" in written


@pytest.mark.parametrize("call", ["locals()", "eval('a')", "exec('a = 1')", "vars()"])
def test_code_that_finds_variables_by_name_is_not_renamed(call: str) -> None:
    assert (
        rewrite(f"def f(a):\n    b = {call}\n    return b\n", "python", Rewrite.RENAME, 0) is None
    )


@pytest.mark.parametrize("call", ["locals()", "vars()", "dir()"])
def test_code_that_lists_its_variables_gets_no_further_one(call: str) -> None:
    code = f"def f(a):\n    return {call}\n"
    assert rewrite(code, "python", Rewrite.DEAD_CODE, 0) is None


def test_reformatting_keeps_the_tree_and_comments_keep_the_tokens() -> None:
    for code, _ in PROGRAMS.values():
        for seed in SEEDS:
            spaced = rewrite(code, "python", Rewrite.REFORMAT, seed)
            if spaced is not None:
                assert ast.dump(ast.parse(spaced)) == ast.dump(ast.parse(code))
            commented = rewrite(code, "python", Rewrite.COMMENTS, seed)
            assert commented is not None
            assert tokens(commented) == tokens(code)


def tokens(code: str) -> list[str]:
    # blank lines and comments aside
    skipped = (tokenize.COMMENT, tokenize.NL)
    read = tokenize.generate_tokens(io.StringIO(code).readline)
    return [token.string for token in read if token.type not in skipped]


def test_every_comment_goes_or_some_come() -> None:
    code = "# top\ndef f(a):\n    # one\n    b = a  # two\n    return '# not one'\n"
    counts = set()
    for seed in range(8):
        written = rewrite(code, "python", Rewrite.COMMENTS, seed)
        assert written is not None
        assert "'# not one'" in written
        counts.add(written.count("#"))
    assert 1 in counts
    assert max(counts) > 4


def test_a_method_without_its_class_keeps_its_indentation() -> None:
    code = "    def get(self, key):\r\n        value = self.d[key]\r\n        return value\r\n"
    for kind in Rewrite:
        for seed in SEEDS:
            written = rewrite(code, "python", kind, seed)
            if written is None:
                continue
            assert written.startswith("    def get(self,")
            assert written.count("\n") == written.count("\r\n")
            ast.parse("if 1:\n" + written)


@pytest.mark.parametrize(
    "code", ["", "  \n", "def f(:\n", "print 'python 2'", "a\0b", "def f(): pass"]
)
def test_what_cannot_be_parsed_or_has_nothing_to_rewrite_is_none(code: str) -> None:
    assert rewrite(code, "python", Rewrite.RENAME, 0) is None


def test_the_seed_and_the_code_settle_the_result() -> None:
    code = PROGRAMS["closure"][0]
    for kind in Rewrite:
        assert rewrite(code, "python", kind, 5) == rewrite(code, "python", kind, 5)
    assert len({rewrite(code, "python", Rewrite.RENAME, seed) for seed in range(5)}) == 5


def test_text_beyond_ascii_stays_whole() -> None:
    code = "def f(größe):\n    s = 'ümlaut 🎉' + größe  # é\n    return s\n"
    for kind in Rewrite:
        written = rewrite(code, "python", kind, 1)
        if written is not None:
            assert results(written, [("x",)]) == ["ümlaut 🎉x"]
