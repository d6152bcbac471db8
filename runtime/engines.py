"""What a manifest calls inference engines: those that are not ONNX Runtime's, and its execution providers."""

from __future__ import annotations

from typing import Final

__all__ = [
    "CUDA",
    "ENGINES",
    "NVIDIA",
    "OPENVINO",
    "PROVIDERS",
    "TENSORRT",
    "TENSORRT_PROVIDER",
    "TENSORRT_PROVIDERS",
    "TENSORRT_RTX",
    "TENSORRT_RTX_PROVIDER",
    "WEB",
]

OPENVINO: Final = "OpenVINO"
"""The library itself; `OpenVINOExecutionProvider` is ONNX Runtime's."""
WEB: Final = "onnxruntime-web"
"""In a web page, not in Python."""
TENSORRT_RTX: Final = "TensorRT-RTX"
TENSORRT: Final = "TensorRT"
ENGINES: Final = (TENSORRT_RTX, TENSORRT)
"""Those whose files hold code for a GPU: loaded only where their variant is named."""

CUDA: Final = "CUDAExecutionProvider"
TENSORRT_PROVIDER: Final = "TensorrtExecutionProvider"
TENSORRT_RTX_PROVIDER: Final = "NvTensorRTRTXExecutionProvider"
TENSORRT_PROVIDERS: Final = (TENSORRT_RTX_PROVIDER, TENSORRT_PROVIDER)
"""Those that compile a graph of standard operators to an engine, on the GPU that runs it."""
NVIDIA: Final = (*TENSORRT_PROVIDERS, CUDA)

PROVIDERS: Final = (
    "CPUExecutionProvider",
    *NVIDIA,
    "MIGraphXExecutionProvider",
    "OpenVINOExecutionProvider",
    "DnnlExecutionProvider",
    "VitisAIExecutionProvider",
    "QNNExecutionProvider",
    "NnapiExecutionProvider",
    "VSINPUExecutionProvider",
    "JsExecutionProvider",
    "CoreMLExecutionProvider",
    "DmlExecutionProvider",
    "RknpuExecutionProvider",
    "WebNNExecutionProvider",
    "WebGpuExecutionProvider",
    "XnnpackExecutionProvider",
    "CANNExecutionProvider",
    "AzureExecutionProvider",
    # which 1.22, the oldest release that is supported, knows and 1.32 does not
    "ROCMExecutionProvider",
    "ArmNNExecutionProvider",
    "ACLExecutionProvider",
)
"""All that builds of ONNX Runtime may have: `onnxruntime.get_all_providers()`, and NVIDIA's plugin."""
