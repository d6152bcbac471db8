"""One `map` over independent items: processes on one machine, Ray on many.

Labelling, mining and evaluating candidates go through here and know nothing else of where they run.
`map_processes` hands results over as they come. `map_to_files` keeps each in a file, so that a killed
search continues, and can run on a Ray cluster; nothing but the items, the function's name and the results
travels there.

Why not `concurrent.futures.ProcessPoolExecutor`: there one worker that dies takes the results of all
others with it, and does not say which item it died of.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection
from pathlib import Path
from typing import Any, TypeVar

from codemill.errors import CodemillError, MachineError
from codemill.runtime.atomic import write_atomically
from codemill.runtime.machine import physical_cores, this_machine

__all__ = ["Cluster", "map_processes", "map_to_files"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_RETRIES = 2
"""So often an item is tried again after its worker died."""
_PATIENCE_S = 5.0
_SHOWN_CHARACTERS = 200
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster to run on; needs the extra `scale`.

    address: of a running one, as `ray.init` takes it ("host:6379", "auto"). None: what the environment's
    RAY_ADDRESS says, and without it a Ray of our own on this machine, which ends with the map.
    """

    address: str | None = None


def map_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, chunk: int = 1
) -> Iterator[Result]:
    """Yield function(item) in the items' order. `function` is a module-level function; one worker runs in place."""
    if workers <= 1:
        yield from map(function, items)
        return
    chunks = [items[start : start + chunk] for start in range(0, len(items), chunk)]
    early: dict[int, list[Result]] = {}
    following = 0
    with contextlib.closing(_in_processes(partial(_each, function), chunks, workers)) as done:
        for index, results in done:
            early[index] = results
            while following in early:
                yield from early.pop(following)
                following += 1


def _each(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]


