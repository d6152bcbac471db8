"""What a manifest calls the inference engines that are not execution providers of ONNX Runtime."""

from __future__ import annotations

from typing import Final

__all__ = ["ENGINES", "OPENVINO", "TENSORRT", "TENSORRT_RTX"]

OPENVINO: Final = "OpenVINO"
"""The library itself; `OpenVINOExecutionProvider` is ONNX Runtime's."""
TENSORRT_RTX: Final = "TensorRT-RTX"
TENSORRT: Final = "TensorRT"
ENGINES: Final = (TENSORRT_RTX, TENSORRT)
"""Those whose files hold code for a GPU: loaded only where their variant is named."""
