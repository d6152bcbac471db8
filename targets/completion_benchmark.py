"""Completing lines, engine against engine: each in a process of its own, taking turns at each place; report.json.

An engine is a bundle with settings: full depth, with exits, with look-up drafts, with n-grams. Of two engines the ratio
of times is of all places together, with a bootstrap interval over places; so are the losses of quality.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codemill.errors import DataError
from codemill.runtime.atomic import write_atomically
from codemill.runtime.completion.decoding import COMPLETION
from codemill.targets.codec import from_json, to_json
from codemill.targets.completion import (
    Completed,
    CompletionEvaluation,
    CompletionFigures,
    figures_of,
    in_turn,
    paired_ratio,
    scores,
)
from codemill.targets.engine import Engine, EngineProcess
from codemill.targets.environment import Environment
from codemill.targets.examples import evenly
from codemill.targets.human_eval import (
    NEW_TOKENS,
    STOPS,
    Problem,
    check_fence,
    pass_at_1,
    read_problems,
)
from codemill.targets.json_file import read_json_file
from codemill.targets.report import (
    BundleSummary,
    Limit,
    Stage,
    TrainingPoint,
    check_machine,
    check_schema,
)
from codemill.targets.resampling import Interval
from codemill.targets.schema import json_schema

__all__ = [
    "CompletionEngine",
    "CompletionExample",
    "CompletionReport",
    "CompletionResult",
    "ThresholdPoint",
    "benchmark_completion",
    "completion_schema",
    "fewest_tokens",
    "is_completion_report",
    "means_of",
    "read_completion_report",
    "write_completion_report",
]

SCHEMA = 1
_RATED = 12
"""Places at which reading a prompt and decoding are timed."""
_DECODED = 64
_PROMPT = 64
"""Tokens of a prompt, at least, that are worth measuring behind."""
_EXAMPLE_LINES, _EXAMPLE_CHARACTERS = 6, 500
_READ = 24
"""Places whose own tokens the last layer is asked about."""


@dataclass(frozen=True)
class CompletionEngine:
    """An engine to measure: the process that serves it, and the arguments that it completes with."""

    name: str
    engine: Engine
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class CompletionExample:
    """A place of the test: the end of what is before it, the rest of the line there, and what was said."""

    prefix: str
    line: str
    text: str
    right: bool


@dataclass(frozen=True)
class CompletionResult:
    """What was measured of one engine. Against the baseline: how many times as fast, and losses as shares of its own.

    prefill and decode: tokens a second, the median of some prompts, without exits and drafts. next_token_accuracy: at
    full depth, over some of the files' own tokens. pass_at_1: of HumanEval, where it was asked for.
    examples: the same places of all engines, some that the last engine says right, then some that it does not.
    """

    name: str
    role: str
    size_bytes: int
    figures: CompletionFigures
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    cold_start_ms: float
    peak_rss_bytes: int
    speedup: Interval | None
    exact_match_loss: Interval | None
    rouge_l_loss: Interval | None
    next_token_accuracy: float | None = None
    pass_at_1: Interval | None = None
    examples: tuple[CompletionExample, ...] = ()


@dataclass(frozen=True)
class ThresholdPoint:
    """One setting of the thresholds, measured on the lines that they are chosen by."""

    rate: float
    loss: float
    speedup: float
    layers_mean: float
    chosen: bool


@dataclass(frozen=True)
class ExitFacts:
    """Of an exit: how often it says what the last layer says, and what the file says, token by token."""

    layer: int
    agrees: float
    right: float


@dataclass(frozen=True)
class CompletionReport:
    """All of report.json of a bundle that completes. baseline names the engine that others are held against.

    target: as in `report.Report`.
    """

    schema: int
    codemill: str
    created_at: str
    title: str
    task: str
    bundle: BundleSummary
    bundle_engine: str
    baseline: str
    evaluation: str
    engines: tuple[CompletionResult, ...]
    environment: Environment
    exits: tuple[ExitFacts, ...] = ()
    never_right: float | None = None
    curve: tuple[ThresholdPoint, ...] = ()
    limits: tuple[Limit, ...] = ()
    recipe: dict[str, Any] | None = None
    provenance: dict[str, Any] | None = None
    stages: tuple[Stage, ...] = ()
    training: tuple[TrainingPoint, ...] = ()
    evaluation_sha256: str | None = None
    target: str | None = None

    def engine(self, name: str) -> CompletionResult:
        """The result of this name."""
        return next(item for item in self.engines if item.name == name)


def means_of(*, exits: bool, ngrams: bool, stops: bool) -> str:
    """What a bundle completes with, for an engine's name: of `exits, drafts, n-grams, giving up` what is used."""
    used = {"exits": exits, "drafts": True, "n-grams": ngrams, "giving up": stops}
    return ", ".join(name for name, is_used in used.items() if is_used)