def map_to_files(
    function: Callable[[dict[str, Any]], Any],
    items: Sequence[dict[str, Any]],
    folder: Path,
    *,
    version: int = 1,
    workers: int | None = None,
    threads: int | None = None,
    memory_per_item_bytes: int | None = None,
    cluster: Cluster | None = None,
    on_done: Callable[[int, int], None] = lambda done, total: None,  # noqa: ARG005
) -> list[Any]:
    """Return function(item) for each item, in order; what `folder` has already is not evaluated again.

    function: a function of a module that workers can import. Items and results are plain JSON. Whatever else
    shapes a result belongs into the item; raise `version` when the function itself changes.
    folder: gets a file for each different item, named by a hash of function, version and item.
    workers: the most at once; None: this machine's cores, or the cluster's.
    threads: of all workers together; each computes with threads // workers, at least 1. None: all cores.
    memory_per_item_bytes: fewer workers are started where so much for each is not available, at least one.
    on_done: called with how many different items are done, and of how many; first before any is evaluated.

    An item whose worker dies is tried again, after the others and twice at most. An exception of the function's
    is raised here, once what is being evaluated is done. Whatever ends the map, `folder` keeps the results so far.

    Raises MachineError for an item that its workers die of, a missing extra and a cluster that cannot be used;
    OSError where `folder` cannot be written.
    """
    name = _importable_name(function)
    folder.mkdir(parents=True, exist_ok=True)
    texts = [_canonical(item) for item in items]
    calls = {
        text: {"function": name, "version": version, "item": json.loads(text)} for text in texts
    }
    paths = {text: folder / f"{_sha256(call)[:32]}.json" for text, call in calls.items()}
    kept = {text: _read_result(paths[text], call) for text, call in calls.items()}
    results = {text: result for text, result in kept.items() if result is not None}
    on_done(len(results), len(calls))
    missing = [text for text in calls if text not in results]
    wanted = [calls[text]["item"] for text in missing]
    if cluster is None:
        cores = physical_cores()
        count = _fitting(workers or cores, memory_per_item_bytes)
        share = max(1, (threads or cores) // count)
        evaluated = _in_processes(function, wanted, count, share)
    else:
        evaluated = _on_ray(function, wanted, cluster, workers, threads, memory_per_item_bytes)
    with contextlib.closing(evaluated):
        for index, result in evaluated:
            text = missing[index]
            _write_result(paths[text], calls[text], result)
            results[text] = _canonical(result)
            on_done(len(results), len(calls))
    return [json.loads(results[text]) for text in texts]


def _importable_name(function: Callable[..., Any]) -> str:
    module = getattr(function, "__module__", "__main__")
    name = getattr(function, "__qualname__", "<")
    if module == "__main__" or "<" in name:
        raise TypeError(f"{function!r} is not a named function of a module that workers can import")
    return f"{module}:{name}"


def _canonical(value: Any) -> str:
    """The one JSON text of a value; TypeError or ValueError for what is not plain JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _sha256(value: Any) -> str:
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def _content(call: dict[str, Any], result: Any) -> dict[str, Any]:
    content = {**call, "result": json.loads(_canonical(result))}
    return {**content, "sha256": _sha256(content)}


def _write_result(path: Path, call: dict[str, Any], result: Any) -> None:
    encoded = _canonical(_content(call, result)).encode()
    write_atomically(path, lambda file: file.write(encoded))


def _read_result(path: Path, call: dict[str, Any]) -> str | None:
    """The canonical text of the result in a file that is there and whole, else None."""
    try:
        content = json.loads(path.read_bytes())
        result = content["result"]
        return _canonical(result) if content == _content(call, result) else None
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None


def _fitting(workers: int, memory_per_item_bytes: int | None) -> int:
    """As many workers as asked for and as there is memory for, at least one."""
    available = this_machine().memory_available_bytes if memory_per_item_bytes else None
    if memory_per_item_bytes and available is not None:
        workers = min(workers, available // memory_per_item_bytes)
    return max(1, workers)


class _Deaths:
    """Counts the workers that died of each item, and says when it is enough."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items
        self._counts: Counter[int] = Counter()

    def add(self, index: int, reason: str) -> MachineError | None:
        """Count one more; the error when the item is not to be tried again."""
        self._counts[index] += 1
        if self._counts[index] <= _RETRIES:
            return None
        item = repr(self._items[index])
        if len(item) > _SHOWN_CHARACTERS:
            item = item[:_SHOWN_CHARACTERS] + "..."
        return MachineError(
            f"{self._counts[index]} workers died evaluating {item}; the last one: {reason}. "
            "Where memory ran out, use fewer workers"
        )


# ---- processes on this machine


def _in_processes(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    workers: int,
    threads: int | None = None,
) -> Generator[tuple[int, Any], None, None]:
    """Yield (index, function(items[index])) as they come. Closing it ends the workers."""
    waiting, deaths = deque(range(len(items))), _Deaths(items)
    idle: list[_Worker] = []
    busy: list[_Worker] = []

    def give() -> None:
        while waiting and len(busy) < workers:
            busy.append(idle.pop() if idle else _Worker(threads))
            index = waiting.popleft()
            busy[-1].give(index, function, items[index])

    failure: Exception | None = None
    try:
        give()
        while busy:
            done: list[tuple[int, Any]] = []
            for worker in _heard_of(busy):
                busy.remove(worker)
                answer = worker.answer()
                if answer is None:
                    failure = failure or deaths.add(worker.index, worker.end())
                    # last, so that the others are done if it dies again
                    waiting.append(worker.index)
                    continue
                idle.append(worker)
                result, error = pickle.loads(answer)
                if error is None:
                    done.append((worker.index, result))
                failure = failure or error
            # after a failure the others finish what they are at
            if failure is None:
                give()
            yield from done
        if failure is not None:
            raise failure
    finally:
        for worker in busy:
            worker.process.kill()
        for worker in [*busy, *idle]:
            worker.connection.close()
        for worker in [*busy, *idle]:
            worker.end()


def _heard_of(workers: Sequence[_Worker]) -> list[_Worker]:
    """Wait for workers that have answered or died."""
    signs = [sign for worker in workers for sign in (worker.connection, worker.process.sentinel)]
    ready = connection.wait(signs)
    return [
        worker
        for worker in workers
        if worker.connection in ready or worker.process.sentinel in ready
    ]


class _Worker:
    """A process that evaluates items one after another; `index` is the latest's."""

    def __init__(self, threads: int | None) -> None:
        # spawn: a fork of a process with torch or onnxruntime threads may hang
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, threads))
        self.process.start()
        # the worker's own is the only one left: when it dies, reading here ends
        theirs.close()
        self.index = -1

    def give(self, index: int, function: Callable[[Any], Any], item: Any) -> None:
        self.index = index
        task = pickle.dumps((function, item))
        # of a dead worker one hears when the answer is read
        with contextlib.suppress(OSError):
            self.connection.send_bytes(task)

    def answer(self) -> bytes | None:
        """What `_evaluated` made, or None of a worker that has died."""
        with contextlib.suppress(EOFError, OSError):
            if self.connection.poll():
                return self.connection.recv_bytes()
        return None

    def end(self) -> str:
        """Wait for its end, force it when it is late, and say how it ended."""
        self.connection.close()
        self.process.join(_PATIENCE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        code = self.process.exitcode or 0
        self.process.close()
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"


def _work(tasks: connection.Connection, threads: int | None) -> None:
    """What a worker does: answer until the other side is closed."""
    # a Ctrl-C reaches every process of the terminal: the parent's is the one that counts
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    if threads is not None:
        # before the function's module is imported, and numpy or torch with it: they read it once
        os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
    with contextlib.suppress(EOFError, OSError):
        while True:
            tasks.send_bytes(_evaluated(tasks.recv_bytes()))


def _end_with_parent() -> None:
    """End this worker when the process that started it is gone, killed ones included."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _evaluated(task: bytes) -> bytes:
    """In a worker: pickled (result, None) or (None, the exception) of a pickled (function, item)."""
    try:
        function, item = pickle.loads(task)
        return pickle.dumps((function(item), None))
    except Exception as error:
        error.add_note(f"In the worker:\n{traceback.format_exc()}")
        try:
            answer = pickle.dumps((None, error))
            pickle.loads(answer)
        # an exception may take other arguments than it keeps, or hold what cannot be pickled
        except Exception:
            said = CodemillError(f"{type(error).__name__}: {error}")
            said.add_note(f"In the worker:\n{traceback.format_exc()}")
            return pickle.dumps((None, said))
        return answer


# ---- Ray


def _on_ray(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    cluster: Cluster,
    workers: int | None,
    threads: int | None,
    memory_per_item_bytes: int | None,
) -> Generator[tuple[int, Any], None, None]:
    """As `_in_processes`, on a cluster. Closing it cancels what runs there."""
    from codemill import __version__

    if not items:
        return
    ray, ours = _connected(cluster, workers or physical_cores(), threads)
    running: dict[Any, int] = {}
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = int(sum(node.get("CPU", 0) for node in nodes))
        if cpus < 1:
            raise MachineError("the Ray cluster has no CPUs; start a node with some")
        most = workers or cpus
        # what no node has would be waited for without end
        share = min(
            max(1, (threads or cpus) // most), int(max(node.get("CPU", 0) for node in nodes))
        )
        memory = min(memory_per_item_bytes or 0, int(max(node.get("memory", 0) for node in nodes)))
        # tried again by us and not by Ray, which has no limit where memory ran out
        call = ray.remote(num_cpus=share, memory=memory or None, max_retries=0)(_on_node)
        waiting, deaths = deque(range(len(items))), _Deaths(items)
        failure: Exception | None = None
        while running or (waiting and failure is None):
            while waiting and failure is None and len(running) < most:
                index = waiting.popleft()
                running[call.remote(pickle.dumps((function, items[index])), __version__)] = index
            (ready,), _ = ray.wait([*running], num_returns=1)
            index = running.pop(ready)
            try:
                result, raised = pickle.loads(ray.get(ready))
            except ray.exceptions.RayTaskError as error:
                failure = failure or MachineError(
                    f"a node of the Ray cluster cannot run codemill {__version__}: {error.cause or error}; "
                    "install the same version on every node"
                )
            except ray.exceptions.RayError as error:
                failure = failure or deaths.add(
                    index, f"{type(error).__name__}: {error}".rstrip(".")
                )
                waiting.append(index)
            else:
                failure = failure or raised
                if raised is None:
                    yield index, result
        if failure is not None:
            raise failure
    finally:
        if ray.is_initialized():
            for reference in running:
                ray.cancel(reference, force=True)
            if ours:
                ray.shutdown()


def _on_node(task: bytes, version: str) -> bytes:
    from codemill import __version__

    if version != __version__:
        raise ImportError(f"it has codemill {__version__}")
    return _evaluated(task)


def _connected(cluster: Cluster, workers: int, threads: int | None) -> tuple[Any, bool]:
    """Ray, and whether it was connected here. Raises MachineError where it is not installed or not reached."""
    import logging

    address = cluster.address or os.environ.get("RAY_ADDRESS") or None
    # read when ray is imported: nothing is reported to its makers, nothing written over our output
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    if address is None:
        # the switch that keeps Ray on the loopback address on Windows and macOS; it works everywhere.
        # Else whoever reaches this machine's ports could run code on it: Ray asks for no password
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError as error:
        raise MachineError(
            "running on Ray needs the package ray; install it with: pip install 'codemill[scale]'"
        ) from error
    if ray.is_initialized():
        return ray, False
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address is None:
        address = "local"
        settings |= {"num_cpus": max(workers, threads or 0), "include_dashboard": False}
    else:
        _check_reachable(address)
    try:
        ray.init(address=address, **settings)
    # ConnectionError where nothing answers, RuntimeError for other versions of Ray or Python
    except (OSError, RuntimeError, ValueError) as error:
        raise MachineError(f"Ray cannot be reached at {address}: {error}") from error
    return ray, True


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE_S).close()
        except OSError as error:
            raise MachineError(f"no Ray cluster answers at {address}: {error}") from error
