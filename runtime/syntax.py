"""The functions of JavaScript, TypeScript, Java, C, C++, Go and Rust, through tree-sitter (extra `find`).

A query for each grammar names what is a function and what it lies in; everything else is text. What is
in a function's `code` is as in Python's: the whole definition with its annotations, and without the
comment above it that says what it does, which is its `docstring`. A file with errors is read as far as it
goes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from codemill.runtime.functions import SHORTEST_INNER, Function
from codemill.runtime.languages import readable_languages

if TYPE_CHECKING:
    import tree_sitter
    from tree_sitter import Node

__all__ = ["SyntaxFunction", "code_between", "functions_in"]


class SyntaxFunction(NamedTuple):
    """A function, and the bytes of its file that are its code."""

    function: Function
    start: int
    end: int


def functions_in(content: bytes, language: str, suffix: str) -> list[SyntaxFunction]:
    """The functions of a file, in the order they are written; `suffix` is that of its name, in lower case.

    A function inside another one is listed too where it has a name and three lines. Raises ImportError
    where the language's grammar is not installed.
    """
    import tree_sitter

    grammar = _grammar(language, suffix, content)
    # a parser of its own: one must not be used from two threads
    tree = tree_sitter.Parser(_language(grammar)).parse(content)
    found = _Found()
    for _, captures in tree_sitter.QueryCursor(_query(grammar)).matches(tree.root_node):
        found.add(captures, content)
    return list(_listed(found, content, "::" if grammar in ("cpp", "rust") else "."))


def code_between(content: bytes, start: int, end: int) -> str:
    """The code of a function in these bytes of its file, without the indentation of its first line."""
    text = content[_line_start(content, start) : end].decode("utf-8", "replace")
    indent = text[: len(text) - len(text.lstrip(" \t"))]
    code = content[start:end].decode("utf-8", "replace").replace("\r\n", "\n").lstrip(" \t")
    return "\n".join(line.removeprefix(indent) for line in code.split("\n"))


_FUNCTION_VALUE = "[(arrow_function) (function_expression) (generator_function)]"
_JAVASCRIPT = f"""
(function_declaration name: (_) @name) @function
(generator_function_declaration name: (_) @name) @function
(method_definition name: (_) @name body: (_)) @function
(variable_declarator name: (identifier) @name value: {_FUNCTION_VALUE}) @function
(variable_declarator name: (identifier) @name
  value: (call_expression arguments: (arguments . {_FUNCTION_VALUE}))) @function
(assignment_expression left: [(identifier) (member_expression)] @name right: {_FUNCTION_VALUE}) @function
(pair key: (_) @name value: {_FUNCTION_VALUE}) @function
(export_statement "default" @name value: {_FUNCTION_VALUE}) @function
(class_declaration name: (_) @name) @scope
(class name: (_) @name) @scope
(variable_declarator name: (identifier) @name value: [(object) (class !name)]) @scope
(assignment_expression left: (_) @name right: [(object) (class !name)]) @scope
(decorator) @annotation
(comment) @comment
"""
_TYPESCRIPT = f"""
{_JAVASCRIPT}
(public_field_definition name: (_) @name value: {_FUNCTION_VALUE}) @function
(abstract_class_declaration name: (_) @name) @scope
(internal_module name: (_) @name) @scope
(module name: (_) @name) @scope
"""
_C = """
(function_definition declarator: (_) @declarator) @function
(comment) @comment
"""
_QUERIES = {
    "javascript": f"""
{_JAVASCRIPT}
(field_definition property: (_) @name value: {_FUNCTION_VALUE}) @function
""",
    "typescript": _TYPESCRIPT,
    "tsx": _TYPESCRIPT,
    "java": """
(method_declaration name: (_) @name body: (_)) @function
(constructor_declaration name: (_) @name) @function
(compact_constructor_declaration name: (_) @name) @function
(variable_declarator name: (_) @name value: (lambda_expression)) @function
(class_declaration name: (_) @name) @scope
(interface_declaration name: (_) @name) @scope
(enum_declaration name: (_) @name) @scope
(enum_constant name: (_) @name body: (_)) @scope
(record_declaration name: (_) @name) @scope
(annotation_type_declaration name: (_) @name) @scope
[(line_comment) (block_comment)] @comment
""",
    "c": _C,
    "cpp": f"""
{_C}
(template_declaration (function_definition declarator: (_) @declarator)) @function
(init_declarator declarator: (identifier) @name value: (lambda_expression)) @function
(class_specifier name: (_) @name body: (_)) @scope
(struct_specifier name: (_) @name body: (_)) @scope
(union_specifier name: (_) @name body: (_)) @scope
(function_definition type: [(class_specifier) (struct_specifier)] declarator: (identifier) @name) @scope
(namespace_definition name: (_) @name) @scope
""",
    "go": """
(function_declaration name: (_) @name body: (_)) @function
(method_declaration receiver: (parameter_list (parameter_declaration type: (_) @of)) name: (_) @name) @function
(short_var_declaration left: (expression_list . (identifier) @name .)
  right: (expression_list . (func_literal) .)) @function
(var_spec name: (_) @name value: (expression_list . (func_literal) .)) @function
(comment) @comment
""",
    "rust": """
