"""A bundle's plain graphs -> one more variant of it: fused, quantized or compiled, each graph after those before it.

A bundle that embeds is one graph; one that labels is a part of the encoder and a head for each exit and for the end.
A head is a few small products: it is quantized as they come, or stays as it is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from codemill.errors import ModelError
from codemill.export.candidates import PLAIN, PROVIDER, graph_file
from codemill.export.chain import Chain
from codemill.export.classifier import graph_files
from codemill.export.fuse import fuse_encoder
from codemill.export.openvino import write_ir
from codemill.export.quantize.dynamic import quantize_dynamic_int8
from codemill.export.quantize.half import to_half
from codemill.export.quantize.settings import Method, Quantization
from codemill.export.quantize.static import Judged, quantize_static
from codemill.export.quantize.weights import quantize_weights
from codemill.export.tensorrt import (
    Built,
    Profile,
    build_engine,
    profiles_of,
    said_of_engines,
    said_of_profiles,
)
from codemill.runtime.bundle import Variant, read_manifest, update_bundle
from codemill.runtime.engines import ENGINES, OPENVINO, TENSORRT_PROVIDERS
from codemill.runtime.ir import SUFFIX as IR_SUFFIX
from codemill.runtime.labels import LABEL_TASKS
from codemill.runtime.machine import INT8_PRODUCTS
from codemill.runtime.nvidia import MOST_ROWS
from codemill.runtime.tensorrt import SUFFIX as ENGINE_SUFFIX
from codemill.targets.evaluation import Evaluation, LabelledEvaluation

__all__ = ["derive"]

_AS_THEY_COME = (Method.DYNAMIC, Method.QAT)
"""Methods that round activations so: the same form, of weights that were or were not trained for it."""

_FIXED = (Method.STATIC, Method.CONTROLLED)
"""Methods that give activations ranges beforehand."""

Say = Callable[[float, str], None]


def derive(
    folder: Path,
    how: Quantization,
    *,
    name: str | None = None,
    plain: str = PLAIN,
    provider: str = PROVIDER,
    capabilities: Sequence[str] = (),
    needs: Mapping[str, Any] = MappingProxyType({}),
    validation: Evaluation | LabelledEvaluation | None = None,
    calibration: Sequence[tuple[str, ...]] = (),
    report: Say = lambda _, __: None,
) -> str:
    """Add a variant to the bundle in `folder`, which has a plain one, and return its name: `name`, or the method's.

    plain: the variant that it is made of. provider: of ONNX Runtime, or another engine. capabilities: of the GPUs that
    TensorRT for RTX builds for. needs: what the variant says that it asks of a machine.
    calibration: rows of one text, or of two that are joined, that activations are seen on, and whose lengths engines
    are tuned for; validation: what controlled-int8 keeps to. Raises ModelError where the
    bundle has no plain graphs, or says too little of them, and ValueError for a method that is not made for the
    provider.
    """
    manifest = read_manifest(folder)
    if plain not in manifest.variants:
        raise ModelError(
            f"bundle {manifest.name!r} has no variant {plain!r} to make others of; it has: "
            f"{', '.join(manifest.variants)}"
        )
    shape = manifest.architecture
    if not {"heads", "hidden_size"} <= set(shape):
        raise ModelError(f"bundle {manifest.name!r} does not say its heads and its hidden_size")
    name = name or how.method.value
    kept_to = validation if how.method is Method.CONTROLLED else None
    chain = Chain(folder, manifest, kept_to, calibration[: how.samples])

    def judged(done: int, most: int) -> None:
        said = f"{name}: graph {number + 1} of {len(files)}, {done} forms of it judged"
        report((number + done / most) / len(files), said)

    heads, hidden_size = int(shape["heads"]), int(shape["hidden_size"])
    maker: _Maker = _Onnx(how, heads, hidden_size, chain, provider, judged)
    if provider == OPENVINO:
        maker = _Ir(how, chain)
    elif provider in (*ENGINES, *TENSORRT_PROVIDERS):
        profiles = profiles_of(chain.lengths(), manifest.max_tokens, provider)
        maker = _Standard(how, chain, provider, profiles)
        if provider in ENGINES:
            maker = _Engines(how, chain, provider, profiles, tuple(capabilities))
    labels = manifest.task in LABEL_TASKS
    graphs = graph_files(name, len(manifest.exits)) if labels else (graph_file(name),)
    files = tuple(str(PurePosixPath(file).with_suffix(maker.suffix)) for file in graphs)
    for number, (source, file) in enumerate(
        zip(manifest.variants[plain].segments, files, strict=True)
    ):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        report(number / len(files), f"{name}: graph {number + 1} of {len(files)}")
        if labels and number % 2:
            maker.head(folder / source, path)
        else:
            part = number // 2
            maker.part(folder / source, path, part, go_on=part < len(manifest.exits))
    weights = tuple(
        str(PurePosixPath(file).with_suffix(".bin")) for file in files if maker.suffix == IR_SUFFIX
    )
    built_for = {**needs, **maker.built_for()}
    made = Variant(provider, how.method.precision, files, (*files, *weights), built_for)
    update_bundle(folder, variants={**manifest.variants, name: made})
    return name


class _Maker(Protocol):
    """Makes the files of a variant, in the order in which they run."""

    suffix: str

    def head(self, plain: Path, path: Path) -> None:
        """A head."""

    def part(self, plain: Path, path: Path, number: int, go_on: bool) -> None:
        """Part `number` of the encoder; then, where another one follows, the chain through it."""

    def built_for(self) -> dict[str, Any]:
        """What the variant says of it."""


@dataclass
class _Onnx:
    """Graphs for ONNX Runtime."""

    how: Quantization
    heads: int
    hidden_size: int
    chain: Chain
    provider: str
    judged: Judged
    suffix = ".onnx"

    def head(self, plain: Path, path: Path) -> None:
        if self.how.method in (*_AS_THEY_COME, Method.STATIC):
            quantize_dynamic_int8(plain, path, self.how.reduced_range)
        elif self.how.method is Method.FP16:
            to_half(plain, path)
        else:
            path.write_bytes(plain.read_bytes())

    def part(self, plain: Path, path: Path, number: int, go_on: bool) -> None:
        method = self.how.method
        if method is Method.BF16:
            raise ValueError(f"{method.value} is not made for {PROVIDER}")
        if method is Method.FP16:
            to_half(plain, path)
        elif method in _FIXED:
            score = self.chain.score(number) if method is Method.CONTROLLED else None
            quantize_static(
                plain, path, self.how, self.chain.feeds(number), score, judged=self.judged
            )
        elif method is Method.FP32:
            fuse_encoder(plain, path, self.heads, self.hidden_size)
        else:
            self._fused(plain, path)
        if go_on:
            self.chain.go_on(path, number)

    def _fused(self, plain: Path, path: Path) -> None:
        """By methods that begin with a fused graph."""
        method, how = self.how.method, self.how
        apart = method not in _AS_THEY_COME
        with tempfile.TemporaryDirectory() as scratch:
            fused = Path(scratch, "fused.onnx")
            fuse_encoder(plain, fused, self.heads, self.hidden_size, apart=apart)
            if apart:
                quantize_weights(fused, path, 4 if method is Method.WEIGHTS_INT4 else 8, how.block)
            else:
                quantize_dynamic_int8(fused, path, how.reduced_range)

    def built_for(self) -> dict[str, Any]:
        wide = not self.how.reduced_range and self.how.method in (*_AS_THEY_COME, *_FIXED)
        return {INT8_PRODUCTS: True} if wide and self.provider == PROVIDER else {}


@dataclass
class _Ir:
    """Graphs for OpenVINO."""

    how: Quantization
    chain: Chain
    suffix = IR_SUFFIX

    def head(self, plain: Path, path: Path) -> None:
        write_ir(plain, path)

    def part(self, plain: Path, path: Path, number: int, go_on: bool) -> None:
        write_ir(plain, path, self.how, self.chain.feeds(number))
        if go_on:
            self.chain.go_on(path, number, OPENVINO)

    def built_for(self) -> dict[str, Any]:
        return {}


@dataclass
class _Standard:
    """Graphs of standard operators, which TensorRT takes as a whole: in half precision, in int8 with symmetric ranges,
    or as they are.
    """

    how: Quantization
    chain: Chain
    provider: str
    profiles: Sequence[Profile]
    suffix = ".onnx"
    halves: ClassVar[tuple[Method, ...]] = (Method.FP16,)

    def head(self, plain: Path, path: Path) -> None:
        if self.how.method in self.halves:
            to_half(plain, path, brain=self.how.method is Method.BF16)
        else:
            path.write_bytes(plain.read_bytes())

    def part(self, plain: Path, path: Path, number: int, go_on: bool) -> None:
        if self.how.method in self.halves:
            to_half(plain, path, brain=self.how.method is Method.BF16)
        elif self.how.method is Method.STATIC:
            quantize_static(plain, path, self.how, self.chain.feeds(number), for_engine=True)
        elif self.how.method is Method.FP32:
            path.write_bytes(plain.read_bytes())
        else:
            raise ValueError(f"{self.how.method.value} is not made for {self.provider}")
        if go_on:
            # the same numbers, without a GPU; a processor has none in bfloat16
            self.chain.go_on(plain if self.how.method is Method.BF16 else path, number)

    def built_for(self) -> dict[str, Any]:
        return {"profiles": said_of_profiles(self.profiles)}


@dataclass
class _Engines(_Standard):
    """Engines of TensorRT, built from such graphs."""

    capabilities: tuple[str, ...]
    built: list[Built] = field(default_factory=list)
    suffix = ENGINE_SUFFIX
    halves = (Method.FP16, Method.BF16)

    def head(self, plain: Path, path: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch, "head.onnx")
            super().head(plain, source)
            # rows of embeddings, of any number of texts: no tokens
            self._build(source, path, [Profile((1, 1), (1, 1), (MOST_ROWS, 1))])

    def part(self, plain: Path, path: Path, number: int, go_on: bool) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch, f"part-{number}.onnx")
            super().part(plain, source, number, go_on)
            self._build(source, path, self.profiles)

    def _build(self, source: Path, path: Path, profiles: Sequence[Profile]) -> None:
        found = build_engine(source, path, profiles, self.capabilities, self.provider)
        self.built.append(found)

    def built_for(self) -> dict[str, Any]:
        return said_of_engines(self.built, self.profiles)
