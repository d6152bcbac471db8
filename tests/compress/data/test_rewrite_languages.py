"""The other languages: compiled and run before and after where there is a compiler, else re-parsed."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from codemill.compress.rewrite import LANGUAGES, Rewrite, language_of, rewrite
from codemill.compress.rewrite.guard import same_but_for_names, same_with_insertions
from codemill.compress.rewrite.syntax import grammar_of, libraries_of, parse
from codemill.errors import DataError

SEEDS = range(3)

C = r"""#include <stdio.h>
#include <stddef.h>
#define TWICE(v) ((v) + (v))
struct node { int value; struct node *next; };
static int count = 2; /* a global
   over two lines */
static int walk(struct node *node, int (*pick)(int value)) {
    int total = 0, i;
    for (struct node *next = node; next; next = next->next) {
        int value = next->value; // shadowed nowhere
        total += pick(value) + TWICE(value);
    }
    for (i = 0; i < count; i++) { int total = i; total++; if (total > 1) break; }
    if (!node) goto out;
    switch (total) {
    case 1: { int z = 3; total = z; } break;
    default: total = total - -1;
    }
out:
    return total / 2 * (int) sizeof total + (int) offsetof(struct node, value);
}
static int same(int value) { int x = value; return x; }
#ifdef NEVER
static int never(int q) { return q; }
#endif
int main(void) {
    struct node b = { .value = 5, .next = 0 }, a = { 3, &b };
    int arr[2] = { [1] = 4 }, *p = arr;
    double d = 0x1e + 1 - .5;
    printf("%d %d %g\n", walk(&a, same), *p + p[1], d);
    return walk(0, same) & 1 ? 1 : 0;
}
"""

JAVA = r"""import java.util.*;
import java.util.function.*;
public class Main {
    private int x = 7;
    int total;
    enum Kind { A, B }
    Main(int x) { this.x = x; }
    Main() { this(9); int y = 1; total = y; }
    int shadow(int total) { int x = this.x + total; this.total = total; return x; }
    int field(int n) { { int total = n; n += total; } total++; return total + n; }
    int lambdas(List<Integer> items) {
        Function<Integer, Integer> g = (v) -> { int w = v + 1; return w; };
        BiFunction<Integer, Integer, Integer> h = (p, q) -> p * q;
        int sum = 0;
        for (int item : items) { sum += g.apply(item); }
        for (int i = 0, j = 2; i < j; i++) sum -= -i;
        return h.apply(sum, items.stream().mapToInt(e -> e).sum());
    }
    String caught(String text) {
        final String kept = text;
        Supplier<String> inner = new Supplier<String>() {
            String text = "inner";
            public String get() { return text + kept; }
        };
        try { return Integer.parseInt(text) + ""; }
        catch (NumberFormatException e) { String message = inner.get(); return message; /* c */ }
        finally { x++; }
    }
    int labels(Kind A) {
        int r = 0;
        outer: while (true) { for (;;) { r += 2; if (r > 4) break outer; else continue outer; } }
        switch (A) { case A: r = 1; break; case B: r = r >>> 1 << 3; }
        return r;
    }
    public static void main(String[] args) {
        Main m = new Main();
        System.out.println(m.shadow(3) + " " + m.field(4) + " " + m.total + m.caught("z")
            + m.caught("4") + m.lambdas(Arrays.asList(1, 2)) + m.labels(Kind.B) + m.x);
    }
}
"""

JAVASCRIPT = r"""// top
function f(a, {b, c = 1, d: [e]}, ...rest) {
  var x = a + b, out = []
  const g = y => y + x
  for (const k of rest) { let x = g(k); out.push(x) }
  for (var i in rest) out.push(hoisted, i)
  try { throw new Error(`t${x}`) } catch (err) { out.push(err.message) }
  var hoisted = /a b/.test('a b') ? out.length - -1 : 0
  function inner() {
    "use strict"
    return { x, c, a: a.x, m(x) { return x * 2 } }
  }
  l: while (true) { break l }
  return [inner().x, inner().c, inner().m(4), e, hoisted, out]
}
console.log(JSON.stringify(f(1, {b: 2, d: [5]}, 7, 8)))
"""

GO = """package p

