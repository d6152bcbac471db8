"""codemill: mill a large pre-trained model of code down to one that fits a laptop, and ship it.

Importing this package imports the runtime only (numpy, onnxruntime, tokenizers), and those when
first needed. The toolchain is `codemill.compress`, behind the command `compress`.
"""

from __future__ import annotations

from codemill.runtime import load

__all__ = ["__version__", "load"]

__version__ = "0.1.0"
