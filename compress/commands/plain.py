"""The plain graphs that other variants are made of, for `compress quantize` and `compress export --target`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from codemill.errors import InputError

if TYPE_CHECKING:
    from codemill.targets.evaluation import Evaluation, LabelledEvaluation

_VALIDATION = "validation.jsonl.gz"
_SAMPLES, _CHARACTERS = 128, 1500


def plain_bundle(
    model: str, evaluation: Path | None, work: Path, name: str = "model", task: str | None = None
) -> Path | None:
    """Write a bundle of the model's plain graphs to `work`; the file of what it is compared on, where there is one.

    model: a bundle that a run made, or a model as `compress export` takes it; evaluation: of what kind it is says
    whether a model embeds or labels, where `task` (encode, classify) does not, and None that it embeds. name: of the
    bundle of a model.
    """
    from codemill.compress.commands.bundle import folder_of, is_bundle
    from codemill.export.candidates import PLAIN
    from codemill.runtime import read_manifest, unpack, verify_bundle
    from codemill.runtime.completion.completer import completes

    if not is_bundle(model):
        _export_plain(model, evaluation, work, name, task)
        return evaluation
    folder = folder_of(Path(model))
    manifest = read_manifest(folder)
    if completes(manifest):
        raise InputError(
            f"{model} completes; how a decoder is rounded is chosen when it is exported: `compress export MODEL "
            "--task complete --precision int4` measures which matrices stay at 8 bits"
        )
    # what is copied is hashed anew, whatever it holds by then
    verify_bundle(folder)
    file = evaluation or folder / _VALIDATION
    source = folder
    if PLAIN not in manifest.variants:
        packed = folder / "plain.mill"
        if not packed.is_file():
            raise InputError(
                f"{model} has no plain.mill, the graphs that others are made of: `compress run` puts it into a "
                "bundle's folder (a .mill never has it); or give the model that the bundle was exported from"
            )
        source = unpack(packed)
        if read_manifest(source).provenance != manifest.provenance:
            raise InputError(f"{packed} is of another run than the bundle; make the bundle again")
    shutil.copytree(source, work)
    return file if evaluation or file.is_file() else None


def _export_plain(
    model: str, evaluation: Path | None, work: Path, name: str, task: str | None
) -> None:
    from codemill.compress.commands.export import export_encoder_bundle
    from codemill.targets.json_lines import json_lines

    if task is None and evaluation is not None:
        rows = json_lines(evaluation, "evaluation file", ("query", "labels"), 2**30)
        first = next(iter(rows), None)
        task = "encode" if first is not None and "query" in first[1] else "classify"
    export_encoder_bundle(model, task or "encode", "plain", work, name=name)


def calibration_of(asked: Evaluation | LabelledEvaluation | None) -> list[tuple[str, ...]]:
    """What activations are seen on: the task's own code, or what is on this machine."""
    from codemill.compress.data.code import pieces_from
    from codemill.targets.evaluation import Evaluation

    if asked is None:
        found: Sequence[str] = pieces_from("installed", _SAMPLES, _CHARACTERS)
    elif isinstance(asked, Evaluation):
        # as a run: both are what the model gets
        found = [text for pair in zip(asked.queries, asked.codes, strict=True) for text in pair]
    else:
        found = asked.texts
    return [(text,) for text in found[:_SAMPLES]]
