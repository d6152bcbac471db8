"""`compress profile`: what it asks for, refuses and writes; and that a kit needs the base install only."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codemill.targets import Shape
from codemill.targets.latency import Kit, KitGraph, KitTarget, measure, read_profile, write_kit

CPU = "CPUExecutionProvider"
BEYOND_THE_BASE = (
    *("jinja2", "matplotlib", "onnx", "onnxscript", "optimum", "pandas", "psutil", "pydantic"),
    *("pygad", "rich", "safetensors", "scipy", "sklearn", "torch", "transformers", "yaml"),
)

Compress = Callable[..., Any]


def write_small_kit(folder: Path, bundle: Path, provider: str = CPU, graphs: int = 8) -> Path:
    """Graphs that are all the small bundle's, said to be of architectures of one layer more each."""
    folder.mkdir()
    content = (bundle / "variants/cpu-fp32/encoder.onnx").read_bytes()
    found = []
    for layers in range(1, graphs + 1):
        (folder / f"{layers}.onnx").write_bytes(content)
        architecture = {
            **{"vocab_size": 50, "hidden_size": 16, "layers": layers, "heads": 2, "head_size": 8},
            **{"intermediate_size": 32, "max_tokens": 16, "embedding_rank": None},
        }
        sha256 = hashlib.sha256(content).hexdigest()
        found.append(KitGraph(str(layers), f"{layers}.onnx", sha256, "int8", architecture))
    shapes = (Shape(8), Shape(16, 2))
    write_kit(folder, Kit(1, "0", KitTarget("laptop-cpu", provider, 1), "1", shapes, tuple(found)))
    return folder


@pytest.fixture
def kit(tmp_path: Path, bundle: Path) -> Path:
    return write_small_kit(tmp_path / "kit", bundle)


def test_a_kit_is_measured_and_the_profile_and_its_worth_are_shown(
    compress: Compress, kit: Path
) -> None:
    ended = compress("profile", "--kit", kit, "--out", "latency.json", "--minutes", "0.001")
    assert ended.code == 0, ended.err
    profile = read_profile(Path("latency.json"))
    assert (len(profile.rows), profile.threads) == (16, 1)
    # as many as there is time for, and three at least
    assert profile.rounds >= 3
    for part in ("8 in int8", "anchor, 1 x 8 tokens", "anchor, 2 x 16 tokens", "rank correlation"):
        assert part in ended.out
    assert "wrote latency.json" in ended.err
    assert [path.name for path in Path().iterdir()] == ["latency.json"]


def test_json_is_one_document(compress: Compress, kit: Path) -> None:
    ended = compress(
        *("profile", "--kit", kit, "--out", "new/latency.json", "--minutes", "0.001"),
        *("--threads", "2", "--json"),
    )
    assert ended.code == 0, ended.err
    document = ended.document
    assert document["files"] == ["new/latency.json"]
    assert (document["rows"], document["threads"]) == (16, 2)
    assert document["held_out"]["int8"]["architectures"] == 8
    assert document["anchor"]["latencies"][0]["latency_ms"] > 0
    assert read_profile(Path("new/latency.json")).kit_sha256 == document["kit_sha256"]


