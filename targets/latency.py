"""How long graphs take on this machine: a kit of them, measured against one anchor, into latency.json.

A kit is a folder of ONNX graphs with random weights and what architecture each has. It is made where
torch is (`codemill.compress.search.latency_kit`) and measured anywhere: numpy and ONNX Runtime are
all that is needed here. What is fitted to the profile is `codemill.compress.search.latency`'s.

Unlike `benchmark.py`, which compares a few engines in processes of their own, this times dozens of
graphs in one process, a call of each between calls of the anchor: the ratio of neighbours is free of
the machine's drift. Sessions whose threads sleep between calls, as the runtime's do, do not disturb
one another; docs/latency.md has the figures.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np

from codemill.errors import DataError, InputError, RecipeError
from codemill.runtime.atomic import write_atomically
from codemill.runtime.graph import check_graph
from codemill.runtime.machine import physical_cores
from codemill.runtime.session import Session, open_session
from codemill.targets.codec import from_json, to_json
from codemill.targets.environment import Environment, machine_id, this_environment
from codemill.targets.json_lines import check_there
from codemill.targets.profile import Shape

__all__ = [
    "KIT",
    "SCHEMA",
    "Anchor",
    "AnchorLatency",
    "Kit",
    "KitGraph",
    "KitTarget",
    "LatencyProfile",
    "LatencyRow",
    "ProfiledTarget",
    "measure",
    "read_kit",
    "read_profile",
    "write_kit",
    "write_profile",
]

_T = TypeVar("_T", "Kit", "LatencyProfile")

SCHEMA = 1
KIT = "kit.json"

_LARGEST_FILE_BYTES = 64 * 2**20
_FEWEST_ROUNDS = 3
# of the timed calls in a row of one graph: the clock and one interrupt must not matter
_BLOCK_S = 0.01
_FEWEST_CALLS, _MOST_CALLS = 2, 16
# what every architecture has as a number; more keys may stand beside them
_ARCHITECTURE = (
    *("vocab_size", "hidden_size", "layers", "heads", "head_size", "intermediate_size"),
    "max_tokens",
)


@dataclass(frozen=True)
class KitTarget:
    """The target the graphs were made for: its name, ONNX Runtime's provider, threads (None: the cores)."""

    name: str
    provider: str
    threads: int | None


@dataclass(frozen=True)
class KitGraph:
    """One graph of a kit: `file` relative to its folder, `architecture` as plain JSON."""

    id: str
    file: str
    sha256: str
    precision: str
    architecture: dict[str, Any]


@dataclass(frozen=True)
class Kit:
    """A folder of graphs to measure, at `shapes`, against the one called `anchor`."""

    schema: int
    codemill: str
    target: KitTarget
    anchor: str
    shapes: tuple[Shape, ...]
    graphs: tuple[KitGraph, ...]

    @property
    def digest(self) -> str:
        """sha256 of kit.json as `write_kit` writes it; it holds every graph's own."""
        return hashlib.sha256(_as_bytes(self)).hexdigest()


@dataclass(frozen=True)
class AnchorLatency:
    """Milliseconds of one call of the anchor: the median of all that were timed at this shape."""

    tokens: int
    batch: int
    latency_ms: float


@dataclass(frozen=True)
class Anchor:
    """The graph that all others are measured against."""

    architecture: dict[str, Any]
    precision: str
    latencies: tuple[AnchorLatency, ...]


@dataclass(frozen=True)
class LatencyRow:
    """One graph at one shape: `ratio` of a call's time to the anchor's around it, median of the rounds.

    `spread` is the median absolute deviation of the rounds' ratios, as a share of `ratio`.
    """

    architecture: dict[str, Any]
    precision: str
    tokens: int
    batch: int
    ratio: float
    spread: float


@dataclass(frozen=True)
class ProfiledTarget:
    """The target that was measured, and the precisions of the graphs."""

    name: str
    provider: str
    precisions: tuple[str, ...]


