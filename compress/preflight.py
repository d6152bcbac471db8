"""Checks before a run starts: what can be known in seconds and would otherwise fail after hours."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from codemill.compress.data.lengths import sample_texts
from codemill.compress.data.pairs import Pair, read_pairs
from codemill.compress.data.splits import split_pairs
from codemill.compress.models.load import TeacherShape, load_teacher, read_shape, resolve_model
from codemill.compress.models.tokenize import tokenize
from codemill.compress.models.vocabulary import Pruned, Trained
from codemill.compress.recipe import Recipe
from codemill.compress.search.cost import gflops, size_bytes
from codemill.compress.stages.classify.corpus import source_of
from codemill.compress.stages.search import NO_TEACHER, check_estimates, space_of
from codemill.errors import (
    CodemillError,
    DataError,
    MachineError,
    ModelError,
    RecipeError,
    RefusedError,
)
from codemill.runtime.machine import this_machine
from codemill.targets.evaluation import texts_of_length
from codemill.targets.profile import availability, target_named

__all__ = ["Check", "Preflight", "preflight"]

_BASE_MEMORY_BYTES = 900_000_000
"""torch, transformers and the corpus, before any model."""
_OPTIMIZER_COPIES = 4
"""A trained weight is held four times: itself, its gradient and Adam's two moments."""
_ACTIVATION_BYTES = 16
"""Activations kept for backward, in floats per token, trained layer and hidden unit."""
_MOST_ACTIVATION_BYTES = 1_250_000_000
"""The same at most, of a teacher of classifiers."""
_FEW_PAIRS = 5_000
"""So many pairs at most are split before the start: half a second's work."""
_FEWEST_TRAINED = 10
"""As few as a recipe can ask for."""
_FEWEST_TOKENS = 3
"""Of any function: the two special tokens and one of its own."""
_SAMPLE = 1000
"""So many training functions tell the search, and whoever reads the checks, how long functions are."""
_HEADLINE_TOKENS = 128
_LABEL_BYTES = 2
_GRAPH_COPIES = 4


