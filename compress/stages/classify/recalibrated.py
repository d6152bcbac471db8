"""The forms of a bundle that labels, each with a temperature and exits of its own, outside a run.

As a run calibrates (`leaving.py`, `temperature.py`), on half of the evaluation's rows, so that the forms can be judged
by the others. Where half of them are too few to show what exits lose, all rows do both, and that is said.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from codemill.compress.exits.thresholds import fewest_rows
from codemill.compress.pipeline import Report
from codemill.compress.recipe import Exits
from codemill.compress.stages.classify.leaving import calibrated, never, with_exits
from codemill.compress.stages.classify.temperature import fitted_temperature
from codemill.compress.stages.quantized import copy_variant
from codemill.runtime import Manifest, load_classifier, read_manifest
from codemill.runtime.bundle import TOKENIZER, write_bundle_like
from codemill.targets.evaluation import LabelledEvaluation

__all__ = ["Calibration", "Parts", "parts_of", "recalibrated"]

_FEWEST = 50
"""Labelled rows of a part that a temperature is fitted on."""


@dataclass(frozen=True)
class Parts:
    """Rows that forms are calibrated on, and rows that they are judged by: others, or all of them twice."""

    calibrating: LabelledEvaluation
    judging: LabelledEvaluation
    apart: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: how many rows."""
        rows, judged = len(self.calibrating.rows), len(self.judging.rows)
        return {"rows": rows, "judged_rows": judged, "apart": self.apart}

    def said(self) -> str:
        """For people."""
        rows, judged = len(self.calibrating.rows), len(self.judging.rows)
        if self.apart:
            return f"on {rows:,} of the evaluation's rows; judged by the other {judged:,}"
        return (
            f"on all {rows:,} rows of the evaluation, and judged by the same rows: half of them are too few, so what "
            "the forms lose on new rows may be more"
        )


@dataclass(frozen=True)
class Calibration:
    """Of one form: its temperature, its exits as a manifest has them, and what leaving early loses at most.

    loss_upper: None where no row leaves, because no thresholds keep the bound, or without exits.
    """

    temperature: float
    exits: tuple[dict[str, Any], ...]
    loss_upper: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    def said(self) -> str:
        """For people."""
        found = f"temperature {self.temperature:g}"
        if not self.exits:
            return f"{found}, calibrated"
        if self.loss_upper is None:
            return f"{found}, and no row leaves early, for no thresholds keep the bound; calibrated"
        return f"{found}, and exits that lose {self.loss_upper:.4f} of the accuracy at most; calibrated"


def parts_of(asked: LabelledEvaluation, manifest: Manifest) -> Parts:
    """The rows in two halves, those of a group together; all of them twice where half are too few."""
    exits = len(manifest.exits)
    needed = max(_FEWEST, fewest_rows(bound_of(manifest), exits) if exits else 0)
    half, known = _half(asked), np.array(asked.truth) >= 0
    # a group may be most of the rows
    if min((known & half).sum(), (known & ~half).sum()) < needed:
        return Parts(asked, asked, apart=False)
    return Parts(_some(asked, half), _some(asked, ~half), apart=True)


def bound_of(manifest: Manifest) -> float:
    """The accuracy that leaving early may cost, as the recipe said of which the bundle was made."""
    recipe = manifest.provenance.get("recipe")
    said = recipe.get("exits") if isinstance(recipe, dict) else None
    bound = said.get("max_loss") if isinstance(said, dict) else None
    return float(bound) if isinstance(bound, int | float) else Exits().max_loss  # type: ignore[call-arg]


def recalibrated(
    work: Path, variant: str, folder: Path, rows: LabelledEvaluation, threads: int, report: Report
) -> Calibration:
    """Write a bundle of the form `variant` of the bundle in `work` to `folder`, calibrated on these rows."""
    source = read_manifest(work)
    made = copy_variant(work, variant, folder, variant)
    shutil.copyfile(work / TOKENIZER, folder / TOKENIZER)
    none = [never(item["layer"]) for item in source.exits]
    write_bundle_like(folder, source, variants={variant: made}, metrics={})
    with_exits(folder, none)
    known = [
        (item, label) for item, label in zip(rows.items, rows.truth, strict=True) if label >= 0
    ]
    items, truth = [item for item, _ in known], np.array([label for _, label in known])
    with load_classifier(folder, variant=variant, threads=threads) as model:
        plain = model.probabilities(items)
    left = None
    if none:
        before = plain.argmax(1) == truth
        bound = bound_of(source)
        left = calibrated(folder, variant, threads, items, truth, before, bound, report)
    if left is None:
        with_exits(folder, none, fitted_temperature(plain, truth))
    found = read_manifest(folder)
    return Calibration(
        float(found.output["temperature"]),
        tuple(found.exits),
        None if left is None else left.loss_upper,
    )


def _half(asked: LabelledEvaluation) -> np.ndarray:
    """bool [rows]: a half of them, drawn; rows of a group are on one side."""
    members: defaultdict[str, list[int]] = defaultdict(list)
    for row in range(len(asked.rows)):
        members[f"row {row}" if asked.groups is None else asked.groups[row]].append(row)
    groups = list(members.values())
    found = np.zeros(len(asked.rows), dtype=bool)
    for number in np.random.default_rng(0).permutation(len(groups)).tolist():
        if found.sum() + len(groups[number]) <= len(asked.rows) / 2:
            found[groups[number]] = True
    return found


def _some(asked: LabelledEvaluation, wanted: np.ndarray) -> LabelledEvaluation:
    """These rows, and the texts that they are of."""
    rows = np.flatnonzero(wanted).tolist()
    texts = sorted({text for row in rows for text in asked.rows[row]})
    places = {text: place for place, text in enumerate(texts)}
    return replace(
        asked,
        texts=tuple(asked.texts[text] for text in texts),
        rows=tuple(tuple(places[text] for text in asked.rows[row]) for row in rows),
        truth=tuple(asked.truth[row] for row in rows),
        groups=None if asked.groups is None else tuple(asked.groups[row] for row in rows),
    )
