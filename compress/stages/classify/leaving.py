"""When rows leave the files that ship, and whether that is worth it: exits calibrated, checked, and timed.

Each exit gets a temperature and a threshold, on the validation rows and the final graphs, such that the upper end of
what the accuracy loses is within the recipe's bound (`exits/thresholds.py`). They are checked by labelling the rows
once more with them, because a batch that others have left changes the last decimals. Then the bundle with exits and
the one without are timed, in turns, on rows of the data: lengths and how many rows leave are the data's own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codemill.compress.exits.thresholds import NEVER, fewest_rows, loss_upper, thresholds_for
from codemill.compress.pipeline import Report
from codemill.compress.recipe import Recipe
from codemill.compress.stages.classify.temperature import fitted_temperature
from codemill.runtime import (
    Classifier,
    Manifest,
    load_classifier,
    read_manifest,
    size_bytes,
)
from codemill.runtime.bundle import update_bundle
from codemill.targets.metrics import paired_ratio

__all__ = ["Left", "Timed", "calibrated", "decided", "never", "said_of_exits", "with_exits"]

_UNIT = 16.0
"""A temperature at which no probability is so near 1 that its logits could not be told from it."""
_NONE_LEAVES = {"temperature": 1000.0, "threshold": 1.0}
"""A manifest's threshold is 1 at most, which a certain row reaches in floating point; at this temperature none does."""
_ALL_LEAVE = {"temperature": _UNIT, "threshold": 1e-9}
_ATTEMPTS = 4
_ROUNDS = 5
_ROWS_TIMED = 64
_BATCHES = (1, 8)

Items = Sequence[str] | Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Left:
    """How a bundle with these exits does on validation. `left`: share of the rows that leave after so many layers.

    rows: how many with a label the figures are of. loss: the accuracy of the bundle without exits less that with
    them; loss_upper: what it may be at most (`exits/thresholds.py`). accuracy_without_exits: with the same files and
    no exits taken, whose layers may have learned with the exits. layers_used: the mean over rows.
    """

    exits: tuple[dict[str, Any], ...]
    temperature: float
    rows: int
    accuracy: float
    accuracy_without_exits: float
    loss: float
    loss_upper: float
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
    output = {**read_manifest(folder).output, "temperature": temperature}
    return update_bundle(folder, output=output, exits=[dict(item) for item in exits])


def never(layer: int) -> dict[str, Any]:
    """An exit at which no row leaves."""
    return {"layer": layer, **_NONE_LEAVES}


