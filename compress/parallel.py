"""One `map` over independent items: a process pool on one machine.

Labelling, mining and evaluating candidates go through here and know nothing else of where they run.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

__all__ = ["map_processes"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, chunk: int = 1
) -> Iterator[Result]:
    """Yield function(item) in the items' order. `function` is a module-level function; one worker runs in place."""
    if workers <= 1:
        yield from map(function, items)
        return
    # spawn: a fork of a process with torch or onnxruntime threads may hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start) as pool:
        yield from pool.map(function, items, chunksize=chunk)


def _start() -> None:
    """What a worker does first."""
    # a Ctrl-C reaches every process of the terminal: the parent's is the one that counts
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()


def _end_with_parent() -> None:
    """End this worker when the process that started it is gone, killed ones included."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
