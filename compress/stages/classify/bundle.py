"""Stage `bundle` of a classifier: the accepted variant, with its exits where those were accepted, its probabilities
calibrated on validation, its metrics on the test, and its provenance, as one bundle folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from codemill import __version__
from codemill.compress.data.labelled import read_labelled
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.stages.bundle import (
    BUNDLE,
    EVALUATION,
    PACKAGES,
    VALIDATION,
    check_size,
    copied,
    provenance,
    shown,
    write_plain,
)
from codemill.compress.stages.classify.corpus import labels_of
from codemill.compress.stages.classify.evaluation import evaluation_of, items_of, truth_of
from codemill.compress.stages.classify.export import shipped
from codemill.compress.stages.classify.labels import read_probabilities
from codemill.compress.stages.classify.teacher import facts
from codemill.compress.stages.classify.temperature import fitted_temperature
from codemill.runtime import Answers, load_classifier, read_manifest, write_bundle
from codemill.targets.evaluation import write_evaluation

__all__ = ["VERSION", "stage"]

VERSION = 2


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
    candidates, variant, left = shipped(inputs["export"])
    source, bundle = read_manifest(candidates), folder / BUNDLE
    shutil.rmtree(bundle, ignore_errors=True)
    variants = copied(candidates, variant, bundle)
    (name,) = variants
    validation = read_labelled(inputs["corpus"], "validation", recipe.data.validation_pairs)
    truth = truth_of(validation, read_probabilities(inputs["labels"], "validation"))
    test = read_labelled(inputs["corpus"], "test")
    with load_classifier(candidates, variant=variant, threads=threads) as model:
        if left is None:
            report(0.1, f"calibrating on {len(validation.rows):,} validation rows")
            temperature = fitted_temperature(model.probabilities(items_of(validation)), truth)
        else:
            # with its exits
            temperature = float(left["temperature"])
        report(0.4, f"measuring on {len(test.rows):,} test rows")
        answers = model.run(items_of(test))
        whole = None if left is None else model.probabilities(items_of(test), exits=False)
    known = test.labels >= 0

    def accuracy(found: np.ndarray) -> float:
        return round(float((found.argmax(1) == test.labels)[known].mean()), 4)

    write_bundle(
        bundle,
        name=recipe.name,
        task=recipe.task,
        license=recipe.license,
        input=source.input,
        output={**source.output, "temperature": temperature},
        variants=variants,
        architecture=source.architecture,
        metrics={
            name: {
                "quantization": variant,
                "accuracy": accuracy(answers.probabilities),
                "rows": int(known.sum()),
                "evaluation": "test",
                **_of_exits(answers, None if whole is None else accuracy(whole)),
            }
        },
        provenance=provenance(recipe, keys, facts(inputs["teacher"])["teaches"]),
        exits=source.exits,
    )
    labels = labels_of(inputs["corpus"])
    write_evaluation(bundle / EVALUATION, evaluation_of(test, labels, "test"))
    write_evaluation(bundle / VALIDATION, evaluation_of(validation, labels, "validation", truth))
    write_plain(candidates, bundle, variant)
    check_size(recipe, bundle, name)


def _of_exits(answers: Answers, accuracy_without: float | None) -> dict[str, float]:
    """Of a bundle with exits: layers a row of the test, and the accuracy where no row leaves early."""
    if accuracy_without is None:
        return {}
    used = round(float(answers.layers_used.mean()), 3)
    return {"layers_used": used, "accuracy_without_exits": accuracy_without}
