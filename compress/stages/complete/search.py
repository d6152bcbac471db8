"""Stage `search` of completion: the student's shape and tokens, the most operations in its layers that fit the budget.

Layers, vocabulary and intermediate size are searched; width and heads stay the teacher's, so that its layers can be
copied: those that change most of what passes through them, and for each run of others one (search/blocks.py). The
head's products are not counted: a large vocabulary would win by them, and says nothing that a smaller one cannot say
in a few more tokens. Of shapes with equal layers the largest vocabulary that fits is taken.
Writes architecture.json, tokenizer.json and tokens.json (the teacher's id of each token).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codemill.compress.architecture import Architecture
from codemill.compress.budget import Budget
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.stages.complete.corpus import counted, read_texts
from codemill.compress.stages.complete.labels import model_identity, open_decoder_of
from codemill.errors import DataError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from codemill.compress.models.fewer_tokens import KeptTokens

__all__ = ["VERSION", "check_layers", "read_shape", "stage"]

VERSION = 3
_VOCABULARIES = (6144, 8192, 12_288, 16_384, 24_576, 32_768)
_CONTEXT = 256
"""Tokens that a token attends to when operations are counted."""
_BESIDE = 40_000
"""Bytes of the manifest, and of graphs of exits and projections."""
_BITS = {"int4": 4, "int8": 8, "fp32": 32}
_AUTO_EXITS = 3
_READ = 16
"""Held-out pieces that tell what each layer of the teacher changes."""


def stage(recipe: Recipe) -> Stage:
    """Depends on the teacher, the corpus, the budget and the choices."""
    search = recipe.search
    settings = {
        "model": model_identity(recipe),
        "budget": recipe.budget.size_bytes,
        "vocab_sizes": search.vocab_sizes,
        "layers": search.layers,
        "intermediate_sizes": search.intermediate_sizes,
        "precision": [
            *(recipe.complete.precision, recipe.complete.block),
            *(["symmetric"] * recipe.complete.symmetric),
        ],
        "adapter_size": recipe.complete.adapter_size,
        "exits": recipe.exits.after,
        "piece_tokens": recipe.complete.piece_tokens,
        "max_tokens": recipe.student.max_tokens,
        "seed": recipe.seed,
    }

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        _search(recipe, inputs["corpus"], folder, report)

    return Stage(
        "search",
        VERSION,
        ("corpus",),
        settings,
        ("tokenizers", "pygad", "torch", "transformers"),
        work,
        findings=_findings,
    )


def _findings(folder: Path) -> str:
    found = json.loads((folder / "architecture.json").read_text())
    shape = found["architecture"]
    return (
        f"{shape['layers']} layers ({', '.join(map(str, shape['copied_layers']))}) x {shape['hidden_size']}, "
        f"intermediate size {shape['intermediate_size']}, {shape['vocab_size']:,} tokens: "
        f"{found['size_bytes'] / 1e6:.1f} MB estimated, texts {found['growth']:.3f} times as long as the teacher's; "
        f"the best of {found['space']:,} shapes"
    )


@dataclass
class _Costs:
    """Sizes and operations by shape; what a vocabulary takes is looked up."""

    tokenizer_bytes: Callable[[int], int]
    adapters: int
    tied: bool
    block: int
    symmetric: bool
    latency_ms: Callable[[Architecture], float] | None = field(default=None)

    def gflops(self, architecture: Architecture) -> float:
        """1e9 operations of a token in the layers."""
        from codemill.compress.search.decoder import gflops_per_token

        head = 2 * architecture.hidden_size * architecture.vocab_size / 1e9
        return gflops_per_token(architecture, _CONTEXT) - head

    def size_bytes(self, architecture: Architecture) -> int:
        """What ships."""
        from codemill.compress.search.decoder import graph_bytes

        sizes: Any = architecture.vocab_size
        tokenizer: Any = np.vectorize(self.tokenizer_bytes)(sizes)
        found: int = (
            graph_bytes(architecture, self.tied, self.block, self.symmetric)
            + tokenizer
            + self.adapters
            + _BESIDE
        )
        return found


def _search(recipe: Recipe, corpus: Path, folder: Path, report: Report) -> None:
    from codemill.compress.models.bpe import length_growth
    from codemill.compress.models.causal import pieces_of
    from codemill.compress.models.fewer_tokens import DecoderTokens, write_tokens
    from codemill.compress.search.decoder import DecoderSpace
    from codemill.compress.search.genetic import search

    model = open_decoder_of(recipe.model)
    shape, tokenizer_json = model.weights.shape, model.tokenizer_json
    prompting = model.prompting
    if shape.family != "llama" or shape.rank is not None:
        raise RecipeError(
            f"teacher.model is a {shape.family}; students that complete are cut out of Llama-style decoders so far: "
            "take one, or student.init: whole"
        )
    held_out = read_texts(corpus, "validation")
    report(0.0, "counting tokens")
    vocabulary = DecoderTokens(tokenizer_json, prompting, counted(corpus))
    sizes = tuple(
        size for size in recipe.search.vocab_sizes or _VOCABULARIES if size <= vocabulary.most
    )
    made: dict[int, tuple[int, float]] = {}
    for number, size in enumerate(sizes):
        found = vocabulary.at(size).tokenizer_json
        made[size] = len(found.encode()), length_growth(tokenizer_json, found, held_out)
        report(
            (number + 1) / (len(sizes) + 1),
            f"{size:,} tokens: texts {made[size][1]:.2f} times as long",
        )
    layers = recipe.search.layers or tuple(range(2, shape.layers + 1))
    inner = shape.intermediate_size
    space = DecoderSpace(
        vocab_sizes=sizes,
        embedding_ranks=(None,),
        hidden_sizes=(shape.width,),
        layers=tuple(item if isinstance(item, int) else len(item) for item in layers),
        head_sizes=(shape.head_size,),
        group_sizes=(shape.heads // shape.kv_heads,),
        intermediate_sizes=recipe.search.intermediate_sizes
        or tuple(dict.fromkeys(max(32, inner * part // 6 // 32 * 32) for part in (3, 4, 5, 6))),
        max_tokens=recipe.student.max_tokens,
        bits=(_BITS[recipe.complete.precision],),
    )
    adapter = recipe.complete.adapter_size or shape.width
    asked = recipe.exits.after
    exits = len(asked) if isinstance(asked, tuple) else 0 if asked == "none" else _AUTO_EXITS
    costs = _Costs(
        lambda size: made[size][0],
        int(exits * 3 * adapter * shape.width * _weight_bytes(recipe)),
        shape.tied,
        recipe.complete.block,
        recipe.complete.symmetric,
    )
    result = search(space, Budget(size_bytes=recipe.budget.size_bytes), costs, recipe.seed)
    best = result.best
    chosen = best.architecture
    listed = [item for item in layers if not isinstance(item, int) and len(item) == chosen.layers]
    if listed:
        copied = listed[0]
    else:
        read = pieces_of(held_out, tokenizer_json, recipe.complete.piece_tokens, prompting.begin)
        if not read:
            raise DataError(
                "the held-out files are all too short to read: expected some of 16 tokens or more; give more code"
            )
        # it may hold all weights, and so does what is looked at
        del model
        report(len(sizes) / (len(sizes) + 1), "measuring what each layer changes")
        copied = _layers_of(recipe, read[:_READ], chosen.layers)
    chosen = replace(chosen, copied_layers=copied)
    kept = vocabulary.at(chosen.vocab_size)
    write_tokens(folder, replace(kept, tokenizer_json=_beginning(kept)))
    facts = {
        "architecture": chosen.to_json(),
        "size_bytes": best.size_bytes,
        "gflops": best.gflops,
        "growth": made[chosen.vocab_size][1],
        "vocabularies": {str(size): found for size, found in made.items()},
        "space": space.size,
    }
    (folder / "architecture.json").write_text(json.dumps(facts, indent=1))


def _weight_bytes(recipe: Recipe) -> float:
    """Of a weight, with its part of scale and zero point."""
    bits = _BITS[recipe.complete.precision]
    points = 0 if recipe.complete.symmetric and bits == 4 else bits / 8
    return bits / 8 + (0 if bits == 32 else (4 + points) / recipe.complete.block)


def check_layers(choices: Sequence[int | tuple[int, ...]], layers: int) -> None:
    """Raise RecipeError for layers that the teacher has not, or in another order, and for two choices of one size."""
    sizes = [choice if isinstance(choice, int) else len(choice) for choice in choices]
    twice = next((size for size in sizes if sizes.count(size) > 1), None)
    if twice is not None:
        raise RecipeError(
            f"search.layers has two choices of {twice} layers; the search tells sizes apart, so give one of each"
        )
    for choice in choices:
        if choice == ():
            raise RecipeError(
                "search.layers holds an empty list; a student copies one layer at least"
            )
        if isinstance(choice, int):
            wrong = None if 1 <= choice <= layers else f"{choice} of them"
        else:
            wrong = next((f"layer {at}" for at in choice if not 0 <= at < layers), None)
            if list(choice) != sorted(set(choice)):
                raise RecipeError(
                    f"search.layers lists {list(choice)}; a decoder's layers are copied in their order, each once"
                )
        if wrong:
            raise RecipeError(
                f"search.layers asks for {wrong}; the teacher has {layers} layers, counted from 0"
            )


def _layers_of(recipe: Recipe, pieces: Sequence[np.ndarray], count: int) -> tuple[int, ...]:
    """So many layers of the teacher, chosen by what each changes of pieces of held-out code, int [tokens]."""
    import torch

    from codemill.compress.models.decoders import load_whole, resolve_decoder
    from codemill.compress.models.passing import watched
    from codemill.compress.search.blocks import choose_layers, state_changes

    teacher: Any = load_whole(resolve_decoder(recipe.model))
    stack = teacher.model
    layers = range(len(stack.layers) + 1)

    def states() -> Iterator[np.ndarray]:
        for piece in pieces:
            ids = torch.from_numpy(piece.astype(np.int64))[None]
            with watched(stack.layers, layers) as seen:
                stack(input_ids=ids, use_cache=False)
            yield torch.cat([seen[layer] for layer in layers]).transpose(0, 1).numpy()

    with torch.inference_mode():
        return choose_layers(state_changes(states()), count)


def _beginning(kept: KeptTokens) -> str:
    """The tokenizer with what every prompt begins with, where it does not say so itself (GGUF)."""
    from tokenizers import Tokenizer, processors

    from codemill.compress.models.causal import begin_of

    begin = kept.prompting.begin
    if not begin or begin_of(kept.tokenizer_json):
        return kept.tokenizer_json
    tokenizer = Tokenizer.from_str(kept.tokenizer_json)
    names = [tokenizer.id_to_token(number) for number in begin]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*names, "$A"],
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in dict.fromkeys(names)],
    )
    found: str = tokenizer.to_str()
    return found


def read_shape(folder: Path) -> Architecture:
    """The student's architecture."""
    facts = json.loads((folder / "architecture.json").read_text())
    return Architecture.from_json(facts["architecture"])