def benchmark_completion(
    engines: Sequence[CompletionEngine],
    evaluation: CompletionEvaluation,
    baseline: str,
    max_tokens: int,
    report: Callable[[float, str], None] = lambda _, __: None,
    human_eval: bool = False,
    examples: int = 6,
) -> tuple[CompletionResult, ...]:
    """Measure; the processes live throughout, one computes at a time, and the order changes with each place.

    human_eval: write HumanEval's functions too, and run them on their tests (`human_eval.py`). examples: so many
    places are shown with what was said there; their text is in the result.
    """
    problems = read_problems() if human_eval else []
    if problems:
        check_fence()
    names = [item.name for item in engines]
    if len(set(names)) < len(names):
        raise ValueError(f"engines should have names of their own, found {names}")
    asked = {item.name: item for item in engines}
    completed: dict[str, list[Completed]] = {name: [] for name in names}
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    functions: dict[str, list[str]] = {name: [] for name in names}
    said = {name: np.zeros(2, int) for name in names}
    ngrams = {item.name: item.settings.get("ngrams", True) for item in engines}
    with contextlib.ExitStack() as stack:
        running = {item.name: stack.enter_context(EngineProcess(item.engine)) for item in engines}
        places = len(evaluation.prefixes)
        # written, and then run
        count = places + 2 * len(problems)
        for number, prefix in enumerate(evaluation.prefixes):
            for name in in_turn(names, number):
                answer = running[name].ask(
                    {
                        "op": "complete",
                        "prefix": prefix,
                        "settings": dict(asked[name].settings),
                        "max_tokens": max_tokens,
                    }
                )
                completed[name].append(from_json(Completed, answer))
            if number < _RATED:
                for name in in_turn(names, number):
                    found = running[name].ask(
                        {
                            "op": "rates",
                            "prefix": prefix,
                            "tokens": _DECODED,
                            "ngrams": ngrams[name],
                        }
                    )
                    rates[name].append(
                        (
                            found["prompt_tokens"] / found["prefill_s"],
                            found["tokens"] / found["decode_s"],
                        )
                    )
            report((number + 1) / count, f"completed {number + 1:,} of {places:,} lines")
        # before what only measuring takes memory for
        peaks = {name: int(running[name].ask({"op": "info"})["peak_rss_bytes"]) for name in names}
        for number, prefix in enumerate(evaluation.prefixes[:_READ]):
            text = prefix + evaluation.lines[number]
            for name in in_turn(names, number):
                found = running[name].ask({"op": "said", "text": text, "ngrams": ngrams[name]})
                said[name] += np.array([found["right"], found["tokens"]])
        for number, problem in enumerate(problems):
            for name in in_turn(names, number):
                functions[name].append(_function(running[name], problem, asked[name].settings))
            done = f"HumanEval: {number + 1} of {len(problems)} functions written"
            report((places + number + 1) / count, done)
        starts = {name: running[name].cold_start_ms for name in names}
    passed = {}
    for at, name in enumerate(names if problems else ()):

        def ran(number: int, at: int = at) -> None:
            whole = at * len(problems) + number
            share = whole / (len(names) * len(problems))
            done = f"HumanEval: {whole:,} of {len(names) * len(problems):,} functions run"
            report((places + len(problems) * (1 + share)) / count, done)

        passed[name] = pass_at_1(problems, functions[name], ran)
    results = []
    base = completed[baseline]
    shown = _shown(completed[names[-1]], evaluation.lines, examples)
    for item in engines:
        own = completed[item.name]
        against = _against(own, base, evaluation.lines) if item.name != baseline else (None,) * 3
        prefill, decode = np.median(rates[item.name], axis=0).tolist()
        results.append(
            CompletionResult(
                name=item.name,
                role=item.engine.role,
                size_bytes=item.engine.size_bytes,
                figures=figures_of(own, evaluation.lines),
                prefill_tokens_per_s=prefill,
                decode_tokens_per_s=decode,
                cold_start_ms=starts[item.name],
                peak_rss_bytes=peaks[item.name],
                speedup=against[0],
                exact_match_loss=against[1],
                rouge_l_loss=against[2],
                next_token_accuracy=float(said[item.name][0] / max(1, said[item.name][1])),
                pass_at_1=passed.get(item.name),
                examples=tuple(_example(evaluation, at, own[at].text) for at in shown),
            )
        )
    return tuple(results)


