"""The analysis of a model's layers, from its name and some code to figures and a recommended K."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codemill.compress.analyze.probes import pair_features, probe
from codemill.compress.analyze.properties import Plan, Task, plan
from codemill.compress.analyze.recommend import recommend
from codemill.compress.analyze.similarity import linear_cka, rsa
from codemill.compress.analyze.source import INSTALLED, Snippet
from codemill.compress.analyze.stack import Stack, outputs
from codemill.compress.rewrite.syntax import commonest_language, grammar_of
from codemill.errors import DataError
from codemill.targets.analysis import ANALYSIS_SCHEMA, LayerAnalysis, LayerFigures, Probe

__all__ = ["Settings", "analyze"]

_MOST_COMPARED = 1_000
"""Tokens for RSA, whose work grows with their square."""

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Settings:
    """How much to look at.

    max_tokens: where texts are cut. items: of each property, at most. memory_bytes: of layers' outputs at once, at
    most, about; with less the models run several times. language: None: what most of the code looks like.
    """

    max_tokens: int = 128
    items: int = 4_000
    seed: int = 0
    memory_bytes: int = 512_000_000
    language: str | None = None


def analyze(
    snippets: list[Snippet],
    stack: Stack,
    finetuned: Stack | None,
    settings: Settings,
    names: tuple[str, str, str | None],
    progress: Progress = lambda *_: None,
) -> LayerAnalysis:
    """Probe every layer of `stack`, and compare it with `finetuned`; equal input and seed give equal figures.

    names: model, data and fine-tuned model as the user calls them. Raises DataError where the code is too little, or
    of no known language.
    """
    from codemill import __version__

    model, data, tuned = names
    language = _language(snippets, settings.language, data)
    longest = min(settings.max_tokens, stack.most_tokens or settings.max_tokens)
    planned = plan(snippets, language, stack.tokenizer_json, longest, settings.items, settings.seed)
    by_layer = _by_layer(planned, stack, finetuned, settings, progress)
    properties = tuple(task.asked for task in planned.tasks)
    return LayerAnalysis(
        schema=ANALYSIS_SCHEMA,
        codemill=__version__,
        model=model,
        family=stack.family,
        layers=len(stack.layers),
        hidden_size=stack.hidden_size,
        finetuned=tuned,
        data=data,
        language=language,
        texts=planned.snippets,
        max_tokens=longest,
        seed=settings.seed,
        properties=properties,
        by_layer=by_layer,
        recommendation=recommend(properties, by_layer),
        notes=planned.notes,
    )


def _language(snippets: list[Snippet], named: str | None, data: str) -> str:
    if named is not None:
        return grammar_of(named).name
    if data == INSTALLED:
        return "python"
    found = commonest_language([snippet.code for snippet in snippets])
    if found is None:
        raise DataError(
            f"{data}: what language the code is in cannot be told, or it is not code; name it with --language"
        )
    return found


def _by_layer(
    planned: Plan, stack: Stack, finetuned: Stack | None, settings: Settings, progress: Progress
) -> tuple[LayerFigures, ...]:
    """The figures of all layers, some layers at a time, as many as memory_bytes holds."""
    stacks = [stack] if finetuned is None else [stack, finetuned]
    layer_bytes = 4 * len(planned.units) * stack.hidden_size * len(stacks)
    at_once = max(1, settings.memory_bytes // layer_bytes)
    count = len(stack.layers) + 1
    groups = [range(start, min(start + at_once, count)) for start in range(0, count, at_once)]
    compared = _compared(planned, settings.seed)
    # the models' part of the work and the probes' are of like length
    steps = sum(len(stacks) * (1 + len(group) / count) for group in groups)
    done = 0.0
    found: list[LayerFigures] = []

    def ran(share: float) -> None:
        progress((done + share) / steps, "running the model")

    for group in groups:
        states = []
        for each in stacks:
            states.append(outputs(each, planned.texts, planned.units, group, ran))
            done += 1
        for place, layer in enumerate(group):
            own = [values[place] for values in states]
            probes = []
            for values in own:
                probes.append(tuple(_probe(task, values) for task in planned.tasks))
                done += 1 / count
                progress(done / steps, f"probing layer {layer} of {count - 1}")
            found.append(_figures(layer, probes, [values[compared] for values in own]))
    return tuple(found)


def _compared(planned: Plan, seed: int) -> NDArray[np.int64]:
    """Units that the two models are compared by: tokens, which are what a layer hands to the next."""
    places = planned.alike
    if len(places) > _MOST_COMPARED:
        generator = np.random.default_rng(seed)
        places = np.sort(generator.choice(places, _MOST_COMPARED, replace=False))
    return places


def _probe(task: Task, values: NDArray[np.floating[Any]]) -> Probe:
    if task.rows.shape[1] == 1:
        features = values[task.rows[:, 0]]
    else:
        features = pair_features(values[task.rows[:, 0]], values[task.rows[:, 1]])
    return probe(task.asked.name, features, task.labels, task.control, task.train)


def _figures(
    layer: int, probes: list[tuple[Probe, ...]], values: list[NDArray[np.float32]]
) -> LayerFigures:
    if len(values) < 2:
        return LayerFigures(layer, probes[0])
    return LayerFigures(layer, probes[0], probes[1], rsa(*values), linear_cka(*values))
