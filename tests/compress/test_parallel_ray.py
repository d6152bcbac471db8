"""The map on a Ray of two workers on this machine, one of which is killed midway."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from codemill.compress.parallel import map_to_files

from . import mapped

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="ray is not installed (extra scale)"
    ),
]

# in a process of its own: Ray changes signal handlers, and reads its settings once
SCRIPT = """
import json, sys
from pathlib import Path
from tests.compress import mapped
from codemill.compress.parallel import Cluster, map_to_files
from codemill.errors import CodemillError

function, items, folder, address, memory = json.loads(sys.argv[1])
told, addresses = [], set()

def tell(*now):
    told.append(now)
    if now[0]:
        import ray
        addresses.update(node["NodeManagerAddress"] for node in ray.nodes())

try:
    results = map_to_files(
        getattr(mapped, function), items, Path(folder), workers=2,
        memory_per_item_bytes=memory, cluster=Cluster(address), on_done=tell,
    )
    print(json.dumps([results, told, sorted(addresses)]))
except CodemillError as error:
    print(json.dumps([type(error).__name__, str(error), told]))
import ray
assert not ray.is_initialized()
"""


def on_ray(
    function: str,
    items: list[Any],
    folder: Path,
    address: str | None = None,
    memory: int | None = None,
) -> list[Any]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([function, items, str(folder), address, memory])],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == "", "nothing of Ray's on the user's terminal"
    return list(json.loads(ended.stdout))


def test_a_worker_killed_midway_loses_nothing_and_what_is_there_is_not_repeated(
    tmp_path: Path,
) -> None:
    notes, out = tmp_path / "notes", tmp_path / "out"
    notes.mkdir()
    items = [{"number": number, "notes": str(notes), "deaths": 1} for number in range(6)]
    results, told, addresses = on_ray("die_in_company", items, out)
    assert results == [0, 10, 20, 30, 40, 50]
    assert told == [[done, 6] for done in range(7)]
    assert addresses == ["127.0.0.1"], "no other machine can reach it"
    assert mapped.evaluations(notes) == {0: 1, 1: 1, 2: 2, 3: 1, 4: 1, 5: 1}
    contents = [json.loads(path.read_text()) for path in out.iterdir()]
    assert {c["item"]["number"]: c["result"] for c in contents} == dict(enumerate(results))
    # a map without Ray finds the same files
    assert map_to_files(mapped.die_in_company, items, out, workers=1) == results
    assert mapped.evaluations(notes)[2] == 2


def test_an_error_keeps_its_type_and_a_cluster_that_is_not_there_is_said_at_once(
    tmp_path: Path,
) -> None:
    notes, out = tmp_path / "notes", tmp_path / "out"
    notes.mkdir()
    items = [{"number": 2, "notes": str(notes), "kind": "model"}]
    # and more memory than any node has is not waited for
    assert on_ray("fail", items, out, memory=10**15) == ["ModelError", "no such model", [[0, 1]]]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        kind, message, _ = on_ray("fail", items, out, address)
    assert kind == "MachineError"
    assert message.startswith(f"no Ray cluster answers at {address}")
