"""The functions of a piece of Python source, each without its docstring.

One reading for two users: the search index (`reading.py`), and the training data, which are made of
the same `code` with `docstring` beside it. Other languages' functions are read in `syntax.py`. Reads
syntax only (`ast`): nothing is imported or run, and no name is resolved. Which files to read is the
caller's business.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
import warnings
from dataclasses import dataclass, replace

__all__ = ["SHORTEST_INNER", "Function", "functions_of", "functions_of_parts"]

SHORTEST_INNER = 3
"""Lines of a function inside another one that is worth finding by itself."""

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_EMPTY_BODY = "..."
_OPENING = re.compile(r"([ \t]*)(?:async[ \t]+)?(def|class)[ \t]+(\w+)")


@dataclass(frozen=True, slots=True)
class Function:
    """A function or method as written in a file.

    `qualified_name` is dotted through classes (`Class.method`); two definitions may share it (a
    property and its setter, the branches of an `if`). `line` is that of `def`, `first_line` that of
    its first decorator, if any, and `end_line` the last one, all counted from 1. `code` is the
    dedented source with its decorators and without its docstring; it parses. `docstring` is cleaned
    as by `inspect.cleandoc`, None where there is none or it is empty.
    """

    qualified_name: str
    line: int
    first_line: int
    end_line: int
    code: str
    docstring: str | None


def functions_of(source: str | bytes, inner: bool = False) -> list[Function]:
    """Every function and method of `source`, in the order they are written.

    Bytes are decoded as Python does it (byte order mark, coding line, else UTF-8). A function
    defined inside another one is part of that one's code; `inner` lists those of three lines or more
    by themselves too, and lambdas that an assignment names. Most of the time goes into `ast.parse`;
    whoever reads thousands of files saves a fifth of it by calling `gc.disable()` meanwhile.

    Raises SyntaxError or ValueError (an undecodable file, a null byte, nesting beyond what the
    parser takes), and nothing else.
    """
    text = _decode(source)
    if "def" not in text and not (inner and "lambda" in text):
        # spares parsing the tables of data, which are the largest files of many packages
        return []
    lines = text.split("\n")
    found: list[Function] = []
    # a stack rather than recursion: a chain of a thousand `elif` nests a thousand deep
    waiting: list[tuple[ast.AST, str, bool]] = [(_parse(text), "", False)]
    while waiting:
        node, prefix, inside = waiting.pop()
        if isinstance(node, _FUNCTIONS):
            function = _function(node, prefix, lines)
            if not inside or function.end_line - function.first_line + 1 >= SHORTEST_INNER:
                found.append(function)
            if not inner:
                continue
            prefix, inside = f"{function.qualified_name}.", True
        elif inner and (name := _lambda_name(node)) is not None:
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            function = _lambda(node, prefix + name, lines)
            if not inside or function.end_line - function.line + 1 >= SHORTEST_INNER:
                found.append(function)
            continue
        if isinstance(node, ast.ClassDef):
            prefix = f"{prefix}{node.name}."
        for block in ("finalbody", "orelse", "handlers", "cases", "body"):
            statements = getattr(node, block, None)
            # `body` of a lambda or a conditional expression is not a list of statements
            if isinstance(statements, list):
                waiting.extend((child, prefix, inside) for child in reversed(statements))
    return found


def functions_of_parts(content: bytes) -> list[Function]:
    """The functions of a file that does not parse: of each definition that does, by its indentation."""
    text = content.decode("utf-8", "replace").removeprefix("\ufeff")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    found: list[Function] = []
    classes: list[tuple[int, str]] = []
    past = 0
    for number, line in enumerate(lines):
        opening = _OPENING.match(line)
        if opening is None or number < past:
            continue
        indent = len(opening[1])
        classes = [item for item in classes if item[0] < indent]
        if opening[2] == "class":
            classes.append((indent, opening[3]))
            continue
        first = number
        while first > 0 and lines[first - 1].startswith(f"{opening[1]}@"):
            first -= 1
        end = number + 1
        while end < len(lines) and _belongs(lines[end], indent):
            end += 1
        while not lines[end - 1].strip():
            end -= 1
        part = "\n".join(text.removeprefix(opening[1]) for text in lines[first:end])
        try:
            functions = functions_of(part, inner=True)
        except (SyntaxError, ValueError):
            continue
        past = end
        prefix = "".join(f"{name}." for _, name in classes)
        found += [
            replace(
                function,
                qualified_name=prefix + function.qualified_name,
                line=function.line + first,
                first_line=function.first_line + first,
                end_line=function.end_line + first,
            )
            for function in functions
        ]
    return found


def _belongs(line: str, indent: int) -> bool:
    """Whether a line is inside the block of a definition that is so far indented."""
    text = line.lstrip(" \t")
    # the end of parameters that stand below each other
    return not text or len(line) - len(text) > indent or text[0] in ")]"


def _lambda_name(node: ast.AST) -> str | None:
    if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Lambda):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if len(targets) == 1 and isinstance(targets[0], ast.Name):
            return targets[0].id
    return None


def _lambda(node: ast.Assign | ast.AnnAssign, qualified_name: str, lines: list[str]) -> Function:
    end_line = node.end_lineno or node.lineno
    code = lines[node.lineno - 1 : end_line]
    indent = code[0][: len(code[0]) - len(code[0].lstrip())]
    return Function(
        qualified_name=qualified_name,
        line=node.lineno,
        first_line=node.lineno,
        end_line=end_line,
        code="\n".join(line.removeprefix(indent) for line in code),
        docstring=None,
    )


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
        first_line=first + 1,
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