@dataclass(frozen=True)
class LatencyProfile:
    """latency.json: what a kit measured on one machine. `kit_sha256` is the kit's digest."""

    schema: int
    codemill: str
    target: ProfiledTarget
    threads: int
    rounds: int
    kit_sha256: str
    environment: Environment
    anchor: Anchor
    rows: tuple[LatencyRow, ...]


def write_kit(folder: Path, kit: Kit) -> None:
    """Write kit.json into the folder of its graphs."""
    write_atomically(folder / KIT, lambda file: file.write(_as_bytes(kit)))


def read_kit(folder: Path) -> Kit:
    """The kit in `folder`, every file of it checked.

    Raises DataError where a key, a path or a hash is not as it should be, and BundleError for a
    graph that a bundle may not hold.
    """
    path = folder / KIT
    kit = _read(Kit, path, "a kit of graphs, made by `compress profile --make-kit DIR`")
    ids = [graph.id for graph in kit.graphs]
    if len(set(ids)) < len(ids):
        raise DataError(f"{path}: graphs: two have the same id")
    if kit.anchor not in ids:
        raise DataError(f"{path}: anchor: no graph is called {kit.anchor!r}")
    if not kit.shapes or len(set(kit.shapes)) < len(kit.shapes):
        raise DataError(f"{path}: shapes: expected one or more, each once")
    longest = max(shape.tokens for shape in kit.shapes)
    for number, graph in enumerate(kit.graphs):
        where = f"{path}: graphs[{number}]"
        _check_architecture(graph.architecture, where)
        if graph.architecture["max_tokens"] < longest:
            raise DataError(f"{where}: max_tokens is below the longest shape, {longest} tokens")
        _check_file(folder, graph, where)
        check_graph(folder, graph.file, (graph.file,))
    return kit


def write_profile(path: Path, profile: LatencyProfile) -> None:
    """Write latency.json whole, or leave what was there and raise InputError."""
    try:
        write_atomically(path, lambda file: file.write(_as_bytes(profile)))
    except OSError as error:
        raise _unwritable(path, error) from error


def read_profile(path: Path) -> LatencyProfile:
    """The profile at `path`.

    Raises DataError naming the file and the key for another schema, a key that is missing, unknown
    or of the wrong type, a number that is not one, and a profile without rows.
    """
    expected = "a latency profile, made by `compress profile --out latency.json`"
    profile = _read(LatencyProfile, path, expected)
    if not profile.rows:
        raise DataError(f"{path}: rows: there are none; measure again with `compress profile`")
    if profile.threads < 1:
        raise DataError(f"{path}: threads: expected 1 or more, found {profile.threads}")
    _check_architecture(profile.anchor.architecture, f"{path}: anchor")
    at_anchor = set()
    for number, point in enumerate(profile.anchor.latencies):
        where = f"{path}: anchor.latencies[{number}]"
        _check_shape(point.tokens, point.batch, where)
        if point.latency_ms <= 0:
            raise DataError(f"{where}.latency_ms: expected more than 0, found {point.latency_ms}")
        at_anchor.add((point.tokens, point.batch))
    for number, row in enumerate(profile.rows):
        where = f"{path}: rows[{number}]"
        _check_architecture(row.architecture, where)
        _check_shape(row.tokens, row.batch, where)
        if row.ratio <= 0 or row.spread < 0:
            raise DataError(f"{where}: expected a ratio above 0 and a spread of 0 or more")
        if (row.tokens, row.batch) not in at_anchor:
            raise DataError(
                f"{where}: the anchor was not measured at {row.tokens} tokens, batch {row.batch}"
            )
        if row.precision not in profile.target.precisions:
            raise DataError(
                f"{where}.precision: {row.precision!r} is not one of target.precisions, "
                f"{list(profile.target.precisions)}"
            )
    return profile


