"""Completing lines at given places: what was said, how long it took, how good it is.

Quality: exact match and edit similarity of the line, ROUGE-L (rouge-score) and BLEU (sacrebleu) as SEC reports them.
Everything is timed with the prompt already read, as while typing; settings of one model take turns at each place.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codemill.errors import DataError, MachineError
from codemill.targets.json_lines import json_lines
from codemill.targets.resampling import Interval

if TYPE_CHECKING:
    from codemill.runtime import Completer

__all__ = [
    "Completed",
    "CompletionEvaluation",
    "CompletionFigures",
    "complete_one",
    "complete_places",
    "figures_of",
    "in_turn",
    "paired_ratio",
    "rates_of",
    "read_completion_evaluation",
    "read_prompt",
    "said_of",
    "scores",
    "write_completion_evaluation",
]

_MOST_BYTES = 500_000_000
_RESAMPLES = 2000
_MOST_CHARACTERS = 100_000


@dataclass(frozen=True)
class CompletionEvaluation:
    """Places in files: what is before each, and the rest of the line there."""

    name: str
    prefixes: tuple[str, ...]
    lines: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Of its places, whatever its name."""
        return hashlib.sha256(_rows(self)).hexdigest()


def read_completion_evaluation(path: Path, name: str | None = None) -> CompletionEvaluation:
    """Read lines of {"prefix": ..., "line": ...}; DataError names the file and the line."""
    prefixes: list[str] = []
    lines: list[str] = []
    for where, row in json_lines(path, "evaluation file", ("prefix", "line"), _MOST_BYTES):
        for key, into in (("prefix", prefixes), ("line", lines)):
            value = row.get(key)
            if not isinstance(value, str) or len(value) > _MOST_CHARACTERS:
                raise DataError(
                    f"{where}: expected a text of at most {_MOST_CHARACTERS:,} characters as {key!r}"
                )
            into.append(value)
    return CompletionEvaluation(name or path.name.split(".")[0], tuple(prefixes), tuple(lines))


def write_completion_evaluation(path: Path, evaluation: CompletionEvaluation) -> None:
    """Write what `read_completion_evaluation` reads, gzipped, the same bytes for the same places."""
    path.write_bytes(gzip.compress(_rows(evaluation), mtime=0))


def _rows(evaluation: CompletionEvaluation) -> bytes:
    rows = zip(evaluation.prefixes, evaluation.lines, strict=True)
    return "".join(json.dumps({"prefix": a, "line": b}) + "\n" for a, b in rows).encode()


@dataclass(frozen=True)
class Completed:
    """One completion: its text, seconds in all and to the first piece, tokens and what each took, why it ended."""

    text: str
    seconds: float
    first_s: float
    layers: tuple[int, ...]
    drafted: int
    reason: str


def complete_places(
    evaluation: CompletionEvaluation,
    settings: Mapping[str, tuple[Completer, Mapping[str, Any]]],
    max_tokens: int,
    report: Callable[[float], None] = lambda _: None,
) -> dict[str, list[Completed]]:
    """Complete the line at each place with each of `settings` (a model, arguments of `complete`), which take turns."""
    found: dict[str, list[Completed]] = {name: [] for name in settings}
    for number, prefix in enumerate(evaluation.prefixes):
        for name in in_turn(list(settings), number):
            model, arguments = settings[name]
            found[name].append(complete_one(model, prefix, arguments, max_tokens))
        for model, _ in settings.values():
            model.forget()
        report((number + 1) / len(evaluation.prefixes))
    return found


def in_turn(names: Sequence[str], number: int) -> list[str]:
    """The names, beginning with another one each time."""
    turn = number % len(names)
    return [*names[turn:], *names[:turn]]


def complete_one(
    model: Completer, prefix: str, settings: Mapping[str, Any], max_tokens: int
) -> Completed:
    """Complete a line, timed from when the prompt has been read, but for its last token."""
    read_prompt(model, prefix, max_tokens)
    started = time.perf_counter()
    first = None
    with model.stream(prefix, max_tokens=max_tokens, mode="line", **settings) as stream:
        for _ in stream:
            first = first or time.perf_counter() - started
    seconds = time.perf_counter() - started
    made = stream.completion
    return Completed(
        made.text, seconds, first or seconds, made.layers_used, made.drafted, made.finish_reason
    )


def read_prompt(model: Completer, prefix: str, max_tokens: int) -> None:
    """Read a prompt as a completion of up to `max_tokens` would: a long one is cut to leave room for that."""
    with model.stream(prefix, max_tokens=max_tokens, exits=False, drafts=False) as stream:
        next(stream, None)


