"""What a shape is worth: quality estimated from short distillations of a sample of architectures.

Equal GFLOPs do not mean equal quality: over students cut out of MiniLM the two are not even correlated,
and which layers are copied matters more than how many (docs/LOG.md). A Gaussian process over a few features
of an architecture, with the number of training pairs as one more, learns from short and long trials alike
and is asked for the longest. The trials themselves are run by `compress/estimate.py`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codemill.compress.architecture import Architecture
from codemill.compress.search.cost import gflops, parameters
from codemill.errors import RecipeError

__all__ = ["Estimate", "Observation", "QualityModel", "estimate_bytes", "read_estimate"]

_SCHEMA = 1
_KEYS = ("schema", "made_of", "metric", "teacher", "tokens_per_function", "observations")
_FOLDS = 10
_FEWEST = 8


@dataclass(frozen=True)
class Observation:
    """One trial: an architecture distilled on so many `pairs` reached so much of the `metric`."""

    architecture: Architecture
    pairs: int
    metric: float


@dataclass(frozen=True)
class Estimate:
    """All trials of one teacher on one recipe's data, as `compress estimate` writes them.

    `metric`: what was measured, on which pairs; `teacher`: its name and shape (`layers`, `hidden_size`);
    `made_of`: recipe, seed, hashes, machine, date, for people.
    """

    made_of: dict[str, Any]
    metric: str
    teacher: dict[str, Any]
    tokens_per_function: float
    observations: tuple[Observation, ...]


class QualityModel:
    """Fitted to an estimate's observations; the same observations give the same model.

    `predictor` says what predicts quality best, by rank correlation over the architectures that were
    trained longest, each predicted from trials of the others: "estimate", or "gflops" or "parameters",
    in which case `predict` gives these (parameters in millions). `correlations` holds all three, `error` the estimate's
    root-mean-square error in units of the metric.
    """

    def __init__(self, estimate: Estimate) -> None:
        self._observations = estimate.observations
        self._layers = int(estimate.teacher["layers"])
        self._most = max(item.pairs for item in estimate.observations)
        self._tokens = estimate.tokens_per_function
        longest = [item for item in estimate.observations if item.pairs == self._most]
        if len(longest) < _FEWEST:
            raise RecipeError(
                f"the quality estimate has {len(longest)} architectures trained on {self._most} pairs; "
                f"{_FEWEST} are needed to tell whether it is any good"
            )
        self.longest = len(longest)
        self.correlations, self.error = self._compare(longest)
        # the first of equals: the estimate has to beat both
        simple_first = ("gflops", "parameters", "estimate")
        self.predictor = max(simple_first, key=lambda name: self.correlations[name])
        self._fitted = self._fit(estimate.observations)

    def to_json(self) -> dict[str, Any]:
        """What was used and how good it is, for search.json."""
        return {
            "predictor": self.predictor,
            "correlations": self.correlations,
            "error": self.error,
            "architectures": self.longest,
            "pairs": self._most,
        }

    def predict(self, architectures: Sequence[Architecture]) -> np.ndarray:
        """float [n]: the metric to expect at the longest training, or the better predictor's value."""
        return self._rank_by[self.predictor](architectures)

    @property
    def _rank_by(self) -> dict[str, Callable[[Sequence[Architecture]], np.ndarray]]:
        return {
            "estimate": lambda asked: self._estimate(self._fitted, asked),
            "gflops": lambda asked: np.array([gflops(item, self._tokens) for item in asked]),
            "parameters": lambda asked: np.array([parameters(item) / 1e6 for item in asked]),
        }

    def _estimate(self, fitted: Any, architectures: Sequence[Architecture]) -> np.ndarray:
        rows = np.array([self._features(item, self._most) for item in architectures])
        found: np.ndarray = fitted.predict(rows)
        return found

    def _features(self, architecture: Architecture, pairs: int) -> list[float]:
        rank = architecture.embedding_rank or architecture.hidden_size
        attended = architecture.heads * architecture.head_size / architecture.hidden_size
        sizes = [
            *(architecture.vocab_size, rank, architecture.hidden_size, attended),
            *(architecture.intermediate_size, architecture.layers, pairs),
        ]
        copied = [float(layer in architecture.copied_layers) for layer in range(self._layers)]
        own_tokens = float(architecture.tokenizer == "bpe")
        return [*(float(np.log(size)) for size in sizes), *copied, own_tokens]

    def _fit(self, observations: Sequence[Observation]) -> Any:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        kernel = ConstantKernel(1.0, (1e-2, 1e3)) * RBF(3.0, (0.3, 1e3)) + WhiteKernel(
            0.1, (1e-5, 1e1)
        )
        regressor = GaussianProcessRegressor(
            kernel, normalize_y=True, n_restarts_optimizer=2, random_state=0
        )
        rows = [self._features(item.architecture, item.pairs) for item in observations]
        metrics = [item.metric for item in observations]
        with warnings.catch_warnings():
            # says that a bound of the kernel was met: how good the fit is, `_compare` measures
            warnings.simplefilter("ignore", ConvergenceWarning)
            return make_pipeline(StandardScaler(), regressor).fit(np.array(rows), np.array(metrics))

    def _compare(self, longest: Sequence[Observation]) -> tuple[dict[str, float], float]:
        """Rank correlations with the metric of the longest trials, and the estimate's error.

        An architecture is predicted by a model that saw no trial of it, long or short.
        """
        from scipy.stats import spearmanr

        asked = [item.architecture for item in longest]
        truth = np.array([item.metric for item in longest])
        folds = np.random.default_rng(0).permutation(len(longest)) % min(_FOLDS, len(longest))
        predicted = np.zeros(len(longest))
        for fold in range(folds.max() + 1):
            out = [item for item, at in zip(asked, folds, strict=True) if at == fold]
            seen = [item for item in self._observations if item.architecture not in out]
            predicted[folds == fold] = self._estimate(self._fit(seen), out)
        candidates = {
            "estimate": predicted,
            "gflops": np.array([gflops(item, self._tokens) for item in asked]),
            "parameters": np.array([parameters(item) for item in asked]),
        }
        correlations = {
            # of a constant there is none
            name: float(spearmanr(values, truth).statistic)
            if np.ptp(values) and np.ptp(truth)
            else 0.0
            for name, values in candidates.items()
        }
        return correlations, float(np.sqrt(np.mean((predicted - truth) ** 2)))


