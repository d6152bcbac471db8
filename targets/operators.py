"""How long each operator of a bundle's graphs takes, by ONNX Runtime's own profiler.

The profiler is switched on when a session is made, so this is for a process that does nothing else. It slows small
operators a little: its figures say where a call's time goes, not how long a call takes.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from codemill.targets.figures import OperatorTime

__all__ = ["Profile", "profiled"]

_NODE = "_kernel_time"


class Profile:
    """The sessions that were opened while it lasted: the name of each graph's file, and the session."""

    def __init__(self) -> None:
        self.sessions: list[tuple[str, Any]] = []
        self._before: dict[int, int] = {}

    def begin(self) -> None:
        """From here on calls count: what ran before, the engine's first text, is left out."""
        self._before = {id(session): session.runs for _, session in self.sessions}

    def times(self, calls: int) -> list[OperatorTime]:
        """Of one call, of the `calls` that were made since `begin`: the sums by graph and operator, the longest first.

        A node takes the median of its runs, as often as it ran. Ends the profile.
        """
        found = [
            OperatorTime(graph, operator, len(nodes), sum(nodes) / calls)
            for graph, session in self.sessions
            for operator, nodes in _by_operator(
                Path(session.end_profiling()), self._before.get(id(session), 0)
            ).items()
        ]
        self.sessions.clear()
        return sorted(found, key=lambda item: -item.time_ms)


@contextmanager
def profiled() -> Iterator[Profile]:
    """Within it, sessions of ONNX Runtime are made with their profiler on."""
    import onnxruntime as ort

    profile = Profile()
    plain: Any = ort.InferenceSession
    with tempfile.TemporaryDirectory(prefix="codemill-") as folder:

        class Profiled(plain):  # type: ignore[misc]
            def __init__(self, path: str, options: Any, **rest: Any) -> None:
                options.enable_profiling = True
                options.profile_file_prefix = str(Path(folder, str(len(profile.sessions))))
                super().__init__(path, options, **rest)
                self.runs = 0
                profile.sessions.append((Path(path).name, self))

            def run(self, *given: Any, **named: Any) -> Any:
                self.runs += 1
                return super().run(*given, **named)

        ort.InferenceSession = Profiled
        try:
            yield profile
        finally:
            ort.InferenceSession = plain


def _by_operator(file: Path, before: int) -> dict[str, list[float]]:
    """Operator -> of each of its nodes, milliseconds of all runs together but the first so many."""
    runs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in json.loads(file.read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith(_NODE):
            runs[event["args"]["op_name"], event["name"]].append(event["dur"] / 1e3)
    found: dict[str, list[float]] = defaultdict(list)
    for (operator, _), every in runs.items():
        if took := every[before:]:
            found[operator].append(statistics.median(took) * len(took))
    return found
