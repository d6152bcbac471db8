"""Plain ONNX -> the same graph with ONNX Runtime's fused operators (attention, layer norm, GELU).

For ONNX Runtime only: TensorRT and NNCF do not know these operators and start from the plain graph.
"""

from __future__ import annotations

import logging
from pathlib import Path

from codemill.errors import CodemillError

__all__ = ["fuse_encoder", "fused_operators"]


def fuse_encoder(plain: Path, fused: Path, heads: int, hidden_size: int) -> None:
    """Write the fused form of a BERT-like encoder. `heads` x head size may be below `hidden_size`."""
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    options = FusionOptions("bert")
    # its passes warn, on loggers of many names, of every pattern they look at and leave
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        model = optimize_model(
            str(plain),
            model_type="bert",
            num_heads=heads,
            hidden_size=hidden_size,
            optimization_options=options,
            opt_level=0,
        )
    except Exception as error:  # the optimizer raises whatever its passes raise
        raise CodemillError(f"ONNX Runtime's optimizer failed on {plain.name}: {error}") from error
    finally:
        logging.disable(disabled)
    model.save_model_to_file(str(fused))


def fused_operators(path: Path) -> dict[str, int]:
    """How often each com.microsoft operator occurs in the graph: what was fused."""
    import onnx

    counts: dict[str, int] = {}
    for node in onnx.load(str(path)).graph.node:
        if node.domain == "com.microsoft":
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts
