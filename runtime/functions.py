"""The functions of a piece of Python source, each without its docstring.

One reading for two users: the search index embeds `Function.code`, and the training data are made
of the same `code` with `docstring` beside it, so what a model sees when it is used is what it saw
when it was trained. Reads syntax only (`ast`): nothing is imported or run, and no name is resolved.
Which files to read, and what to do with one that does not parse, is the caller's business.
"""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
import warnings
from dataclasses import dataclass

__all__ = ["Function", "functions_of"]

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_EMPTY_BODY = "..."


@dataclass(frozen=True, slots=True)
class Function:
    """A function or method as written in a file.

    `qualified_name` is dotted through classes (`Class.method`); two definitions may share it (a
    property and its setter, the branches of an `if`). `line` is that of `def` and `end_line` the
    last one, both counted from 1. `code` is the dedented source with its decorators and without
    its docstring; it parses. `docstring` is cleaned as by `inspect.cleandoc`, None where there is
    none or it is empty.
    """

    qualified_name: str
    line: int
    end_line: int
    code: str
    docstring: str | None


def functions_of(source: str | bytes) -> list[Function]:
    """Every function and method of `source`, in the order they are written.

    Bytes are decoded as Python does it (byte order mark, coding line, else UTF-8). A function
    defined inside another one is part of that one's code and not listed by itself. Most of the
    time goes into `ast.parse`; whoever reads thousands of files saves a fifth of it by calling
    `gc.disable()` meanwhile.

    Raises SyntaxError or ValueError (an undecodable file, a null byte, nesting beyond what the
    parser takes), and nothing else.
    """
    text = _decode(source)
    if "def" not in text:
        # spares parsing the tables of data, which are the largest files of many packages
        return []
    lines = text.split("\n")
    found: list[Function] = []
    # a stack rather than recursion: a chain of a thousand `elif` nests a thousand deep
    waiting: list[tuple[ast.AST, str]] = [(_parse(text), "")]
    while waiting:
        node, prefix = waiting.pop()
        if isinstance(node, _FUNCTIONS):
            found.append(_function(node, prefix, lines))
            continue
        if isinstance(node, ast.ClassDef):
            prefix = f"{prefix}{node.name}."
        for block in ("finalbody", "orelse", "handlers", "cases", "body"):
            inner = getattr(node, block, None)
            # `body` of a lambda or a conditional expression is not a list of statements
            if isinstance(inner, list):
                waiting.extend((child, prefix) for child in reversed(inner))
    return found


def _decode(source: str | bytes) -> str:
    if isinstance(source, bytes):
        encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
        source = source.decode(encoding)
    # the line ends `ast` counts; str.splitlines would also break at form feeds and U+2028
    return source.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _parse(text: str) -> ast.Module:
    with warnings.catch_warnings():
        # somebody else's "\d" is not the reader's problem, and must not become an error
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (RecursionError, MemoryError) as error:
            raise ValueError("the source is nested too deeply to be parsed") from error


def _function(
    node: ast.FunctionDef | ast.AsyncFunctionDef, prefix: str, lines: list[str]
) -> Function:
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
    # the expression of a parenthesised decorator may begin below its `@`
    while node.decorator_list and first > 0 and not lines[first].lstrip().startswith("@"):
        first -= 1
    end_line = node.end_lineno or node.lineno
    code = lines[first:end_line]
    statement = node.body[0]
    docstring: str | None = None
    if (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    ):
        cleaned = inspect.cleandoc(statement.value.value)
        docstring = cleaned if cleaned.strip() else None
        code = _without(statement.value, code, first, alone=len(node.body) == 1)
    indent = lines[first][: len(lines[first]) - len(lines[first].lstrip())]
    return Function(
        qualified_name=prefix + node.name,
        line=node.lineno,
        end_line=end_line,
        code="\n".join(line.removeprefix(indent) for line in code),
        docstring=docstring,
    )


def _without(docstring: ast.Constant, code: list[str], first: int, alone: bool) -> list[str]:
    """`code`, whose first line is line `first` of the file from 0, without its docstring."""
    start = docstring.lineno - 1 - first
    end = (docstring.end_lineno or docstring.lineno) - 1 - first
    # columns of `ast` count UTF-8 bytes
    before = code[start].encode()[: docstring.col_offset].decode()
    after = code[end].encode()[docstring.end_col_offset :].decode()
    if before.strip() or after.strip()[:1] not in ("", "#"):
        # it shares a line with something: `def f(): "text"`, `"text"; return 1`, `("text")`
        return [*code[:start], before + _EMPTY_BODY + after, *code[end + 1 :]]
    rest = code[end + 1 :]
    while rest and not rest[0].strip():
        rest = rest[1:]
    return [*code[:start], *([before + _EMPTY_BODY] if alone else []), *rest]
