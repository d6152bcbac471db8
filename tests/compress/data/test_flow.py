"""Data flow of small functions, each edge checked by hand: `name` and which of its occurrences, counted from 1."""

from __future__ import annotations

import time

import pytest

from codemill.compress.rewrite.flow import FLOW_LANGUAGES, data_flow
from codemill.errors import DataError


def edges(code: str, language: str) -> set[str]:
    """`a1>b2`: the value at the second b comes from the first a, among the variables that were found."""
    flow = data_flow(code, language)
    names = [code[start:end] for start, end in flow.variables]
    shown = [f"{name}{names[: at + 1].count(name)}" for at, name in enumerate(names)]
    return {f"{shown[a]}>{shown[b]}" for a, b in flow.edges}


CODE = {
    "python": """
def largest(a, b):
    x = a
    if b > x:
        x = b
    return x
""",
    "java": "int largest(int a, int b) { int x = a; if (b > x) { x = b; } return x; }",
    "c": "int largest(int a, int b) { int x = a; if (b > x) { x = b; } return x; }",
    "javascript": "function largest(a, b) { let x = a; if (b > x) { x = b; } return x; }",
    "php": "function largest($a, $b) { $x = $a; if ($b > $x) { $x = $b; } return $x; }",
    "go": "func largest(a int, b int) int { x := a; if b > x { x = b }; return x }",
    "ruby": "def largest(a, b)\n  x = a\n  if b > x\n    x = b\n  end\n  x\nend\n",
}
LOOPS = {
    "python": "def total(xs):\n    t = 0\n    for v in xs:\n        t += v\n    return t\n",
    "java": "int total(int[] xs) { int t = 0; for (int v : xs) { t += v; } return t; }",
    "javascript": "function total(xs) { let t = 0; for (const v of xs) { t += v; } return t; }",
    "php": "function total($xs) { $t = 0; foreach ($xs as $v) { $t += $v; } return $t; }",
    "go": "func total(xs []int) int { t := 0; for _, v := range xs { t += v }; return t }",
    "ruby": "def total(xs)\n  t = 0\n  for v in xs\n    t += v\n  end\n  t\nend\n",
}


@pytest.mark.parametrize("language", FLOW_LANGUAGES)
def test_what_a_branch_may_have_written_and_what_was_there_before_reach_its_end(
    language: str,
) -> None:
    found = {edge.replace("$", "") for edge in edges(CODE[language], language)}
    assert found == {
        "a1>a2",  # the parameter, read
        "a2>x1",  # x = a
        "b1>b2",  # the condition
        "x1>x2",
        "b1>b3",
        "b3>x3",  # x = b
        "x1>x4",  # the end, where the branch was not taken
        "x3>x4",  # and where it was
    }


@pytest.mark.parametrize("language", sorted(LOOPS))
def test_what_a_loops_end_leaves_reaches_its_beginning(language: str) -> None:
    found = {edge.replace("$", "") for edge in edges(LOOPS[language], language)}
    # a loop's element is written before what it is gone through, but for PHP
    assert found == {
        "xs1>xs2",
        "xs2>v1",
        "v1>v2",
        "v2>t2",
        "t1>t2",
        "t2>t2",  # of the round before
        "t1>t3",  # of a loop that never ran
        "t2>t3",
    }


def test_a_counting_loop_of_c_starts_once_and_steps_after_its_body() -> None:
    code = "int f(int n) { int s = 0; for (int i = 0; i < n; i++) { s += i; } return s; }"
    assert edges(code, "c") == {
        "n1>n2",
        "i1>i2",  # the first test
        "i3>i2",  # a later one
        "i1>i3",
        "i3>i3",
        "i1>i4",
        "i3>i4",
        "i4>s2",
        "s1>s2",
        "s2>s2",
        "s1>s3",
        "s2>s3",
    }


def test_an_exchange_reads_all_before_it_writes_any() -> None:
    assert edges("def f(a, b):\n    a, b = b, a\n    return a\n", "python") == {
        "b1>b3",
        "a1>a3",
        "b3>a2",
        "a3>b2",
        "a2>a4",
    }


def test_an_element_that_is_written_makes_the_whole_another_that_keeps_the_rest() -> None:
    code = "int f(char *s, int i, char c) { s[i] = c; return s[0]; }"
    assert edges(code, "c") == {"i1>i2", "c1>c2", "c2>s2", "s1>s2", "s2>s3"}


def test_both_arms_of_a_whole_choice_hide_what_was_before_it() -> None:
    code = (
        "def f(a):\n    x = a\n    if a:\n        x = 1\n    elif x:\n        x = 2\n"
        "    else:\n        x = 3\n    return x\n"
    )
    # x = a reaches the second condition, and not the end
    assert edges(code, "python") == {
        "a1>a2",
        "a2>x1",
        "a1>a3",
        "x1>x3",
        "x2>x6",
        "x4>x6",
        "x5>x6",
    }


def test_names_of_functions_fields_and_types_are_no_variables() -> None:
    code = "int f(Box box) { Lid lid = open(box.lid); return measure(lid); }"
    assert edges(code, "java") == {"box1>box2", "box2>lid1", "lid1>lid2"}


def test_a_block_of_ruby_and_a_callback_of_javascript_write_what_is_around_them() -> None:
    ruby = "def f(xs)\n  t = 0\n  xs.each { |v| t += v }\n  t\nend\n"
    assert {"t2>t3", "t2>t2", "v1>v2"} <= edges(ruby, "ruby")
    script = "function f(xs) { let t = 0; xs.forEach(v => { t += v; }); return t; }"
    assert {"t2>t3", "t1>t3", "v1>v2"} <= edges(script, "javascript")


def test_variables_stand_where_they_do_in_text_beyond_ascii() -> None:
    code = "def f(größe):\n    é = größe  # 日本\n    return é\n"
    flow = data_flow(code, "python")
    assert [code[start:end] for start, end in flow.variables] == ["größe", "é", "größe", "é"]


@pytest.mark.parametrize("code", ["", "this is no code at all (", "\0", "x = 1"])
def test_text_without_data_flow_has_none(code: str) -> None:
    assert data_flow(code, "python") == ((), ())


def test_loops_within_loops_end_in_bounded_time() -> None:
    code = "def f(x):\n" + "".join(
        "    " * (depth + 1) + f"while x:\n{'    ' * (depth + 2)}x = x\n" for depth in range(15)
    )
    assert data_flow(code, "python").edges


def woven(count: int) -> str:
    lines = ["def f(a):"]
    for number in range(count):
        lines += [f"    x_{number} = x_{max(0, number - 1)} + a", f"    if x_{number}:"]
        lines.append(f"        a = x_{number}")
    return "\n".join(lines) + "\n"


def test_code_past_the_end_is_not_walked_through() -> None:
    head = woven(10)
    started = time.process_time()
    flow = data_flow(woven(1500), "python", len(head))
    assert time.process_time() - started < 5
    assert flow == data_flow(head, "python")
    assert data_flow("def f(é):\n    return é\n", "python", 16) == ((), ())


def test_a_text_with_more_edges_than_anybody_reads_has_no_data_flow() -> None:
    started = time.process_time()
    assert data_flow(woven(1500), "python") == ((), ())
    assert time.process_time() - started < 5


def test_another_language_is_a_data_error() -> None:
    with pytest.raises(DataError, match="cobol"):
        data_flow("x", "cobol")