(function_item name: (_) @name) @function
(let_declaration pattern: (identifier) @name value: (closure_expression)) @function
(impl_item type: (_) @name) @scope
(trait_item name: (_) @name) @scope
(mod_item name: (_) @name body: (_)) @scope
(attribute_item) @annotation
[(line_comment) (block_comment)] @comment
""",
}
_MODULES = {
    "typescript": ("tree_sitter_typescript", "language_typescript"),
    "tsx": ("tree_sitter_typescript", "language_tsx"),
}

# a header that is C++
_CPP = re.compile(rb"^\s*(class|namespace|template|using|public:|private:)\b|\w::\w", re.MULTILINE)
# what wraps the declarator of a name, besides those that have it as a field
_WRAPPERS = ("reference_declarator", "parenthesized_declarator", "attributed_declarator")
_CLASSES = ("class_specifier", "struct_specifier")
_PLAIN = ("identifier", "parenthesized_declarator")
_NO_BODIES = ("default_method_clause", "delete_method_clause")
# what is taken for the name of a function where a macro hides what it is
_NO_NAMES = frozenset({"if", "else", "for", "while", "switch", "return", "do", "catch", ""})
_ARGUMENTS = re.compile(r"<.*>|\[.*\]|'\w+|[*&\s]", re.DOTALL)
# bytes before a definition on its line
_LONGEST_INDENT = 1000
# of a class that a member is defined outside of
_TEMPLATE = re.compile(r"<[^<>]*>(?=::)")
_COMMENT_MARK = re.compile(r"^\s*(?:/\*[*!]?|\*/|\*(?!/)|//[/!]?)\s?|\s*\*/\s*$")


@dataclass(frozen=True, slots=True)
class _Piece:
    """A function, or what functions lie in and are named after: its bytes and rows, from 0."""

    start: int
    end: int
    name: str
    row: int
    name_row: int
    end_row: int
    is_function: bool


class _Found:
    """What the query of a grammar captured in one file."""

    def __init__(self) -> None:
        self.pieces: dict[int, _Piece] = {}
        # by the row they end at: (row, byte) they begin at, byte they end at
        self.comments: dict[int, tuple[int, int, int]] = {}
        self.annotations: dict[int, tuple[int, int, int]] = {}

    def add(self, captures: dict[str, list[Node]], content: bytes) -> None:
        for kind, rows in (("comment", self.comments), ("annotation", self.annotations)):
            for node in captures.get(kind, ()):
                if not content[_line_start(content, node.start_byte) : node.start_byte].strip():
                    # one that ends with its line ends at the start of the next
                    end = node.end_point.row - (node.end_point.column == 0)
                    rows[end] = (node.start_point.row, node.start_byte, node.end_byte)
        for node in captures.get("function", captures.get("scope", ())):
            is_function = "function" in captures
            if is_function and "declarator" in captures and _no_function(captures["declarator"][0]):
                continue
            named = captures.get("name") or [_declared(captures["declarator"][0])]
            name = _text(named[0])
            if "of" in captures:
                name = f"{_ARGUMENTS.sub('', _text(captures['of'][0]))}.{name}"
            if named[0].type == "operator_cast":
                name = name.partition("(")[0].strip()
            name = (
                _TEMPLATE.sub("", " ".join(name.split()).strip("'\""))
                if is_function
                else _ARGUMENTS.sub("", name)
            )
            if name in _NO_NAMES:
                continue
            key = named[0].start_byte
            before = self.pieces.get(key)
            # a template is captured with what it is made of, and a scope that is a function's too
            if before is None or (is_function, before.start) > (
                before.is_function,
                node.start_byte,
            ):
                self.pieces[key] = _Piece(
                    *(node.start_byte, node.end_byte, name),
                    *(node.start_point.row, named[0].start_point.row, node.end_point.row),
                    is_function,
                )


def _listed(found: _Found, content: bytes, separator: str) -> Iterator[SyntaxFunction]:
    outer: list[_Piece] = []
    for piece in sorted(found.pieces.values(), key=lambda item: (item.start, -item.end)):
        while outer and outer[-1].end <= piece.start:
            outer.pop()
        inside = any(item.is_function for item in outer)
        lines = piece.end_row - piece.row + 1
        outer.append(piece)
        if not piece.is_function or (inside and lines < SHORTEST_INNER):
            continue
        start = _line_start(content, piece.start)
        # `export const f =` belongs to it, what another statement ends with does not
        alone = not set(content[start : piece.start]) & set(b";{}")
        start = start if alone else piece.start
        row = piece.row
        while alone and (above := found.annotations.get(row - 1)) is not None:
            row, start, _ = above
        yield SyntaxFunction(
            Function(
                qualified_name=separator.join(item.name for item in outer),
                line=piece.name_row + 1,
                first_line=row + 1,
                end_line=piece.end_row + 1,
                code=code_between(content, start, piece.end),
                docstring=_docstring(found, content, row) if alone else None,
            ),
            start,
            piece.end,
        )


def _docstring(found: _Found, content: bytes, row: int) -> str | None:
    """What the comments that end right above `row` say."""
    parts: list[str] = []
    while (above := found.comments.get(row - 1)) is not None:
        row, start, end = above
        parts.insert(0, content[start:end].decode("utf-8", "replace"))
    lines = [_COMMENT_MARK.sub("", line).rstrip() for part in parts for line in part.splitlines()]
    return "\n".join(lines).strip() or None


def _declared(node: Node) -> Node:
    """The node that names what a C declarator declares."""
    while node.type != "operator_cast":
        inner = node.child_by_field_name("declarator")
        if inner is None and node.type in _WRAPPERS:
            inner = next(iter(node.named_children), None)
        if inner is None:
            break
        node = inner
    return node


def _no_function(declarator: Node) -> bool:
    """What C++'s grammar takes for a function and is none: a class behind a macro, or what has no body."""
    definition = declarator.parent
    if definition is None:
        return False
    kind = definition.child_by_field_name("type")
    if kind is not None and kind.type in _CLASSES and declarator.type in _PLAIN:
        return True
    return any(child.type in _NO_BODIES for child in definition.children)


def _text(node: Node) -> str:
    return (node.text or b"").decode("utf-8", "replace")


def _line_start(content: bytes, at: int) -> int:
    """Where the line of byte `at` begins; `at` itself where that is far off, as in what machines wrote."""
    found = content.rfind(b"\n", max(0, at - _LONGEST_INDENT), at)
    return found + 1 if found >= 0 or at <= _LONGEST_INDENT else at


def _grammar(language: str, suffix: str, content: bytes) -> str:
    if suffix == "tsx":
        return "tsx"
    # a header may be either
    cpp = suffix == "h" and "cpp" in readable_languages() and _CPP.search(content)
    return "cpp" if cpp else language


@cache
def _language(grammar: str) -> tree_sitter.Language:
    import tree_sitter

    module, function = _MODULES.get(grammar, (f"tree_sitter_{grammar}", "language"))
    return tree_sitter.Language(getattr(import_module(module), function)())


@cache
def _query(grammar: str) -> tree_sitter.Query:
    import tree_sitter

    return tree_sitter.Query(_language(grammar), _QUERIES[grammar])
