"""Stage `search`: the student's architecture under the budget, and the vocabulary that goes with it.

Writes search.json, architecture.json, tokenizer.json and vocabulary.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from codemill.compress.architecture import TOKENIZERS, Architecture, Tokens
from codemill.compress.budget import Budget
from codemill.compress.data.labelled import read_labelled, read_report
from codemill.compress.data.pairs import Pair
from codemill.compress.models.load import (
    TeacherShape,
    fingerprint,
    load_teacher,
    read_shape,
    resolve_model,
)
from codemill.compress.models.tokenize import tokenize
from codemill.compress.models.vocabulary import Pruned, Trained, Vocabulary
from codemill.compress.models.wordpiece import count_tokens
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.search.cost import (
    MANIFEST_BYTES,
    CostModel,
    by_tokenizer,
    gflops,
    gflops_paper,
    head_parameters,
    interpolate,
    parameters,
    params_fp32_bytes,
)
from codemill.compress.search.genetic import Candidate, SearchResult, search
from codemill.compress.search.latency import LatencyModel, warn_if_foreign
from codemill.compress.search.memory import activation_bytes
from codemill.compress.search.pareto import ParetoResult, knee, most_quality, pareto
from codemill.compress.search.quality import QualityModel, read_estimate
from codemill.compress.search.space import (
    AnySpace,
    Choices,
    FreshSpace,
    Space,
    default_space,
    fresh_space,
)
from codemill.compress.stages.corpus import read_split
from codemill.errors import RecipeError
from codemill.targets.environment import machine_id
from codemill.targets.latency import LatencyProfile, read_profile
from codemill.targets.profile import target_named

__all__ = [
    "NO_TEACHER",
    "VERSION",
    "Chosen",
    "Searched",
    "check_estimates",
    "prepare",
    "read_chosen",
    "space_of",
    "stage",
    "texts_of",
    "training_texts",
    "vocabulary_of",
]

VERSION = 5
_SAMPLE = 1000
_SIZES_MEASURED = 6
_AUTO_SHARE = 1 / 6
"""`gflops: auto` is this share of the teacher's: about what one of MiniLM's six layers costs. GFLOPs without
a cap is the wrong goal: it picks the slowest architecture of its size."""


_AUTO_LATENCY_SHARE = 1 / 9
"""`latency_ms: auto` is this share of the teacher's as fused fp32 ONNX."""
NO_TEACHER = TeacherShape(50_000, 384, 6, 12, 1536, 512)
"""MiniLM's: what bounds a fresh student where no teacher does."""
_HEAD_GRAPH_BYTES = 12_000
"""Nodes, scales and names of a head's quantized graph, and the labels in the manifest."""
_GRAPH_SHARE = 3 / 4
"""Of a latency limit in milliseconds: what the graph may take by the profile. The rest is for the tokenizer and for
the calls around it, which the closing benchmark times too: about 0.4 ms on machine B of docs/LOG.md."""
_HEADLINE_TOKENS = 128
"""Of the teacher, in the function whose latency is searched and limited."""
_REFERENCE = Path(__file__).parents[1] / "search" / "reference"
_TOKENS = {"pruned": "tokens", "bpe": "byte-pair tokens of the data"}
_MADE_BY = {"quality": "estimate", "latency": "profile"}


@dataclass(frozen=True)
class Chosen:
    """The searched architecture, its tokenizer, the teacher ids of its tokens, and how often they occur.

    `parts`: of tokens that are not the teacher's, the ids that each is written with.
    """

    architecture: Architecture
    tokenizer_json: str
    kept: list[int]
    counts: list[int]
    parts: list[list[int]] = field(default_factory=list)


def stage(recipe: Recipe) -> Stage:
    """Depends on the corpus, the teacher's shape and tokenizer, the space, the budget and what estimates costs."""
    files = {name: _file_of(recipe, name) for name in ("quality", "latency")}
    settings = {
        "model": recipe.origin and fingerprint(resolve_model(recipe.origin)),
        # of a classifier the head is part of what ships
        **({} if recipe.task == "retrieval" else {"task": [recipe.task, recipe.data.pair_order]}),
        # the files by what they hold, wherever they lie
        "search": recipe.search.model_dump(mode="json", exclude={"quality", "latency"}),
        "files": {
            name: path and sha256(path.read_bytes()).hexdigest() for name, path in files.items()
        },
        "budget": recipe.budget.model_dump(),
        "bits": _bits(recipe),
        "student": recipe.student.model_dump(),
        "train_pairs": recipe.data.train_pairs,
        "seed": recipe.seed,
        # heads that ship
        **({"exits": recipe.exits.after} if isinstance(recipe.exits.after, tuple) else {}),
    }

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        _search(recipe, inputs["corpus"], folder, report)

    libraries = ("pygad", "tokenizers", "numpy", "scikit-learn")
    return Stage("search", VERSION, ("corpus",), settings, libraries, work, findings=_findings)


