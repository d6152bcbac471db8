from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from codemill.errors import BundleError, MachineError
from codemill.targets import Engine, EngineProcess

Make = Callable[..., Engine]


def script(code: str) -> Engine:
    return Engine("odd", (sys.executable, "-c", code), "reference", 0)


def test_a_worker_says_it_is_ready_and_what_it_is(engine: Make) -> None:
    with EngineProcess(engine("mock")) as process:
        assert process.ready["ready"] is True
        info = process.ask({"op": "info"})
    assert (info["engine"], info["provider"]) == ("mock", "CPUExecutionProvider")
    assert info["packages"]["numpy"] == np.__version__
    assert info["first_encode_ms"] > 0
    assert process.cold_start_ms > info["load_ms"] + info["first_encode_ms"]


def test_what_libraries_print_does_not_disturb_the_protocol(engine: Make) -> None:
    # the mock prints to stdout at every encode, from Python and past it
    with EngineProcess(engine("mock")) as process:
        answer = process.ask({"op": "time", "texts": ["a b", "c"], "repeats": 5, "warmup": 1})
        assert len(answer["ms"]) == 5


def test_embeddings_come_back_in_the_order_of_the_texts(engine: Make, tmp_path: Path) -> None:
    texts = [f"{'long ' * (i * 7 % 50)}text{i}" for i in range(70)]
    with EngineProcess(engine("mock")) as process:
        process.ask({"op": "encode", "texts": texts, "out": str(tmp_path / "all.npy")})
        process.ask({"op": "encode", "texts": texts[3:4], "out": str(tmp_path / "one.npy")})
    every, one = np.load(tmp_path / "all.npy"), np.load(tmp_path / "one.npy")
    assert every.shape == (70, 64)
    np.testing.assert_array_equal(every[3], one[0])


def test_a_call_is_one_batch_and_goes_round_the_texts(engine: Make) -> None:
    texts = ["a", "b", "c", "d"]
    with EngineProcess(engine("mock", busy_ms=4)) as process:
        single = process.ask({"op": "time", "texts": texts, "batch": 1, "repeats": 6, "warmup": 0})
        pairs = process.ask({"op": "time", "texts": texts, "batch": 2, "repeats": 4, "warmup": 0})
        # the fifth text is DIE: batches of one reach it only on the fifth call
        odd = {"op": "time", "texts": [*texts, "DIE"], "batch": 1, "warmup": 0}
        assert len(process.ask({**odd, "repeats": 4})["ms"]) == 4
        with pytest.raises(MachineError):
            process.ask({**odd, "repeats": 5})
    assert min(single["ms"]) >= 4
    assert min(pairs["ms"]) >= 8


def test_a_time_limit_ends_the_repeats_but_not_before_three(engine: Make) -> None:
    with EngineProcess(engine("mock", busy_ms=20)) as process:
        request = {"op": "time", "texts": ["a"], "repeats": 100, "warmup": 0, "max_s": 0.01}
        assert len(process.ask(request)["ms"]) == 3


def test_an_error_in_a_request_is_told_and_the_worker_goes_on(engine: Make) -> None:
    with EngineProcess(engine("mock")) as process:
        with pytest.raises(MachineError, match=r"'mock'.*ValueError.*cannot be encoded"):
            process.ask({"op": "time", "texts": ["RAISE"], "repeats": 1})
        with pytest.raises(MachineError, match="unknown op 'dance'"):
            process.ask({"op": "dance"})
        assert process.ask({"op": "count", "texts": ["a b c"]}) == {"tokens": [3]}


def test_codemills_own_errors_keep_their_kind_across_the_process(engine: Make) -> None:
    with pytest.raises(BundleError, match=r"'mock': there is no bundle here"):
        EngineProcess(engine("mock", fail="load"))


def test_a_worker_that_dies_is_an_error_with_the_end_of_its_stderr(engine: Make) -> None:
    with (
        EngineProcess(engine("mock")) as process,
        pytest.raises(MachineError, match=r"(?s)exit code 7 during 'time'.*the last words"),
    ):
        process.ask({"op": "time", "texts": ["DIE"], "repeats": 1})


def test_a_worker_that_dies_before_it_is_ready_is_an_error_with_its_stderr() -> None:
    code = "import sys; sys.stderr.write('no such module: torch'); sys.exit(3)"
    with pytest.raises(MachineError, match=r"(?s)exit code 3 during 'start'.*no such module"):
        EngineProcess(script(code))


def test_a_worker_ended_by_a_signal_is_told_so() -> None:
    with pytest.raises(MachineError, match="SIGKILL"):
        EngineProcess(script("import os; os.kill(os.getpid(), 9)"))


def test_a_worker_that_does_not_answer_is_ended(engine: Make) -> None:
    started = time.perf_counter()
    with (
        EngineProcess(engine("mock")) as process,
        pytest.raises(MachineError, match=r"did not answer 'time' within 0\.3 s"),
    ):
        process.ask({"op": "time", "texts": ["HANG"], "repeats": 1}, timeout_s=0.3)
    assert time.perf_counter() - started < 20
    assert process._process.poll() is not None


def test_what_is_not_the_protocol_is_an_error() -> None:
    with pytest.raises(MachineError, match=r"'hello\\n' to 'start', which is not a JSON object"):
        EngineProcess(script("print('hello'); input()"))
    with pytest.raises(MachineError, match="where it should say it is ready"):
        EngineProcess(script("print('{}'); input()"))


def test_a_command_that_is_not_there_is_an_error() -> None:
    with pytest.raises(MachineError, match="cannot start"):
        EngineProcess(Engine("gone", ("/no/such/program",), "reference", 0))


@pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX")
def test_children_of_a_worker_end_with_it(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(note)!r}, 'w').write(str(child.pid))\n"
        "print('{\"ready\": true}', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    with EngineProcess(script(code)):
        pid = int(note.read_text())
    for _ in range(50):
        # gone, or a zombie that nobody has waited for
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().split(")")[1].split()[0] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("the worker's child is still running")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_workers_peak_memory_is_its_own_and_not_its_parents(engine: Make) -> None:
    held = np.ones(50_000_000)  # 400 MB here, which ru_maxrss would hand down to the child
    with EngineProcess(engine("mock")) as process:
        peak = process.ready["peak_rss_bytes"]
    assert 10_000_000 < peak < 200_000_000 < held.nbytes
