"""Stage `bundle` of completion: the decoder with its exits as files, what is calibrated on them, one bundle folder.

N-grams first: how much what followed the same tokens nearby weighs beside the model. Thresholds of exits come after
them. Both come from held-out files: for several rates of changed tokens, what leaves early is known from the tokens;
what that costs, and saves beside a bundle without exits, is measured on completed lines. The fastest whose loss is
within `exits.max_loss`, and whose time saved is beyond chance, ships; where none is, `exits.after: auto` ships the
bundle without exits, whose layers are one graph, and listed exits ship unused. Writes bundle/, thresholds.json and
ngrams.json.
"""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codemill import __version__
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.stages.bundle import BUNDLE, EVALUATION, check_size, shown
from codemill.compress.stages.complete.corpus import read_places
from codemill.compress.stages.complete.exits import read_exits
from codemill.compress.stages.complete.labels import (
    ROUNDED,
    decoder_from,
    model_identity,
    open_decoder,
)
from codemill.runtime import load_completer

if TYPE_CHECKING:
    from collections.abc import Callable

    from codemill.targets.completion import CompletionFigures

__all__ = ["THRESHOLDS", "VERSION", "evaluation_of", "stage", "variant_of"]

VERSION = 5
THRESHOLDS = "thresholds.json"
_PLAIN = "plain"
"""The bundle without exits, while it is found out whether they save time."""
_NGRAMS = "ngrams.json"
_FITTED = 100
"""Places that n-grams are fitted on."""
_NGRAM_SHARE = 0.3
"""Of the stage's time, about."""
_RATES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
Bounds = list[tuple[float | None, float | None]]


def stage(recipe: Recipe, threads: int, machine: str, keys: dict[str, str]) -> Stage:
    """Depends on the exits, and on this machine, on which the fastest is found."""
    complete = recipe.complete
    settings = {
        "recipe": shown(recipe),
        "codemill": __version__,
        "exits": [recipe.exits.after, recipe.exits.max_loss],
        "max_tokens": recipe.student.max_tokens,
        "complete": [complete.precision, complete.max_new_tokens, complete.stop_right],
        "ngrams": complete.ngrams,
        "threads": threads,
    }

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        _bundle(recipe, threads, keys, inputs, folder, report)

    needed = ("corpus", *decoder_from(recipe), "labels", "exits")
    libraries = ("onnxruntime", "onnx", "tokenizers")
    return Stage("bundle", VERSION, needed, settings, libraries, work, machine, findings=_findings)


def variant_of(recipe: Recipe) -> str:
    """The one variant's name."""
    return f"cpu-{recipe.complete.precision}"


def evaluation_of(recipe: Recipe, corpus: Path, name: str) -> Any:
    """The places of `calibration` or `test`."""
    from codemill.targets.completion import CompletionEvaluation

    places = read_places(corpus, name)
    source = "the standard library" if recipe.data.source == "installed" else "held-out files"
    return CompletionEvaluation(
        source, tuple(place.prefix for place in places), tuple(place.line for place in places)
    )


def _findings(folder: Path) -> str:
    return "; ".join((*_said_of_ngrams(folder), _said_of_exits(folder)))


def _said_of_ngrams(folder: Path) -> list[str]:
    found = json.loads((folder / _NGRAMS).read_text())
    if found is None:
        return []
    what = f"{found['right_alone']:.1%} of held-out tokens right, {found['right']:.1%} with n-grams"
    return [what if found["ships"] else f"{what}, which ship unused"]


def _said_of_exits(folder: Path) -> str:
    found = json.loads((folder / THRESHOLDS).read_text())
    chosen = found["chosen"]
    if found["full"] is None:
        return "no exits"
    if chosen is None:
        end = "the bundle has no exits"
        if found["ships"]:
            gives_up = any(item is not None for item in found["stop"] or ())
            end = "exits only give up" if gives_up else "exits ship unused"
        return f"no thresholds save time within exits.max_loss: {end}"
    point = next(item for item in found["curve"] if item["rate"] == chosen)
    return (
        f"{point['speedup']:.2f}x as fast as without exits at {point['loss']:.2%} loss on held-out lines, "
        f"{point['figures']['layers_mean']:.1f} layers a token"
    )


