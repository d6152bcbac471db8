"""A decoder -> a bundle that completes: its variants' graphs, the tokenizer, and what the runtime has to know."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codemill.export.candidates import PROVIDER
from codemill.export.decoder.rounding import FULL, Rounding
from codemill.export.decoder.shape import DecoderShape, DecoderWeights, Exits, Rotary
from codemill.export.decoder.write import (
    HEAD,
    WEIGHTS,
    WHOLE,
    exit_file,
    project_file,
    segment_file,
    write_decoder,
)
from codemill.runtime.bundle import TOKENIZER, Manifest, Variant, write_bundle
from codemill.runtime.completion.decoding import COMPLETION

__all__ = ["PRECISIONS", "Prompting", "calibrated", "write_completion"]

PRECISIONS: Mapping[str, int] = {"int4": 4, "int8": 8, "fp32": FULL}
"""Bits of the matrices, by precision."""


@dataclass(frozen=True)
class Prompting:
    """What a prompt begins with, after which ids nothing follows, and the ids of prefix, suffix and middle, if any."""

    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    fill: tuple[int, int, int] | None = None


def write_completion(
    weights: DecoderWeights,
    folder: Path,
    *,
    name: str,
    tokenizer_json: str,
    prompting: Prompting,
    max_tokens: int,
    precisions: Sequence[str] = ("int4",),
    exits: Exits | None = None,
    bounds: Sequence[tuple[float | None, float | None]] = (),
    roundings: Mapping[str, Rounding] | None = None,
    license: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write a bundle into `folder`, which may hold an older one's graphs.

    max_tokens: of prompt and completion together, at most what the model was made for. bounds: of each exit, from
    which probabilities on the controller's decisions to exit and to stop are followed; None: never. roundings: by
    precision, how matrices are rounded (`mixed.py`); by default each as it is.
    """
    shape = weights.shape
    longest = min(max_tokens, shape.max_tokens)
    after = exits.layers if exits is not None else ()
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "variants", ignore_errors=True)
    (folder / TOKENIZER).write_text(tokenizer_json, encoding="utf-8")
    variants = {}
    for precision in precisions:
        variant = f"cpu-{precision}"
        inside = f"variants/{variant}"
        rounding = (roundings or {}).get(precision) or Rounding(PRECISIONS[precision])
        write_decoder(weights, folder / inside, rounding, exits or (), longest)
        names: list[str] = []
        for number in range(len(after)):
            names += [segment_file(number), exit_file(number), project_file(number)]
        segments = tuple(f"{inside}/{name}" for name in (*names, segment_file(len(after)), HEAD))
        variants[variant] = Variant(
            provider=PROVIDER,
            precision=precision,
            segments=segments,
            files=(*segments, f"{inside}/{WHOLE}", f"{inside}/{WEIGHTS}"),
        )
    fill = prompting.fill
    return write_bundle(
        folder,
        name=name,
        task=COMPLETION,
        license=license,
        input={"max_tokens": longest, "begin": list(prompting.begin)},
        output={
            "kind": "tokens",
            "vocab_size": shape.vocab_size,
            "end": list(prompting.end),
            "fill": None
            if fill is None
            else dict(zip(("prefix", "suffix", "middle"), fill, strict=True)),
        },
        architecture=_architecture(shape, weights.rotary),
        variants=variants,
        provenance=provenance,
        exits=_exits(after, bounds),
    )


def calibrated(
    folder: Path,
    manifest: Manifest,
    *,
    bounds: Sequence[tuple[float | None, float | None]] | None = None,
    escapes: Sequence[float] | None = None,
) -> Manifest:
    """Write the manifest of a bundle anew with what was found out with its graphs, which stay as they are.

    bounds: of its exits, as in `write_completion`; escapes: of n-grams (`runtime/completion/ngrams.py`), empty: they do
    not count; None: as before.
    """
    fields = ("name", "task", "input", "variants", "license", "architecture", "provenance")
    given: dict[str, Any] = {name: getattr(manifest, name) for name in fields}
    exits, output = list(manifest.exits), dict(manifest.output)
    if bounds is not None:
        exits = _exits([item["layer"] for item in exits], bounds)
    if escapes is not None:
        output["ngrams"] = {"escapes": list(escapes)} if escapes else None
    return write_bundle(folder, **given, output=output, exits=exits)


def _exits(
    after: Sequence[int], bounds: Sequence[tuple[float | None, float | None]]
) -> list[dict[str, Any]]:
    return [
        {"layer": layer, "exit": leave, "stop": stop}
        for layer, (leave, stop) in zip(after, bounds, strict=True)
    ]


def _architecture(shape: DecoderShape, rotary: Rotary | None) -> dict[str, Any]:
    turned = None
    if rotary is not None:
        turned = {"frequencies": list(rotary.frequencies), "interleaved": rotary.interleaved}
    return {
        "family": shape.family,
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.width,
        "layers": shape.layers,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "head_size": shape.head_size,
        "intermediate_size": shape.intermediate_size,
        "embedding_rank": shape.rank,
        "rotary": turned,
    }