@dataclass(frozen=True)
class Check:
    """One question and its answer; `passed` False stops the run."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True)
class Preflight:
    """All checks, and the estimates they rest on; `refused` says why no student can keep the budget."""

    checks: tuple[Check, ...]
    memory_bytes: int
    disk_bytes: int
    refused: str | None = None

    def lines(self) -> list[str]:
        """For people, a line a check."""
        checks = [*self.checks, *([Check("budget", False, self.refused)] if self.refused else [])]
        return [
            f"{'ok ' if check.passed else 'NO '} {check.name}: {check.found}" for check in checks
        ]

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)

    def raise_if_impossible(self) -> None:
        """Raise MachineError naming every check that failed."""
        failed = [check for check in self.checks if not check.passed]
        if failed:
            raise MachineError("; ".join(f"{check.name}: {check.found}" for check in failed))

    def raise_if_refused(self) -> None:
        """Raise RefusedError where no architecture of the search space keeps the budget."""
        if self.refused:
            raise RefusedError(self.refused)


def preflight(recipe: Recipe, work: Path, held_bytes: int = 0) -> Preflight:
    """Look at teacher, data, target, memory, disk, search space and budget.

    `held_bytes`: what the run's stages have in `work` already.

    Raises what opening the teacher and reading a data file raise, DataError for too little data, and
    RecipeError for inputs longer and choices larger than the teacher's.
    """
    if recipe.task == "completion":
        return _completion(recipe, work, held_bytes)
    names = dict.fromkeys(name for name in (recipe.teacher.model, recipe.origin) if name)
    opened = {name: load_teacher(resolve_model(name)) for name in names}
    shapes = {name: read_shape(model.folder) for name, model in opened.items()}
    parameters = {
        name: sum(value.numel() for value in model.model.parameters())
        for name, model in opened.items()
    }
    # looked at and not loaded: of several teachers one is in memory at a time
    others = {name: read_shape(resolve_model(name)) for name in recipe.teacher.also}
    if names:
        every = (*shapes.values(), *others.values())
        _check_lengths(recipe, min(shape.positions for shape in every))
    origin = opened.get(recipe.origin or "")
    tokenizer_json = origin.tokenizer_json if origin else None
    shape = shapes[recipe.origin] if recipe.origin else NO_TEACHER
    codes: list[str] = []
    data: list[Check] = []
    if recipe.task == "retrieval" and tokenizer_json is not None:
        codes, data = _data(recipe, tokenizer_json)
    elif recipe.task != "retrieval":
        readers = {name: model.tokenizer_json for name, model in opened.items()}
        data = _labelled_lengths(recipe, readers)
    largest = max((*parameters.values(), *(item.parameters for item in others.values())), default=0)
    learner = shapes[recipe.teacher.model] if recipe.teacher.model else shape
    memory = _memory_bytes(recipe, largest, learner.hidden_size, learner.layers)
    disk = max(0, _disk_bytes(recipe, largest, learner.hidden_size) - held_bytes)
    checks = [
        *(
            Check(
                "teacher" if name == recipe.teacher.model else "student of",
                True,
                f"{shapes[name].family}, {_count(shapes[name].layers, 'layer')}, "
                f"{parameters[name] / 1e6:.1f} M parameters",
            )
            for name in names
        ),
        *(
            Check(
                "teacher too",
                True,
                f"{item.family}, {_count(item.layers, 'layer')}, {item.parameters / 1e6:.1f} M parameters",
            )
            for item in others.values()
        ),
        *data,
        _target(recipe),
        _memory(memory),
        _disk(disk, work),
    ]
    tokens: float = _FEWEST_TOKENS
    if tokenizer_json is not None:
        tokens = _tokens(recipe, codes, tokenizer_json)
    check_estimates(recipe, shape)
    refused = _refused(recipe, shape, tokenizer_json, tokens)
    return Preflight(tuple(checks), memory, disk, refused)


def _completion(recipe: Recipe, work: Path, held_bytes: int) -> Preflight:
    """The same of a recipe that completes: its decoder is opened, its weights are not read."""
    from codemill.compress.models.fewer_tokens import DecoderTokens
    from codemill.compress.stages.complete.labels import (
        RELABELLED,
        after_of,
        learns,
        open_decoder_of,
    )
    from codemill.compress.stages.complete.search import check_layers

    model = open_decoder_of(recipe.model)
    shape = model.weights.shape
    if recipe.complete.vocab_size is not None:
        # a tokenizer of another kind, or a number that does not hold its bytes, is said now
        try:
            tokens = DecoderTokens(model.tokenizer_json, model.prompting, [])
            tokens.at(min(recipe.complete.vocab_size, tokens.most))
        except ModelError as error:
            raise RecipeError(f"complete.vocab_size: {error}") from error
    products = 2 * (shape.query_size + shape.kv_size) + (2 + shape.gated) * shape.intermediate_size
    tables = (1 if shape.tied else 2) * shape.vocab_size
    parameters = shape.width * (tables + shape.layers * products)
    complete = recipe.complete
    cut = learns(recipe)
    if complete.piece_tokens > shape.max_tokens:
        raise RecipeError(
            f"complete.piece_tokens is {complete.piece_tokens}, and the decoder takes {shape.max_tokens} tokens; "
            "lower it"
        )
    above = complete.tune_above
    if above is not None and above >= shape.layers:
        raise RecipeError(
            f"complete.tune_above is {above}, and the decoder has {shape.layers} layers: none would learn"
        )
    if cut and shape.family != "llama":
        raise RecipeError(
            f"teacher.model is a {shape.family}; what learns to complete is a Llama-style decoder so far: take "
            "one, or student.init: whole without complete.tune_above"
        )
    after = after_of(recipe, shape.layers)
    if above is not None and after and after[0] < above:
        raise RecipeError(
            f"exits.after begins at layer {after[0]}, below complete.tune_above ({above}), where nothing learns; raise "
            "the one or lower the other"
        )
    if recipe.student.init != "whole":
        check_layers(recipe.search.layers or (), shape.layers)
    said = complete.likeliest * _LABEL_ROW_BYTES
    at_exits = said + 2 * len(after) * shape.width
    # of what learns as a whole, exits learn again from some
    labels = complete.tokens * at_exits
    if cut:
        taught = said + (2 * shape.width if above is not None else 0)
        labels = complete.tokens * taught + min(complete.tokens, RELABELLED) * at_exits
    copies = _OPTIMIZER_COPIES if cut else 1
    memory = _BASE_MEMORY_BYTES + 4 * parameters * (copies + 1)
    # states around the blocks that layers of a student stand for
    kept = 0
    if recipe.student.init != "whole":
        counts = (
            len(item) if isinstance(item, tuple) else item for item in recipe.search.layers or ()
        )
        each = 2 * shape.width * max(counts, default=shape.layers)
        kept = min(complete.block_tokens, complete.tokens) * each
    # weights as files, once in the bundle and, while it is found out whether exits save time, once without them
    disk = max(0, labels + kept + (12 if after else 8) * parameters - held_bytes)
    what = f"{shape.family}, {_count(shape.layers, 'layer')}, about {parameters / 1e6:.0f} M parameters"
    return Preflight(
        (Check("teacher", True, what), _memory(memory), _disk(disk, work)), memory, disk, None
    )


_LABEL_ROW_BYTES = 6


def _check_lengths(recipe: Recipe, positions: int) -> None:
    asked = {
        "teacher.max_tokens": recipe.teacher.max_tokens,
        "data.max_tokens": recipe.data.max_tokens,
        "student.max_tokens": recipe.student.max_tokens,
    }
    if recipe.teacher.model is None:
        del asked["teacher.max_tokens"]
    longer = {key: tokens for key, tokens in asked.items() if tokens > positions}
    if longer:
        raise RecipeError(
            f"{', '.join(f'{key} is {tokens}' for key, tokens in longer.items())}, but the teacher takes inputs "
            f"of {positions} tokens at most; give {' '.join(f'--set {key}={positions}' for key in longer)} or less"
        )


def _data(recipe: Recipe, tokenizer_json: str) -> tuple[list[str], list[Check]]:
    """A data file, read to its end, and the functions that the search will measure where that can be told.

    Few pairs are split, as the stage `corpus` does: what they lack would show only hours later.
    """
    data = recipe.data
    if data.source == "installed":
        return [], []
    path = Path(data.source).expanduser()
    few: list[Pair] = []
    total = 0
    for pair in read_pairs(path, data.query_field, data.code_field):
        total += 1
        if total <= _FEW_PAIRS:
            few.append(pair)
    found = f"{path.name}, {_count(total, 'pair')}"
    codes: list[str] = []
    if total <= _FEW_PAIRS:
        splits = split_pairs(
            few, data.validation_pairs, data.test_pairs, recipe.seed, str(data.source)
        )
        if len(splits.train) < _FEWEST_TRAINED:
            raise DataError(
                f"{data.source}: of {_count(total, 'pair')} {len(splits.train)} are left to train on once near "
                f"duplicates are removed; at least {_FEWEST_TRAINED} are needed"
            )
        _check_measurable(recipe, [pair.code for pair in splits.test], tokenizer_json)
        found += f": {len(splits.train):,} to train on, {len(splits.test):,} to test on"
        random.Random(recipe.seed).shuffle(splits.train)
        codes = [pair.code for pair in splits.train[: min(data.train_pairs, _SAMPLE)]]
    return codes, [Check("data", True, found)]


def _labelled_lengths(recipe: Recipe, readers: dict[str, str]) -> list[Check]:
    """How long the texts of labelled data are as teacher and student read them, and how many are longer than that.

    readers: model -> its tokenizer. A student of fewer tokens than its origin reads longer texts yet.
    """
    asked = []
    if recipe.teacher.model is not None:
        asked.append(("teacher", recipe.teacher.model, recipe.teacher.max_tokens, "cut off"))
    # a tokenizer that is still to be trained tells nothing
    if recipe.origin in readers and recipe.student.tokenizer == "pruned":
        done = "read in pieces" if recipe.student.long == "split" else "cut off"
        asked.append(("student", recipe.origin, recipe.student.max_tokens, done))
    if not asked:
        return []
    texts = sample_texts(source_of(recipe), _SAMPLE, recipe.seed)
    said = []
    for reader, model, most, done in asked:
        tokenizer = Tokenizer.from_str(readers[model])
        tokenizer.no_truncation()
        tokenizer.no_padding()
        lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]
        half, tenth = np.percentile(lengths, [50, 90])
        longer = float(np.mean(np.array(lengths) > most))
        said.append(
            f"{np.mean(lengths):,.0f} tokens on average to the {reader}, half over {half:,.0f}, a tenth over "
            f"{tenth:,.0f}; {longer:.1%} are longer than {reader}.max_tokens {most:,}"
            + (f" and are {done}" if longer else "")
        )
    return [Check("lengths", True, f"of {_count(len(texts), 'text')}: " + "; ".join(said))]


def _tokens(recipe: Recipe, codes: Sequence[str], tokenizer_json: str) -> float:
    """The fewest tokens a function that any student can have: a smaller vocabulary only takes more."""
    if not codes:
        return _FEWEST_TOKENS
    lengths = [len(ids) for ids in tokenize(tokenizer_json, codes, recipe.student.max_tokens)]
    return float(np.mean(lengths))


def _check_measurable(recipe: Recipe, codes: Sequence[str], tokenizer_json: str) -> None:
    """The closing benchmark can make texts of its lengths out of the test's functions."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: Sequence[str]) -> list[int]:
        return [len(tokenizer.encode(text).ids) for text in texts]

    longest = recipe.longest_common
    lengths = [tokens for tokens in recipe.bench.tokens if tokens <= longest] or [longest]
    # and at the length that a limit on latency speaks of
    tokens = max(*lengths, min(_HEADLINE_TOKENS, longest))
    try:
        texts_of_length(codes, count, tokens, 1)
    except DataError as error:
        raise DataError(
            f"{recipe.data.source}: the test is too small to measure latency on: {error}; "
            "give more pairs, or shorter lengths with --set bench.tokens=[32] --set student.max_tokens=32"
        ) from error


