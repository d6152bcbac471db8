"""Quantization of ONNX graphs, one module a method. What needs torch is `codemill.compress.quantize`."""
