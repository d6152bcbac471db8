"""Int8 with fixed ranges of activations, by NNCF on a plain graph (QDQ): post-training, and with accuracy control.

Tables of embeddings are not left to NNCF, which would have them dequantized whole for every text (`tables.py`).
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from codemill.errors import CodemillError, MachineError
from codemill.export.fuse import keep_sums_apart
from codemill.export.quantize.settings import Method, Quantization
from codemill.export.quantize.tables import quantize_tables
from codemill.runtime.openvino import without_telemetry

if TYPE_CHECKING:
    import onnx

__all__ = ["Feed", "Judged", "Score", "nncf", "quantize_static", "quiet", "settings_of"]

Feed = Mapping[str, "np.ndarray"]
"""The inputs of one run of a graph, by name."""
Score = Callable[[Any], float]
"""Of an ONNX Runtime session with the graph: the task's metric on validation, more is better."""
Judged = Callable[[int, int], None]
"""Told how many forms of a graph were judged, and of how many; never that all were."""

_MOST_RESTORED = 32
"""Rounds of giving a group of products back its precision."""


def nncf() -> ModuleType:
    """NNCF, without the telemetry that it would start; MachineError where it is not installed."""
    without_telemetry()
    try:
        import nncf as found
    except ImportError as error:
        raise MachineError(
            "int8 with fixed ranges needs NNCF, which is not installed: pip install 'codemill[compress]'"
        ) from error
    found.set_log_level(logging.CRITICAL)
    module: ModuleType = found
    return module


def quantize_static(
    plain: Path,
    quantized: Path,
    settings: Quantization,
    feeds: Sequence[Feed],
    score: Score | None = None,
    *,
    for_engine: bool = False,
    judged: Judged = lambda _, __: None,
) -> None:
    """Write the int8 form of a plain graph: products and what is between them, tables of embeddings.

    feeds: what activations are seen on. score: needed by controlled-int8, which says how far it is by `judged`.
    for_engine: as TensorRT wants it, every zero point 0. Raises CodemillError where NNCF fails.
    """
    import onnx

    library = nncf()
    model = onnx.load(str(plain))
    common = settings_of(library, settings, len(feeds), tables=for_engine, symmetric=for_engine)
    try:
        with quiet():
            if settings.method is Method.CONTROLLED:
                if score is None:
                    raise ValueError("controlled-int8 needs a score")
                made = _controlled(library, model, feeds, settings, score, common, judged)
            else:
                made = library.quantize(model, library.Dataset(list(feeds)), **common)
    # NNCF raises whatever its passes raise
    except Exception as error:
        raise CodemillError(f"NNCF failed on {plain.name}: {error}") from error
    if not for_engine:
        quantize_tables(made)
        keep_sums_apart(made.graph)
    onnx.save(made, str(quantized))


def settings_of(
    library: ModuleType,
    settings: Quantization,
    samples: int,
    *,
    tables: bool = False,
    symmetric: bool = False,
) -> dict[str, Any]:
    """What NNCF is told; tables: of embeddings are left to it as well; symmetric: no zero point but 0."""
    advanced = library.AdvancedQuantizationParameters(
        overflow_fix=library.OverflowFix.ENABLE
        if settings.reduced_range
        else library.OverflowFix.DISABLE
    )
    if settings.method is Method.CONTROLLED:
        # products that are given back get the weights of before, and activations would stay smoothed for others
        none = library.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
        advanced.smooth_quant_alphas = none
    # OpenVINO looks compressed rows up as they are; ONNX Runtime would make the whole table anew
    left = None if tables else library.IgnoredScope(types=["Gather"], validate=False)
    return {
        "model_type": library.ModelType.TRANSFORMER,
        "subset_size": samples,
        "ignored_scope": left,
        "preset": library.QuantizationPreset.PERFORMANCE if symmetric else None,
        "advanced_parameters": advanced,
    }


def _controlled(
    library: ModuleType,
    model: onnx.ModelProto,
    feeds: Sequence[Feed],
    settings: Quantization,
    score: Score,
    common: dict[str, Any],
    judged: Judged,
) -> onnx.ModelProto:
    import onnxruntime

    def opened(found: onnx.ModelProto) -> Any:
        if any(node.op_type == "QuantizeLinear" for node in found.graph.node):
            # as it will ship
            kept, found = found, type(found)()
            found.CopyFrom(kept)
            quantize_tables(found)
        return onnxruntime.InferenceSession(
            found.SerializeToString(), providers=["CPUExecutionProvider"]
        )

    whole = opened(model)
    expected = {id(feed): whole.run(None, dict(feed)) for feed in feeds}
    latest: tuple[Any, Any] = (None, None)
    count, most = 0, 0

    def validated(found: onnx.ModelProto, asked: Iterable[Feed]) -> tuple[float, list[float]]:
        nonlocal latest, count, most
        # each is tried without its rounding, once, before groups of them go back
        most = most or sum(node.op_type == "QuantizeLinear" for node in found.graph.node)
        # it ranks them again where giving one back made things worse: then the bar waits
        judged(min(count, most + _MOST_RESTORED), most + _MOST_RESTORED + 1)
        count += 1
        if latest[0] is not found:
            latest = found, opened(found)
        session = latest[1]
        near = [-_error(session.run(None, dict(feed)), expected[id(feed)]) for feed in asked]
        # some of the feeds: which products harm most. The score, which takes all rows, is of whole graphs
        return score(session) if len(near) == len(feeds) else float(np.mean(near)), near

    restorer = library.AdvancedAccuracyRestorerParameters(
        max_num_iterations=_MOST_RESTORED, ranking_subset_size=max(1, len(feeds) - 1)
    )
    data = library.Dataset(list(feeds))
    # relative: a share of what fp32 reaches
    found: onnx.ModelProto = library.quantize_with_accuracy_control(
        model,
        data,
        data,
        validated,
        max_drop=settings.max_loss,
        drop_type=library.DropType.RELATIVE,
        advanced_quantization_parameters=common.pop("advanced_parameters"),
        advanced_accuracy_restorer_parameters=restorer,
        **common,
    )
    return found


def _error(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Squared, of all outputs, as a share of what was expected."""
    apart = sum(float(np.square(a - b).sum()) for a, b in zip(found, expected, strict=True))
    return apart / sum(float(np.square(item).sum()) for item in expected)


@contextmanager
def quiet() -> Iterator[None]:
    """Without NNCF's bars and warnings."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