def estimate_bytes(estimate: Estimate) -> bytes:
    """As the JSON that `read_estimate` reads, one observation a line."""
    value: dict[str, Any] = {"schema": _SCHEMA, **asdict(estimate)}
    observations = value.pop("observations")
    lines = ",\n".join("  " + json.dumps(item, sort_keys=True) for item in observations)
    head = json.dumps(value, indent=1, sort_keys=True).removesuffix("\n}")
    return f'{head},\n "observations": [\n{lines}\n ]\n}}\n'.encode()


def read_estimate(path: Path) -> Estimate:
    """What `estimate_bytes` made. Raises RecipeError naming the file, the key, what was expected and found."""
    where = f"quality estimate {path}"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(
            f"{where} cannot be read: {error.strerror or error}; `compress estimate` makes one"
        ) from error
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict) or value.get("schema") != _SCHEMA:
        found = value.get("schema") if isinstance(value, dict) else type(value).__name__
        raise RecipeError(f"{where}: expected schema {_SCHEMA}, found {found!r}")
    missing = [key for key in _KEYS if key not in value]
    unknown = [key for key in value if key not in _KEYS]
    if missing or unknown:
        said = [f"{', '.join(missing)} missing"] if missing else []
        said += [f"{', '.join(unknown)} not known"] if unknown else []
        raise RecipeError(f"{where}: {'; '.join(said)}; expected {', '.join(_KEYS)}")
    try:
        teacher = {**value["teacher"], "layers": _above_zero("layers", value["teacher"])}
        observations = tuple(_observation(item) for item in value["observations"])
        estimate = Estimate(
            dict(value["made_of"]),
            str(value["metric"]),
            teacher,
            _above_zero("tokens_per_function", value),
            observations,
        )
    except (KeyError, TypeError, ValueError, ArithmeticError, RecipeError) as error:
        raise RecipeError(
            f"{where} is damaged: {type(error).__name__}: {error}; make it again with `compress estimate`"
        ) from error
    if not observations:
        raise RecipeError(f"{where} holds no observations")
    return estimate


def _observation(value: dict[str, Any]) -> Observation:
    metric, pairs = float(value["metric"]), int(value["pairs"])
    if not np.isfinite(metric) or pairs < 1:
        raise ValueError(f"metric {metric} after {pairs} pairs")
    shape = value["architecture"]
    _above_zero("intermediate_size", shape)
    if shape.get("embedding_rank") is not None:
        _above_zero("embedding_rank", shape)
    return Observation(Architecture.from_json(shape), pairs, metric)


def _above_zero(key: str, values: dict[str, Any]) -> Any:
    number = values[key]
    if not (isinstance(number, int | float) and np.isfinite(number) and number > 0):
        raise ValueError(f"{key} must be a number above 0, not {number!r}")
    return number