def _shown(completed: Sequence[Completed], lines: Sequence[str], count: int) -> list[int]:
    """Places, half of them said right and half of them not, evenly over the test."""
    right = [_is_right(item.text, line) for item, line in zip(completed, lines, strict=True)]
    return [
        *evenly(np.flatnonzero(right), count - count // 2),
        *evenly(np.flatnonzero(~np.array(right)), count // 2),
    ]


def _example(evaluation: CompletionEvaluation, at: int, text: str) -> CompletionExample:
    line = evaluation.lines[at]
    before = "\n".join(evaluation.prefixes[at].split("\n")[-_EXAMPLE_LINES:])
    return CompletionExample(
        before[-_EXAMPLE_CHARACTERS:],
        line[:_EXAMPLE_CHARACTERS],
        text[:_EXAMPLE_CHARACTERS],
        _is_right(text, line),
    )


def _is_right(text: str, line: str) -> bool:
    return text.strip() == line.strip()


def fewest_tokens(max_tokens: int, human_eval: bool) -> int:
    """Tokens of a context in which completions of up to `max_tokens`, and all else here, have room behind a prompt."""
    return max(max_tokens, _DECODED, NEW_TOKENS if human_eval else 0) + _PROMPT


def _function(engine: EngineProcess, problem: Problem, settings: Mapping[str, Any]) -> str:
    request = {
        "op": "write",
        "prefix": problem.prompt,
        "settings": {**settings, "stop": STOPS},
        "max_tokens": NEW_TOKENS,
    }
    return problem.prompt + str(engine.ask(request)["text"])


def _against(
    own: Sequence[Completed], base: Sequence[Completed], lines: Sequence[str]
) -> tuple[Interval | None, Interval | None, Interval | None]:
    """Times of the baseline over its own, and losses of exact match and ROUGE-L, as shares; by places."""
    times = [np.array([item.seconds for item in part]) for part in (base, own)]
    quality = [scores([item.text for item in part], lines) for part in (base, own)]
    speed = paired_ratio(times[0], times[1])
    found: list[Interval | None] = []
    for name in ("exact_match", "rouge_l"):
        kept = paired_ratio(quality[1][name], quality[0][name])
        if kept is None:
            found.append(None)
            continue
        bounds = [None if x is None else 1 - x for x in (kept.high, kept.low)]
        found.append(Interval(1 - kept.value, *bounds))
    return speed, found[0], found[1]


def completion_schema() -> dict[str, Any]:
    """The JSON schema of the files that `read_completion_report` takes."""
    found = json_schema(CompletionReport, "codemill report.json, completion")
    found["properties"]["schema"] = {"type": "integer", "minimum": SCHEMA, "maximum": SCHEMA}
    return found


def write_completion_report(path: Path, report: CompletionReport) -> None:
    """Write report.json, by rename."""
    text = json.dumps(to_json(report), indent=1, allow_nan=False)
    write_atomically(path, lambda file: file.write(f"{text}\n".encode()))


def is_completion_report(path: Path) -> bool:
    """Whether a file says of itself that it is one; what is wrong with it `read_completion_report` says."""
    try:
        data = read_json_file(path, "a report", f"there is no report {path}")
    except DataError:
        return False
    return isinstance(data, dict) and data.get("task") == COMPLETION


def read_completion_report(path: Path) -> CompletionReport:
    """Read what `write_completion_report` wrote; DataError naming the file and what is wrong."""
    data = read_json_file(path, "a report", f"there is no report {path}")
    check_schema(path, data, (SCHEMA,))
    found = from_json(CompletionReport, data, str(path))
    names = [item.name for item in found.engines]
    for name in (found.bundle_engine, found.baseline):
        if name not in names:
            raise DataError(f"{path}: no engine {name!r:.80} was measured: {names!r:.200}")
    check_machine(found.environment, f"{path}.environment")
    return found
