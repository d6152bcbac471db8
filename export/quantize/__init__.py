"""Plain ONNX -> the same graph with smaller numbers: one module a method, one settings type (`settings.py`)."""