def _refused(
    recipe: Recipe, shape: TeacherShape, tokenizer_json: str | None, tokens: float
) -> str | None:
    """Why no architecture keeps the size, or the GFLOPs, by the least that any can take, or None.

    Raises ModelError for a tokenizer that cannot be pruned and RecipeError for choices that the teacher
    cannot give. The search, which knows the data, may refuse more.
    """
    if recipe.student.tokenizer == "bpe" or tokenizer_json is None:
        # nothing is known of a tokenizer that is still to be trained
        space, text_bytes = space_of(recipe, shape, Trained.most), 0
    else:
        vocabulary = _of_short_tokens(tokenizer_json)
        space = space_of(recipe, shape, vocabulary.most)
        text_bytes = len(vocabulary.at(min(space.choices[0])).tokenizer_json.encode())
    least_bytes, least_gflops = math.inf, math.inf
    for _, architectures in space.grids():
        least_bytes = min(least_bytes, np.min(size_bytes(architectures, text_bytes)))
        least_gflops = min(least_gflops, np.min(gflops(architectures, tokens)))
    size, operations = recipe.budget.size_bytes, recipe.budget.gflops
    missed = []
    if size is not None and least_bytes > size:
        missed.append(f"size_bytes <= {size:,}; the smallest takes {least_bytes:,} bytes at least")
    # `auto` is a share of the teacher's, which the search tells
    if isinstance(operations, float) and least_gflops > operations:
        missed.append(
            f"gflops <= {operations:g}; the least takes {_rounded_up(least_gflops)} GFLOPs a function "
            "at least"
        )
    if not missed:
        return None
    return (
        f"none of the {space.size:,} architectures in the search space fits {', nor '.join(missed)}: "
        "raise the limit, or give the search smaller choices or a smaller teacher"
    )