// Sum adds.
func (r *T) Sum(xs []int, n int) (total int, err error) {
\tx := n
\tfor i, v := range xs {
\t\tif v > x {
\t\t\tx := x + i
\t\t\t_ = x
\t\t}
\t\ttotal += v
\t}
\tr.total = total
\treturn total, nil
}
"""
PHP = """public function f($a, &$b) {
    // c
    $x = "a $a {$b}";
    foreach ($a as $k => $v) {
        $x .= $k . $v;
    }
    $f = function($q) use (&$x) { return $q + $this->x + A::$v; };
    return $f($x);
}
"""
RUBY = """def f(a, b = 1, key: 2)
  # c
  x = a
  b.each do |i|
    puts i, x
  end
  foo(x: x)
  "#{x} #{key}"
end
"""
CPP = """int A::f(int x, std::vector<int>& w) {
  int s = 0;
  for (auto& v : w) {
    auto l = [&s, x](int q) { return q + s + x; };
    s += l(v); /* c */
  }
  try { g(s); } catch (E& e) { e.what(); }
  return s > x ? s : this->x;
}
"""
CODE = {
    "c": C,
    "java": JAVA,
    "javascript": JAVASCRIPT,
    "go": GO,
    "php": PHP,
    "ruby": RUBY,
    "cpp": CPP,
}


def ran(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_c(programs: list[str], folder: Path) -> list[str]:
    printed = []
    for code in programs:
        (folder / "main.c").write_text(code)
        ran(["gcc", "-w", "-o", "main", "main.c"], folder)
        printed.append(ran(["./main"], folder))
    return printed


def run_java(programs: list[str], folder: Path) -> list[str]:
    # starting Java costs more than all else: one start for all of them
    imports = "import java.util.*; import java.util.function.*;\n"
    classes = []
    for index, code in enumerate(programs):
        body = re.sub(r"import [\w.*]+;", "", code).replace("public class Main", "class Main")
        classes.append(re.sub(r"\bMain\b", f"Main{index}", body))
    calls = "".join(f"Main{index}.main(args);" for index in range(len(programs)))
    head = f"public class All {{ public static void main(String[] args) {{ {calls} }} }}\n"
    (folder / "All.java").write_text(imports + head + "\n".join(classes))
    return ran(["java", "-XX:TieredStopAtLevel=1", "All.java"], folder).splitlines()


def run_javascript(programs: list[str], folder: Path) -> list[str]:
    code = "".join(f"(function () {{\n{program}\n}})();\n" for program in programs)
    (folder / "main.js").write_text(code)
    return ran(["node", "main.js"], folder).splitlines()


RUNNERS = {"c": ("gcc", run_c), "java": ("java", run_java), "javascript": ("node", run_javascript)}


@pytest.mark.parametrize("language", RUNNERS)
def test_what_a_program_prints_survives(language: str, tmp_path: Path) -> None:
    tool, run = RUNNERS[language]
    if shutil.which(tool) is None:
        pytest.skip(f"no {tool} on this machine")
    programs = [CODE[language]]
    for kind in Rewrite:
        # the composition holds all the others, so that it gets the most seeds
        for seed in SEEDS if kind is Rewrite.ALL else (0,):
            written = rewrite(CODE[language], language, kind, seed)
            assert written is not None
            programs.append(written)
    printed = run(programs, tmp_path)
    assert len(printed) == len(programs) == len(set(programs))
    for program, output in zip(programs, printed, strict=True):
        assert output == printed[0] != "", program


@pytest.mark.parametrize("language", CODE)
@pytest.mark.parametrize("kind", Rewrite)
def test_only_what_the_kind_may_change_is_changed(language: str, kind: Rewrite) -> None:
    grammar = grammar_of(language)
    before = parse(CODE[language], grammar)
    assert before is not None
    assert before.errors == 0
    for seed in SEEDS:
        written = rewrite(CODE[language], language, kind, seed)
        assert written is not None
        after = parse(written, grammar)
        assert after is not None
        assert after.errors == 0
        if kind in (Rewrite.REFORMAT, Rewrite.COMMENTS):
            assert same_but_for_names(before, after, {})
            assert spaceless(written) == spaceless(CODE[language]) or kind is Rewrite.COMMENTS
        elif kind is Rewrite.DEAD_CODE:
            assert same_with_insertions(before, after)
            assert not same_but_for_names(before, after, {})


def spaceless(code: str) -> str:
    return "".join(code.split())


def words(language: str, seed: int = 0) -> set[str]:
    written = rewrite(CODE[language], language, Rewrite.RENAME, seed)
    assert written is not None
    return set(re.findall(r"\w+", written))


def test_java_fields_and_constants_stay_where_locals_share_their_names() -> None:
    left = words("java")
    assert {"x", "total", "A", "B", "outer", "labels", "text", "apply"} <= left
    assert not {"items", "item", "message", "w", "p", "q", "args"} & left


def test_a_local_seen_in_an_inner_class_stays_since_it_may_be_an_inherited_field() -> None:
    assert "kept" in words("java")


def test_c_fields_labels_and_globals_stay() -> None:
    left = words("c")
    assert {"value", "next", "count", "out", "walk", "same", "TWICE"} <= left
    assert not {"pick", "p", "arr", "z", "total"} & left


def test_a_name_a_macro_may_take_for_a_field_stays() -> None:
    code = (
        "void f(struct list *head) {\n    struct item *list, *other;\n"
        "    list_for_each_entry(other, head, list) { g(other); }\n    list = NULL; int n = 3; h(n);\n}\n"
    )
    written = rewrite(code, "c", Rewrite.RENAME, 0)
    if written is not None:
        assert "list_for_each_entry(other, head, list)" in written
        assert "list = NULL" in written


def test_go_uses_the_local_that_it_inserts() -> None:
    for seed in range(6):
        written = rewrite(GO, "go", Rewrite.DEAD_CODE, seed)
        assert written is not None
        for name in re.findall(r"(\w+) := \d+;", written):
            assert f"_ = {name};" in written


def test_php_properties_stay_and_variables_in_strings_follow() -> None:
    written = rewrite(PHP, "php", Rewrite.RENAME, 0)
    assert written is not None
    assert "$this->x" in written
    assert "A::$v" in written
    assert "$x" not in written.replace("A::$v", "")
    assert not re.search(r"\$a\b", written)


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("php", "function f($a) { $b = $a; return compact('a', 'b'); }"),
        ("php", "function f($a) { $n = 'a'; return $$n; }"),
        ("javascript", "function f(a) { return eval('a') }"),
        ("ruby", "def f(a)\n  b = a\n  binding\nend\n"),
    ],
)
def test_code_that_finds_variables_by_name_is_not_renamed(language: str, code: str) -> None:
    assert rewrite(code, language, Rewrite.RENAME, 0) is None


def test_a_ruby_call_that_looks_like_a_local_stays() -> None:
    written = rewrite(
        "def f(a)\n  g = size\n  size = g + a\n  size\nend\n", "ruby", Rewrite.RENAME, 0
    )
    assert written is not None
    assert "= size\n" in written
    assert "  size = " in written


def test_a_magic_comment_stays() -> None:
    code = "# frozen_string_literal: true\n" + RUBY
    for seed in range(6):
        written = rewrite(code, "ruby", Rewrite.COMMENTS, seed)
        assert written is not None
        assert written.startswith("# frozen_string_literal: true\n")


def test_no_statement_comes_before_the_call_of_another_constructor() -> None:
    code = "Foo(int a) {\n    super(a);\n    int b = a;\n}\n"
    for seed in range(8):
        written = rewrite(code, "java", Rewrite.DEAD_CODE, seed)
        assert written is not None
        assert written.startswith("Foo(int a) {\n    super(a);\n")


def test_no_declaration_comes_where_a_goto_jumps() -> None:
    for seed in range(8):
        written = rewrite(
            "int f(int a) {\n    if (a)\n        goto out;\n    a = 1;\nout:\n    return a;\n}\n",
            "c",
            Rewrite.DEAD_CODE,
            seed,
        )
        assert written is not None
        assert "if (0) {" in written


@pytest.mark.parametrize("language", CODE)
def test_the_language_is_guessed(language: str) -> None:
    assert language_of(CODE[language]) == language


@pytest.mark.parametrize(
    "prose",
    [
        "This is, as you see; no code (at all",
        "hello world",
        "This is the final version of a public document",
        "See the note (below) for more",
        " \n",
    ],
)
def test_prose_has_no_language_and_is_not_rewritten(prose: str) -> None:
    assert language_of(prose) is None
    assert rewrite(prose, None, Rewrite.ALL, 0) is None


def test_code_without_a_language_is_rewritten_as_what_it_is() -> None:
    assert rewrite(GO, None, Rewrite.RENAME, 3) == rewrite(GO, "go", Rewrite.RENAME, 3)


def test_a_stage_that_parses_names_the_grammars_whose_versions_shape_its_result() -> None:
    assert libraries_of("c++") == ("tree-sitter", "tree-sitter-cpp")
    # to guess a language takes all of them
    assert len(libraries_of(None)) == 9
    assert all(metadata.version(name) for name in libraries_of(None))


def test_an_unknown_language_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"'cobol'.*python.*ruby"):
        rewrite("x", "cobol", Rewrite.ALL, 0)
    assert len(LANGUAGES) == 8
