"""What is a function in each language, what it is called, where it stands and what is read of it."""

from __future__ import annotations

import pytest

from codemill.runtime.functions import Function
from codemill.runtime.reading import code_at, read_functions

pytest.importorskip("tree_sitter", reason="the extra `find`")


def functions(name: str, source: str) -> list[Function]:
    content = source.encode()
    found = read_functions(name, content).functions
    for item in found:
        assert code_at(name, content, item.start, item.end) == item.function.code
    return [item.function for item in found]


def names(name: str, source: str) -> list[str]:
    return [function.qualified_name for function in functions(name, source)]


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("a.js", "function f() {} function* g() {} async function h() {}", ["f", "g", "h"]),
        ("a.js", "export default function () { return 1 }", ["default"]),
        ("a.js", "const f = (x) => x; let g = function () {}; var h = 3", ["f", "g"]),
        (
            "a.js",
            "class A { constructor() {} static m() {} get p() {} #q = () => 1 }",
            ["A.constructor", "A.m", "A.p", "A.#q"],
        ),
        (
            "a.js",
            "const o = { m() {}, n: () => 1, 'q r': function () {} }",
            ["o.m", "o.n", "o.q r"],
        ),
        (
            "a.js",
            "module.exports.f = () => {}; A.prototype.g = function () {}",
            ["module.exports.f", "A.prototype.g"],
        ),
        ("a.js", "const f = memo((x) => x); (function () { function g() {} })()", ["f", "g"]),
        ("a.jsx", "const App = () => <b>{x}</b>", ["App"]),
        (
            "a.ts",
            "namespace N { class A<T> { private f(x: T): void {} abstract g(): void; h = () => 1 } }",
            ["N.A.f", "N.A.h"],
        ),
        ("a.ts", "export function f(x: number): void; export function f(x: any) {}", ["f"]),
        ("a.tsx", "const App: FC = () => { return <b /> }", ["App"]),
        (
            "A.java",
            "class A<T> { A() {} int f() { return 1; } interface I { void g(); default void h() {} } }",
            ["A.A", "A.f", "A.I.h"],
        ),
        (
            "A.java",
            "enum E { P { void f() {} }; void g() {} } record R(int a) { R { } }",
            ["E.P.f", "E.g", "R.R"],
        ),
        ("A.java", "class A { Runnable r = () -> { run(); }; }", ["A.r"]),
        (
            "a.c",
            "static char **f(int a) { return 0; } int g(void);\n#ifdef X\nint h(void) { return 1; }\n#endif",
            ["f", "h"],
        ),
        ("a.c", "int (*f(int a))(int) { return 0; } int g(a) int a; { return a; }", ["f", "g"]),
        (
            "a.cpp",
            "namespace a::b { class C { C() {} ~C() {} bool operator==(C o) { return 1; } int d(); }; }",
            ["a::b::C::C", "a::b::C::~C", "a::b::C::operator=="],
        ),
        (
            "a.cpp",
            "template <class T> int C<T>::f() { return 1; } auto g = [](int x) { return x; };",
            ["C::f", "g"],
        ),
        (
            "a.cpp",
            'extern "C" { void f() {} } struct S { operator bool() const { return 1; } };',
            ["f", "S::operator bool"],
        ),
        (
            "a.cpp",
            "class OUT A { int f() { return 1; } }; class OUT(x) B { int g() { return 1; } };",
            ["A::f", "g"],
        ),
        (
            "a.cpp",
            "struct A { A() = default; ~A(); template <class T> A(T) = delete; A(int) : x(1) {} };",
            ["A::A"],
        ),
        ("a.h", "class A { int f() { return 1; } };", ["A::f"]),
        ("a.h", "static inline int f(void) { return 1; }", ["f"]),
        (
            "a.go",
            "package x\nfunc F() {}\nfunc (s *Server[T]) M() {}\nvar V = func() {}\n",
            ["F", "Server.M", "V"],
        ),
        (
            "a.rs",
            "impl<'a, T> Tr for Foo<'a, T> { fn f() {} } mod m { fn g() {} } trait T { fn h(&self); fn k(&self) {} }",
            ["Foo::f", "m::g", "T::k"],
        ),
        ("a.py", "class A:\n    def f(self): pass\n    g = lambda self: 1\n", ["A.f", "A.g"]),
    ],
)
def test_functions_have_the_names_of_what_they_lie_in(
    name: str, source: str, expected: list[str]
) -> None:
    assert names(name, source) == expected


