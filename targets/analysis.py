"""analysis.json: what each layer of a model holds, typed and versioned. How it looks is analysis_page.py.

Made by `compress analyze` (codemill.compress.analyze), which needs torch; read and drawn here without. Layer 0 is
the embeddings, layer n what the n-th layer hands to the next: what freezing the lowest n layers keeps as it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from codemill.errors import DataError
from codemill.runtime.atomic import write_atomically
from codemill.targets.codec import from_json, to_json
from codemill.targets.json_file import read_json_file

__all__ = [
    "ANALYSIS_SCHEMA",
    "BASIC",
    "CodeProperty",
    "Kind",
    "LayerAnalysis",
    "LayerFigures",
    "Probe",
    "Recommendation",
    "check_figures",
    "read_analysis",
    "write_analysis",
]

ANALYSIS_SCHEMA = 1

Kind = Literal["lexical", "syntactic", "structural", "semantic"]
BASIC: tuple[Kind, ...] = ("lexical", "syntactic", "structural")
"""What every task needs, and what fine-tuning for one of them leaves as it is (2304.05216, finding 2)."""


@dataclass(frozen=True)
class CodeProperty:
    """A property of code that is probed for; `majority` is the accuracy of always saying the commonest class."""

    name: str
    kind: Kind
    question: str
    classes: int
    train_items: int
    test_items: int
    majority: float


@dataclass(frozen=True)
class Probe:
    """What a linear probe reads of a property, as shares of the test items.

    `control`: the accuracy for random labels of word types; `selectivity`: accuracy less control (1909.03368).
    `standard_error`: of the accuracy, by the number of test items.
    """

    property: str
    accuracy: float
    control: float
    selectivity: float
    standard_error: float


@dataclass(frozen=True)
class LayerFigures:
    """One layer: its probes, those of the fine-tuned model, and how alike the two models are there (0 to 1)."""

    layer: int
    probes: tuple[Probe, ...]
    finetuned_probes: tuple[Probe, ...] = ()
    rsa: float | None = None
    cka: float | None = None

    def probe(self, name: str, finetuned: bool = False) -> Probe | None:
        """The probe of a property, of the model or of the fine-tuned one."""
        probes = self.finetuned_probes if finetuned else self.probes
        return next((found for found in probes if found.property == name), None)


@dataclass(frozen=True)
class Recommendation:
    """How many of the lowest layers to freeze, embeddings included, by which rule, and why in words."""

    freeze_layers: int
    rule: Literal["similarity", "probes"]
    reason: str


@dataclass(frozen=True)
class LayerAnalysis:
    """All of analysis.json. `by_layer` has layers + 1 entries; `notes`: what a reader should know of the data."""

    schema: int
    codemill: str
    model: str
    family: str
    layers: int
    hidden_size: int
    finetuned: str | None
    data: str
    language: str
    texts: int
    max_tokens: int
    seed: int
    properties: tuple[CodeProperty, ...]
    by_layer: tuple[LayerFigures, ...]
    recommendation: Recommendation
    notes: tuple[str, ...] = ()


def write_analysis(path: str | os.PathLike[str], analysis: LayerAnalysis) -> None:
    """Write analysis.json, by rename, so that a reader never sees half of it."""
    text = json.dumps(to_json(analysis), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(Path(path), lambda file: file.write(f"{text}\n".encode()))


def read_analysis(path: str | os.PathLike[str]) -> LayerAnalysis:
    """Read an analysis.json of this schema; DataError naming the file, the key and what is wrong."""
    file = Path(path)
    data = read_json_file(
        file, "an analysis", f"there is no analysis {file}; make one: compress analyze --out"
    )
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != ANALYSIS_SCHEMA or "by_layer" not in data:
        raise DataError(
            f"{file} is not an analysis of schema {ANALYSIS_SCHEMA}, as `compress analyze --out` writes it"
        )
    analysis = from_json(LayerAnalysis, data, str(file))
    check_figures(analysis, str(file))
    return analysis


def check_figures(analysis: LayerAnalysis, where: str) -> None:
    """Raise DataError for what no analysis finds, and no plot can take."""
    found = [layer.layer for layer in analysis.by_layer]
    if found != list(range(analysis.layers + 1)):
        raise DataError(
            f"{where}.by_layer: expected the layers 0 to {analysis.layers}, found {found!r:.200}"
        )
    if not 0 <= analysis.recommendation.freeze_layers <= analysis.layers:
        raise DataError(
            f"{where}.recommendation.freeze_layers: expected 0 to {analysis.layers}, "
            f"found {analysis.recommendation.freeze_layers}"
        )
    for key, value, least in _shares(analysis):
        if value is not None and not least <= value <= 1:
            raise DataError(f"{where}.{key}: expected a number from {least} to 1, found {value!r}")


def _shares(analysis: LayerAnalysis) -> Iterator[tuple[str, float | None, float]]:
    for number, item in enumerate(analysis.properties):
        yield f"properties[{number}].majority", item.majority, 0
    for layer in analysis.by_layer:
        at = f"by_layer[{layer.layer}]"
        yield f"{at}.rsa", layer.rsa, -1
        yield f"{at}.cka", layer.cka, 0
        for probe in (*layer.probes, *layer.finetuned_probes):
            yield f"{at}.{probe.property:.40}.accuracy", probe.accuracy, 0
            yield f"{at}.{probe.property:.40}.control", probe.control, 0
            yield f"{at}.{probe.property:.40}.selectivity", probe.selectivity, -1
            yield f"{at}.{probe.property:.40}.standard_error", probe.standard_error, 0