def calibrated(
    folder: Path,
    variant: str,
    threads: int,
    items: Items,
    truth: np.ndarray,
    before: np.ndarray,
    max_loss: float,
    report: Report,
) -> Left | None:
    """Calibrate the bundle in `folder`, and leave it with the thresholds found; None where none keep the bound.

    truth: int [n], -1 where unknown. before: bool [n], whether the bundle without exits labels a row right. max_loss:
    the most that the upper end of the loss may be.
    """
    layers = [item["layer"] for item in read_manifest(folder).exits]
    known = np.flatnonzero(truth >= 0)
    rows, right_label, before = (
        [items[index] for index in known.tolist()],
        truth[known],
        before[known],
    )
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
    bound = max_loss
    for _ in range(_ATTEMPTS):
        thresholds = thresholds_for(certainty, right, depth, before, bound)
        if thresholds is None:
            return None
        chosen = tuple(
            never(layer)
            if threshold == NEVER
            else {
                "layer": layer,
                "temperature": temperature,
                "threshold": float(f"{threshold:.6f}"),
            }
            for layer, temperature, threshold in zip(layers, temperatures, thresholds, strict=False)
        )
        report(0.9, "labelling the validation rows with these thresholds")
        with_exits(folder, chosen, temperatures[-1])
        with load_classifier(folder, variant=variant, threads=threads) as model:
            found = model.run(rows)
        after = found.probabilities.argmax(1) == right_label
        upper = loss_upper(before, after, len(layers))
        if upper <= max_loss:
            used, times = np.unique(found.layers_used, return_counts=True)
            return Left(
                exits=chosen,
                temperature=temperatures[-1],
                rows=len(rows),
                accuracy=float(after.mean()),
                accuracy_without_exits=float(right[-1].mean()),
                loss=float(before.mean() - after.mean()),
                loss_upper=upper,
                layers_used=float(found.layers_used.mean()),
                left={
                    str(n): float(count / len(rows)) for n, count in zip(used, times, strict=True)
                },
            )
        # what the batches changed is asked for beforehand
        bound -= max(upper - max_loss, 1 / len(rows))
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
    without: Path, exited: Path, variant: str, threads: int, items: Items, seed: int, report: Report
) -> list[Timed]:
    """Time both bundles on the same rows, drawn by the seed, in turns, alone and in batches."""
    drawn = np.random.default_rng(seed).permutation(len(items))[:_ROWS_TIMED]
    rows = [items[index] for index in drawn.tolist()]
    found = []
    with (
        load_classifier(without, variant=variant, threads=threads) as plain,
        load_classifier(exited, variant=variant, threads=threads) as early,
    ):
        for number, batch in enumerate(_BATCHES):
            report(number / len(_BATCHES), f"timing with and without exits, {batch} rows a call")
            # the first round warms up
            rounds = [_round(plain, early, rows, batch, turn) for turn in range(_ROUNDS + 1)][1:]
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
    plain: Classifier, early: Classifier, rows: Sequence[Any], batch: int, turn: int
) -> tuple[float, float]:
    """Milliseconds of all calls without exits and with them; call by call, each second time the other one first."""
    spent = [0.0, 0.0]
    for number, start in enumerate(range(0, len(rows), batch)):
        call = rows[start : start + batch]
        both = list(enumerate((plain, early)))
        # what runs second finds the text's memory warm
        for place, model in both if (turn + number) % 2 else both[::-1]:
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

    without, exited: bundles of the same student. `accuracy_of_plain` is that of the first, which the loss is counted
    from; the other names are those of `Left`. `exits.after: auto` wants them to be faster; a list of layers is
    followed wherever the loss allows it.
    """
    with load_classifier(without, variant=variant, threads=threads) as model:
        before = model.probabilities(items).argmax(1) == truth
    known, max_loss = truth >= 0, recipe.exits.max_loss
    found: dict[str, Any] = {
        "accepted": False,
        "rows": int(known.sum()),
        "accuracy_of_plain": float(before[known].mean()),
    }
    left = calibrated(
        exited,
        variant,
        threads,
        items,
        truth,
        before,
        max_loss,
        lambda at, what: report(at * 0.7, what),
    )
    if left is None:
        exits = len(read_manifest(exited).exits)
        return found | {"reason": _not_kept(found["rows"], max_loss, exits)}
    times = timed(
        without,
        exited,
        variant,
        threads,
        items,
        recipe.seed,
        lambda at, what: report(0.7 + at * 0.3, what),
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


def _not_kept(rows: int, max_loss: float, exits: int) -> str:
    """Why there are no thresholds."""
    fewest = fewest_rows(max_loss, exits)
    if rows < fewest < np.inf:
        return (
            f"{rows:,} validation rows with a label are too few to be sure that no more than {max_loss:g} of the "
            f"accuracy is lost: that takes {fewest:,.0f} at least, unless exits label more right; give more, or "
            "raise exits.max_loss"
        )
    return (
        f"whatever the thresholds, if rows leave, {rows:,} validation rows with a label do not show that no more than "
        f"{max_loss:g} of the accuracy is lost"
    )


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
        f"{said}: {found['layers_used']:.2f} layers a row, accuracy on {found['rows']:,} validation rows "
        f"{found['accuracy']:.4f} instead of {found['accuracy_of_plain']:.4f} without exits, a loss of at most "
        f"{found['loss_upper']:.4f}; {times}"
    )
