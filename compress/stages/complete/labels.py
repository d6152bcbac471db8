"""Stage `labels` of completion: the decoder's graphs without exits, and what they say of every token learned from.

Writes rounded.safetensors (matrices rounded by what they are multiplied with), train/ and validation/
(token_labels.py), and decoder.json. Labels are of the files at the precision that ships: what exits will see is what
they learn from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
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
    from codemill.export.decoder.rounding import Rounding
    from codemill.export.decoder.shape import DecoderWeights

__all__ = [
    "RELABELLED",
    "ROUNDED",
    "STUDENT",
    "VERSION",
    "after_of",
    "chooses_tokens",
    "decoder_from",
    "learns",
    "model_identity",
    "open_decoder",
    "open_decoder_of",
    "rounding_of",
    "stage",
]

VERSION = 4
STUDENT = "student"
ROUNDED = "rounded.safetensors"
_GRAPHS = "graphs"
RELABELLED = 262_144
"""Tokens that exits learn from once more where they learned with their decoder: only rounding has changed it."""


def stage(recipe: Recipe, compute: Compute) -> Stage:
    """Depends on the decoder, the corpus, the precision and where the exits are."""
    complete = recipe.complete
    settings = {
        "model": None if learns(recipe) else model_identity(recipe),
        "precision": complete.precision,
        "after": recipe.exits.after,
        "tokens": complete.piece_tokens,
        "likeliest": complete.likeliest,
        "rounding": [
            *(complete.rounding_pieces, complete.rounding_loss, complete.block),
            *(["symmetric"] * complete.symmetric),
        ],
        "budget": None if recipe.student.init == "whole" else recipe.budget.size_bytes,
        "threads": compute.threads,
    }

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        _label(recipe, compute.threads, inputs, folder, report)

    libraries = ("onnxruntime", "tokenizers", "transformers")
    return Stage(
        "labels",
        VERSION,
        ("corpus", *(() if recipe.student.init == "whole" else ("search",)), *decoder_from(recipe)),
        settings,
        libraries,
        work,
        findings=_findings,
    )


def _findings(folder: Path) -> str:
    found = json.loads((folder / "decoder.json").read_text())
    places = ", ".join(map(str, found["after"]))
    eight = f"at 8 bits: {', '.join(found['eight'])}; " if found["eight"] else ""
    exits = f"exits after layers {places} of {found['layers']}" if places else "no exits"
    return (
        f"{eight}{found['tokens']:,} tokens labelled; {exits}; the last layer says what the file says of "
        f"{found['right']:.1%} of held-out ones"
    )


def learns(recipe: Recipe) -> bool:
    """Whether what completes learns: a student, or a teacher that stays whole in its upper layers."""
    return recipe.student.init != "whole" or recipe.complete.tune_above is not None


def chooses_tokens(recipe: Recipe) -> bool:
    """Whether a stage of its own says which tokens a decoder that stays whole keeps: all, where it only learns."""
    complete = recipe.complete
    whole = recipe.student.init == "whole"
    return whole and (complete.vocab_size is not None or complete.tune_above is not None)


def decoder_from(recipe: Recipe) -> tuple[str, ...]:
    """The stage that the decoder is made in, if any."""
    if learns(recipe):
        return ("student",)
    return ("tokens",) if chooses_tokens(recipe) else ()


def open_decoder(recipe: Recipe, inputs: Folders) -> CausalModel:
    """The decoder that completes, its weights read when asked for: the student, or the teacher with its tokens."""
    if learns(recipe):
        from codemill.compress.models.causal import open_causal

        return open_causal(inputs["student"] / STUDENT)
    model = open_decoder_of(recipe.model)
    if not chooses_tokens(recipe):
        return model
    from codemill.compress.models.fewer_tokens import read_tokens, with_fewer_tokens

    return with_fewer_tokens(model, read_tokens(inputs["tokens"]))


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


def rounding_of(
    recipe: Recipe,
    weights: DecoderWeights,
    pieces: Mapping[str, Sequence[np.ndarray]],
    folder: Path,
    threads: int,
    report: Report,
    most_loss: float | None,
    room: int | None = None,
) -> Rounding:
    """A decoder rounded by pieces of `train`, at 8 bits where it loses most on `validation`: as `round_decoder`."""
    from codemill.export.decoder.bundle import PRECISIONS
    from codemill.export.decoder.mixed import round_decoder

    complete = recipe.complete
    return round_decoder(
        weights,
        PRECISIONS[complete.precision],
        pieces["train"][: complete.rounding_pieces],
        pieces["validation"],
        most_loss,
        complete.block,
        folder,
        threads,
        report,
        room,
        complete.symmetric,
    )


def _room(recipe: Recipe, inputs: Folders) -> int | None:
    """Bytes that a student's budget leaves beyond what all matrices take as they were planned."""
    if recipe.student.init == "whole" or recipe.budget.size_bytes is None:
        return None
    planned = json.loads((inputs["search"] / "architecture.json").read_text())["size_bytes"]
    return max(0, recipe.budget.size_bytes - int(planned))


def _label(recipe: Recipe, threads: int, inputs: Folders, folder: Path, report: Report) -> None:
    from codemill.compress.distill.token_labels import by_graphs, label_pieces
    from codemill.compress.models.causal import pieces_of
    from codemill.export.decoder.by_text import SCRATCH
    from codemill.export.decoder.rounding import read_rounding, write_rounding
    from codemill.export.decoder.running import open_graphs
    from codemill.export.decoder.write import write_decoder
    from codemill.runtime.atomic import write_atomically

    complete, graphs, facts = recipe.complete, folder / _GRAPHS, folder / "decoder.json"
    if facts.is_file():
        # all is there but for the end of a run that was killed
        shutil.rmtree(graphs, ignore_errors=True)
        return
    model = open_decoder(recipe, inputs)
    shape = model.weights.shape
    after = after_of(recipe, shape.layers)
    longest = complete.piece_tokens
    pieces = {
        name: pieces_of(
            read_texts(inputs["corpus"], name),
            model.tokenizer_json,
            longest,
            model.prompting.begin,
        )
        for name in ("train", "validation")
    }
    if learns(recipe):
        ends = np.cumsum([len(piece) for piece in pieces["train"]])
        enough = int(np.searchsorted(ends, RELABELLED)) + 1
        pieces["train"] = pieces["train"][:enough]
    for left in folder.glob(f"{SCRATCH}*"):
        # of a run that was killed
        shutil.rmtree(left)
    if not (folder / ROUNDED).is_file():
        rounding = rounding_of(
            recipe,
            model.weights,
            pieces,
            folder,
            threads,
            lambda share, what: report(0.1 * share, what),
            complete.rounding_loss,
            _room(recipe, inputs),
        )
        write_rounding(folder / ROUNDED, rounding)
    rounding = read_rounding(folder / ROUNDED)
    report(0.1, "writing the decoder's graphs")
    shutil.rmtree(graphs, ignore_errors=True)
    write_decoder(model.weights, graphs, rounding, after, longest)
    parts = open_graphs(graphs, shape, after, threads)
    likeliest = min(complete.likeliest, shape.vocab_size)
    label = by_graphs(parts, longest, likeliest)
    if not after:
        # nothing learns from labels, and held-out ones say how often the last layer is right
        del pieces["train"]
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
            "tokens": share.get("train", 0),
            "eight": rounding.eight,
            "right": float((labels.likeliest[known, 0] == labels.gold[known]).mean()),
        }
    )
    write_atomically(facts, lambda file: file.write(text.encode()))
    shutil.rmtree(graphs)
