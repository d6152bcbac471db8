"""The quality estimate: which predictor wins on made-up trials, and the file it is kept in."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codemill.compress.architecture import Architecture
from codemill.compress.search.cost import gflops, parameters
from codemill.compress.search.quality import (
    Estimate,
    Observation,
    QualityModel,
    estimate_bytes,
    read_estimate,
)
from codemill.compress.search.space import default_space
from codemill.errors import RecipeError

SPACE = default_space(
    hidden_size=384,
    layers=6,
    heads=12,
    intermediate_size=1536,
    vocab_size=30522,
    max_tokens=256,
)
TOKENS = 150.0


def sample(count: int, seed: int = 0) -> list[Architecture]:
    rng = np.random.default_rng(seed)
    lengths = [len(choices) for choices in SPACE.choices]
    drawn = dict.fromkeys(
        SPACE.architecture(rng.integers(0, lengths).tolist()) for _ in range(2 * count)
    )
    return list(drawn)[:count]


def estimate_of(
    metric: Callable[[Architecture, int], float], longest: int = 24, short: int = 24
) -> Estimate:
    asked = sample(longest + short)
    observations = [Observation(item, 500, metric(item, 500)) for item in asked]
    observations += [Observation(item, 4000, metric(item, 4000)) for item in asked[:longest]]
    return Estimate(
        made_of={"recipe": {"name": "made-up"}, "codemill": "0"},
        metric="MRR on the validation pairs",
        teacher={"name": "made-up", "layers": 6, "hidden_size": 384},
        tokens_per_function=TOKENS,
        observations=tuple(observations),
    )


def worth(architecture: Architecture, pairs: int) -> float:
    """The first layer is worth most, later ones little; more tokens, ranks and pairs help."""
    layers = sum(0.08 / (1 + layer) for layer in architecture.copied_layers)
    rank = architecture.embedding_rank or 384
    sizes = 0.02 * np.log(architecture.vocab_size) + 0.02 * np.log(rank)
    return float(layers + sizes + 0.03 * np.log(pairs))


def noisy(architecture: Architecture, pairs: int) -> float:
    noise = np.random.default_rng(abs(hash((architecture.copied_layers, pairs))) % 2**32)
    return worth(architecture, pairs) + 0.003 * float(noise.normal())


def test_a_learnable_quality_is_estimated_better_than_size_tells() -> None:
    model = QualityModel(estimate_of(noisy))
    assert model.predictor == "estimate"
    assert model.correlations["estimate"] > 0.9
    assert model.correlations["estimate"] == max(model.correlations.values())
    assert model.error < 0.03
    unseen = sample(40, seed=9)
    truth = [worth(item, 4000) for item in unseen]
    found = model.predict(unseen)
    assert found.shape == (40,)
    # asked for the longest training, on its scale
    assert np.abs(found - truth).mean() < 0.02
    assert np.corrcoef(found, truth)[0, 1] > 0.9


def test_where_quality_is_nothing_but_gflops_these_are_used_and_said() -> None:
    model = QualityModel(estimate_of(lambda item, _: gflops(item, TOKENS)))
    assert model.correlations["gflops"] == pytest.approx(1)
    assert model.predictor == ("estimate" if model.correlations["estimate"] >= 1 else "gflops")
    asked = sample(5, seed=3)
    if model.predictor == "gflops":
        assert model.predict(asked).tolist() == [gflops(item, TOKENS) for item in asked]


def shuffled(kind: Callable[[Architecture], float]) -> Callable[[Architecture, int], float]:
    """Ranked by `kind` where it was trained longest, by nothing where it was not."""
    rng = np.random.default_rng(0)
    order = sorted(sample(48), key=kind)
    return lambda item, pairs: (
        order.index(item) ** 6 / 48**6 if pairs == 4000 else float(rng.random())
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gflops", lambda item: gflops(item, TOKENS)),
        ("parameters", lambda item: parameters(item) / 1e6),
    ],
)
def test_a_predictor_that_beats_the_estimate_takes_its_place(
    name: str, kind: Callable[[Architecture], float]
) -> None:
    model = QualityModel(estimate_of(shuffled(kind), longest=10, short=38))
    assert model.correlations[name] == pytest.approx(1)
    assert model.predictor == name
    asked = sample(5, seed=3)
    assert model.predict(asked).tolist() == [kind(item) for item in asked]


def test_of_a_metric_that_is_chance_the_best_of_poor_predictors_is_said_with_its_correlation() -> (
    None
):
    rng = np.random.default_rng(1)
    model = QualityModel(estimate_of(lambda *_: float(rng.random())))
    said = model.to_json()
    assert said["correlations"].keys() == {"estimate", "gflops", "parameters"}
    assert max(said["correlations"].values()) < 0.7
    assert said["correlations"][said["predictor"]] == max(said["correlations"].values())
    assert (said["architectures"], said["pairs"]) == (24, 4000)
    assert said == json.loads(json.dumps(said, allow_nan=False))


def test_a_metric_that_never_varies_gives_no_correlation_and_no_warning() -> None:
    model = QualityModel(estimate_of(lambda *_: 0.5))
    assert model.correlations == {"estimate": 0.0, "gflops": 0.0, "parameters": 0.0}
    assert model.predictor == "gflops", "the estimate has to beat the others"


def test_the_same_observations_give_the_same_model_and_leave_random_numbers_alone() -> None:
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    first, again = (QualityModel(estimate_of(worth)) for _ in range(2))
    assert np.random.random() == expected
    asked = sample(10, seed=2)
    assert np.array_equal(first.predict(asked), again.predict(asked))
    assert first.to_json() == again.to_json()


def test_an_architecture_is_predicted_by_trials_of_others_only() -> None:
    """Each has a value of its own that nothing explains: knowing it would correlate perfectly."""
    values: dict[Architecture, float] = {}
    rng = np.random.default_rng(5)

    def own(architecture: Architecture, _: int) -> float:
        return values.setdefault(architecture, float(rng.random()))

    assert QualityModel(estimate_of(own)).correlations["estimate"] < 0.7


def test_too_few_that_were_trained_longest_are_refused() -> None:
    with pytest.raises(RecipeError, match="7 architectures trained on 4000 pairs; 8 are needed"):
        QualityModel(estimate_of(worth, longest=7))
    assert QualityModel(estimate_of(worth, longest=8)).longest == 8


def fresh(number: int) -> Architecture:
    return Architecture(1000 + number, 96, 1 + number % 4, 6, 16, 64 * (1 + number), 256)


def test_fresh_students_are_estimated_too() -> None:
    observations = tuple(Observation(fresh(n), 100, 0.1 + n % 4 / 10) for n in range(16))
    model = QualityModel(replace(estimate_of(worth), observations=observations))
    assert np.isfinite(model.predict([fresh(99)])).all()


def test_where_tokens_come_from_is_learned_from_the_trials_of_both() -> None:
    def prefers_its_own(item: Architecture, pairs: int) -> float:
        return worth(item, pairs) + (0.05 if item.tokenizer == "bpe" else 0.0)

    def alternating(number: int, item: Observation) -> Observation:
        own = replace(item.architecture, tokenizer="bpe" if number % 2 else "pruned")
        return Observation(own, item.pairs, prefers_its_own(own, item.pairs))

    plain = estimate_of(worth, longest=40)
    observations = tuple(alternating(*item) for item in enumerate(plain.observations))
    model = QualityModel(replace(plain, observations=observations))
    assert model.predictor == "estimate"
    asked = sample(10, seed=9)
    cut = model.predict(asked)
    own = model.predict([replace(item, tokenizer="bpe") for item in asked])
    assert np.abs(own - cut - 0.05).max() < 0.02


# ---- the file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "quality.json"
    found.write_bytes(estimate_bytes(estimate_of(worth)))
    return found


def test_what_was_written_is_read_back(path: Path, tmp_path: Path) -> None:
    found = read_estimate(path)
    assert found == estimate_of(worth)
    (tmp_path / "again.json").write_bytes(estimate_bytes(found))
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    lines = path.read_text().splitlines()
    assert sum('"architecture"' in line for line in lines) == len(found.observations)
    assert np.array_equal(
        QualityModel(found).predict(sample(3)), QualityModel(estimate_of(worth)).predict(sample(3))
    )


KEYS = ("schema", "made_of", "metric", "teacher", "tokens_per_function", "observations")


@pytest.mark.parametrize("key", KEYS[1:])
def test_a_missing_key_is_named(path: Path, key: str) -> None:
    value = json.loads(path.read_text())
    del value[key]
    path.write_text(json.dumps(value))
    with pytest.raises(RecipeError, match=f"quality.json: {key} missing; expected schema, made_of"):
        read_estimate(path)


def damaged(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda value: value.update(changes)


def first(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda value: value["observations"][0].update(changes)


def shape(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda value: value["observations"][0]["architecture"].update(changes)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damaged(schema=2), "expected schema 1, found 2"),
        (damaged(schema=None), "expected schema 1, found None"),
        (damaged(shema=1), "shema not known"),
        (damaged(observations=[]), "no observations"),
        (damaged(observations=3), "damaged"),
        (damaged(observations={"a": 1}), "damaged"),
        (damaged(observations=[None]), "damaged"),
        (damaged(teacher={}), "damaged.*layers"),
        (damaged(teacher=[]), "damaged"),
        (damaged(teacher={"layers": "six"}), "damaged.*six"),
        (damaged(teacher={"layers": float("inf")}), "damaged.*layers"),
        (damaged(teacher={"layers": 0}), "damaged.*layers"),
        (damaged(made_of=7), "damaged"),
        (damaged(tokens_per_function="many"), "damaged.*many"),
        (damaged(tokens_per_function=float("nan")), "damaged.*tokens_per_function"),
        (damaged(tokens_per_function=0), "damaged.*tokens_per_function"),
        (first(metric=float("nan")), "damaged.*nan"),
        (first(metric=float("inf")), "damaged.*inf"),
        (first(metric=10**400), "damaged"),
        (first(metric="good"), "damaged.*good"),
        (first(metric=None), "damaged"),
        (first(pairs=0), "damaged.*0 pairs"),
        (first(pairs=float("inf")), "damaged"),
        (first(architecture=None), "damaged"),
        (first(architecture={}), "damaged.*intermediate_size"),
        (shape(layers=0), "damaged.*layers must be at least 1"),
        (shape(bits=4), "damaged.*bits must be one of"),
        (shape(vocab_size="many"), "damaged"),
        (shape(intermediate_size=0), "damaged.*intermediate_size"),
        (shape(embedding_rank=-1), "damaged.*embedding_rank"),
        (shape(colour="red"), "damaged.*colour"),
    ],
)
def test_a_damaged_file_is_refused_with_its_name(
    path: Path, damage: Callable[[dict[str, Any]], None], said: str
) -> None:
    value = json.loads(path.read_text())
    damage(value)
    path.write_text(json.dumps(value))
    with pytest.raises(RecipeError, match=f"(?s)quality.json.*{said}"):
        read_estimate(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "expected schema 1, found 'list'"),
        (b"null", "expected schema 1"),
        (b"{}", "expected schema 1, found None"),
    ],
)
def test_a_file_of_another_kind_is_refused(path: Path, content: bytes, said: str) -> None:
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=f"quality.json.*{said}"):
        read_estimate(path)


def test_a_file_that_is_not_there_and_a_folder_are_refused_with_what_makes_one(
    tmp_path: Path,
) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(RecipeError, match=r"cannot be read.*`compress estimate` makes one"):
            read_estimate(path)
