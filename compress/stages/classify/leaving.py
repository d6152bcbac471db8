"""When rows leave the files that ship, and whether that is worth it: exits calibrated, checked, and timed.

Each exit gets a temperature and a threshold, on the validation rows and the final graphs. They are checked by
labelling the rows once more with them, because a batch that others have left changes the last decimals. Then the
bundle with exits and the one without are timed, in turns, on rows of the data: lengths and how many rows leave are
the data's own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codemill.compress.exits.thresholds import thresholds_for
from codemill.compress.pipeline import Report
from codemill.compress.recipe import Recipe
from codemill.compress.stages.classify.temperature import fitted_temperature
from codemill.runtime import (
    Classifier,
    Manifest,
    load_classifier,
    read_manifest,
    size_bytes,
    write_bundle,
)
from codemill.targets.metrics import paired_ratio

__all__ = ["Left", "Timed", "calibrated", "decided", "said_of_exits", "with_exits"]

_UNIT = 16.0
"""A temperature at which no probability is so near 1 that its logits could not be told from it."""
_NONE_LEAVES = {"temperature": 1000.0, "threshold": 1.0}
_ALL_LEAVE = {"temperature": _UNIT, "threshold": 1e-9}
_ATTEMPTS = 4
_ROUNDS = 5
_ROWS_TIMED = 64
_BATCHES = (1, 8)

Items = Sequence[str] | Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Left:
    """How a bundle with these exits does on validation. `left`: share of the rows that leave after so many layers.

    accuracy_whole: with the same files and no exits taken. layers_used: the mean over rows.
    """

    exits: tuple[dict[str, Any], ...]
    temperature: float
    accuracy: float
    accuracy_whole: float
    layers_used: float
    left: dict[str, float]


@dataclass(frozen=True)
class Timed:
    """Milliseconds a call of `batch` rows without and with exits; how many times as fast, with a 95 % interval."""

    batch: int
    without_ms: float
    with_ms: float
    times_faster: float
    low: float
    high: float


def with_exits(
    folder: Path, exits: Sequence[Mapping[str, Any]], temperature: float = 1.0
) -> Manifest:
    """Write a bundle's manifest anew with these exits, and this temperature of the last head."""
    found = read_manifest(folder)
    return write_bundle(
        folder,
        name=found.name,
        task=found.task,
        input=found.input,
        output={**found.output, "temperature": temperature},
        variants=found.variants,
        architecture=found.architecture,
        exits=[dict(item) for item in exits],
    )


def calibrated(
    folder: Path,
    variant: str,
    threads: int,
    items: Items,
    truth: np.ndarray,
    least_accuracy: float,
    report: Report,
) -> Left | None:
    """Calibrate the bundle in `folder`, and leave it with the thresholds found; None where none keep the bound.

    truth: int [n], -1 where unknown. least_accuracy: what is to be reached with exits, of 1.
    """
    layers = [item["layer"] for item in read_manifest(folder).exits]
    known = np.flatnonzero(truth >= 0)
    rows, right_label = [items[index] for index in known.tolist()], truth[known]
    said = []
    for number in range(len(layers) + 1):
        report(
            number / (len(layers) + 2),
            f"what {len(rows):,} validation rows look like at exit {number + 1}",
        )
        settings = [
            {"layer": layer, **(_ALL_LEAVE if place >= number else _NONE_LEAVES)}
            for place, layer in enumerate(layers)
        ]
        with_exits(folder, settings, _UNIT)
        with load_classifier(folder, variant=variant, threads=threads) as model:
            said.append(_logits(model.probabilities(rows)))
    temperatures = [fitted_temperature(_softmax(logits), right_label) for logits in said]
    calm = [
        _softmax(logits / temperature)
        for logits, temperature in zip(said, temperatures, strict=True)
    ]
    right = np.stack([found.argmax(1) == right_label for found in calm])
    certainty = np.stack([found.max(1) for found in calm[:-1]])
    depth = [*layers, int(read_manifest(folder).architecture["layers"])]
    bound = least_accuracy
    for _ in range(_ATTEMPTS):
        thresholds = thresholds_for(certainty, right, depth, bound)
        if thresholds is None:
            return None
        chosen = tuple(
            {"layer": layer, "temperature": temperature, "threshold": float(f"{threshold:.6f}")}
            for layer, temperature, threshold in zip(layers, temperatures, thresholds, strict=False)
        )
        report(0.9, "labelling the validation rows with these thresholds")
        with_exits(folder, chosen, temperatures[-1])
        with load_classifier(folder, variant=variant, threads=threads) as model:
            found = model.run(rows)
        accuracy = float((found.probabilities.argmax(1) == right_label).mean())
        if accuracy >= least_accuracy:
            used, times = np.unique(found.layers_used, return_counts=True)
            return Left(
                chosen,
                temperatures[-1],
                accuracy,
                float(right[-1].mean()),
                float(found.layers_used.mean()),
                {str(n): float(count / len(rows)) for n, count in zip(used, times, strict=True)},
            )
        # what the batches changed is asked for beforehand
        bound += max(least_accuracy - accuracy, 1 / len(rows))
    return None


