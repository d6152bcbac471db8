"""Where functions of the standard library come that somebody asks for in a sentence of his own.

    python scripts/bench/find_sentences.py [BUNDLE] [--json]

The sentences below were written without a look at the code; beside each stand the functions that would do. All
functions of the standard library are embedded, its tests left out, once for each form of text that could stand
for a function. Told are the mean reciprocal rank of the best of them, and how often it is among the first one,
five and ten. Few sentences: a difference of .05 is noise. BUNDLE is by default the one codemill brings.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
from collections.abc import Callable
from pathlib import Path

import codemill
from codemill.runtime import Encoder
from codemill.runtime.functions import Function
from codemill.runtime.reading import embedded, read_functions

_WITHOUT = {"site-packages", "test", "tests", "idlelib", "lib2to3"}

_SENTENCES = {
    "find all files matching a wildcard pattern": (
        "glob:glob",
        "glob:iglob",
    ),
    "wrap a long paragraph to a given line width": (
        "textwrap:TextWrapper.fill",
        "textwrap:TextWrapper.wrap",
        "textwrap:fill",
        "textwrap:wrap",
    ),
    "strip common leading whitespace from every line": ("textwrap:dedent",),
    "delete a whole directory tree": ("shutil:rmtree",),
    "copy a file together with its metadata": (
        "shutil:copy2",
        "shutil:copystat",
    ),
    "insert an item into a sorted list": (
        "bisect:insort_left",
        "bisect:insort_right",
    ),
    "parse an ISO date": (
        "datetime:_parse_isoformat_date",
        "datetime:date.fromisoformat",
        "datetime:datetime.fromisoformat",
    ),
    "compute the standard deviation of a sample": ("statistics:stdev",),
    "median of numbers": ("statistics:median",),
    "decode base64 text": (
        "base64:b64decode",
        "base64:decodebytes",
        "base64:standard_b64decode",
    ),
    "shuffle a list in place": ("random:Random.shuffle",),
    "pick a random element": ("random:Random.choice",),
    "get the name of the current user": ("getpass:getuser",),
    "ask for a password without echo": (
        "getpass:fallback_getpass",
        "getpass:unix_getpass",
        "getpass:win_getpass",
    ),
    "escape html special characters": ("html:escape",),
    "send an email message through a mail server": (
        "smtplib:SMTP.send_message",
        "smtplib:SMTP.sendmail",
    ),
    "split a shell command line into words": ("shlex:split",),
    "guess the mime type of a file": (
        "mimetypes:MimeTypes.guess_type",
        "mimetypes:guess_type",
    ),
    "create a temporary directory": (
        "tempfile:TemporaryDirectory.__init__",
        "tempfile:mkdtemp",
    ),
    "download a url to a local file": (
        "urllib.request:URLopener.retrieve",
        "urllib.request:urlretrieve",
    ),
    "percent encode a string for use in a url": (
        "urllib.parse:quote",
        "urllib.parse:quote_from_bytes",
        "urllib.parse:quote_plus",
    ),
    "cache the results of function calls": (
        "functools:cache",
        "functools:lru_cache",
    ),
    "pretty print a nested data structure": (
        "pprint:PrettyPrinter.pprint",
        "pprint:pp",
        "pprint:pprint",
    ),
    "where is an executable on the path": ("shutil:which",),
    "disk space that is free": ("shutil:disk_usage",),
    "leap year": (
        "calendar:isleap",
        "calendar:leapdays",
    ),
    "compare two files byte by byte": (
        "filecmp:_do_cmp",
        "filecmp:cmp",
    ),
    "count how often each element occurs": (
        "collections:Counter.__init__",
        "collections:Counter.update",
    ),
    "open a web page in the browser": (
        "webbrowser:open",
        "webbrowser:open_new",
        "webbrowser:open_new_tab",
    ),
    "greatest common prefix of path names": (
        "genericpath:commonprefix",
        "ntpath:commonpath",
        "posixpath:commonpath",
    ),
    "merge several sorted inputs": ("heapq:merge",),
    "keep only the largest n elements": ("heapq:nlargest",),
    "run a command and capture its output": (
        "subprocess:check_output",
        "subprocess:getoutput",
        "subprocess:getstatusoutput",
        "subprocess:run",
    ),
    "serialise an object to a JSON string": ("json:dumps",),
    "write rows of dictionaries as csv": (
        "csv:DictWriter.writerow",
        "csv:DictWriter.writerows",
    ),
    "extract all members of a tar archive": ("tarfile:TarFile.extractall",),
    "find close matches of a misspelled word": ("difflib:get_close_matches",),
    "unified diff of two texts": ("difflib:unified_diff",),
    "format a traceback as text": (
        "traceback:format_exc",
        "traceback:format_exception",
        "traceback:format_tb",
    ),
    "measure execution time of small code": (
        "timeit:Timer.timeit",
        "timeit:main",
        "timeit:timeit",
    ),
    "read a configuration file": (
        "configparser:RawConfigParser.read",
        "configparser:RawConfigParser.read_file",
    ),
    "generate a random uuid": ("uuid:uuid4",),
    "thread that fires after a delay": (
        "threading:Timer.__init__",
        "threading:Timer.run",
    ),
    "convert a roman or fraction from a float": ("fractions:Fraction.from_float",),
}


def _plain(function: Function) -> str:
    return function.code


def _named(function: Function) -> str:
    return f"{function.qualified_name}\n{function.code}"


def _named_and_said(function: Function) -> str:
    return f"{function.qualified_name}\n{embedded(function)}"


_FORMS: dict[str, Callable[[Function], str]] = {
    "code": _plain,
    "what is said, code (the index)": embedded,
    "name, code": _named,
    "name, what is said, code": _named_and_said,
}


def _functions() -> dict[str, Function]:
    """By `module:qualified name`, the first of each."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, Function] = {}
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if _WITHOUT & set(inside.parts):
            continue
        module = ".".join(inside.with_suffix("").parts).removesuffix(".__init__")
        try:
            functions = read_functions(path.name, path.read_bytes()).functions
        except ValueError:
            continue
        for item in functions:
            found.setdefault(f"{module}:{item.function.qualified_name}", item.function)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", default="code-search")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    functions = _functions()
    names = list(functions)
    results: dict[str, dict[str, object]] = {}
    with codemill.load(chosen.bundle) as model:
        assert isinstance(model, Encoder)
        queries = model.encode(list(_SENTENCES))
        for form, text_of in _FORMS.items():
            rows = model.encode([text_of(function) for function in functions.values()])
            ranks = {}
            for query, (sentence, wanted) in zip(queries, _SENTENCES.items(), strict=True):
                scores = rows @ query
                best = max(scores[names.index(name)] for name in wanted if name in functions)
                ranks[sentence] = int((scores > best).sum()) + 1
            results[form] = {
                "mrr": sum(1 / rank for rank in ranks.values()) / len(ranks),
                **{
                    f"first_{n}": sum(rank <= n for rank in ranks.values()) / len(ranks)
                    for n in (1, 5, 10)
                },
                "ranks": ranks,
            }
            if not chosen.json:
                told = {
                    key: f"{value:.3f}" for key, value in results[form].items() if key != "ranks"
                }
                print(f"{form:32}", told, flush=True)
    if chosen.json:
        print(json.dumps({"functions": len(names), "forms": results}, indent=1))


if __name__ == "__main__":
    main()
