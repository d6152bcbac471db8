"""Stage `labels` of completion: the decoder's graphs without exits, and what they say of every token learned from.

Writes rounded.safetensors (matrices rounded by what they are multiplied with), train/ and validation/
(token_labels.py), and decoder.json. Labels are of the files at the precision that ships: what exits will see is what
they learn from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from codemill.compress.compute import Compute
from codemill.compress.exits.decoder import exits_after
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.stages.complete.corpus import read_texts
from codemill.errors import RecipeError

if TYPE_CHECKING:
    from codemill.compress.models.causal import CausalModel
    from codemill.export.quantize.blocks import Blocks

__all__ = [
    "ROUNDED",
    "STUDENT",
    "VERSION",
    "after_of",
    "is_cut",
    "model_identity",
    "open_decoder",
    "open_decoder_of",
    "pieces_of",
    "stage",
]

VERSION = 1
STUDENT = "student"
ROUNDED = "rounded.safetensors"
_GRAPHS = "graphs"
_SHORTEST = 16
"""Tokens of a piece that is worth its run."""


def stage(recipe: Recipe, compute: Compute) -> Stage:
    """Depends on the decoder, the corpus, the precision and where the exits are."""
    complete = recipe.complete
    settings = {
        "model": None if is_cut(recipe) else model_identity(recipe),
        "precision": complete.precision,
        "after": recipe.exits.after,
        "tokens": complete.piece_tokens,
        "likeliest": complete.likeliest,
        "rounding_pieces": complete.rounding_pieces,
        "threads": compute.threads,
    }

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        _label(recipe, compute.threads, inputs, folder, report)

    libraries = ("onnxruntime", "tokenizers", "transformers")
    needed = ("corpus", "student") if is_cut(recipe) else ("corpus",)
    return Stage("labels", VERSION, needed, settings, libraries, work, findings=_findings)


def _findings(folder: Path) -> str:
    found = json.loads((folder / "decoder.json").read_text())
    places = ", ".join(map(str, found["after"])) or "none"
    return (
        f"{found['tokens']:,} tokens labelled; exits after layers {places} of {found['layers']}; the last layer says "
        f"what the file says of {found['right']:.1%} of them"
    )


def is_cut(recipe: Recipe) -> bool:
    """Whether what completes is a student, and not the teacher as it is."""
    return recipe.student.init != "whole"


def open_decoder(recipe: Recipe, inputs: Folders) -> CausalModel:
    """The decoder that completes, its weights read when asked for: the student, or the teacher itself."""
    if not is_cut(recipe):
        return open_decoder_of(recipe.model)
    from codemill.compress.models.causal import open_causal

    return open_causal(inputs["student"] / STUDENT)


def open_decoder_of(name: str) -> CausalModel:
    """A decoder by the name that a recipe has for it."""
    from codemill.compress.models.causal import open_causal
    from codemill.compress.models.decoders import resolve_decoder

    return open_causal(resolve_decoder(name))


def model_identity(recipe: Recipe) -> str:
    """What a stage's key holds of the decoder: a hash of its files."""
    from codemill.compress.models.decoders import gguf_in, resolve_decoder
    from codemill.compress.models.load import fingerprint
    from codemill.compress.stages.corpus import hash_of

    folder = resolve_decoder(recipe.model)
    packed = gguf_in(folder)
    return fingerprint(folder) if packed is None else hash_of(packed)


def after_of(recipe: Recipe, layers: int) -> tuple[int, ...]:
    """After how many layers the recipe has exits; RecipeError for one that is not below the last."""
    try:
        return exits_after(recipe.exits.after, layers)
    except ValueError as error:
        raise RecipeError(f"exits.after: {error}") from error


def pieces_of(
    texts: Sequence[str], tokenizer_json: str, tokens: int, begin: Sequence[int] = ()
) -> list[np.ndarray]:
    """Token ids of each text behind `begin`, as a prompt has them, cut; those that are too short are left out."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    found = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    cut = [np.asarray([*begin, *item.ids][:tokens], dtype=np.int32) for item in found]
    return [item for item in cut if len(item) >= _SHORTEST]


def _label(recipe: Recipe, threads: int, inputs: Folders, folder: Path, report: Report) -> None:
    from codemill.compress.distill.token_labels import backbone, by_graphs, label_pieces
    from codemill.export.decoder.bundle import PRECISIONS
    from codemill.export.decoder.rounding import read_rounded, rounded_by_text, write_rounded
    from codemill.export.decoder.write import same_bits, write_decoder
    from codemill.runtime.atomic import write_atomically

    complete, graphs, facts = recipe.complete, folder / _GRAPHS, folder / "decoder.json"
    if facts.is_file():
        # all is there but for the end of a run that was killed
        shutil.rmtree(graphs, ignore_errors=True)
        return
    with open_decoder(recipe, inputs) as model:
        shape = model.weights.shape
        after = after_of(recipe, shape.layers)
        longest = min(complete.piece_tokens, shape.max_tokens)
        pieces = {
            name: pieces_of(
                read_texts(inputs["corpus"], name),
                model.tokenizer_json,
                longest,
                model.prompting.begin,
            )
            for name in ("train", "validation")
        }
        bits = same_bits(PRECISIONS[complete.precision])
        if not (folder / ROUNDED).is_file():
            some = [piece.astype(np.int64) for piece in pieces["train"][: complete.rounding_pieces]]
            rounded: dict[str, Blocks] = {}
            if some and complete.precision != "fp32":
                rounded = rounded_by_text(
                    model.weights,
                    bits,
                    some,
                    folder,
                    threads,
                    lambda share: report(0.1 * share, "rounding the layers' matrices"),
                )
            write_rounded(folder / ROUNDED, rounded)
        report(0.1, "writing the decoder's graphs")
        shutil.rmtree(graphs, ignore_errors=True)
        write_decoder(model.weights, graphs, bits, after, longest, read_rounded(folder / ROUNDED))
        parts = backbone(graphs, shape, after, threads)
        likeliest = min(complete.likeliest, shape.vocab_size)
        label = by_graphs(parts, longest, likeliest)
        share = {name: sum(map(len, found)) for name, found in pieces.items()}
        total = sum(share.values())
        begun = 0.1
        try:
            for name, found in pieces.items():
                part = 0.9 * share[name] / total

                def said(done: float, what: str, begun: float = begun, part: float = part) -> None:
                    report(begun + part * done, what)

                labels = label_pieces(
                    label,
                    found,
                    folder / name,
                    said,
                    likeliest=likeliest,
                    exits=len(after),
                    width=shape.width,
                )
                begun += part
        finally:
            parts.close()
    # the last of them is validation
    known = labels.gold >= 0
    text = json.dumps(
        {
            "after": after,
            "layers": shape.layers,
            "tokens": share["train"],
            "right": float((labels.likeliest[known, 0] == labels.gold[known]).mean()),
        }
    )
    write_atomically(facts, lambda file: file.write(text.encode()))
    shutil.rmtree(graphs)