LONG = {
    "a.js": "function f() {{\n  const {0} = (x) => {{\n    return x;\n  }};\n  const tiny = () => 1;\n}}",
    "a.ts": "function f() {{\n  function {0}(x: T) {{\n    return x;\n  }}\n  function tiny() {{}}\n}}",
    "a.java": "class f {{ void f() {{\n  F {0} = x -> {{\n    g(x);\n  }};\n  F tiny = x -> x;\n}} }}",
    "a.cpp": "void f() {{\n  auto {0} = [](int x) {{\n    return x;\n  }};\n  auto tiny = [] {{}};\n}}",
    "a.go": "package x\nfunc f() {{\n\t{0} := func() {{\n\t\tg()\n\t}}\n\ttiny := func() {{}}\n}}",
    "a.rs": "fn f() {{\n  let {0} = |x| {{\n    x\n  }};\n  let tiny = |x| x;\n}}",
    "a.py": "def f():\n    def {0}(x):\n        y = x\n        return y\n    tiny = lambda: 1\n    return {0}\n",
}


@pytest.mark.parametrize("name", LONG)
def test_a_function_inside_another_is_listed_where_it_has_three_lines(name: str) -> None:
    found = names(name, LONG[name].format("inner"))
    assert found[0].endswith("f")
    assert [item.replace("::", ".") for item in found[1:]] == [f"{found[0]}.inner"]


COMMENTED = {
    "a.js": "/**\n * Adds two.\n *\n * @param a x\n */\n",
    "a.ts": "// Adds two.\n",
    "a.c": "/* Adds two. */\n",
    "a.go": "// Adds two.\n",
    "a.rs": "/// Adds two.\n",
}
CODE = {
    "a.js": "export function add(a, b) {\n  return a + b;\n}",
    "a.ts": "export const add = (a: number) =>\n  a + 1;",
    "a.c": "static int add(int a)\n{\n  return a;\n}",
    "a.go": "func add(a int) int {\n\treturn a\n}",
    "a.rs": "#[inline]\npub fn add(a: u8) -> u8 {\n    a\n}",
}


@pytest.mark.parametrize("name", CODE)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_code_is_the_whole_definition_and_the_comment_above_it_is_what_it_says(
    name: str, end: str
) -> None:
    before = "package x\n\n" if name == "a.go" else "\n\n"
    source = before + COMMENTED[name] + CODE[name] + "\n"
    (found,) = functions(name, source.replace("\n", end))
    assert found.code == CODE[name].removesuffix(";")
    assert (found.docstring or "").split("\n")[0] == "Adds two."
    assert source.split("\n")[found.line - 1].lstrip("pub").find("add") > 0
    assert found.end_line == source.rstrip().count("\n") + 1


def test_code_is_dedented_and_has_its_annotations() -> None:
    source = "class A {\n  // says\n  @a()\n  @b\n  m() {\n    return 1;\n  }\n}"
    (found,) = functions("a.ts", source)
    assert found.code == "@a()\n@b\nm() {\n  return 1;\n}"
    assert (found.line, found.first_line, found.docstring) == (5, 3, "says")


def test_a_comment_behind_other_code_says_nothing_of_the_function_below() -> None:
    (found,) = functions("a.c", "int x; /* not of f */\nint f(void) { return 1; }")
    assert found.docstring is None


def test_a_file_with_errors_is_read_as_far_as_it_goes() -> None:
    source = "int broken(int {\n\nint good(void) { return 1; }\n\nint x = = 1;\nint after(void) { return 2; }\n"
    assert {"good", "after"} <= set(names("a.c", source))


def test_bytes_that_are_no_text_are_replaced() -> None:
    (found,) = read_functions("a.js", b"function f() { return '\xff' }").functions
    assert found.function.code == "function f() { return '\ufffd' }"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.ts", b"G\0\0", "binary"),
        ("a.py", b"\0" * 10, "binary"),
        ("a.js", b"function f(){}" * 400, "minified or generated: 5600 characters a line"),
        ("a.go", b"x" * (4 * 2**20 + 1), "larger than"),
    ],
)
def test_what_is_not_worth_reading_is_refused_with_the_reason(
    name: str, content: bytes, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        read_functions(name, content)


def test_a_small_file_of_one_long_line_is_read() -> None:
    assert names("a.js", "function f() { return 1 }" * 40) == ["f"] * 40
