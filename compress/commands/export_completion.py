"""`compress export BUNDLE --target` of a bundle that completes: its decoder for other engines."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from codemill.compress.commands.export_targets import (
    Judged,
    compared,
    refuse_lossy,
    show_made,
    without_reports,
)
from codemill.compress.commands.output import quiet_stdout
from codemill.errors import InputError
from codemill.export.quantize.settings import Method

if TYPE_CHECKING:
    from codemill.runtime import Completer, Manifest
    from codemill.targets.profile import TargetSpec

_PIECES, _CHARACTERS = 16, 1500
_METHODS = {"fp32": Method.FP32, "fp16": Method.FP16, "int8": Method.WEIGHTS_INT8}
_CPU = "CPUExecutionProvider"


def export_completion(
    model: Path,
    targets: Sequence[TargetSpec],
    out: Path,
    evaluation: Path | None,
    licence: str | None,
    max_loss: float,
    as_json: bool,
) -> None:
    """Write the bundle `model` at `out` with a variant for each target, made of the weights that it ships with.

    Raises InputError for targets that decoders are not made for, and RefusedError where a variant that runs here gets
    more than `max_loss` fewer next tokens right.
    """
    from codemill.compress.commands.bundle import folder_of
    from codemill.compress.places import put_bundle, scratch_beside
    from codemill.compress.progress import shown_stage
    from codemill.export.decoder.derive import derive_decoder, most_exact
    from codemill.runtime import load_completer, read_manifest, verify_bundle
    from codemill.runtime.bundle import update_bundle
    from codemill.runtime.cache import compiled_in

    folder = folder_of(model)
    # what is copied is hashed anew, whatever it holds by then
    verify_bundle(folder)
    manifest = read_manifest(folder)
    source = most_exact(manifest)
    for target in targets:
        _check(target, manifest, source)
    texts = _texts(folder, evaluation)
    # what is compiled to compare variants goes with the scratch: the cache is for those that are loaded
    with quiet_stdout(), scratch_beside(out) as scratch, compiled_in(scratch / "compiled"):
        ready = scratch / "bundle"
        shutil.copytree(folder, ready)
        with shown_stage("building") as said:
            for number, target in enumerate(targets):
                start = number / len(targets)

                def reported(at: float, what: str, start: float = start) -> None:
                    said(start + at / len(targets), what)

                derive_decoder(
                    ready,
                    _METHODS[target.precision.value],
                    name=target.name,
                    provider=target.provider,
                    capabilities=target.compute_capabilities,
                    needs=target.needs(),
                    report=reported,
                )
        without_reports(ready)
        if licence is not None:
            update_bundle(ready, license=licence)
        digest = verify_bundle(ready)
        with shown_stage(f"comparing with {source}"):
            shipped = partial(load_completer, ready, variant=source)
            found = compared(ready, targets, shipped, lambda model: _judged(model, texts))
        refuse_lossy(found, source, max_loss)
        put_bundle(ready, out, scratch)
    show_made(found, source, out, digest, as_json)


def _check(target: TargetSpec, manifest: Manifest, source: str) -> None:
    from codemill.export.decoder.derive import DECODER_METHODS
    from codemill.targets import all_targets

    said = f"--target {target.name}: {manifest.name!r} completes"
    if target.provider == _CPU:
        raise InputError(
            f"{said}; a processor runs its variant {source} as it is. Another precision is chosen when the model is "
            "exported: `compress export MODEL --task complete --precision`"
        )
    if target.provider not in DECODER_METHODS:
        others = [item.name for item in all_targets() if item.provider in DECODER_METHODS]
        raise InputError(
            f"{said}, and no decoder is made for {target.provider} yet; there are {', '.join(others)}"
        )
    methods = DECODER_METHODS[target.provider]
    if _METHODS.get(target.precision.value) not in methods:
        raise InputError(
            f"{said}; for {target.provider} it is made at {', '.join(item.precision for item in methods)}, "
            f"found precision {target.precision.value}"
        )
    there = manifest.variants.get(target.name)
    if there is not None and there.provider != target.provider:
        raise InputError(f"{said} and has a variant of this name already, for {there.provider}")


def _texts(folder: Path, evaluation: Path | None) -> list[str]:
    """What variants are compared on: beginnings of the evaluation's places, else code that is installed here."""
    from codemill.compress.data.code import pieces_from
    from codemill.targets.completion import read_completion_evaluation

    file = evaluation or folder / "evaluation.jsonl.gz"
    if evaluation is None and not file.is_file():
        return list(pieces_from("installed", _PIECES, _CHARACTERS))
    found = read_completion_evaluation(file)
    return [prefix[-_CHARACTERS:] for prefix in found.prefixes[:_PIECES]]


def _judged(model: Completer, texts: Sequence[str]) -> Judged:
    """The likeliest token after each of the texts', and the share of them that the text goes on with.

    Of the model alone: n-grams say the same whatever the engine.
    """
    found = [model.predictions(text, ngrams=False) for text in texts]
    right = np.concatenate([said[:-1] == ids[1:] for ids, said in found])
    said = np.concatenate([said for _, said in found])
    return Judged(said, float(right.mean()) if len(right) else 0.0)
