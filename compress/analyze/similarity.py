"""How alike two models are at one layer, by their outputs for the same tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["linear_cka", "rsa"]

Floats = NDArray[np.floating[Any]]


def rsa(one: Floats, two: Floats) -> float:
    """Representational similarity analysis: do the same tokens lie near one another in both models?

    one, two: [tokens, width], the same tokens in rows; widths may differ. Spearman's correlation of all pairs'
    cosine distances; 1 where both order them alike. As in Telly (2304.05216) and 2004.14448. Below 3 tokens there
    is nothing to correlate: ValueError.
    """
    from scipy.stats import spearmanr

    if len(one) < 3:
        raise ValueError(f"RSA needs 3 tokens or more, got {len(one)}")
    upper = np.triu_indices(len(one), 1)
    pairs = [_cosines(values)[upper] for values in (one, two)]
    if any(np.ptp(values) == 0 for values in pairs):
        # nothing varies, and no correlation is defined: alike where neither does
        return float(all(np.ptp(values) == 0 for values in pairs))
    return float(np.clip(spearmanr(*pairs).statistic, -1, 1))


def _cosines(values: Floats) -> Floats:
    exact = values.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    exact = exact / np.maximum(lengths, 1e-12)
    return np.asarray(exact @ exact.T)


def linear_cka(one: Floats, two: Floats) -> float:
    """Linear centered kernel alignment, 0 to 1: 1 where one is the other turned and scaled (1905.00414).

    one, two: [tokens, width], the same tokens in rows; widths may differ. |Y'X|^2 / (|X'X| |Y'Y|) of the centred
    columns, in Frobenius norms. With fewer tokens than columns it is too high.
    """
    x, y = (values.astype(np.float64) - values.mean(0, dtype=np.float64) for values in (one, two))
    own = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    if own == 0:
        return float(not x.any() and not y.any())
    return float(np.clip(np.linalg.norm(y.T @ x) ** 2 / own, 0, 1))
