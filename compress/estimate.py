"""`compress estimate`: what architectures are worth, by distilling a sample of them (successive halving).

The teacher labels the data once, as in a run; then a sample of the recipe's space is distilled on an eighth
of the pairs, half of it on a quarter, and a quarter on all. At each rung half of those kept are the best, for
these matter most, and half are spread over the rest, for a regressor that has seen only good ones knows
nothing of bad ones. Source of the idea: successive halving (Jamieson and Talwalkar, 2016).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from codemill.compress import pipeline
from codemill.compress.architecture import Architecture
from codemill.compress.compute import compute_of
from codemill.compress.data.labelled import read_labelled
from codemill.compress.lock import working_in
from codemill.compress.models.load import fingerprint, read_shape, resolve_model
from codemill.compress.parallel import Cluster, map_to_files
from codemill.compress.pipeline import Progress, Report
from codemill.compress.recipe import Recipe
from codemill.compress.run import stages_of
from codemill.compress.search.genetic import Costed, any_that_fits
from codemill.compress.search.quality import Estimate, Observation
from codemill.compress.stages.search import Searched, prepare
from codemill.compress.trial import run_trial, trial
from codemill.errors import RecipeError, RefusedError
from codemill.targets.environment import machine_id

__all__ = ["before_estimate", "check_origin", "estimate"]

_RUNGS = (8, 4, 1)
"""The pairs of each rung are all of them divided by this."""
_FEWEST_PAIRS = 64
_MEMORY_PER_TRIAL_BYTES = 2_500_000_000
_VERSION = 1
_DRAWS = 200
"""So many random architectures are drawn for each one wanted, until enough of them fit."""


def estimate(
    recipe: Recipe,
    work: Path,
    progress: Progress,
    *,
    longest: int = 12,
    workers: int | None = None,
    cluster: Cluster | None = None,
    wait: bool = False,
) -> Estimate:
    """Distil four times `longest` architectures for a while and `longest` to the end.

    Finished trials are kept in `work` and not run again. Raises RefusedError where the space holds too
    few architectures within the budget.
    """
    origin = check_origin(recipe)
    said, recipe = recipe.model_dump(mode="json"), before_estimate(recipe)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    compute = compute_of(recipe)
    wanted = ("corpus", "teacher", "teacher-graphs", "labels")
    stages = [stage for stage in stages_of(recipe) if stage.name in wanted]
    with working_in(work, wait, progress.say):
        done = pipeline.run_stages(stages, work, progress)
        folders = {name: item.folder for name, item in done.items()}
        report = progress.stage("trials", 1, 1, False)
        searched = prepare(recipe, folders["corpus"], lambda *_: None)
        trained = _with_pairs_there_are(recipe, folders["corpus"])
        runner = _Runner(trained, folders, work / "trials", workers, compute.threads, cluster)
        with pipeline.full_disk_said("trials", runner.results):
            observations = _halve(
                _sample(searched, 4 * longest, recipe.seed), trained, runner, report
            )
    source = resolve_model(origin)
    shape = read_shape(source)
    return Estimate(
        made_of={
            "recipe": said,
            "codemill": version("codemill"),
            "machine_id": machine_id(),
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "stages": {name: item.key for name, item in done.items()},
        },
        metric="MRR on the validation pairs"
        if recipe.task == "retrieval"
        else "mean recall on the validation rows",
        teacher={
            "name": origin,
            "fingerprint": fingerprint(source),
            "layers": shape.layers,
            "hidden_size": shape.hidden_size,
        },
        tokens_per_function=searched.teacher_tokens,
        observations=tuple(observations),
    )


def before_estimate(recipe: Recipe) -> Recipe:
    """The recipe as it is before there is the file that its search.quality names: the one to be made."""
    search = recipe.search.model_copy(update={"quality": None, "objective": "gflops"})
    return recipe.model_copy(update={"search": search})


def check_origin(recipe: Recipe) -> str:
    """The model that the students are held to. Raises RecipeError where a recipe names none."""
    if recipe.origin is None:
        raise RecipeError(
            "compress estimate compares students of one model, and this recipe names none: give teacher.model, or "
            "student.init a model to cut the student out of"
        )
    return recipe.origin


def _with_pairs_there_are(recipe: Recipe, corpus: Path) -> Recipe:
    """The recipe with as many training pairs as the corpus has: an eighth is to be one of these."""
    if recipe.task == "retrieval":
        found = json.loads((corpus / "corpus.json").read_text())["train"]
    else:
        found = len(read_labelled(corpus, "train").rows)
    data = recipe.data.model_copy(update={"train_pairs": min(found, recipe.data.train_pairs)})
    return recipe.model_copy(update={"data": data})


@dataclass(frozen=True)
class _Runner:
    """Runs the trials of one rung."""

    recipe: Recipe
    folders: dict[str, Path]
    results: Path
    workers: int | None
    threads: int
    cluster: Cluster | None

    def run(
        self,
        architectures: Sequence[Architecture],
        pairs: int,
        report: Report,
        before: float,
        share: float,
    ) -> list[dict[str, Any]]:
        """The results of all, in order; `share` of all work begins at `before`."""
        # one thread each: two students side by side train faster than two threads on one
        items = [trial(self.recipe, self.folders, item, pairs, 1) for item in architectures]
        return map_to_files(
            run_trial,
            items,
            self.results,
            version=_VERSION,
            workers=self.workers,
            threads=self.threads,
            memory_per_item_bytes=_MEMORY_PER_TRIAL_BYTES,
            cluster=self.cluster,
            on_done=lambda done, total: report(
                before + share * done / total, f"{done} of {total} on {pairs:,} pairs"
            ),
        )


def _sample(searched: Searched, count: int, seed: int) -> list[Architecture]:
    """Architectures drawn evenly from those within the budget."""
    costed = Costed(searched.space, searched.budget, searched.costs)
    any_that_fits(costed)  # refuses with what is possible
    rng = np.random.default_rng(seed)
    found: dict[Architecture, None] = {}
    for _ in range(_DRAWS * count):
        genes = tuple(int(gene) for gene in rng.integers(0, costed.lengths))
        if costed.excess(costed[genes]) == 0:
            found[costed[genes].architecture] = None
        if len(found) == count:
            return list(found)
    raise RefusedError(
        f"of {_DRAWS * count:,} architectures drawn {len(found)} keep the budget, {count} are wanted; "
        "raise the budget, or give the search more and smaller choices"
    )


def _halve(
    architectures: list[Architecture], recipe: Recipe, runner: _Runner, report: Report
) -> list[Observation]:
    observations: list[Observation] = []
    # halved in number from rung to rung
    work = [len(architectures) / 2**rung / divisor for rung, divisor in enumerate(_RUNGS)]
    for rung, divisor in enumerate(_RUNGS):
        pairs = max(_FEWEST_PAIRS, recipe.data.train_pairs // divisor)
        before, share = sum(work[:rung]) / sum(work), work[rung] / sum(work)
        results = runner.run(architectures, pairs, report, before, share)
        observations += [
            Observation(architecture, result["pairs"], result["metric"])
            for architecture, result in zip(architectures, results, strict=True)
        ]
        ranked = sorted(range(len(architectures)), key=lambda at: (-results[at]["metric"], at))
        architectures = [architectures[at] for at in _kept(ranked)]
    return observations


def _kept(ranked: Sequence[int]) -> list[int]:
    """Half of them: the best quarter, and as many spread evenly over the rest."""
    best = len(ranked) // 4
    rest = len(ranked) // 2 - best
    spread = np.linspace(best, len(ranked) - 1, rest).round().astype(int)
    return [*ranked[:best], *(ranked[int(at)] for at in spread)]
