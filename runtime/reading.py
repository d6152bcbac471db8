"""A source file as the index reads it: its functions, where in the file each stands, and what is embedded of one.

What is too large, binary or minified is refused with the reason. A file that does not parse is read as far
as it goes.
"""

from __future__ import annotations

import io
import tokenize
from dataclasses import dataclass
from itertools import accumulate

from codemill.runtime.functions import Function, functions_of, functions_of_parts
from codemill.runtime.languages import language_of

__all__ = ["LARGEST_FILE_BYTES", "Located", "Reading", "code_at", "embedded", "read_functions"]

LARGEST_FILE_BYTES = 4 * 2**20
# a byte that text has not, looked for where a file begins
_BINARY, _LOOKED_AT = b"\0", 8192
# characters of a line, on average, of what a program wrote for machines
_LONGEST_LINES = 300
_SMALLEST_MINIFIED = 4096
# characters: most of what a model reads should be code
_LONGEST_PARAGRAPH = 300


@dataclass(frozen=True, slots=True)
class Located:
    """A function, and the bytes of its file that it is made of."""

    function: Function
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Reading:
    """The functions of a file, and what is wrong with it, if anything is."""

    functions: list[Located]
    problem: str | None = None


def read_functions(name: str, content: bytes) -> Reading:
    """The functions of the file `name`. Raises ValueError with the reason where it is not to be read."""
    language = language_of(name)
    if len(content) > LARGEST_FILE_BYTES:
        raise ValueError(f"larger than {LARGEST_FILE_BYTES} bytes")
    if _BINARY in content[:_LOOKED_AT]:
        raise ValueError("binary, not text")
    if language == "python":
        return _python(content)
    line_bytes = len(content) // (content.count(b"\n") + 1)
    if len(content) >= _SMALLEST_MINIFIED and line_bytes > _LONGEST_LINES:
        raise ValueError(f"minified or generated: {line_bytes} characters a line")
    from codemill.runtime.syntax import functions_in

    assert language is not None
    suffix = name.rpartition(".")[2].lower()
    return Reading([Located(*item) for item in functions_in(content, language, suffix)])


def embedded(function: Function) -> str:
    """What is embedded of a function: the first paragraph of what is said about it, on one line, then its code.

    The model learned from code alone, and from such paragraphs as queries: it knows both. With the
    paragraph more is found by sentences that nobody wrote into the code (docs/LOG.md).
    """
    said: list[str] = []
    for line in (function.docstring or "").split("\n"):
        text = line.strip()
        # a blank line, or `@param`, `:param`, `\\param`
        if not text or text.startswith(("@", ":", "\\")):
            break
        said.append(text)
    paragraph = " ".join(said)[:_LONGEST_PARAGRAPH]
    return f"{paragraph}\n{function.code}" if paragraph else function.code


def code_at(name: str, content: bytes, start: int, end: int) -> str:
    """`Function.code` of the function of the file `name` in these bytes, without parsing the rest of it."""
    if language_of(name) == "python":
        return _python_code(content, start, end)
    from codemill.runtime.syntax import code_between

    return code_between(content, start, end)


def _python(content: bytes) -> Reading:
    problem = None
    try:
        functions = functions_of(content, inner=True)
    except (SyntaxError, ValueError) as error:
        functions, problem = functions_of_parts(content), _said(error)
    # the lines that Python counts, and no others
    ends = list(accumulate(map(len, content.splitlines(keepends=True)), initial=0))
    return Reading(
        [
            Located(item, ends[item.first_line - 1], ends[min(item.end_line, len(ends) - 1)])
            for item in functions
        ],
        problem,
    )


def _said(error: SyntaxError | ValueError) -> str:
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return f"{error.msg}, line {error.lineno}"
    return str(error)


def _python_code(content: bytes, start: int, end: int) -> str:
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    except SyntaxError:
        encoding = "utf-8"
    part = content[start:end].decode(encoding, "replace").lstrip("\f")
    indent = part[: len(part) - len(part.lstrip(" \t\f"))]
    lines = part.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n").split("\n")
    text = "\n".join(line.removeprefix(indent) for line in lines)
    try:
        # what its docstring is only the parser knows
        return functions_of(text, inner=True)[0].code
    except (SyntaxError, ValueError, IndexError):
        # `else: key = lambda x: x` is a function of its file, and nothing by itself
        return text
