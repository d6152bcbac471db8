"""Successive halving of a sample of architectures: who goes on, what is kept, what is run again."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from codemill.compress import estimate as module
from codemill.compress.architecture import Architecture
from codemill.compress.budget import Budget
from codemill.compress.estimate import estimate
from codemill.compress.progress import Silent
from codemill.compress.recipe import parse_recipe
from codemill.compress.search.cost import CostModel, by_tokenizer, interpolate
from codemill.compress.search.quality import QualityModel, estimate_bytes, read_estimate
from codemill.compress.search.space import Space
from codemill.compress.stages.classify.corpus import stage as corpus_stage
from codemill.compress.stages.search import Searched, prepare, read_chosen
from codemill.compress.stages.search import stage as search_stage
from codemill.compress.trial import trial
from codemill.errors import RecipeError, RefusedError

from .small_run import recipe_of

SPACE = Space(
    vocab_sizes=(1000, 1500, 2000, 3000, 4000, 6000),
    embedding_ranks=(32, 64, 96, None),
    layers=((0,), (5,), (0, 5), (0, 2, 5)),
    heads=(4, 6, 12),
    intermediate_sizes=(128, 256, 512, 1024),
    hidden_size=384,
    head_size=32,
    max_tokens=256,
)
COSTS = CostModel(
    by_tokenizer({"pruned": interpolate({1000: 180, 6000: 125})}),
    by_tokenizer({"pruned": interpolate({1000: 20_000, 6000: 95_000})}),
)
LIMIT = 2_000_000


def searched(budget: Budget) -> Searched:
    return cast(Searched, SimpleNamespace(space=SPACE, budget=budget, costs=COSTS))


@pytest.mark.parametrize("count", [*range(2, 66)])
def test_half_are_kept_the_best_quarter_and_a_spread_of_the_rest(count: int) -> None:
    ranked = [100 + at for at in range(count)]
    kept = module._kept(ranked)
    assert len(kept) == len(set(kept)) == count // 2
    assert kept[: count // 4] == ranked[: count // 4]
    assert set(kept) <= set(ranked)
    if count >= 6:
        assert kept[-1] == ranked[-1], "the worst as well"
        apart = [b - a for a, b in pairwise(kept[count // 4 :])]
        assert max(apart) - min(apart) <= 1, "evenly"


def test_a_sample_is_within_the_budget_distinct_and_the_seed_s() -> None:
    within = searched(Budget(size_bytes=LIMIT))
    found = module._sample(within, 40, seed=3)
    assert len(set(found)) == 40
    assert all(COSTS.size_bytes(item) <= LIMIT for item in found)
    assert module._sample(within, 40, seed=3) == found
    assert module._sample(within, 40, seed=4) != found
    # the whole of what fits is drawn from
    assert {len(item.copied_layers) for item in found} == {1, 2, 3}


def test_a_budget_that_nothing_or_little_keeps_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"none of the .* fits size_bytes <= 100,000"):
        module._sample(searched(Budget(size_bytes=100_000)), 4, seed=0)
    sizes = sorted(
        COSTS.size_bytes(SPACE.architecture(genes))
        for genes in np.ndindex(*(len(choices) for choices in SPACE.choices))
    )
    few = searched(Budget(size_bytes=sizes[5]))
    with pytest.raises(RefusedError, match=r"8,000 .* drawn \d keep the budget, 40 are wanted"):
        module._sample(few, 40, seed=0)


@dataclass
class Stub:
    """Trials whose metric is made up: better with more layers, better with more pairs."""

    asked: list[tuple[list[Architecture], int]] = field(default_factory=list)

    def run(
        self, architectures: list[Architecture], pairs: int, report: Any, *share: float
    ) -> list[dict[str, Any]]:
        self.asked.append((list(architectures), pairs))
        before, part = share
        report(before, "begun")
        report(before + part, "done")
        return [{"metric": self.metric(item, pairs), "pairs": pairs} for item in architectures]

    @staticmethod
    def metric(architecture: Architecture, pairs: int) -> float:
        return architecture.layers + architecture.vocab_size / 1e5 + pairs / 1e6


def test_each_rung_has_half_of_the_architectures_and_more_pairs(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, tmp_path, "data.train_pairs=4000")
    stub, told = Stub(), list[float]()
    sample = module._sample(searched(Budget(size_bytes=LIMIT)), 32, seed=0)
    found = module._halve(
        sample, recipe, cast(Any, stub), lambda fraction, _: told.append(fraction)
    )
    assert [(len(asked), pairs) for asked, pairs in stub.asked] == [
        (32, 500),
        (16, 1000),
        (8, 4000),
    ]
    assert stub.asked[0][0] == sample
    for (before, pairs), (after, _) in pairwise(stub.asked):
        ranked = sorted(before, key=lambda item: -Stub.metric(item, pairs))
        assert set(ranked[: len(before) // 4]) <= set(after) <= set(before)
        assert ranked[-1] in after
    assert [(item.architecture, item.pairs) for item in found] == [
        (item, pairs) for asked, pairs in stub.asked for item in asked
    ]
    assert all(item.metric == Stub.metric(item.architecture, item.pairs) for item in found)
    assert told == sorted(told)
    assert told[0] == 0
    assert told[-1] == pytest.approx(1)


def test_a_rung_has_pairs_enough_to_learn_anything(tmp_path: Path) -> None:
    recipe, stub = recipe_of(tmp_path, tmp_path, "data.train_pairs=200"), Stub()
    sample = module._sample(searched(Budget()), 8, seed=0)
    module._halve(sample, recipe, cast(Any, stub), lambda *_: None)
    assert [pairs for _, pairs in stub.asked] == [64, 64, 200]


def test_only_the_longest_trials_train_as_a_run_does(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, tmp_path, "data.train_pairs=200", "distill.epochs=3")
    folders = {name: tmp_path / name for name in ("corpus", "teacher", "labels", "search")}
    one = SPACE.architecture([0] * len(SPACE.choices))
    short, long = (trial(recipe, folders, one, pairs, 1)["recipe"] for pairs in (64, 200))
    assert (short["data"]["train_pairs"], long["data"]["train_pairs"]) == (64, 200)
    assert (short["distill"]["epochs"], long["distill"]["epochs"]) == (1, 3)
    assert short["distill"]["validations"] == 1
    # tokens are those of the whole data in both
    assert trial(recipe, folders, one, 64, 1)["vocabulary_pairs"] == 200


@pytest.mark.slow
def test_a_small_estimate_from_end_to_end_and_resumed(
    made_model: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ["search.vocab_sizes=[200,260]", "distill.epochs=1", "distill.validations=1"]
    recipe = recipe_of(made_model, pairs_file, *changes)
    work = tmp_path / "work"
    found = estimate(recipe, work, Silent(), longest=8, workers=1)
    # the file holds fewer pairs than the recipe allows: what was trained on is said
    counts = [item.pairs for item in found.observations]
    assert [counts.count(pairs) for pairs in dict.fromkeys(counts)] in ([48, 8], [32, 16, 8])
    assert 64 <= min(counts) < max(counts) <= 300
    longest = {item.architecture for item in found.observations if item.pairs == max(counts)}
    assert len(longest) == 8
    assert all(0 < item.metric <= 1 for item in found.observations)
    assert (found.teacher["layers"], found.teacher["hidden_size"]) == (3, 32)
    (tmp_path / "quality.json").write_bytes(estimate_bytes(found))
    assert read_estimate(tmp_path / "quality.json") == found
    assert QualityModel(found).longest == 8

    trials = {path: path.stat().st_mtime_ns for path in (work / "trials").iterdir()}
    monkeypatch.setattr("codemill.compress.parallel._Worker.give", None)
    again = estimate(recipe, work, Silent(), longest=8, workers=1)
    assert again.observations == found.observations
    assert {path: path.stat().st_mtime_ns for path in (work / "trials").iterdir()} == trials


@pytest.mark.slow
def test_a_classifiers_tokens_are_chosen_by_trials_of_both_kinds(
    made_model: Path, tmp_path: Path
) -> None:
    source = tmp_path / "functions.jsonl"
    verbs = ("delete", "count")
    rows = [
        {"func": f"def f{n}(x):\n    return {verbs[n % 2]}(x, {n})", "target": n % 2}
        for n in range(300)
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values: dict[str, Any] = {
        "name": "tiny",
        "task": "classification",
        "threads": 1,
        "precision": "fp32",
        "teacher": {"model": None},
        "data": {"source": str(source), "max_tokens": 40, "validation_pairs": 40, "test_pairs": 40},
        "student": {
            "init": str(made_model),
            "tokenizer": "auto",
            "max_tokens": 40,
            "head_size": 16,
        },
        "budget": {"size_bytes": 400_000, "gflops": None},
        "search": {
            "objective": "pareto",
            "objectives": ["quality", "size_bytes"],
            "quality": str(tmp_path / "quality.json"),
            "vocab_sizes": [270, 280],
            "embedding_ranks": [8, 16],
            "layers": [[0], [2]],
            "heads": [4],
            "intermediate_sizes": [32, 64],
        },
        "distill": {"batch_size": 16, "validations": 1, "learning_rate": 0.003},
        "quality": {"min_kept": 0},
    }
    recipe = parse_recipe(values)
    found = estimate(recipe, tmp_path / "work", Silent(), longest=8, workers=1)
    assert found.metric == "mean recall on the validation rows"
    kinds = {item.architecture.tokenizer for item in found.observations}
    assert kinds == {"pruned", "bpe"}
    assert all(0.3 < item.metric <= 1 for item in found.observations)

    (corpus,) = (tmp_path / "work").glob("corpus-*")
    folder = tmp_path / "search"
    folder.mkdir()
    path = tmp_path / "quality.json"
    path.write_bytes(estimate_bytes(found))
    search_stage(recipe).work({"corpus": corpus}, folder, lambda *_: None)
    chosen = read_chosen(folder)
    model = QualityModel(found)
    worth = model.predict([chosen.architecture])[0]
    other = {"pruned": "bpe", "bpe": "pruned"}[chosen.architecture.tokenizer]
    assert worth >= model.predict([replace(chosen.architecture, tokenizer=other)])[0]
    assert bool(chosen.parts) is (chosen.architecture.tokenizer == "bpe")
    # an estimate that saw one kind only cannot choose
    one = [item for item in found.observations if item.architecture.tokenizer == "bpe"]
    path.write_bytes(estimate_bytes(replace(found, observations=tuple(one))))
    with pytest.raises(RecipeError, match="no student with tokenizer pruned"):
        search_stage(recipe).work({"corpus": corpus}, folder, lambda *_: None)


def test_tokens_are_left_to_the_search_only_where_it_goes_by_quality(made_model: Path) -> None:
    with pytest.raises(RecipeError, match="auto leaves the choice to estimated quality"):
        parse_recipe({"name": "x", "student": {"tokenizer": "auto"}})


def test_a_vocabulary_beyond_what_the_texts_give_is_the_largest_there_is(
    made_model: Path, tmp_path: Path
) -> None:
    source = tmp_path / "functions.jsonl"
    rows = [{"func": f"int f{n}(int x) {{ return x + {n}; }}", "target": n % 2} for n in range(120)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = parse_recipe(
        {
            "name": "tiny",
            "task": "classification",
            "threads": 1,
            "teacher": {"model": None},
            "data": {"source": str(source), "validation_pairs": 20, "test_pairs": 20},
            "student": {"init": str(made_model), "tokenizer": "bpe", "max_tokens": 40},
            "budget": {"size_bytes": None, "gflops": None},
            "search": {"vocab_sizes": [280, 5000], "embedding_ranks": [8], "layers": [[0]]},
            "quality": {"min_kept": 0},
        }
    )
    folder = tmp_path / "corpus"
    folder.mkdir()
    corpus_stage(recipe).work({}, folder, lambda *_: None)
    found = prepare(recipe, folder, lambda *_: None)
    assert found.space.choices[0] == (280,)
    assert any("byte-pair tokens: larger vocabularies than 280" in said for said in found.warnings)
    only = recipe.model_copy(
        update={"search": recipe.search.model_copy(update={"vocab_sizes": (5000,)})}
    )
    (size,) = prepare(only, folder, lambda *_: None).space.choices[0]
    assert 280 < size < 5000