def _findings(folder: Path) -> str:
    found = json.loads((folder / "search.json").read_text())
    best = found["best"]
    copied = f" from {best['copied_layers']}" if best["copied_layers"] else ""
    known = [
        f"{best['layers']} layers of width {best['hidden_size']}{copied}, {best['heads']} heads, "
        f"{best['intermediate_size']} inner, {best['vocab_size']:,} {_TOKENS[best['tokenizer']]} at rank "
        f"{best['embedding_rank']}: "
        f"{best['gflops']:.2f} GFLOPs, {best['size_bytes'] / 1e6:.2f} MB"
    ]
    if best["latency_ms"] is not None:
        known.append(f"{best['latency_ms']:.2f} ms by the profile of {found['latency']['cpu']}")
    if best["quality"] is not None:
        known.append(_said_of(best["quality"], found["quality"]))
    known += found["warnings"]
    return "; ".join(known)


def _said_of(value: float, quality: dict[str, Any]) -> str:
    ranked = ", ".join(f"{name} {found:.2f}" for name, found in quality["correlations"].items())
    kind = "quality" if quality["predictor"] == "estimate" else quality["predictor"]
    return f"{kind} {value:.3f} (rank correlations with what was trained to the end: {ranked})"


@dataclass(frozen=True)
class Searched:
    """What a search of this recipe goes by; `teacher`: the teacher's own shape, at the student's longest input."""

    space: AnySpace
    costs: CostModel
    budget: Budget
    vocabularies: dict[Tokens, Vocabulary]
    teacher: Architecture
    teacher_tokens: float
    quality: QualityModel | None
    latency: LatencyProfile | None
    warnings: list[str]


def prepare(recipe: Recipe, corpus: Path, report: Report) -> Searched:
    """Count tokens, measure vocabularies, read the files that estimate latency and quality."""
    report(0.0, "counting tokens")
    tokenizer_json, shape = None, NO_TEACHER
    if recipe.origin is not None:
        teacher = load_teacher(resolve_model(recipe.origin))
        tokenizer_json, shape = teacher.tokenizer_json, read_shape(teacher.folder)
    texts, codes, labels = training_texts(recipe, corpus)
    vocabularies = {
        kind: vocabulary_of(recipe, kind, tokenizer_json, texts) for kind in _tokenizers(recipe)
    }
    warnings: list[str] = []
    space = _with_tokens_there_are(
        space_of(recipe, shape, min(found.most for found in vocabularies.values())),
        vocabularies.get("bpe"),
        warnings,
    )
    report(0.3, "measuring vocabularies")
    longest = recipe.student.max_tokens
    sizes = sorted(space.choices[0])
    lengths: dict[Tokens, Callable[[int], float]] = {}
    lengths_bytes: dict[Tokens, Callable[[int], float]] = {}
    for kind, vocabulary in vocabularies.items():
        measured = {
            size: vocabulary.at(size).tokenizer_json
            for size in {sizes[round(at)] for at in np.linspace(0, len(sizes) - 1, _SIZES_MEASURED)}
        }
        lengths[kind] = interpolate(
            {size: _mean_length(text, codes, longest) for size, text in measured.items()}
        )
        lengths_bytes[kind] = interpolate(
            {size: len(text.encode()) for size, text in measured.items()}
        )
    # without a teacher's tokens, those of the largest vocabulary are the nearest to whole words
    whole = tokenizer_json or vocabularies["bpe"].at(sizes[-1]).tokenizer_json
    full_length = _mean_length(whole, codes, longest)
    head_bytes = _head_bytes(recipe, shape.hidden_size, labels)
    costs = CostModel(
        by_tokenizer(lengths),
        by_tokenizer(lengths_bytes),
        manifest_bytes=MANIFEST_BYTES + head_bytes,
    )
    teacher_shape = Architecture(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        layers=shape.layers,
        heads=shape.heads,
        head_size=shape.hidden_size // shape.heads,
        intermediate_size=shape.intermediate_size,
        max_tokens=longest,
        bits=32,
    )
    quality = _quality(recipe, shape, warnings)
    profile, teacher_ms = None, None
    if (profiled := _latency(recipe, warnings)) is not None:
        profile, model = profiled
        teacher_ms = model.latency_ms(teacher_shape, _HEADLINE_TOKENS)

        def latency_ms(architecture: Architecture) -> float:
            grown = costs.tokens_per_function(architecture) / full_length
            value: float = model.latency_ms(architecture, _HEADLINE_TOKENS * grown)
            return value

        costs = replace(costs, latency_ms=latency_ms)
    return Searched(
        space,
        costs,
        _budget(recipe, gflops(teacher_shape, full_length), teacher_ms, warnings),
        vocabularies,
        teacher_shape,
        full_length,
        quality,
        profile,
        warnings,
    )


