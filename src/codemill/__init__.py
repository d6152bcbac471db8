"""codemill: mill a large pre-trained model of code down to one that fits a laptop, and ship it.

Importing this package imports the runtime only (numpy, onnxruntime, tokenizers), and those when
first needed. The toolchain is `codemill.compress`, behind the command `compress`.
"""

from __future__ import annotations

import os

from codemill.runtime import load

# onnxruntime 1.32 for Linux has telemetry switched on, and keeps a device id in the user's cache folder.
# It reads this when it is loaded, which importing codemill does not do yet.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["__version__", "load"]

__version__ = "0.1.0"