def _bundle(
    recipe: Recipe,
    threads: int,
    keys: dict[str, str],
    inputs: Folders,
    folder: Path,
    report: Report,
) -> None:
    from codemill.export.decoder.bundle import calibrated, write_completion
    from codemill.export.decoder.rounding import read_rounding
    from codemill.targets.completion import write_completion_evaluation

    bundle, plain, complete = folder / BUNDLE, folder / _PLAIN, recipe.complete
    for left in (bundle, plain):
        shutil.rmtree(left, ignore_errors=True)
    exits = read_exits(recipe, inputs)
    report(0.0, "writing the graphs")
    rounding = read_rounding(inputs["labels"] / ROUNDED)
    count = 0 if exits is None else len(exits.adapters)
    unused: Bounds = [(None, None)] * count
    model = open_decoder(recipe, inputs)
    # the one that ships where there are no exits, the other beside it
    written = {bundle: exits, plain: None} if count else {bundle: None}
    manifests = {
        path: write_completion(
            model.weights,
            path,
            name=recipe.name,
            tokenizer_json=model.tokenizer_json,
            prompting=model.prompting,
            max_tokens=recipe.student.max_tokens,
            precisions=(complete.precision,),
            exits=leaving,
            bounds=unused if leaving is not None else (),
            roundings={complete.precision: rounding},
            license=recipe.license,
            provenance=_provenance(recipe, keys) | {"eight_bits": list(rounding.eight)},
        )
        for path, leaving in written.items()
    }
    ngrams = None
    if complete.ngrams == "auto":
        ngrams = _fitted(
            threads, inputs, bundle, lambda share: report(_NGRAM_SHARE * share, "weighing n-grams")
        )
        if ngrams is not None and ngrams["ships"]:
            for path, manifest in manifests.items():
                manifests[path] = calibrated(path, manifest, escapes=ngrams["escapes"])
    (folder / _NGRAMS).write_text(json.dumps(ngrams, indent=1))
    found: dict[str, Any] = {"full": None, "curve": [], "chosen": None, "stop": None}
    if count:
        found = _chosen(
            recipe,
            threads,
            inputs,
            (bundle, plain),
            lambda share, what: report(_NGRAM_SHARE + (1 - _NGRAM_SHARE) * share, what),
        )
        used = found["chosen"] is not None or any(item is not None for item in found["stop"] or ())
        found["ships"] = used or recipe.exits.after != "auto"
        if not found["ships"]:
            shutil.rmtree(bundle)
            plain.rename(bundle)
        shutil.rmtree(plain, ignore_errors=True)
        if used:
            point = next((x for x in found["curve"] if x["rate"] == found["chosen"]), None)
            leave = [None] * count if point is None else point["bounds"]
            stop = found["stop"] if complete.stop_right is not None else [None] * count
            bounds = list(zip(leave, stop or [None] * count, strict=True))
            calibrated(bundle, manifests[bundle], bounds=bounds)
    write_completion_evaluation(
        bundle / EVALUATION, evaluation_of(recipe, inputs["corpus"], "test")
    )
    check_size(recipe, bundle, variant_of(recipe))
    (folder / THRESHOLDS).write_text(json.dumps(found, indent=1))


def _fitted(
    threads: int, inputs: Folders, bundle: Path, report: Callable[[float], None]
) -> dict[str, Any] | None:
    """Escapes of n-grams, what was measured, and whether they ship; None where there is too little text to tell."""
    from codemill.compress.ngrams import fit_ngrams

    # of each file one: what is fitted on must not be near to what it is judged by
    files = {place.file: place for place in read_places(inputs["corpus"], "calibration")}
    texts = [place.prefix + place.line for place in list(files.values())[:_FITTED]]
    with load_completer(bundle, threads=threads) as model:
        found = fit_ngrams(model, texts, report)
    return None if found is None else asdict(found) | {"ships": found.helps}


def _chosen(
    recipe: Recipe, threads: int, inputs: Folders, bundles: tuple[Path, Path], report: Report
) -> dict[str, Any]:
    """The curve of loss against speed over thresholds, and the fastest within the bound.

    bundles: with exits, and without, beside which they have to save time.
    """
    from codemill.compress.exits.controller import rate_thresholds, stop_thresholds
    from codemill.targets.completion import complete_places, figures_of, paired_ratio

    seen = np.load(inputs["exits"] / "chances.npz", allow_pickle=False)
    bounds = {rate: rate_thresholds(seen["chances"], seen["agrees"], rate) for rate in _RATES}
    places = evaluation_of(recipe, inputs["corpus"], "calibration")
    with ExitStack() as opened:
        leaving, plain = (
            opened.enter_context(load_completer(bundle, threads=threads)) for bundle in bundles
        )
        settings: dict[str, Any] = {"full": (plain, {"drafts": False})}
        for rate, thresholds in bounds.items():
            if any(item is not None for item in thresholds):
                pairs = [(item, None) for item in thresholds]
                settings[str(rate)] = (leaving, {"exits": pairs, "drafts": False})
        completed = complete_places(
            places,
            settings,
            recipe.complete.max_new_tokens,
            lambda share: report(share, "completing held-out lines at several thresholds"),
        )
    figures = {name: figures_of(items, places.lines) for name, items in completed.items()}
    full = figures["full"]
    seconds = {
        name: np.array([item.seconds for item in items]) for name, items in completed.items()
    }
    curve: list[dict[str, Any]] = []
    for rate, thresholds in bounds.items():
        point = figures.get(str(rate))
        if point is not None:
            faster = paired_ratio(seconds["full"], seconds[str(rate)])
            assert faster is not None  # each completion takes time
            curve.append(
                {
                    "rate": rate,
                    "bounds": thresholds,
                    "loss": _loss(point, full),
                    "speedup": faster.value,
                    "surely": faster.low,
                    "figures": asdict(point),
                }
            )
    # the best of several means is above 1 by chance alone: time is saved where an interval says so
    within = [
        item for item in curve if item["loss"] <= recipe.exits.max_loss and item["surely"] > 1
    ]
    best = max(within, key=lambda item: item["speedup"], default=None)
    stop = None
    if recipe.complete.stop_right is not None:
        stop = stop_thresholds(seen["chances"], seen["right"], recipe.complete.stop_right)
    return {
        "full": asdict(full),
        "curve": curve,
        "chosen": None if best is None else best["rate"],
        "stop": stop,
    }


def _loss(found: CompletionFigures, full: CompletionFigures) -> float:
    """The larger of the relative losses of exact match and of ROUGE-L."""
    pairs = ((found.exact_match, full.exact_match), (found.rouge_l, full.rouge_l))
    return max(1 - a / b if b else 0.0 for a, b in pairs)


def _provenance(recipe: Recipe, keys: dict[str, str]) -> dict[str, Any]:
    from importlib import metadata

    packages = ("torch", "transformers", "onnx", "onnxruntime", "tokenizers", "numpy")
    return {
        "recipe": shown(recipe),
        "teacher": {"model": shown(recipe)["teacher"]["model"], "sha256": model_identity(recipe)},
        "stages": {name: key[:16] for name, key in keys.items()},
        "packages": {name: metadata.version(name) for name in packages},
    }