def measure(
    folder: Path,
    kit: Kit,
    *,
    threads: int | None = None,
    minutes: float = 5.0,
    journal: Path | None = None,
    progress: Callable[[float, str], None] | None = None,
    open_graph: Callable[..., Session] = open_session,
    now: Callable[[], float] = time.perf_counter,
) -> LatencyProfile:
    """Time the kit's graphs on this machine, in rounds until about `minutes` are spent; three at least.

    A round opens each graph in turn and at each shape times the anchor, the graph, the anchor: some
    calls each, the first of them not counted. Every call takes other random ids and a full mask.

    `journal`: a file that is appended to after each graph; a measurement that was killed goes on from
    there if it was of the same kit, threads and machine. Its caller removes it. `progress` is told the
    share done and the graph's id. Raises what opening or running a graph raises, and InputError for a
    journal that cannot be written.
    """
    threads = threads or kit.target.threads or physical_cores()
    environment = this_environment()
    seen = _Journal(journal, kit, threads)
    budget_s = 60 * minutes
    anchor = _graph_of(kit, kit.anchor)
    options: dict[str, Any] = {"provider": kit.target.provider, "threads": threads}
    with contextlib.closing(open_graph(folder / anchor.file, **options)) as anchor_session:
        reference = _Timed(anchor_session, anchor, now)
        while not seen.enough(len(kit.graphs), budget_s):
            for graph in seen.left(kit.graphs):
                if progress is not None:
                    progress(seen.share(len(kit.graphs), budget_s), graph.id)
                started = now()
                with contextlib.closing(open_graph(folder / graph.file, **options)) as session:
                    candidate = _Timed(session, graph, now)
                    found = [_cell(candidate, reference, shape) for shape in kit.shapes]
                seen.add(graph.id, found, now() - started)
    return _profile(kit, threads, environment, seen)


class _Timed:
    """A graph that is open, and how long a call of it takes."""

    def __init__(self, session: Session, graph: KitGraph, now: Callable[[], float]) -> None:
        self._session = session
        self._outputs = tuple(session.outputs)[:1]
        self._vocab_size = int(graph.architecture["vocab_size"])
        self._random = np.random.default_rng(0)
        self._now = now

    def block_ms(self, shape: Shape) -> float:
        """The quickest of some calls in a row: what else runs on the machine only ever adds.

        One before them, which brings the weights into the cache, says how many they are.
        """
        calls = min(_MOST_CALLS, max(_FEWEST_CALLS, int(_BLOCK_S / max(self._call_s(shape), 1e-6))))
        return 1e3 * min(self._call_s(shape) for _ in range(calls))

    def _call_s(self, shape: Shape) -> float:
        size = (shape.batch, shape.tokens)
        ids = self._random.integers(0, self._vocab_size, size, dtype=np.int64)
        inputs = {"input_ids": ids, "attention_mask": np.ones(size, dtype=np.int64)}
        started = self._now()
        self._session.outputs_for(inputs, self._outputs)
        return self._now() - started


def _cell(candidate: _Timed, reference: _Timed, shape: Shape) -> tuple[float, float]:
    """(anchor, candidate) milliseconds of a call; the anchor's is the mean of before and after."""
    before = reference.block_ms(shape)
    latency = candidate.block_ms(shape)
    return (before + reference.block_ms(shape)) / 2, latency


