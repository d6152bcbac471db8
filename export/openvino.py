"""A plain graph in OpenVINO's format: as it is, or int8 by NNCF: weights and activations, or weights alone."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from codemill.errors import CodemillError
from codemill.export.quantize.settings import Method, Quantization
from codemill.export.quantize.static import Feed, nncf, quiet, settings_of
from codemill.runtime.openvino import openvino

__all__ = ["write_ir"]


def write_ir(
    plain: Path, path: Path, how: Quantization | None = None, feeds: Sequence[Feed] = ()
) -> None:
    """Write the .xml at `path` and the .bin beside it.

    how: fp32 (None too), fp16 (of the weights alone), static-int8 or weights-int8; feeds: what activations are seen on.
    Raises ProviderError where OpenVINO is not installed, CodemillError where it or NNCF fails, ValueError for another
    method.
    """
    library = openvino()
    method = Method.FP32 if how is None else how.method
    try:
        model = library.Core().read_model(plain)
        if how is not None and method is Method.STATIC:
            found = nncf()
            with quiet():
                model = found.quantize(
                    model,
                    found.Dataset(list(feeds)),
                    **settings_of(found, how, len(feeds), tables=True),
                )
        elif method is Method.WEIGHTS_INT8:
            found = nncf()
            # a matrix that is turned first is none to NNCF
            passes = importlib.import_module("openvino.passes")
            folding = passes.Manager()
            folding.register_pass(passes.ConstantFolding())
            folding.run_passes(model)
            with quiet():
                model = found.compress_weights(model, mode=found.CompressWeightsMode.INT8_SYM)
        elif method not in (Method.FP32, Method.FP16):
            raise ValueError(f"{method.value} is not made for OpenVINO")
        library.save_model(model, path, compress_to_fp16=method is Method.FP16)
    except ValueError:
        raise
    # both raise whatever their passes raise
    except Exception as error:
        raise CodemillError(f"OpenVINO cannot make {path.name} of {plain.name}: {error}") from error
