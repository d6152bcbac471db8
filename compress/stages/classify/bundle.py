"""Stage `bundle` of a classifier: the accepted variant, its probabilities calibrated on validation (a temperature,
1706.04599), its metrics on the test, and its provenance, as one bundle folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from codemill import __version__
from codemill.compress.data.labelled import Labelled, read_labelled
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.stages.bundle import (
    BUNDLE,
    EVALUATION,
    PACKAGES,
    check_size,
    provenance,
    shown,
)
from codemill.compress.stages.classify.corpus import labels_of
from codemill.compress.stages.classify.evaluation import evaluation_of, items_of, truth_of
from codemill.compress.stages.classify.labels import read_probabilities
from codemill.compress.stages.classify.teacher import facts
from codemill.compress.stages.export import CANDIDATES, accepted
from codemill.export.candidates import graph_file
from codemill.export.classifier import head_file
from codemill.runtime import Classifier, load_classifier, read_manifest, write_bundle
from codemill.targets.evaluation import write_evaluation

__all__ = ["VERSION", "fitted_temperature", "stage"]

VERSION = 1
_LEAST = 1e-7
_TEMPERATURES = np.exp(np.linspace(np.log(0.25), np.log(8), 201))


def stage(recipe: Recipe, threads: int, keys: dict[str, str]) -> Stage:
    """Depends on what was accepted; `keys` (earlier stages' hashes) go into the provenance."""
    settings = {"recipe": shown(recipe), "threads": threads, "codemill": __version__}

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        _bundle(recipe, threads, keys, inputs, folder, report)

    inputs = ("export", "corpus", "teacher", "labels")
    return Stage("bundle", VERSION, inputs, settings, PACKAGES, work)


def _bundle(
    recipe: Recipe,
    threads: int,
    keys: dict[str, str],
    inputs: Folders,
    folder: Path,
    report: Report,
) -> None:
    candidates, bundle = inputs["export"] / CANDIDATES, folder / BUNDLE
    variant = accepted(inputs["export"])["accepted"]
    shutil.rmtree(bundle, ignore_errors=True)
    for name in (graph_file(variant), head_file(variant), "tokenizer.json"):
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(candidates / name, bundle / name)
    validation = read_labelled(inputs["corpus"], "validation", recipe.data.validation_pairs)
    truth = truth_of(validation, read_probabilities(inputs["labels"], "validation"))
    test = read_labelled(inputs["corpus"], "test")
    with load_classifier(candidates, variant=variant, threads=threads) as model:
        report(0.1, f"calibrating on {len(validation.rows):,} validation rows")
        temperature = fitted_temperature(_probabilities(model, validation), truth)
        report(0.4, f"measuring on {len(test.rows):,} test rows")
        found = _probabilities(model, test)
    known = test.labels >= 0
    source = read_manifest(candidates)
    write_bundle(
        bundle,
        name=recipe.name,
        task=recipe.task,
        license=recipe.license,
        input=source.input,
        output={**source.output, "temperature": temperature},
        variants={variant: source.variant(variant)},
        architecture=source.architecture,
        metrics={
            variant: {
                "accuracy": round(float((found.argmax(1) == test.labels)[known].mean()), 4),
                "rows": int(known.sum()),
                "evaluation": "test",
            }
        },
        provenance=provenance(recipe, keys, facts(inputs["teacher"])["teaches"]),
    )
    write_evaluation(bundle / EVALUATION, evaluation_of(test, labels_of(inputs["corpus"]), "test"))
    check_size(recipe, bundle, variant)


def _probabilities(model: Classifier, rows: Labelled) -> np.ndarray:
    return model.probabilities(items_of(rows))


def fitted_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """What the logits are divided by so that the labels are least surprising (mean negative log-likelihood).

    probabilities [n, classes]; labels int [n], -1 unknown. From 0.25 to 8, to three digits; 1 without labels.
    """
    known = labels >= 0
    if not known.any():
        return 1.0
    logits = np.log(np.maximum(probabilities[known].astype(np.float64), _LEAST))
    rows, right = np.arange(len(logits)), labels[known]

    def surprise(temperature: float) -> float:
        scaled = logits / temperature
        scaled -= scaled.max(1, keepdims=True)
        return float((np.log(np.exp(scaled).sum(1)) - scaled[rows, right]).mean())

    return float(f"{min(_TEMPERATURES, key=surprise):.3g}")