def _logits(probabilities: np.ndarray) -> np.ndarray:
    """Logits [n, labels] but for a constant, of probabilities at the temperature `_UNIT`."""
    found: np.ndarray = np.log(np.maximum(probabilities.astype(np.float64), 1e-30)) * _UNIT
    return found


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return found


def timed(
    without: Path, exited: Path, variant: str, threads: int, items: Items, report: Report
) -> list[Timed]:
    """Time both bundles on the same rows, in turns, alone and in batches."""
    rows = list(items[:_ROWS_TIMED])
    found = []
    with (
        load_classifier(without, variant=variant, threads=threads) as plain,
        load_classifier(exited, variant=variant, threads=threads) as early,
    ):
        for number, batch in enumerate(_BATCHES):
            report(number / len(_BATCHES), f"timing with and without exits, {batch} rows a call")
            # the first round warms up
            rounds = [_round(plain, early, rows, batch) for _ in range(_ROUNDS + 1)][1:]
            before, after = np.array(rounds).T
            ratio = paired_ratio(before.tolist(), after.tolist())
            calls = -(-len(rows) // batch)
            found.append(
                Timed(
                    batch,
                    float(before.mean() / calls),
                    float(after.mean() / calls),
                    ratio.value,
                    ratio.value if ratio.low is None else ratio.low,
                    ratio.value if ratio.high is None else ratio.high,
                )
            )
    return found


def _round(
    plain: Classifier, early: Classifier, rows: Sequence[Any], batch: int
) -> tuple[float, float]:
    """Milliseconds of all calls without exits and with them; call by call in turns."""
    spent = [0.0, 0.0]
    for start in range(0, len(rows), batch):
        call = rows[start : start + batch]
        for place, model in enumerate((plain, early)):
            began = time.perf_counter()
            model.run(call, batch_size=batch)
            spent[place] += (time.perf_counter() - began) * 1e3
    return spent[0], spent[1]


def decided(
    recipe: Recipe,
    without: Path,
    exited: Path,
    variant: str,
    threads: int,
    items: Items,
    truth: np.ndarray,
    report: Report,
) -> dict[str, Any]:
    """What export.json says of exits: whether they are accepted, why not, their figures and both timings.

    without, exited: bundles of the same student. `exits.after: auto` wants them to be faster; a list of layers is
    followed wherever the loss allows it.
    """
    known = truth >= 0
    with load_classifier(without, variant=variant, threads=threads) as model:
        said = model.probabilities(items)
    reference = float((said.argmax(1) == truth)[known].mean())
    # a whisker, so that a share of rows is not missed by the last digit of a float
    least = reference - recipe.exits.max_loss - 1e-9
    left = calibrated(
        exited, variant, threads, items, truth, least, lambda at, what: report(at * 0.7, what)
    )
    found: dict[str, Any] = {"accepted": False, "accuracy_without": reference}
    if left is None:
        return found | {"reason": f"no thresholds keep the accuracy above {least:.4f}"}
    times = timed(
        without, exited, variant, threads, items, lambda at, what: report(0.7 + at * 0.3, what)
    )
    found |= asdict(left) | {"timings": [asdict(item) for item in times]}
    reason = None
    if recipe.exits.after == "auto":
        limit = recipe.budget.size_bytes
        size = size_bytes(exited, variant)
        if times[0].low <= 1 or any(item.times_faster <= 1 for item in times):
            reason = "not faster on this machine"
        elif limit is not None and size > limit:
            reason = f"{size:,} bytes with them, over the budget of {limit:,}"
    return found | {"accepted": reason is None, "reason": reason}


def said_of_exits(found: Mapping[str, Any]) -> str:
    """What was decided, for people."""
    said = "exits ship" if found["accepted"] else f"exits do not ship ({found['reason']})"
    if "timings" not in found:
        return said
    times = ", ".join(
        f"{item['with_ms']:.2f} instead of {item['without_ms']:.2f} ms for {item['batch']} a call"
        for item in found["timings"]
    )
    return (
        f"{said}: {found['layers_used']:.2f} layers a row, accuracy on validation {found['accuracy']:.4f} instead of "
        f"{found['accuracy_without']:.4f}; {times}"
    )