def _with_tokens_there_are(
    space: AnySpace, vocabulary: Vocabulary | None, warnings: list[str]
) -> AnySpace:
    """Without the vocabularies that the texts have no byte-pair tokens for; with the largest, where all are."""
    assert isinstance(space, Space | FreshSpace)
    wanted = max(space.vocab_sizes)
    if not isinstance(vocabulary, Trained) or (there := vocabulary.there_are(wanted)) >= wanted:
        return space
    kept = tuple(size for size in space.vocab_sizes if size <= there) or (there,)
    warnings.append(
        f"the training texts give {there:,} byte-pair tokens: larger vocabularies than {max(kept):,} are left out, of "
        "whatever kind"
    )
    return replace(space, vocab_sizes=kept)


def training_texts(recipe: Recipe, corpus: Path) -> tuple[list[str], list[str], int]:
    """All training texts, a sample of functions among them, and how many labels there are (0: no classifier)."""
    most = recipe.data.train_pairs
    if recipe.task == "retrieval":
        pairs = read_split(corpus, "train", most)
        return texts_of(pairs), [pair.code for pair in pairs[:_SAMPLE]], 0
    rows = read_labelled(corpus, "train", most)
    # distinct texts lie in the order of their first use, which the seed drew
    return rows.texts, rows.texts[:_SAMPLE], len(read_report(corpus)["labels"])


def texts_of(pairs: Sequence[Pair]) -> list[str]:
    """Queries and codes."""
    return [text for pair in pairs for text in (pair.query, pair.code)]


