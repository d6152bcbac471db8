"""Functions that workers of test_parallel.py and test_parallel_ray.py import, and a map to be killed."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import Any

from codemill.compress.parallel import map_to_files
from codemill.errors import CodemillError, ModelError


class Picky(CodemillError):
    """Cannot be unpickled: it keeps other arguments than it takes."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def note(item: dict[str, Any]) -> None:
    """A file for each time an item is evaluated."""
    name = f"{item['number']}-{os.getpid()}-{secrets.token_hex(4)}"
    (Path(item["notes"]) / name).touch()


def evaluations(notes: Path) -> dict[int, int]:
    counts: dict[int, int] = {}
    for path in notes.iterdir():
        number = int(path.name.partition("-")[0])
        counts[number] = counts.get(number, 0) + 1
    return counts


def processes(notes: Path) -> set[str]:
    return {path.name.split("-")[1] for path in notes.iterdir()}


def square(item: dict[str, Any]) -> dict[str, Any]:
    note(item)
    return {"square": item["number"] ** 2, "seen": sorted(item)}


def cube(item: dict[str, Any]) -> int:
    note(item)
    return int(item["number"] ** 3)


def slow_square(item: dict[str, Any]) -> float:
    time.sleep(0.05)
    note(item)
    return item["number"] ** 2 / 7


def die_first(item: dict[str, Any]) -> int:
    """The worker is killed the first so many times that it evaluates item 2."""
    note(item)
    if item["number"] == 2 and evaluations(Path(item["notes"]))[2] <= item["deaths"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return int(item["number"] * 10)


def die_in_company(item: dict[str, Any]) -> int:
    """As die_first, once two workers have begun."""
    note(item)
    while len(processes(Path(item["notes"]))) < 2:
        time.sleep(0.01)
    if item["number"] == 2 and evaluations(Path(item["notes"]))[2] <= item["deaths"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return int(item["number"] * 10)


def leave(item: dict[str, Any]) -> None:
    os._exit(7)


def fail(item: dict[str, Any]) -> int:
    note(item)
    if item["number"] == 2:
        raise {"model": ModelError, "key": KeyError}[item["kind"]]("no such model")
    return int(item["number"])


def fail_pickily(item: dict[str, Any]) -> int:
    raise Picky("one", "two")


def not_json(item: dict[str, Any]) -> float:
    return float("nan")


def environment(item: dict[str, Any]) -> list[Any]:
    return [os.environ.get("OMP_NUM_THREADS"), "numpy" in sys.modules]


def plain_square(number: int) -> int:
    return number**2


def wait_forever(item: dict[str, Any]) -> None:
    note(item)
    time.sleep(600)


if __name__ == "__main__":
    # python -m tests.compress.mapped FUNCTION NOTES FOLDER COUNT
    from tests.compress import mapped

    chosen, notes, folder, count = sys.argv[1:]
    wanted = [{"number": number, "notes": notes} for number in range(int(count))]
    print(map_to_files(getattr(mapped, chosen), wanted, Path(folder), workers=2))