def _of_short_tokens(tokenizer_json: str) -> Pruned:
    """As if short tokens were the most used: no other choice of them makes a smaller file."""
    vocabulary = json.loads(tokenizer_json)["model"].get("vocab", {})
    tokens = vocabulary if isinstance(vocabulary, dict) else {}
    counts = np.full(max(tokens.values(), default=0) + 1, -(10**6))
    for token, index in tokens.items():
        counts[index] = -len(token.encode())
    return Pruned(tokenizer_json, counts)


def _rounded_up(number: float) -> str:
    """To four digits, and not below it: what is named has to be possible."""
    digits = 3 - math.floor(math.log10(number))
    return f"{math.ceil(number * 10**digits) / 10**digits:.4g}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _memory_bytes(recipe: Recipe, parameters: int, hidden_size: int, layers: int) -> int:
    """Upper estimate of the fine-tuning step, the hungriest: weights, optimizer, activations of one batch."""
    settings = recipe.teacher.finetune
    tuned = settings.pairs and recipe.teacher.model is not None
    frozen = settings.freeze_layers if isinstance(settings.freeze_layers, int) else 0
    trained = max(0, layers - frozen) if tuned else 0
    tokens = settings.batch_size * recipe.data.max_tokens * 1.3
    activations = int(tokens * trained * hidden_size * 4 * _ACTIVATION_BYTES)
    if recipe.task != "retrieval":
        # beyond this a classifier's are computed again (models/frugal.py)
        activations = min(activations, _MOST_ACTIVATION_BYTES)
    return _BASE_MEMORY_BYTES + parameters * 4 * _OPTIMIZER_COPIES + activations


