"""Stage `bundle`: the accepted variant, its metrics on the test, and its provenance, as one bundle folder."""

from __future__ import annotations

import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from codemill import __version__
from codemill.compress.models.load import fingerprint, resolve_model
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.stages.corpus import read_split
from codemill.compress.stages.export import CANDIDATES, validation_of
from codemill.compress.stages.finetune import facts
from codemill.compress.stages.quantized import (
    accepted,
    copy_variant,
    plain_of,
    shipped_as,
)
from codemill.errors import RefusedError
from codemill.export.candidates import PLAIN
from codemill.runtime import (
    load_encoder,
    pack,
    read_manifest,
    size_bytes,
    write_bundle,
)
from codemill.runtime.bundle import TOKENIZER, Variant, write_bundle_like
from codemill.targets.evaluation import Evaluation, write_evaluation
from codemill.targets.metrics import mrr, recall_at

__all__ = [
    "BUNDLE",
    "EVALUATION",
    "PACKAGES",
    "VALIDATION",
    "VERSION",
    "check_size",
    "copied",
    "provenance",
    "shown",
    "stage",
    "write_plain",
]

VERSION = 2
BUNDLE = "bundle"
EVALUATION = "evaluation.jsonl.gz"
VALIDATION = "validation.jsonl.gz"
PLAIN_BUNDLE = "plain.mill"
"""Beside what ships: what other variants are made of."""
PACKAGES = (
    "torch",
    "transformers",
    "optimum-onnx",
    "onnx",
    "onnxruntime",
    "tokenizers",
    "numpy",
    "pygad",
)


def stage(recipe: Recipe, threads: int, keys: dict[str, str]) -> Stage:
    """Depends on what was accepted; `keys` (earlier stages' hashes) go into the provenance."""
    settings = {
        "recipe": shown(recipe),
        "threads": threads,
        "codemill": __version__,
    }

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        _bundle(recipe, threads, keys, inputs, folder, report)

    return Stage("bundle", VERSION, ("export", "corpus", "teacher"), settings, PACKAGES, work)


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
    source = read_manifest(candidates)
    variants = copied(candidates, variant, bundle)
    (shipped,) = variants
    test = read_split(inputs["corpus"], "test")
    evaluation = Evaluation(
        _test_name(recipe), tuple(pair.query for pair in test), tuple(pair.code for pair in test)
    )
    report(0.1, f"measuring on {len(test)} test functions")
    with load_encoder(candidates, variant=variant, threads=threads) as model:
        query, code = model.encode(evaluation.queries), model.encode(evaluation.codes)
    write_bundle(
        bundle,
        name=recipe.name,
        task=recipe.task,
        license=recipe.license,
        input=source.input,
        output=source.output,
        variants=variants,
        architecture=source.architecture,
        metrics={
            shipped: {
                "quantization": variant,
                "mrr": round(mrr(query, code), 4),
                "recall_at_10": round(recall_at(query, code, 10), 4),
                "functions": len(test),
                "evaluation": evaluation.name,
            }
        },
        provenance=provenance(recipe, keys, facts(inputs["teacher"])["teaches"]),
    )
    write_evaluation(bundle / EVALUATION, evaluation)
    write_evaluation(bundle / VALIDATION, validation_of(recipe, inputs["corpus"]))
    write_plain(candidates, bundle, variant)
    check_size(recipe, bundle, shipped)


def copied(candidates: Path, variant: str, bundle: Path) -> dict[str, Variant]:
    """Copy a form and the tokenizer into a bundle's folder; the variant that it is there."""
    name = shipped_as(variant)
    found = copy_variant(candidates, variant, bundle, name)
    shutil.copyfile(candidates / TOKENIZER, bundle / TOKENIZER)
    return {name: found}


def write_plain(candidates: Path, bundle: Path, variant: str) -> None:
    """Put the plain graphs that the form `variant` was made of beside a bundle, as a bundle of one file."""
    made = read_manifest(bundle)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "plain")
        plain = copy_variant(candidates, plain_of(candidates, variant), folder, PLAIN)
        shutil.copyfile(candidates / TOKENIZER, folder / TOKENIZER)
        write_bundle_like(folder, made, variants={PLAIN: plain}, metrics={})
        pack(folder, bundle / PLAIN_BUNDLE)


def check_size(recipe: Recipe, bundle: Path, variant: str) -> None:
    """Raise RefusedError where the bundle is larger than its budget."""
    found, limit = size_bytes(bundle, variant), recipe.budget.size_bytes
    if limit is not None and found > limit:
        raise RefusedError(
            f"the {variant} bundle is {found:,} bytes, over the budget of {limit:,}; "
            "raise budget.size_bytes, or narrow the search (see quantize: fp32 ships when int8 is refused)"
        )


def _test_name(recipe: Recipe) -> str:
    return "standard library" if recipe.data.source == "installed" else "held-out pairs"


def provenance(recipe: Recipe, keys: dict[str, str], teaches: str) -> dict[str, Any]:
    """Where a bundle comes from. `teaches`: which form of the teacher did, or the data."""
    # short forms: the manifest ships, and counts against the budget
    return {
        "recipe": shown(recipe),
        "teacher": {**_model(recipe.teacher.model), "weights": teaches},
        **({} if recipe.origin == recipe.teacher.model else {"origin": _model(recipe.origin)}),
        "stages": {name: key[:16] for name, key in keys.items()},
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }


def _model(name: str | None) -> dict[str, str]:
    if name is None:
        return {}
    return {"model": _file_name(name), "sha256": fingerprint(resolve_model(name))}


def shown(recipe: Recipe) -> dict[str, Any]:
    """What differs from the defaults, without where files lie on this machine."""
    value = recipe.model_dump(mode="json", exclude_defaults=True, exclude={"bench", "threads"})
    data = value.setdefault("data", {})
    if recipe.task == "retrieval":
        data["source"] = _file_name(recipe.data.source)
    for name in ("source", "functions"):
        if name in data:
            data[name] = _file_name(data[name])
    for name in ("train", "validation", "test"):
        for item in data.get(name) or ():
            item["file"] = _file_name(item["file"])
    if recipe.teacher.model is not None:
        value.setdefault("teacher", {})["model"] = _file_name(recipe.teacher.model)
    if "init" in value.get("student", {}):
        value["student"]["init"] = _file_name(recipe.student.init)
    return value


def _file_name(value: str) -> str:
    """A name from the recipe; of a path on this machine only its last part, not where it lies."""
    path = Path(value).expanduser()
    return path.name if path.exists() else value
