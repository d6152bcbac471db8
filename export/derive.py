"""A bundle's plain graphs -> one more variant of it: fused and quantized, each graph on what those before it give.

A bundle that embeds is one graph; one that labels is a part of the encoder and a head for each exit and for the end.
A head is a few small products: it is quantized as they come, or stays as it is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from codemill.errors import ModelError
from codemill.export.candidates import PLAIN, PROVIDER, graph_file
from codemill.export.classifier import LOGITS, graph_files
from codemill.export.encoder import OUTPUT, handed_on, inputs_of
from codemill.export.fuse import fuse_encoder
from codemill.export.openvino import write_ir
from codemill.export.quantize.dynamic import quantize_dynamic_int8
from codemill.export.quantize.half import to_half
from codemill.export.quantize.settings import Method, Quantization
from codemill.export.quantize.static import Feed, Score, quantize_static
from codemill.export.quantize.weights import quantize_weights
from codemill.runtime.bundle import TOKENIZER, Manifest, Variant, read_manifest, update_bundle
from codemill.runtime.ir import SUFFIX
from codemill.runtime.labels import LABEL_TASKS, labelling_of
from codemill.runtime.passes import stacked
from codemill.runtime.session import OPENVINO, OnnxSession, open_session
from codemill.runtime.texts import Texts, batches, open_tokenizer
from codemill.targets.evaluation import Evaluation, LabelledEvaluation
from codemill.targets.metrics import mrr

__all__ = ["derive"]

_BATCH = 16
_SIDES = ("first", "second")

Say = Callable[[float, str], None]


def derive(
    folder: Path,
    how: Quantization,
    *,
    provider: str = PROVIDER,
    validation: Evaluation | LabelledEvaluation | None = None,
    calibration: Sequence[tuple[str, ...]] = (),
    report: Say = lambda _, __: None,
) -> str:
    """Add a variant to the bundle in `folder`, which has a plain one, and return its name: the method's.

    provider: ONNX Runtime's for processors, or OPENVINO, whose variants are called openvino-PRECISION. calibration:
    rows of one text, or of two that are joined, that activations are seen on; validation: what controlled-int8 keeps
    to. Raises ModelError where the bundle has no plain graphs, or says too little of them.
    """
    manifest = read_manifest(folder)
    if PLAIN not in manifest.variants:
        raise ModelError(
            f"bundle {manifest.name!r} has no variant {PLAIN!r} to make others of; it has: "
            f"{', '.join(manifest.variants)}"
        )
    shape = manifest.architecture
    if not {"heads", "hidden_size"} <= set(shape):
        raise ModelError(f"bundle {manifest.name!r} does not say its heads and its hidden_size")
    name = how.method.value
    if provider == OPENVINO:
        name = f"openvino-{how.method.precision}"
    sources = manifest.variants[PLAIN].segments
    labels = manifest.task in LABEL_TASKS
    files = graph_files(name, len(manifest.exits)) if labels else (graph_file(name),)
    weights: tuple[str, ...] = ()
    if provider == OPENVINO:
        files = tuple(str(PurePosixPath(file).with_suffix(SUFFIX)) for file in files)
        weights = tuple(str(PurePosixPath(file).with_suffix(".bin")) for file in files)
    chain = _Chain(folder, manifest, validation, calibration[: how.samples], provider)
    for number, (source, file) in enumerate(zip(sources, files, strict=True)):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        plain = folder / source
        report(number / len(files), f"{name}: graph {number + 1} of {len(files)}")
        if labels and number % 2:
            if provider == OPENVINO:
                write_ir(plain, path)
            else:
                _head(plain, path, how)
        else:
            part = number // 2
            if provider == OPENVINO:
                write_ir(plain, path, how, chain.feeds(part))
            else:
                _part(plain, path, how, int(shape["heads"]), int(shape["hidden_size"]), chain, part)
            if part < len(manifest.exits):
                chain.go_on(path, part)
    made = Variant(provider, how.method.precision, files, (*files, *weights))
    update_bundle(folder, variants={**manifest.variants, name: made})
    return name


def _head(plain: Path, path: Path, how: Quantization) -> None:
    if how.method in (Method.DYNAMIC, Method.STATIC):
        quantize_dynamic_int8(plain, path, how.reduced_range)
    elif how.method is Method.FP16:
        to_half(plain, path)
    else:
        path.write_bytes(plain.read_bytes())


def _part(
    plain: Path,
    path: Path,
    how: Quantization,
    heads: int,
    hidden_size: int,
    chain: _Chain,
    number: int,
) -> None:
    """One part of the encoder."""
    method = how.method
    if method is Method.FP16:
        to_half(plain, path)
    elif method in (Method.STATIC, Method.CONTROLLED):
        score = chain.score(number) if method is Method.CONTROLLED else None
        quantize_static(plain, path, how, chain.feeds(number), score)
    elif method is Method.FP32:
        fuse_encoder(plain, path, heads, hidden_size)
    else:
        apart = method is not Method.DYNAMIC
        with tempfile.TemporaryDirectory() as scratch:
            fused = Path(scratch, "fused.onnx")
            fuse_encoder(plain, fused, heads, hidden_size, apart=apart)
            if apart:
                quantize_weights(fused, path, 4 if method is Method.WEIGHTS_INT4 else 8, how.block)
            else:
                quantize_dynamic_int8(fused, path, how.reduced_range)


@dataclass
class _Chain:
    """What the parts of a bundle's encoder are fed with: the calibration's rows, and the validation's.

    `go_on` takes both through a part that was made, so that the next one sees what it will see.
    """

    folder: Path
    manifest: Manifest
    validation: Evaluation | LabelledEvaluation | None
    calibration: Sequence[tuple[str, ...]]
    provider: str

    def __post_init__(self) -> None:
        content = (self.folder / TOKENIZER).read_bytes()
        tokenizer = open_tokenizer(content, str(self.folder))
        texts = Texts(tokenizer, content, self.manifest.name, self.manifest.max_tokens)
        self._texts = texts
        self._seen: list[Any] = [_ids(texts, row) for row in self.calibration]
        self._judged: list[Any] = [_ids(texts, row) for row in self._validated_rows()]

    def _validated_rows(self) -> list[tuple[str, ...]]:
        asked = self.validation
        if asked is None:
            return []
        if isinstance(asked, Evaluation):
            return [(text,) for text in (*asked.queries, *asked.codes)]
        if labelling_of(self.manifest).joined:
            return [tuple(asked.texts[index] for index in row) for row in asked.rows]
        return [(text,) for text in asked.texts]

    def feeds(self, number: int) -> list[Feed]:
        """The calibration's rows, one a run."""
        return [feed for _, feed in self._runs(self._seen, number, 1)]

    def go_on(self, path: Path, number: int) -> None:
        """Through the part at `path`, to the next one."""
        session = open_session(path, provider=self.provider)
        hands = handed_on(number)
        for kept in (self._seen, self._judged):
            found: list[Any] = [None] * len(kept)
            for rows, feed in self._runs(kept, number, _BATCH):
                (hidden,) = session.outputs_for(feed, (hands,))
                for place, row in enumerate(rows):
                    found[row] = hidden[place, : max(1, len(kept[row]))]
            kept[:] = found
        session.close()

    def score(self, number: int) -> Score:
        """The task's metric on validation of a session of part `number`: of its own head, where there are heads."""
        asked = self.validation
        if asked is None:
            raise ModelError("controlled-int8 needs validation data")
        head = None
        if isinstance(asked, LabelledEvaluation):
            segments = self.manifest.variants[PLAIN].segments
            head = OnnxSession(self.folder / segments[2 * number + 1])

        def score(session: Any) -> float:
            rows = np.zeros((len(self._judged), int(self.manifest.output["dim"])), np.float32)
            for at, feed in self._runs(self._judged, number, _BATCH):
                (rows[at],) = session.run([OUTPUT], dict(feed))
            if isinstance(asked, Evaluation):
                return mrr(rows[: len(asked.queries)], rows[len(asked.queries) :])
            assert head is not None
            return _accuracy(head, rows, asked, labelling_of(self.manifest).joined)

        return score

    def _runs(self, kept: list[Any], number: int, size: int) -> Iterator[tuple[list[int], Feed]]:
        names = inputs_of(number)
        for rows in batches([len(item) for item in kept], size):
            found = [kept[row] for row in rows]
            first, mask = (
                stacked(found, self.manifest.name) if number else self._texts.padded(found)
            )
            yield rows, dict(zip(names, (first, mask), strict=True))


def _ids(texts: Texts, row: tuple[str, ...]) -> Sequence[int]:
    return (texts.cut(row[0]) if len(row) == 1 else texts.cut_pair(*row)).ids


def _accuracy(
    head: OnnxSession, rows: np.ndarray, asked: LabelledEvaluation, joined: bool
) -> float:
    texts = 1 if joined else len(asked.rows[0])
    sides = [rows if joined else rows[[row[side] for row in asked.rows]] for side in range(texts)]
    (logits,) = head.outputs_for(dict(zip(_SIDES[:texts], sides, strict=True)), (LOGITS,))
    truth = np.array(asked.truth)
    known = truth >= 0
    return float((logits.argmax(1) == truth)[known].mean())