def test_the_base_install_measures_a_kit(kit: Path) -> None:
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({BEYOND_THE_BASE}))\n"
        "from codemill.cli import main\n"
        "code = main(sys.argv[1:])\n"
        f"print('imported:', *[name for name in {BEYOND_THE_BASE} if sys.modules.get(name)])\n"
        "sys.exit(code)\n"
    )
    ended = subprocess.run(
        [
            *(sys.executable, "-c", code, "profile", "--kit", kit),
            *("--out", "latency.json", "--minutes", "0.001"),
        ],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "imported:"
    assert "`compress search` will state it" in ended.stdout
    assert len(read_profile(Path("latency.json")).rows) == 16


def test_measuring_a_kit_imports_nothing_beyond_the_base_install(kit: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from codemill.targets.latency import measure, read_kit\n"
        "folder = Path(sys.argv[1])\n"
        "measure(folder, read_kit(folder), minutes=1e-9)\n"
        "print(*[n for n in ('torch', 'onnx', 'scipy', 'sklearn', 'yaml') if n in sys.modules])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, kit], capture_output=True, encoding="utf-8", check=False
    )
    assert (ended.returncode, ended.stdout.split()) == (0, []), ended.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--out latency.json"),
        (("--make-kit", "kit", "--out", "latency.json"), "leave out --out"),
        (("--make-kit", "kit", "--kit", "kit", "--threads", "1"), "leave out --kit, --threads"),
        (("--out", "latency.json", "--minutes", "0"), "--minutes"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    compress: Compress, arguments: tuple[str, ...], said: str
) -> None:
    ended = compress("profile", *arguments)
    assert ended.code == 2
    assert said in ended.err
    assert not list(Path().iterdir())


def test_a_target_that_this_machine_cannot_run_is_refused_with_what_is_there(
    compress: Compress,
) -> None:
    lines = ("name: mine", "description: A GPU", "provider: CUDAExecutionProvider")
    more = ("precision: fp16", "threads: null", "memory_bytes: null")
    Path("mine.yaml").write_text("\n".join((*lines, *more)))
    ended = compress("profile", "--target", "mine.yaml", "--out", "latency.json")
    assert ended.code == 1
    assert "has no CUDAExecutionProvider" in ended.err
    assert CPU in ended.err
    ended = compress("profile", "--target", "abacus", "--out", "latency.json")
    assert ended.code == 1
    assert "no target is called 'abacus'" in ended.err
    assert "laptop-cpu" in ended.err


def test_a_kit_for_what_is_not_here_is_refused(
    compress: Compress, tmp_path: Path, bundle: Path, kit: Path
) -> None:
    other = write_small_kit(tmp_path / "other", bundle, provider="CUDAExecutionProvider", graphs=1)
    ended = compress("profile", "--kit", other, "--out", "latency.json")
    assert ended.code == 1
    assert "has no CUDAExecutionProvider" in ended.err
    ended = compress("profile", "--kit", kit, "--target", "laptop-arm", "--out", "latency.json")
    assert ended.code == 1
    assert "was made for laptop-cpu" in ended.err
    ended = compress("profile", "--kit", kit, "--threads", "999", "--out", "latency.json")
    assert ended.code == 1
    assert "it takes 999 threads" in ended.err
    assert not list(Path().iterdir())


def test_places_that_cannot_be_written_are_found_before_anything_is_measured(
    compress: Compress, kit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        pytest.fail("it was measured")

    monkeypatch.setattr("codemill.targets.latency.measure", never)
    Path("folder").mkdir()
    ended = compress("profile", "--kit", kit, "--out", "folder")
    assert ended.code == 1
    assert "folder is a folder" in ended.err
    Path("full").mkdir()
    Path("full/file").touch()
    ended = compress("profile", "--make-kit", "full")
    assert ended.code == 1
    assert "full is not empty" in ended.err


def test_a_kit_that_is_none_is_refused(compress: Compress, kit: Path) -> None:
    ended = compress("profile", "--kit", "nowhere", "--out", "latency.json")
    assert ended.code == 1
    assert "kit.json does not exist; expected a kit of graphs" in ended.err
    (kit / "3.onnx").write_bytes(b"other")
    ended = compress("profile", "--kit", kit, "--out", "latency.json")
    assert ended.code == 1
    assert "graphs[2]" in ended.err


def test_a_kit_is_made_and_its_graphs_are_measured(
    compress: Compress, monkeypatch: pytest.MonkeyPatch
) -> None:
    from codemill.compress.architecture import Architecture

    small = tuple(Architecture(60, 32, 1, 1, 16, 32 * n, 512) for n in (1, 2))
    monkeypatch.setattr("codemill.compress.search.latency_kit.kit_architectures", lambda: small)
    # in this process, where the names above are changed
    monkeypatch.setattr("codemill.compress.commands.profile._MOST_WORKERS", 1)
    made = compress("profile", "--make-kit", "kit", "--json")
    assert made.code == 0, made.err
    assert made.document["graphs"] == 3
    files = {path.name for path in Path("kit").iterdir()}
    assert files == {"kit.json", "00-int8.onnx", "00-fp32.onnx", "01-int8.onnx"}
    written = json.loads(Path("kit/kit.json").read_text())
    assert written["target"] == {"name": "laptop-cpu", "provider": CPU, "threads": 2}
    from codemill.targets.latency import read_kit

    profile = measure(Path("kit"), read_kit(Path("kit")), threads=1, minutes=1e-9)
    assert {row.precision for row in profile.rows} == {"int8", "fp32"}
