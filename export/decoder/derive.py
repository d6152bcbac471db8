"""A variant of a bundle that completes for another engine, made of the graphs that it ships with.

Its weights are those of the most exact variant there is, so exits and their thresholds hold for it too. Nothing else is
kept for it: the graphs in standard operators are made anew each time, and gone when it is done.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from codemill.errors import ModelError
from codemill.export.candidates import PROVIDER
from codemill.export.decoder.bundle import PRECISIONS
from codemill.export.decoder.rounding import FULL
from codemill.export.decoder.standard import write_standard
from codemill.export.openvino import write_ir
from codemill.export.quantize.settings import Method, Quantization
from codemill.export.tensorrt import Profile, build_engine, said_of_engines
from codemill.runtime.bundle import Manifest, Variant, read_manifest, update_bundle
from codemill.runtime.completion.decoding import AT_ONCE
from codemill.runtime.engines import ENGINES, OPENVINO, TENSORRT_RTX
from codemill.runtime.ir import SUFFIX as IR_SUFFIX
from codemill.runtime.tensorrt import SUFFIX as ENGINE_SUFFIX

__all__ = ["DECODER_METHODS", "decoder_profiles", "derive_decoder", "most_exact"]

DECODER_METHODS = {
    OPENVINO: (Method.FP32, Method.FP16, Method.WEIGHTS_INT8),
    **dict.fromkeys(ENGINES, (Method.FP32, Method.FP16)),
}
"""What decoders are made for besides ONNX Runtime on a processor, and how."""
_USUAL_PAST = 512
"""Tokens before those that are run, as an engine is tuned for."""


def derive_decoder(
    folder: Path,
    method: Method,
    *,
    name: str,
    provider: str,
    capabilities: Sequence[str] = (),
    needs: Mapping[str, Any] = MappingProxyType({}),
    report: Callable[[float, str], None] = lambda _, __: None,
) -> None:
    """Add the variant `name` to the bundle that completes in `folder`.

    method: one of DECODER_METHODS, else ValueError; weights-int8 leaves weights that are rounded already, to 8 bits or
    to 4, as they are. capabilities: of the GPUs that TensorRT for RTX builds for. needs: what the variant says that it
    asks of a machine. Raises ModelError where no variant can be read, and what the engines' builders raise.
    """
    manifest = read_manifest(folder)
    source = manifest.variants[most_exact(manifest)]
    engines = provider in ENGINES
    if method not in DECODER_METHODS[provider]:
        raise ValueError(f"{method.value} is not made of a decoder for {provider}")
    rounded = method is Method.WEIGHTS_INT8 and PRECISIONS[source.precision] < FULL
    precision = source.precision if rounded else method.precision
    suffix = ENGINE_SUFFIX if engines else IR_SUFFIX
    inside = f"variants/{name}"
    (folder / inside).mkdir(parents=True, exist_ok=True)
    profiles = decoder_profiles(manifest.max_tokens, provider)
    built, segments = [], []
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".standard-") as scratch:
        report(0.0, f"{name}: standard operators")
        graphs = write_standard(
            *(folder, source.segments, Path(scratch)),
            half=engines and method is Method.FP16,
            blocks=rounded,
        )
        for number, graph in enumerate(graphs):
            report(number / len(graphs), f"{name}: graph {number + 1} of {len(graphs)}")
            segments.append(f"{inside}/{graph.with_suffix(suffix).name}")
            path = folder / segments[-1]
            if engines:
                built.append(build_engine(graph, path, profiles, capabilities, provider))
            else:
                write_ir(graph, path, Quantization(Method.FP32 if rounded else method))
    weights = (
        [] if engines else [str(Path(path).with_suffix(".bin").as_posix()) for path in segments]
    )
    made_for: dict[str, Any] = said_of_engines(built, profiles) if engines else {}
    made = Variant(
        provider, precision, tuple(segments), (*segments, *weights), {**needs, **made_for}
    )
    update_bundle(folder, variants={**manifest.variants, name: made})


def most_exact(manifest: Manifest) -> str:
    """The variant of ONNX Runtime whose weights were rounded least; ModelError where there is none."""
    for precision in sorted(PRECISIONS, key=lambda name: -PRECISIONS[name]):
        for name, variant in manifest.variants.items():
            if variant.provider == PROVIDER and variant.precision == precision:
                return name
    raise ModelError(
        f"bundle {manifest.name!r} has no variant for ONNX Runtime to make others of; it has: "
        f"{', '.join(manifest.variants)}"
    )


def decoder_profiles(max_tokens: int, provider: str) -> list[Profile]:
    """Of one token after another, and of a prompt's parts; TensorRT for RTX has one profile for both."""
    past = min(max_tokens, _USUAL_PAST)
    every = Profile((1, 1), (1, past), (AT_ONCE, max_tokens), ("tokens", "past"))
    if provider == TENSORRT_RTX:
        return [every]
    one = replace(every, most=(1, max_tokens))
    return [one, replace(every, usual=(AT_ONCE, past))]
