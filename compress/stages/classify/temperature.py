"""The temperature of a head: what makes its probabilities as certain as it is often right (1706.04599)."""

from __future__ import annotations

import numpy as np

__all__ = ["fitted_temperature"]

_LEAST = 1e-7
_TEMPERATURES = np.exp(np.linspace(np.log(0.25), np.log(8), 201))


def fitted_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """What the logits are divided by so that the labels are least surprising (mean negative log-likelihood).

    probabilities [n, classes]; labels int [n], -1 unknown. From 0.25 to 8, to three digits; 1 without labels.
    """
    known = labels >= 0
    if not known.any():
        return 1.0
    logits = np.log(np.maximum(probabilities[known].astype(np.float64), _LEAST))
    rows, right = np.arange(len(logits)), labels[known]

    def surprise(temperature: float) -> float:
        scaled = logits / temperature
        scaled -= scaled.max(1, keepdims=True)
        return float((np.log(np.exp(scaled).sum(1)) - scaled[rows, right]).mean())

    return float(f"{min(_TEMPERATURES, key=surprise):.3g}")
