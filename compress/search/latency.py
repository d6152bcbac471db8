"""A machine's latency for any architecture, fitted to a profile that was measured there.

What an encoder does is known, operator by operator; how long each kind of work takes on one machine
is not, and is what is fitted: one coefficient each, none below zero, so that more of anything is
never predicted to be faster. Measuring is `codemill.targets.latency`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from codemill.errors import DataError, RecipeError

if TYPE_CHECKING:
    from codemill.compress.architecture import Architecture
    from codemill.targets.latency import LatencyProfile, LatencyRow
    from codemill.targets.profile import TargetSpec

__all__ = ["HeldOut", "LatencyModel", "holdout", "warn_if_foreign"]

_Numbers: TypeAlias = "float | NDArray[Any]"
_Shapes: TypeAlias = "Architecture | SimpleNamespace"

_BITS = {"int8": 8, "fp32": 32}
_FEWEST_ARCHITECTURES = 6


@dataclass(frozen=True)
class HeldOut:
    """How well architectures are predicted that the model was not fitted to.

    `mape`: the mean absolute error as a share of the measured latency, over all shapes; `worst`: the
    largest. `rank_correlation`: Spearman's, of the architectures at one shape, mean of the shapes
    (over all shapes at once it would be higher for no merit: longer inputs take longer).
    """

    architectures: int
    mape: float
    worst: float
    rank_correlation: float


@dataclass(frozen=True)
class LatencyModel:
    """Milliseconds of an encoder's call on the machine of a profile.

    `coefficients`: for each bits of the weights, milliseconds a unit of each kind of work.
    """

    coefficients: Mapping[int, tuple[float, ...]]

    @classmethod
    def fit(cls, profile: LatencyProfile) -> LatencyModel:
        """Fitted to a profile, each precision by itself; DataError where it has too few architectures."""
        anchor_ms = _anchor_ms(profile)
        return cls({bits: _fit(rows, anchor_ms) for bits, rows in _by_bits(profile).items()})

    def latency_ms(self, architecture: _Shapes, tokens: _Numbers, batch: _Numbers = 1) -> Any:
        """Milliseconds of one call with `batch` inputs of `tokens` tokens, the tokenizer not included.

        `architecture`: one, or an object with its fields as arrays, for many at once; there
        `embedding_rank` is None where all have a full table, and 0 for those that do in an array.
        Returns a float, or an array of the shape that all inputs broadcast to. Raises RecipeError
        for a decoder and for bits that were not measured.
        """
        family = getattr(architecture, "family", "bert")
        if np.any(np.asarray(family) != "bert"):
            raise RecipeError(
                f"the latency model knows encoders of the family bert, not {family!r}"
            )
        bits = np.asarray(architecture.bits)
        missing = sorted(set(np.unique(bits).tolist()) - set(self.coefficients))
        if missing:
            raise RecipeError(
                f"bits: the latency profile has no graphs of {missing[0]} bits, only of "
                f"{sorted(self.coefficients)}; measure with a kit that has them"
            )
        work = _work(architecture, tokens, batch)
        latency: Any = 0.0
        for precision, coefficients in self.coefficients.items():
            if not np.any(bits == precision):
                continue
            one = sum(
                (amount * each for amount, each in zip(work, coefficients, strict=True) if each),
                np.float64(0),
            )
            latency = np.where(bits == precision, one, latency)
        return latency if np.ndim(latency) else float(latency)


def holdout(profile: LatencyProfile) -> dict[str, HeldOut]:
    """For each precision, what a fit to all architectures but one says of that one, for each in turn.

    An architecture is left out at all shapes at once. Raises what `LatencyModel.fit` does.
    """
    from scipy.stats import spearmanr

    anchor_ms = _anchor_ms(profile)
    found = {}
    for bits, rows in _by_bits(profile).items():
        names = [_name(row) for row in rows]
        measured = np.array([row.ratio * anchor_ms[row.tokens, row.batch] for row in rows])
        predicted = np.empty_like(measured)
        for name in dict.fromkeys(names):
            model = LatencyModel(
                {bits: _fit([r for r, n in zip(rows, names, strict=True) if n != name], anchor_ms)}
            )
            for index in (i for i, other in enumerate(names) if other == name):
                row = rows[index]
                predicted[index] = model.latency_ms(_shape_of(row), row.tokens, row.batch)
        errors = np.abs(predicted / measured - 1)
        at = np.array([f"{row.tokens} {row.batch}" for row in rows])
        correlations = [
            float(spearmanr(predicted[at == one], measured[at == one]).statistic)
            for one in np.unique(at)
        ]
        found[rows[0].precision] = HeldOut(
            architectures=len(set(names)),
            mape=float(errors.mean()),
            worst=float(errors.max()),
            rank_correlation=float(np.mean(correlations)),
        )
    return found


def warn_if_foreign(profile: LatencyProfile, machine_id: str, target: TargetSpec) -> str | None:
    """What makes the profile another machine's than the target's, which is this one, in a sentence; or None.

    `machine_id` is this machine's, of `codemill.targets.environment`.
    """
    differs = []
    environment = profile.environment
    if environment.machine_id != machine_id:
        cpu = environment.machine.get("cpu", "another machine")
        differs.append(
            f"was measured on {cpu} (machine {environment.machine_id}, {environment.measured_at}) "
            f"and not on this machine ({machine_id})"
        )
    if profile.target.provider != target.provider:
        differs.append(f"is of {profile.target.provider}; {target.name} is of {target.provider}")
    if target.threads is not None and target.threads != profile.threads:
        differs.append(f"is of {profile.threads} threads; {target.name} has {target.threads}")
    if not differs:
        return None
    return f"the latency profile {', and '.join(differs)}: its milliseconds hold there"


def _work(architecture: _Shapes, tokens: _Numbers, batch: _Numbers) -> tuple[Any, ...]:
    """How much of each kind of work one call is; a coefficient is the time a unit takes.

    T tokens in each of B inputs, M = B T; L layers of width H, n heads of A columns together,
    feed-forward I, embedding rank R:

        1, L                    calling operators: once, and for each layer
        M L H A, M L H I        products with weights, of attention and feed-forward
        M T L A                 scores, and their weighted sums
        M T L n, M L n          softmax; what one head of one token takes whatever its size
        M R H, M H              widening a factorised embedding; embedding, its norm, and pooling
        M L H, M L A, M L I     norms and residuals; biases, quantizing, GELU: one column at a time
        L H (4 A + 2 I)         reading the weights from memory, once however many tokens there are
    """
    hidden, layers, heads = (
        np.asarray(value, dtype=np.float64)
        for value in (architecture.hidden_size, architecture.layers, architecture.heads)
    )
    attention = heads * architecture.head_size
    inner = np.asarray(architecture.intermediate_size, dtype=np.float64)
    rank = architecture.embedding_rank
    length = np.asarray(tokens, dtype=np.float64)
    rows = length * batch
    layer_rows = rows * layers
    return (
        np.float64(1),
        layers,
        layer_rows * hidden * attention,
        layer_rows * hidden * inner,
        layer_rows * length * attention,
        layer_rows * length * heads,
        layer_rows * heads,
        rows * hidden * (0 if rank is None else rank),
        rows * hidden,
        layer_rows * hidden,
        layer_rows * attention,
        layer_rows * inner,
        layers * hidden * (4 * attention + 2 * inner),
    )


def _fit(rows: list[LatencyRow], anchor_ms: Mapping[tuple[int, int], float]) -> tuple[float, ...]:
    """Non-negative least squares of the relative error."""
    from scipy.optimize import nnls

    work = np.array([_work(_shape_of(row), row.tokens, row.batch) for row in rows])
    measured = np.array([row.ratio * anchor_ms[row.tokens, row.batch] for row in rows])
    # kinds of work differ by ten orders of magnitude; none may be absent altogether
    scale = np.maximum(work.max(axis=0), 1.0)
    solved, _ = nnls(work / scale / measured[:, None], np.ones(len(rows)))
    return tuple(float(value) for value in solved / scale)


def _by_bits(profile: LatencyProfile) -> dict[int, list[LatencyRow]]:
    found: dict[int, list[LatencyRow]] = {}
    for row in profile.rows:
        if row.precision not in _BITS:
            raise DataError(
                f"the latency profile: precision {row.precision!r} is none of {sorted(_BITS)}"
            )
        found.setdefault(_BITS[row.precision], []).append(row)
    for rows in found.values():
        names = {_name(row) for row in rows}
        if len(names) <= _FEWEST_ARCHITECTURES:
            raise DataError(
                f"the latency profile has {len(names)} architectures in {rows[0].precision}; to fit "
                f"a model takes more than {_FEWEST_ARCHITECTURES}: measure with a kit that has them"
            )
    return found


def _anchor_ms(profile: LatencyProfile) -> dict[tuple[int, int], float]:
    return {(at.tokens, at.batch): at.latency_ms for at in profile.anchor.latencies}


def _name(row: LatencyRow) -> str:
    """The architecture, whatever its precision."""
    return json.dumps({k: v for k, v in row.architecture.items() if k != "bits"}, sort_keys=True)


def _shape_of(row: LatencyRow) -> SimpleNamespace:
    values = {"embedding_rank": None, **row.architecture, "bits": _BITS[row.precision]}
    return SimpleNamespace(**values)
