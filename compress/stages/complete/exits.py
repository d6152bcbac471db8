"""Stage `exits` of completion: adapters and a controller on the decoder as it is, from what its layers said.

Writes exits.safetensors, exits.json (where they are, how often each agrees with the last layer, what leaves early) and
chances.npz: what the controller says of held-out tokens, and what would have been right.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codemill.compress.compute import Compute
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.stages.complete.labels import decoder_from, learns, open_decoder

if TYPE_CHECKING:
    from torch import Tensor

    from codemill.compress.distill.token_labels import TokenLabels
    from codemill.compress.exits.decoder import DecoderExits
    from codemill.export.decoder.shape import Exits

__all__ = ["VERSION", "read_exits", "stage", "write_exits"]

VERSION = 2
_FACTS, _WEIGHTS = "exits.json", "exits.safetensors"
_DISTIL = ("warmup", "validations", "patience")
_VALIDATED = 4096
"""Tokens that a validation looks at."""
_CONTROLLED = 65_536
"""Tokens that the controller learns from: it is three rows."""
_RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
_FEW, _FEW_AT = 0.3, 0.01
"""Share of tokens that should leave early, at this rate of changed ones, before a backbone may stay as it is."""
_ROWS = 1024


def stage(recipe: Recipe, compute: Compute) -> Stage:
    """Depends on the labels and on how exits are trained."""
    complete = recipe.complete
    settings = {
        "exits": [recipe.exits.epochs, recipe.exits.learning_rate],
        "distill": {name: getattr(recipe.distill, name) for name in _DISTIL},
        "complete": [
            *(complete.adapter_size, complete.labels, complete.gold, complete.batch_tokens),
            complete.precision,
        ],
        "seed": recipe.seed,
        "compute": asdict(compute),
    }

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        _train(recipe, compute, inputs, folder, report)

    return Stage(
        "exits",
        VERSION,
        ("labels", *decoder_from(recipe)),
        settings,
        ("torch",),
        work,
        findings=_findings,
    )


def _findings(folder: Path) -> str:
    found = json.loads((folder / _FACTS).read_text())
    if not found["layers"]:
        return "no exits were asked for"
    agreed = ", ".join(
        f"{share:.1%} after layer {layer}"
        for layer, share in zip(found["layers"], found["agrees"], strict=True)
    )
    leaving = ", ".join(
        f"{share:.1%} at {rate:g} of tokens changed" for rate, share in found["coverage"]
    )
    few = ""
    if not found["learned"] and dict(found["coverage"])[_FEW_AT] < _FEW:
        few = "; that is few: complete.tune_above lets the upper layers learn with them"
    return f"exits say what the last layer says of {agreed}; leaving early: {leaving}{few}"


@dataclass(frozen=True)
class _Seen:
    """What exits say of some tokens: states [exits, n, width], their likeliest tokens [exits, n]."""

    states: Tensor
    said: np.ndarray


def _train(recipe: Recipe, compute: Compute, inputs: Folders, folder: Path, report: Report) -> None:
    import torch
    from safetensors.torch import load_file

    from codemill.compress.distill.loop import Schedule, fit
    from codemill.compress.distill.token_labels import read_token_labels
    from codemill.compress.exits.controller import coverage, fit_controller
    from codemill.compress.exits.decoder import DecoderExits, LastHead, decided, shared_loss

    complete, labels = recipe.complete, inputs["labels"]
    facts = json.loads((labels / "decoder.json").read_text())
    after = tuple(facts["after"])
    if not after:
        (folder / _FACTS).write_text(json.dumps({"layers": []}))
        return
    model = open_decoder(recipe, inputs)
    width = model.weights.shape.width
    last = LastHead.of(model.weights)
    train, held_out = (read_token_labels(labels / name) for name in ("train", "validation"))
    exits = DecoderExits(last, after, complete.adapter_size or width, recipe.seed)
    if learns(recipe):
        # learned with the student already; here, what rounding its weights has changed
        exits.load_state_dict(load_file(inputs["student"] / _WEIGHTS))
    generator = torch.Generator()

    def loss_of(batch: np.ndarray) -> Tensor:
        rows = np.sort(batch)
        # the same others whenever this batch comes: a run that was killed goes on as it would have
        generator.manual_seed(recipe.seed + int(rows[0]) * 31 + int(rows[-1]))
        hidden = torch.from_numpy(train.hidden[rows].astype(np.float32))
        with torch.autocast("cpu", torch.bfloat16, enabled=compute.bf16):
            states = [exits.state(number, hidden[:, number]) for number in range(len(after))]
            return shared_loss(
                last,
                states,
                torch.from_numpy(train.likeliest[rows].astype(np.int64)),
                torch.from_numpy(train.logits[rows]),
                torch.from_numpy(train.gold[rows].astype(np.int64)),
                complete.gold,
                generator,
            )

    some = np.linspace(0, len(held_out.gold) - 1, min(_VALIDATED, len(held_out.gold))).astype(int)

    def validate() -> float:
        said = _seen(exits, held_out, some, compute.bf16).said
        return float((said == held_out.likeliest[some, 0]).mean())

    schedule = replace(
        Schedule.of(recipe.distill, compute.bf16),
        epochs=recipe.exits.epochs,
        learning_rate=recipe.exits.learning_rate,
    )
    batches = _batches(len(train.gold), complete.batch_tokens, recipe.exits.epochs, recipe.seed)
    exits.controller.requires_grad_(False)
    points = fit(
        exits,
        batches,
        loss_of,
        schedule,
        validate,
        folder,
        lambda share, what: report(0.9 * share, what),
    )
    exits.controller.requires_grad_(True)
    report(0.9, "the controller learns")
    chosen = np.linspace(0, len(train.gold) - 1, min(_CONTROLLED, len(train.gold))).astype(int)
    seen = _seen(exits, train, chosen, compute.bf16)
    wanted = decided(complete.labels, seen.said, train.likeliest[chosen, 0], train.gold[chosen])
    fit_controller(exits.controller, seen.states, torch.from_numpy(wanted), recipe.seed)
    every = np.arange(len(held_out.gold))
    judged = _seen(exits, held_out, every, compute.bf16)
    final = held_out.likeliest[:, 0]
    agrees = judged.said == final
    with torch.inference_mode():
        chances = exits.decisions(judged.states.float()).softmax(-1).numpy()
    write_exits(exits, folder)
    known = held_out.gold >= 0
    right = judged.said == held_out.gold
    np.savez(
        folder / "chances.npz",
        chances=chances[:, known].astype(np.float32),
        agrees=agrees[:, known],
        right=(final == held_out.gold)[known],
    )
    found = {
        "layers": after,
        "learned": learns(recipe),
        "agrees": agrees.mean(1).tolist(),
        "right": right[:, known].mean(1).tolist(),
        "final_right": float((final == held_out.gold)[known].mean()),
        "never_right": float((~right.any(0) & (final != held_out.gold))[known].mean()),
        "coverage": [(rate, coverage(chances, agrees, rate)) for rate in _RATES],
        "points": [asdict(point) for point in points],
    }
    (folder / _FACTS).write_text(json.dumps(found, indent=1))


def _seen(exits: DecoderExits, labels: TokenLabels, rows: np.ndarray, bf16: bool) -> _Seen:
    import torch

    states, said = [], []
    with torch.inference_mode():
        for start in range(0, len(rows), _ROWS):
            chosen = rows[start : start + _ROWS]
            hidden = torch.from_numpy(labels.hidden[chosen].astype(np.float32))
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                every = [
                    exits.state(number, hidden[:, number]) for number in range(len(exits.layers))
                ]
                found = torch.stack([exits.last.logits(state).argmax(-1) for state in every])
            said.append(found.numpy())
            states.append(torch.stack(every).to(torch.bfloat16 if bf16 else torch.float32))
    return _Seen(torch.cat(states, 1), np.concatenate(said, 1))


def _batches(tokens: int, size: int, epochs: float, seed: int) -> list[np.ndarray]:
    """Rows of each step: all tokens, shuffled anew for each pass."""
    generator = np.random.default_rng(seed)
    size = min(size, tokens)
    steps = max(1, round(tokens * epochs / size))
    found: list[np.ndarray] = []
    while len(found) < steps:
        order = generator.permutation(tokens).astype(np.int32)
        found += [order[start : start + size] for start in range(0, tokens - size + 1, size)]
    return found[:steps]


def write_exits(exits: DecoderExits, folder: Path) -> None:
    """Their weights (safetensors)."""
    from safetensors.torch import save_file

    save_file(exits.state_dict(), folder / _WEIGHTS)


def read_exits(recipe: Recipe, inputs: Folders) -> Exits | None:
    """What the stage trained, for export; None where there are none."""
    from safetensors.torch import load_file

    from codemill.compress.exits.decoder import DecoderExits, LastHead

    folder = inputs["exits"]
    after = json.loads((folder / _FACTS).read_text())["layers"]
    if not after:
        return None
    model = open_decoder(recipe, inputs)
    last = LastHead.of(model.weights)
    state: dict[str, Any] = load_file(folder / _WEIGHTS)
    inner = state["adapters.0.down.weight"].shape[1]
    exits = DecoderExits(last, after, inner, recipe.seed)
    exits.load_state_dict(state)
    return exits.as_exits()