class _Journal:
    """What has been measured: in memory, and in a file that a later process can go on from."""

    def __init__(self, path: Path | None, kit: Kit, threads: int) -> None:
        self._path = path
        # graph id -> for each round, for each shape: anchor, candidate
        self.found: dict[str, list[list[tuple[float, float]]]] = {g.id: [] for g in kit.graphs}
        self._spent_s = 0.0
        head = {
            "kit": kit.digest,
            "threads": threads,
            "machine": machine_id(),
            "onnxruntime": version("onnxruntime"),
        }
        if path is None:
            return
        kept = [head]
        lines = list(_whole_lines(path))
        if lines and lines[0] == head:
            for line in lines[1:]:
                # what is damaged is measured again
                if not self._is_whole(line, len(kit.shapes)):
                    break
                self._keep(line["graph"], line["ms"], line["seconds"])
                kept.append(line)
        text = "".join(json.dumps(line) + "\n" for line in kept)
        try:
            # written anew: its last line may have been cut short
            write_atomically(path, lambda file: file.write(text.encode()))
        except OSError as error:
            raise _unwritable(path, error) from error

    def _is_whole(self, line: Any, shapes: int) -> bool:
        if not isinstance(line, dict) or set(line) != {"graph", "ms", "seconds"}:
            return False
        pairs = line["ms"]
        if line["graph"] not in self.found or not isinstance(pairs, list) or len(pairs) != shapes:
            return False
        numbers = [line["seconds"]]
        for pair in pairs:
            if not isinstance(pair, list) or len(pair) != 2:
                return False
            numbers += pair
        return all(isinstance(x, int | float) and math.isfinite(x) and x > 0 for x in numbers)

    @property
    def rounds(self) -> int:
        """Rounds that every graph has been through."""
        return min(map(len, self.found.values()))

    def left(self, graphs: Sequence[KitGraph]) -> Iterator[KitGraph]:
        """The graphs that the round under way still has to go through."""
        done = self.rounds
        # the next of them is looked for once this one is added
        return (graph for graph in graphs if len(self.found[graph.id]) == done)

    def enough(self, graphs: int, budget_s: float) -> bool:
        """Whether a further round would take longer than is left."""
        if self.rounds < _FEWEST_ROUNDS or self._measured % graphs:
            return False
        return self._spent_s * (1 + 1 / self.rounds) > budget_s

    def share(self, graphs: int, budget_s: float) -> float:
        """Of the whole measurement, what is done."""
        if not self._measured:
            return 0.0
        fewest_s = self._spent_s / self._measured * graphs * _FEWEST_ROUNDS
        return min(1.0, self._spent_s / max(budget_s, fewest_s))

    def add(self, graph: str, found: Sequence[tuple[float, float]], seconds: float) -> None:
        """One graph's part of a round."""
        self._keep(graph, found, seconds)
        if self._path is None:
            return
        line = json.dumps({"graph": graph, "ms": found, "seconds": seconds})
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def _keep(self, graph: str, found: Sequence[Sequence[float]], seconds: float) -> None:
        self.found[graph].append([(anchor, latency) for anchor, latency in found])
        self._spent_s += seconds

    @property
    def _measured(self) -> int:
        return sum(map(len, self.found.values()))


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a journal up to the one that a kill cut short."""
    with contextlib.suppress(OSError, ValueError), path.open(encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            yield json.loads(line)


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} cannot be written: {error.strerror or error}")


def _profile(kit: Kit, threads: int, environment: Environment, seen: _Journal) -> LatencyProfile:
    from codemill import __version__

    anchor = _graph_of(kit, kit.anchor)
    rows, anchor_ms = [], {shape: list[float]() for shape in kit.shapes}
    for graph in kit.graphs:
        for index, shape in enumerate(kit.shapes):
            cells = [found[index] for found in seen.found[graph.id]]
            anchor_ms[shape] += [reference for reference, _ in cells]
            ratios = [latency / reference for reference, latency in cells]
            ratio = statistics.median(ratios)
            spread = statistics.median(abs(value - ratio) for value in ratios) / ratio
            rows.append(
                LatencyRow(
                    architecture=graph.architecture,
                    precision=graph.precision,
                    tokens=shape.tokens,
                    batch=shape.batch,
                    ratio=ratio,
                    spread=spread,
                )
            )
    latencies = tuple(
        AnchorLatency(shape.tokens, shape.batch, statistics.median(ms))
        for shape, ms in anchor_ms.items()
    )
    precisions = tuple(dict.fromkeys(graph.precision for graph in kit.graphs))
    return LatencyProfile(
        schema=SCHEMA,
        codemill=__version__,
        target=ProfiledTarget(kit.target.name, kit.target.provider, precisions),
        threads=threads,
        rounds=seen.rounds,
        kit_sha256=kit.digest,
        environment=environment,
        anchor=Anchor(anchor.architecture, anchor.precision, latencies),
        rows=tuple(rows),
    )


def _graph_of(kit: Kit, name: str) -> KitGraph:
    return next(graph for graph in kit.graphs if graph.id == name)


def _as_bytes(value: object) -> bytes:
    return json.dumps(to_json(value), indent=1, allow_nan=False).encode() + b"\n"


def _read(kind: type[_T], path: Path, expected: str) -> _T:
    """A file of this module: JSON of the schema, with the keys of `kind` and no others."""
    try:
        check_there(path, "the file", f"expected {expected}")
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE_BYTES + 1)
        if len(content) > _LARGEST_FILE_BYTES:
            raise DataError(
                f"{path} is longer than {_LARGEST_FILE_BYTES:,} bytes; expected {expected}"
            )
        data = json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error}); expected {expected}") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA or isinstance(schema, bool):
        raise DataError(
            f"{path}: schema: expected {SCHEMA}, found {schema!r:.80}; it should be {expected}"
        )
    try:
        value = from_json(kind, data, f"{path}")
    # what a shape says of numbers below 1
    except RecipeError as error:
        raise DataError(f"{path}: {error}") from error
    for key in _unknown(data, to_json(value)):
        raise DataError(f"{path}: the key {key!r} is unknown; expected {expected}")
    return value


def _unknown(data: Any, known: Any, where: str = "") -> Iterator[str]:
    """Paths of keys that `data` has and `known`, the same data read and written again, has not."""
    if isinstance(data, dict):
        for key, item in data.items():
            path = f"{where}.{key}".lstrip(".")
            if key not in known:
                yield path
            else:
                yield from _unknown(item, known[key], path)
    elif isinstance(data, list):
        for number, (item, other) in enumerate(zip(data, known, strict=True)):
            yield from _unknown(item, other, f"{where}[{number}]")


def _check_architecture(architecture: dict[str, Any], where: str) -> None:
    for key in _ARCHITECTURE:
        value = architecture.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise DataError(
                f"{where}: architecture.{key}: expected a whole number from 1, found {value!r:.80}"
            )
    rank = architecture.get("embedding_rank")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise DataError(
            f"{where}: architecture.embedding_rank: expected a whole number from 1 or null, "
            f"found {rank!r:.80}"
        )


def _check_shape(tokens: int, batch: int, where: str) -> None:
    if tokens < 1 or batch < 1:
        raise DataError(f"{where}: tokens and batch should be 1 or more, found {tokens}, {batch}")


def _check_file(folder: Path, graph: KitGraph, where: str) -> None:
    """The graph's file lies in the folder, by a plain relative path, and is the one that was put there."""
    place = PurePosixPath(graph.file)
    if (
        place.is_absolute()
        or not place.parts
        or {"..", "."} & set(graph.file.split("/"))
        or "\\" in graph.file
        or ":" in graph.file
    ):
        raise DataError(
            f"{where}.file: expected a path inside the kit's folder, found {graph.file!r:.200}"
        )
    path = folder / graph.file
    try:
        if path.is_symlink() or not path.is_file():
            raise DataError(
                f"{where}.file: {path} is not there as a plain file; copy the kit again"
            )
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    # ValueError: a path with a null byte
    except (OSError, ValueError) as error:
        raise DataError(f"{where}.file: {graph.file!r:.200} cannot be read: {error}") from error
    if found != graph.sha256:
        raise DataError(
            f"{where}: {path} has sha256 {found}, expected {graph.sha256:.80}; copy the kit again"
        )