def rates_of(model: Completer, prefix: str, tokens: int, ngrams: bool = True) -> dict[str, Any]:
    """Seconds to read a prompt from nothing and give its first token, and of each of so many tokens behind it."""
    model.forget()
    started = time.perf_counter()
    read_prompt(model, prefix, tokens)
    read = time.perf_counter()
    made = model.complete(prefix, max_tokens=tokens, exits=False, drafts=False, ngrams=ngrams)
    decoded = time.perf_counter() - read
    model.forget()
    return {
        "prompt_tokens": made.prompt_tokens,
        "prefill_s": read - started,
        "decode_s": decoded,
        "tokens": len(made.tokens),
    }


def said_of(model: Completer, text: str, ngrams: bool = True) -> dict[str, Any]:
    """Of how many of a text's own tokens a model, shown those before, says the next; and what it says after each."""
    ids, said = model.predictions(text, ngrams=ngrams)
    right = int((said[:-1] == ids[1:]).sum())
    return {"right": right, "tokens": len(ids) - 1, "said": said.tolist()}


@dataclass(frozen=True)
class CompletionFigures:
    """Quality and speed of some completions; shares are of 1, times in milliseconds.

    layers: share of tokens by the layers they took; stopped: share of completions that were given up.
    """

    places: int
    exact_match: float
    edit_similarity: float
    rouge_l: float
    bleu: float
    completion_ms_mean: float
    completion_ms_p50: float
    completion_ms_p90: float
    completion_ms_p99: float
    first_ms_p50: float
    tokens_per_s: float
    tokens_mean: float
    layers_mean: float
    layers: dict[str, float]
    stopped: float
    drafted: float


def figures_of(completed: Sequence[Completed], lines: Sequence[str]) -> CompletionFigures:
    """Of the completions of all places, in order."""
    ms = np.array([item.seconds for item in completed]) * 1e3
    layers = Counter(layer for item in completed for layer in item.layers)
    tokens = sum(layers.values())
    quality = scores([item.text for item in completed], lines)
    return CompletionFigures(
        places=len(completed),
        exact_match=float(np.mean(quality["exact_match"])),
        edit_similarity=float(np.mean(quality["edit_similarity"])),
        rouge_l=float(np.mean(quality["rouge_l"])),
        bleu=_bleu([item.text for item in completed], lines),
        completion_ms_mean=float(ms.mean()),
        completion_ms_p50=float(np.quantile(ms, 0.5)),
        completion_ms_p90=float(np.quantile(ms, 0.9)),
        completion_ms_p99=float(np.quantile(ms, 0.99)),
        first_ms_p50=float(np.median([item.first_s for item in completed])) * 1e3,
        tokens_per_s=tokens / max(1e-9, float(ms.sum()) / 1e3),
        tokens_mean=tokens / len(completed),
        layers_mean=sum(layer * count for layer, count in layers.items()) / max(1, tokens),
        layers={str(layer): count / tokens for layer, count in sorted(layers.items())},
        stopped=float(np.mean([item.reason == "uncertain" for item in completed])),
        drafted=sum(item.drafted for item in completed) / max(1, tokens),
    )


def scores(texts: Sequence[str], lines: Sequence[str]) -> dict[str, np.ndarray]:
    """Of each text against the line it should be: exact_match, edit_similarity and rouge_l, float [n].

    White space at the ends does not count. Edit similarity is 1 less the Levenshtein distance by the longer length.
    """
    try:
        from nltk.metrics.distance import edit_distance
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise MachineError(
            f"scoring completions needs {error.name}: pip install 'codemill[bench]'"
        ) from error
    scorer = RougeScorer(["rougeL"])
    exact, edit, rouge = [], [], []
    for text, line in zip(texts, lines, strict=True):
        said, wanted = text.strip(), line.strip()
        exact.append(said == wanted)
        longest = max(len(said), len(wanted))
        edit.append(1 - edit_distance(said, wanted) / longest if longest else 1.0)
        rouge.append(scorer.score(wanted, said)["rougeL"].fmeasure)
    found = {"exact_match": exact, "edit_similarity": edit, "rouge_l": rouge}
    return {name: np.asarray(values, dtype=np.float64) for name, values in found.items()}


def paired_ratio(above: np.ndarray, below: np.ndarray) -> Interval | None:
    """The ratio of two sums over the same places, with a bootstrap interval over these; None: nothing is below.

    The same places are drawn for all pairs of one length.
    """
    if not below.sum():
        return None
    drawn = np.random.default_rng(0).integers(len(below), size=(_RESAMPLES, len(below)))
    sums = below[drawn].sum(1)
    ratios = above[drawn].sum(1)[sums > 0] / sums[sums > 0]
    low, high = np.quantile(ratios, [0.025, 0.975]).tolist()
    return Interval(float(above.sum() / below.sum()), low, high)


def _bleu(texts: Sequence[str], lines: Sequence[str]) -> float:
    """Of all together, from 0 to 1 (sacrebleu's corpus BLEU, its tokens of code kept apart by its own rules)."""
    from sacrebleu import corpus_bleu

    found = corpus_bleu([item.strip() for item in texts], [[item.strip() for item in lines]])
    return float(found.score) / 100