def _head_bytes(recipe: Recipe, dim: int, labels: int) -> int:
    """What a classifier's head adds to what ships: its weights, and what its graph has besides."""
    if not labels:
        return 0
    parameters = head_parameters(
        dim, labels, recipe.texts, recipe.student.head_size, recipe.data.pair_order == "matters"
    )
    after = recipe.exits.after
    heads = 1 + (len(after) if isinstance(after, tuple) else 0)
    return heads * (parameters * _bits(recipe) // 8 + _HEAD_GRAPH_BYTES)


def _tokenizers(recipe: Recipe) -> tuple[Tokens, ...]:
    """The kinds that the search chooses from."""
    wanted = recipe.student.tokenizer
    return TOKENIZERS if wanted == "auto" else (wanted,)


def vocabulary_of(
    recipe: Recipe, kind: Tokens, tokenizer_json: str | None, texts: Sequence[str]
) -> Vocabulary:
    """The student's tokenizers, by size; `tokenizer_json` is the teacher's, `texts` are to train on."""
    if kind == "bpe" or tokenizer_json is None:
        return Trained(texts, None if recipe.student.init == "fresh" else tokenizer_json)
    return Pruned(tokenizer_json, count_tokens(tokenizer_json, texts))


def _search(recipe: Recipe, corpus: Path, folder: Path, report: Report) -> None:
    searched = prepare(recipe, corpus, report)
    found: SearchResult | ParetoResult
    if recipe.search.objective == "pareto":
        found = _pareto(recipe, searched, report)
        best = (most_quality if recipe.search.pick == "budget" else knee)(found)
        looked: dict[str, Any] = {"front": [_point(item) for item in found.front], "seen": []}
    else:

        def on_generation(generation: int, fittest: Candidate) -> None:
            report(_share(generation), f"generation {generation}, {fittest.gflops:.3f} GFLOPs")

        found = search(searched.space, searched.budget, searched.costs, recipe.seed, on_generation)
        best = found.best
        looked = {"front": [], "seen": [_point(item) for item in found.seen], "exact": found.exact}
    chosen = best.architecture
    kept = searched.vocabularies[chosen.tokenizer].at(chosen.vocab_size)
    tokens = searched.costs.tokens_per_function(chosen)
    budget = searched.budget
    summary: dict[str, Any] = {
        "best": {
            **chosen.to_json(),
            "gflops": best.gflops,
            "gflops_paper": gflops_paper(chosen, tokens),
            "parameters": parameters(chosen),
            "params_fp32_bytes": params_fp32_bytes(chosen),
            "size_bytes": best.size_bytes,
            "latency_ms": best.latency_ms,
            "quality": best.quality,
            "activation_bytes": int(activation_bytes(chosen, chosen.max_tokens)),
            "tokens_per_function": tokens,
        },
        "budget": asdict(budget),
        "teacher": {
            "gflops": gflops(searched.teacher, searched.teacher_tokens),
            "tokens_per_function": searched.teacher_tokens,
        },
        "objective": recipe.search.objective,
        "pick": recipe.search.pick if recipe.search.objective == "pareto" else None,
        "quality": searched.quality and searched.quality.to_json(),
        "latency": searched.latency
        and {
            "cpu": searched.latency.environment.machine.get("cpu"),
            "machine_id": searched.latency.environment.machine_id,
            "measured_at": searched.latency.environment.measured_at,
            "threads": searched.latency.threads,
        },
        "warnings": searched.warnings,
        "space_size": searched.space.size,
        "evaluations": found.evaluations,
        "seconds": found.seconds,
        "generations": found.generations,
        **looked,
    }
    (folder / "search.json").write_text(json.dumps(summary, indent=1))
    (folder / "architecture.json").write_text(json.dumps(chosen.to_json(), indent=1))
    (folder / "tokenizer.json").write_text(kept.tokenizer_json, encoding="utf-8")
    (folder / "vocabulary.json").write_text(
        json.dumps({"kept": kept.kept, "counts": kept.counts, "parts": kept.parts})
    )


def _pareto(recipe: Recipe, searched: Searched, report: Report) -> ParetoResult:
    first = recipe.search.objectives[0]

    def on_generation(generation: int, best: Candidate, length: int) -> None:
        said = f"generation {generation}, best {first} {getattr(best, first):.4g}"
        report(_share(generation), f"{said}, {length} on the front")

    return pareto(
        searched.space,
        searched.budget,
        searched.costs,
        None if searched.quality is None else searched.quality.predict,
        recipe.search.objectives,
        recipe.seed,
        on_generation,
    )


def _share(generation: int) -> float:
    return 0.5 + 0.5 * min(1.0, generation / 200)


def _point(item: Candidate) -> dict[str, Any]:
    return {**asdict(item), "architecture": item.architecture.to_json()}


def space_of(recipe: Recipe, shape: TeacherShape, tokens: int) -> AnySpace:
    """The space that a recipe searches. `tokens`: the largest vocabulary there is a tokenizer for.

    Raises RecipeError for choices that the teacher cannot give.
    """
    wanted = recipe.search
    choices = Choices(
        **{
            field.name: getattr(wanted, field.name)
            for field in fields(Choices)
            if field.name not in ("bits", "tokenizers")
        },
        bits=wanted.bits or (_bits(recipe),),
        tokenizers=_tokenizers(recipe),
    )
    if recipe.student.init == "fresh":
        return fresh_space(
            hidden_size=shape.hidden_size,
            layers=shape.layers,
            vocab_size=min(tokens, shape.vocab_size),
            max_tokens=recipe.student.max_tokens,
            choices=choices,
        )
    return default_space(
        hidden_size=shape.hidden_size,
        layers=shape.layers,
        heads=shape.heads,
        intermediate_size=shape.intermediate_size,
        # a model's table is often padded beyond its tokenizer; tokens of its own are no rows of it
        vocab_size=tokens
        if wanted.vocab_sizes and _tokenizers(recipe) == ("bpe",)
        else min(tokens, shape.vocab_size),
        max_tokens=recipe.student.max_tokens,
        choices=choices,
    )


def _bits(recipe: Recipe) -> int:
    return 32 if recipe.quantize.method == "none" else 8


def _file_of(recipe: Recipe, name: str) -> Path | None:
    """The file that search.quality or search.latency names."""
    said: str | None = getattr(recipe.search, name)
    if said is None:
        return None
    path = _REFERENCE / f"{name}.json" if said == "reference" else Path(said).expanduser()
    if not path.is_file():
        raise RecipeError(
            f"search.{name}: there is no file {said!r}; `compress {_MADE_BY[name]}` makes one, and "
            "`reference` is the one that ships"
        )
    return path


def _latency(recipe: Recipe, warnings: list[str]) -> tuple[LatencyProfile, LatencyModel] | None:
    """The profile and the model of it; None where the recipe names none."""
    path = _file_of(recipe, "latency")
    if path is None:
        return None
    profile = read_profile(path)
    foreign = warn_if_foreign(profile, machine_id(), target_named(recipe.target))
    warnings += [foreign] if foreign else []
    return profile, LatencyModel.fit(profile)


def _quality(recipe: Recipe, shape: TeacherShape, warnings: list[str]) -> QualityModel | None:
    path = _file_of(recipe, "quality")
    if path is None:
        return None
    estimate = read_estimate(path)
    teacher = estimate.teacher
    fresh = recipe.student.init == "fresh"
    if any(bool(item.architecture.copied_layers) is fresh for item in estimate.observations):
        raise RecipeError(
            f"search.quality: the estimate is of students that are {'cut' if fresh else 'fresh'}, this recipe's "
            f"are {'fresh' if fresh else 'cut out of the teacher'}; `compress estimate` makes one for it"
        )
    seen = {item.architecture.tokenizer for item in estimate.observations}
    if unseen := set(_tokenizers(recipe)) - seen:
        raise RecipeError(
            f"search.quality: the estimate holds no student with tokenizer {', '.join(sorted(unseen))}, which "
            f"student.tokenizer: {recipe.student.tokenizer} asks for; `compress estimate` makes one for this recipe"
        )
    if (teacher["layers"], teacher.get("hidden_size")) != (shape.layers, shape.hidden_size):
        raise RecipeError(
            f"search.quality: the estimate is of a teacher of {teacher['layers']} layers and width "
            f"{teacher.get('hidden_size')}, this one has {shape.layers} and {shape.hidden_size}; "
            "`compress estimate` makes one for it"
        )
    if teacher.get("fingerprint") != (recipe.origin and fingerprint(resolve_model(recipe.origin))):
        warnings.append(
            f"the quality estimate is of another teacher, {teacher.get('name')}, of the same shape"
        )
    return QualityModel(estimate)


def check_estimates(recipe: Recipe, shape: TeacherShape) -> None:
    """Raise what reading and fitting the files of search.quality and search.latency would raise later."""
    _quality(recipe, shape, [])
    _latency(recipe, [])


def _mean_length(tokenizer_json: str, codes: Sequence[str], max_tokens: int) -> float:
    return float(np.mean([len(ids) for ids in tokenize(tokenizer_json, codes, max_tokens)]))


def _budget(
    recipe: Recipe, teacher_gflops: float, teacher_ms: float | None, warnings: list[str]
) -> Budget:
    operations, latency_ms = recipe.budget.gflops, recipe.budget.latency_ms
    if operations == "auto":
        operations = teacher_gflops * _AUTO_SHARE
    if teacher_ms is None:
        if latency_ms == "auto":
            raise RecipeError(
                "budget.latency_ms: auto is a share of the teacher's by a latency profile; name one as "
                "search.latency (`compress profile` makes it, `reference` ships), or give milliseconds"
            )
        if latency_ms is not None:
            warnings.append(
                f"budget.latency_ms {latency_ms:g} is not searched for, since search.latency names no profile: "
                "only the closing benchmark holds it"
            )
        latency_ms = None
    elif latency_ms == "auto":
        latency_ms = teacher_ms * _AUTO_LATENCY_SHARE
    elif latency_ms is not None:
        latency_ms *= _GRAPH_SHARE
    return Budget(recipe.budget.size_bytes, operations, latency_ms)


def read_chosen(folder: Path) -> Chosen:
    """What the stage wrote."""
    vocabulary = json.loads((folder / "vocabulary.json").read_text())
    return Chosen(
        Architecture.from_json(json.loads((folder / "architecture.json").read_text())),
        (folder / "tokenizer.json").read_text(encoding="utf-8"),
        vocabulary["kept"],
        vocabulary["counts"],
        vocabulary["parts"],
    )
