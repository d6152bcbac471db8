"""What is imported when, and what the base install can do: checked in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXTRAS = (
    *("jinja2", "matplotlib", "onnx", "onnxscript", "optimum", "psutil", "pydantic", "pygad"),
    *("rich", "safetensors", "scipy", "sklearn", "torch", "transformers", "yaml"),
    "huggingface_hub",
)


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=False)


def without_extras(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A command line where only the base install is there."""
    return python(
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({EXTRAS}))\n"
        "from codemill.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n",
        *arguments,
    )


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("run", "--help")])
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    heavy = ("numpy", "onnxruntime", "tokenizers", *EXTRAS)
    ended = python(
        "import sys\n"
        "from codemill.cli import main\n"
        "code = main(sys.argv[1:])\n"
        f"print('imported:', *[name for name in {heavy} if name in sys.modules])\n"
        "sys.exit(code)\n",
        *arguments,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "imported:"


def test_help_of_the_group_imports_the_commands_but_no_libraries() -> None:
    ended = python(
        "import sys, codemill.cli\n"
        "print(*[name for name in sys.modules if name.startswith('codemill.compress.commands.')])"
    )
    assert ended.stdout.split() == []


def test_an_app_that_runs_a_bundle_imports_neither_torch_nor_the_command(bundle: Path) -> None:
    ended = python(
        "import sys, codemill\n"
        "assert not {'numpy', 'onnxruntime', 'tokenizers'} & set(sys.modules)\n"
        "codemill.load(sys.argv[1]).encode(['open a file'])\n"
        f"print(*[name for name in ('click', *{EXTRAS}) if name in sys.modules])\n",
        bundle,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == []


def test_find_with_the_bundle_that_codemill_brings_imports_no_extra(code: Path) -> None:
    ended = python(
        "import sys\n"
        "from codemill.cli import main\n"
        "code = main(['find', 'connect to a socket', sys.argv[1]])\n"
        f"print('imported:', *[name for name in {EXTRAS} if name in sys.modules])\n"
        "sys.exit(code)\n",
        code,
    )
    assert ended.returncode == 0, ended.stderr
    assert f"{code / 'sockets.py'}:1" in ended.stdout
    assert ended.stdout.splitlines()[-1] == "imported:"


def test_the_base_install_searches_python_and_says_what_it_passed_over(
    bundle: Path, code: Path
) -> None:
    (code / "a.go").write_text("package a\n\nfunc F() {}\n")
    without = (
        "import sys\n"
        "from importlib import util\n"
        "find_spec = util.find_spec\n"
        "util.find_spec = lambda name: None if name.startswith('tree_sitter') else find_spec(name)\n"
        f"sys.modules.update(dict.fromkeys(({EXTRAS}, 'tree_sitter')))\n"
        "from codemill.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    ).replace(f"({EXTRAS}, 'tree_sitter')", repr((*EXTRAS, "tree_sitter")))
    ended = python(without, "find", "connect socket", code, "--bundle", bundle)
    assert ended.returncode == 0, ended.stderr
    assert "connect" in ended.stdout
    assert (
        "passed over: 1 of Go (file); to search them too: pip install 'codemill[find]'"
        in ended.stderr
    )


def test_the_base_install_runs_inspects_and_searches(bundle: Path, code: Path) -> None:
    found = without_extras("find", "connect socket", code, "--bundle", bundle, "--top", "1")
    assert found.returncode == 0, found.stderr
    assert "connect" in found.stdout
    for arguments in (("inspect", bundle), ("verify", bundle)):
        assert without_extras(*arguments).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("run", "code-search"), "compress"),
        (("recipes",), "compress"),
        (("init",), "compress"),
        (("targets",), "bench"),
        (("bench", "x"), "bench"),
        (("report", "x.json", "--out", "x.html"), "bench"),
    ],
)
def test_a_command_that_needs_an_extra_says_how_to_install_it(
    arguments: tuple[str, ...], extra: str
) -> None:
    ended = without_extras(*arguments)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"pip install 'codemill[{extra}]'" in ended.stderr


def test_what_c_libraries_and_child_processes_print_stays_out_of_the_document() -> None:
    ended = python(
        "import os, subprocess, sys\n"
        "from codemill.compress.commands.output import print_json, quiet_stdout\n"
        "with quiet_stdout():\n"
        "    print('print'); os.write(1, b'write\\n')\n"
        "    subprocess.run([sys.executable, '-c', 'print(\"child\")'])\n"
        "print_json({'size_bytes': 1})\n"
    )
    assert ended.stdout == '{\n "size_bytes": 1\n}\n'
    assert sorted(ended.stderr.split()) == ["child", "print", "write"]


def test_a_reader_that_goes_away_is_no_error(bundle: Path) -> None:
    texts = Path("texts.txt")
    texts.write_text("open a file\n" * 3000)
    command = [sys.executable, "-m", "codemill.cli", "encode", str(bundle), str(texts)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