def _disk_bytes(recipe: Recipe, parameters: int, hidden_size: int) -> int:
    labels = 2 * recipe.data.train_pairs * hidden_size * _LABEL_BYTES
    return labels + _GRAPH_COPIES * parameters * 4 + 200_000_000


def _target(recipe: Recipe) -> Check:
    try:
        target = target_named(recipe.target)
        reason = availability(target)
    except CodemillError as error:
        return Check("target", False, str(error))
    if target.provider != "CPUExecutionProvider":
        return Check(
            "target",
            False,
            f"a run makes a bundle for processors, and {recipe.target} is none: set target to laptop-cpu, and give the "
            f"bundle to `compress export BUNDLE --target {recipe.target}` after it",
        )
    # a bundle for processors can be made on any; what is timed is timed here
    here = (
        ""
        if reason is None
        else f"; this machine is another kind ({reason}), and times are its own"
    )
    return Check("target", True, f"{recipe.target}{here}")


def _memory(needed: int) -> Check:
    available = this_machine().memory_available_bytes
    found = f"about {needed / 1e9:.1f} GB needed"
    if available is None:
        return Check("memory", True, found + ", what is available cannot be told")
    found += f", {available / 1e9:.1f} GB available"
    if needed > available:
        return Check(
            "memory",
            False,
            found + "; lower teacher.finetune.batch_size or teacher.finetune.pairs to 0",
        )
    return Check("memory", True, found)


def _disk(needed: int, work: Path) -> Check:
    folder = work.absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        return Check(
            "disk", False, f"{folder} is a file and no folder to work in; choose another --work"
        )
    free = shutil.disk_usage(folder).free
    found = f"about {needed / 1e9:.1f} GB needed under {work}, {free / 1e9:.1f} GB free"
    return Check(
        "disk",
        needed <= free,
        found if needed <= free else found + "; make room, or choose another --work",
    )
