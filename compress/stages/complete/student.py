"""Stage `student` of completion: cut out of the teacher, distilled on its likeliest tokens, its exits with it.

Where a layer stands for several of the teacher's, it learns to do what these do first, by itself (blocks.py), from
states that are kept with the first labels. Or the teacher itself, whose upper layers learn so (`complete.tune_above`):
what its lower ones give is kept with the labels, and training starts from there. The teacher reads the student's own
tokens, which are some of its own, and labels each of them once. Exits learn together with the layers, so that leaving
early is natural to them (LITE, 2310.18581; GREEN-CODE, 2501.11006). Writes student/ (a Llama of transformers with its
tokenizer), exits.safetensors and student.json.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codemill.compress.compute import Compute
from codemill.compress.pipeline import Folders, Report, Stage
from codemill.compress.recipe import Recipe
from codemill.compress.stages.complete.corpus import read_texts
from codemill.compress.stages.complete.exits import write_exits
from codemill.compress.stages.complete.labels import STUDENT, after_of, model_identity
from codemill.compress.stages.complete.search import read_shape

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaConfig, LlamaForCausalLM

    from codemill.compress.architecture import Architecture
    from codemill.compress.distill.blocks import BlockLessons
    from codemill.compress.distill.loop import Schedule
    from codemill.compress.distill.team import Team
    from codemill.compress.distill.token_labels import Labelled, Labeller, TokenLabels
    from codemill.compress.models.fewer_tokens import KeptTokens

__all__ = ["VERSION", "stage"]

VERSION = 4
_FACTS = "student.json"
_AT_ONCE = 16
"""Pieces that the teacher reads at once."""
_EXIT_WEIGHT = 0.5
"""Of all exits together, the last layer weighing 1."""
_EXIT_SHARE = 0.25
"""Of a batch's tokens, those that exits learn from: a head for each exit and token takes as long as all layers do."""
_LABEL_SHARE = 0.35
"""Of the stage's time, about."""
_VALIDATED = 32
_HALF = 65504.0
"""The largest number of 16 bits."""
_BLOCKS = "blocks"
_BLOCK_RATE = 2
"""The learning rate of layers that learn alone, in those of a whole student."""
_DISTIL = ("epochs", "learning_rate", "warmup", "validations", "patience")


def stage(recipe: Recipe, compute: Compute) -> Stage:
    """Depends on the shape, the corpus, the teacher and on how the student is trained."""
    complete = recipe.complete
    settings = {
        "model": model_identity(recipe),
        "after": recipe.exits.after,
        "distill": {name: getattr(recipe.distill, name) for name in _DISTIL},
        "complete": [
            *(complete.adapter_size, complete.gold, complete.batch_tokens),
            *(complete.piece_tokens, complete.likeliest, complete.tune_above),
            # a decoder that stays whole has no blocks
            complete.block_tokens if complete.tune_above is None else None,
        ],
        "seed": recipe.seed,
        "compute": asdict(compute),
    }

    def work(inputs: Folders, folder: Path, report: Report) -> None:
        _train(recipe, compute, inputs, folder, report)

    libraries = ("torch", "transformers", "tokenizers")
    needed = ("corpus", "tokens" if complete.tune_above is not None else "search")
    return Stage("student", VERSION, needed, settings, libraries, work, findings=_findings)


def _findings(folder: Path) -> str:
    found = json.loads((folder / _FACTS).read_text())
    points = found["points"]
    return (
        f"{found['parameters'] / 1e6:.1f} M parameters, {found['tokens']:,} tokens seen {found['epochs']:g} times: the "
        f"next one right in {max(point['metric'] for point in points):.1%} of held-out text (teacher "
        f"{found['teacher']:.1%})"
    )


def _train(recipe: Recipe, compute: Compute, inputs: Folders, folder: Path, report: Report) -> None:
    import torch

    from codemill.compress.distill.loop import Schedule, fit
    from codemill.compress.distill.team import Team
    from codemill.compress.exits.decoder import DecoderExits, LastHead, shared_loss
    from codemill.compress.models.decoders import load_whole, resolve_decoder
    from codemill.compress.models.fewer_tokens import read_tokens
    from codemill.compress.models.llama import cut_decoder
    from codemill.runtime.atomic import write_atomically

    complete = recipe.complete
    if (folder / _FACTS).is_file():
        # all is there but for the end of a run that was killed
        _clear(folder)
        return
    above = complete.tune_above or 0
    tokens = read_tokens(inputs["tokens" if above else "search"])
    teacher: Any = load_whole(resolve_decoder(recipe.model))
    architecture = (
        _whole(teacher.config, len(tokens.ids)) if above else read_shape(inputs["search"])
    )
    after = after_of(recipe, architecture.layers)
    student: Any = cut_decoder(teacher, architecture, tokens.ids)
    student.config.eos_token_id = list(tokens.prompting.end)
    lessons = _lessons(student, teacher, architecture, compute) if complete.block_tokens else None
    if lessons is not None and not lessons.places:
        lessons = None
    given = _labelled(
        *(recipe, compute, inputs["corpus"], folder / "labels", teacher, tokens),
        (above,) if above else () if lessons is None else lessons.places,
        lambda share, what: report(_LABEL_SHARE * share, what),
    )
    del teacher
    train, validation = given["train"], given["validation"]
    lengths = [len(piece) for piece in train.pieces]
    batches = _batches(lengths, complete.batch_tokens, recipe.distill.epochs, recipe.seed)
    every = range(len(validation.pieces))
    width = architecture.hidden_size
    head = student.lm_head.weight
    last = LastHead(student.model.norm.weight, None, head, None, student.config.rms_norm_eps, "rms")
    exits = DecoderExits(last, after, complete.adapter_size or width, recipe.seed)
    exits.controller.requires_grad_(False)
    if above:
        # the head too, where it is the words' own table
        for part in (student.model.embed_tokens, *student.model.layers[:above]):
            part.requires_grad_(False)
    both = torch.nn.ModuleDict({"student": student, "exits": exits}).to(compute.device)
    generator = torch.Generator()

    def hidden(of: Labelled, batch: Sequence[int]) -> tuple[Tensor, list[Tensor], np.ndarray]:
        """What the head takes, what is there at each exit, [tokens, width], and the labels' rows of these tokens."""
        rows, ids, real = of.batch(batch, head.device)
        # padding is behind, where causal attention never looks
        if above:
            x = torch.zeros(*ids.shape, width, device=ids.device)
            x[real] = torch.from_numpy(of.labels.hidden[rows, 0].astype(np.float32)).to(x.device)
        else:
            x = student.model.embed_tokens(ids)
        angles = student.model.rotary_emb(x, torch.arange(ids.shape[1], device=ids.device)[None])
        at_exits = []
        for number in range(above, architecture.layers):
            if number in after:
                at_exits.append(x[real])
            x = student.model.layers[number](x, position_embeddings=angles)
        return student.model.norm(x)[real], at_exits, rows

    def loss_of(batch: np.ndarray) -> Tensor:
        generator.manual_seed(recipe.seed + int(batch[0]) * 31 + int(batch[-1]))
        kind = head.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=compute.bf16):
            state, at_exits, rows = hidden(train, batch.tolist())
            known = train.labels
            likely, gold = (
                torch.from_numpy(found[rows].astype(np.int64)).to(head.device)
                for found in (known.likeliest, known.gold)
            )
            logits = torch.from_numpy(known.logits[rows]).to(head.device)

            def lost(states: Sequence[Tensor], of: Tensor | slice) -> Tensor:
                return shared_loss(
                    last, states, likely[of], logits[of], gold[of], complete.gold, generator
                )

            found = lost([state], slice(None))
            if not after:
                return found
            some = torch.randperm(len(rows), generator=generator)
            some = some[: max(1, round(_EXIT_SHARE * len(rows)))].to(head.device)
            early = [exits.state(number, x[some]) for number, x in enumerate(at_exits)]
            return (found + _EXIT_WEIGHT * lost(early, some)) / (1 + _EXIT_WEIGHT)

    @torch.inference_mode()
    def validate() -> float:
        right = total = 0
        for start in every[::_AT_ONCE]:
            with torch.autocast(head.device.type, torch.bfloat16, enabled=compute.bf16):
                state, _, rows = hidden(validation, every[start : start + _AT_ONCE])
                said = last.logits(state).argmax(-1).cpu().numpy()
            gold = validation.labels.gold[rows]
            right += int((said == gold).sum())
            total += int((gold >= 0).sum())
        return right / total

    facts: dict[str, Any] = {"cut": validate()}
    schedule, team = Schedule.of(recipe.distill, compute.bf16), Team(device=compute.device)
    begun = _LABEL_SHARE
    if lessons is not None:
        kept = len(train.labels.hidden)
        part = (1 - begun) * kept / (kept + sum(lengths) * recipe.distill.epochs)

        def alone(share: float, what: str, begun: float = begun, part: float = part) -> None:
            report(begun + part * share, f"layer by layer: {what}")

        facts["blocks"] = _by_block(lessons, given, recipe, schedule, team, folder / _BLOCKS, alone)
        both.to(compute.device)
        begun += part
    facts["before"] = facts["cut"] if lessons is None else validate()
    points = fit(
        *(both, batches, loss_of, schedule, validate, folder),
        lambda share, what: report(begun + (1 - begun) * share, what),
        team,
    )
    student.save_pretrained(folder / STUDENT)
    (folder / STUDENT / "tokenizer.json").write_text(tokens.tokenizer_json, encoding="utf-8")
    write_exits(exits, folder)
    facts |= {
        "parameters": sum(value.numel() for value in student.parameters()),
        "tokens": sum(lengths),
        "epochs": recipe.distill.epochs,
        "teacher": _right(validation.labels),
        "points": [asdict(point) for point in points],
    }
    text = json.dumps(facts, indent=1).encode()
    write_atomically(folder / _FACTS, lambda file: file.write(text))
    _clear(folder)


def _clear(folder: Path) -> None:
    for name in ("labels", _BLOCKS):
        shutil.rmtree(folder / name, ignore_errors=True)


def _lessons(
    student: LlamaForCausalLM,
    teacher: LlamaForCausalLM,
    architecture: Architecture,
    compute: Compute,
) -> BlockLessons:
    """What each of the student's layers learns alone."""
    from codemill.compress.distill.blocks import BlockLessons
    from codemill.compress.search.blocks import blocks_of

    layers = teacher.model.layers
    blocks = blocks_of(architecture.copied_layers, len(layers))
    norms = [layer.input_layernorm.weight for layer in layers] + [teacher.model.norm.weight]
    heard = [norms[end].detach().clone() for _, end in blocks]
    narrowed = architecture.intermediate_size < teacher.config.intermediate_size
    return BlockLessons(student, blocks, heard, narrowed, compute.bf16)


def _by_block(
    lessons: BlockLessons,
    given: Mapping[str, Labelled],
    recipe: Recipe,
    schedule: Schedule,
    team: Team,
    folder: Path,
    report: Report,
) -> dict[str, Any]:
    """Let layers that stand for a block learn it, once through all tokens whose states were kept; what came of it."""
    from codemill.compress.distill.loop import fit

    folder.mkdir(exist_ok=True)
    train = given["train"]
    tokens = len(train.labels.hidden)
    kept = train.pieces[: int(np.searchsorted(train.starts, tokens))]
    points = fit(
        lessons.trained(),
        _batches([len(piece) for piece in kept], recipe.complete.batch_tokens, 1, recipe.seed),
        lambda batch: lessons.error(train, batch.tolist()),
        replace(schedule, learning_rate=_BLOCK_RATE * schedule.learning_rate),
        lambda: lessons.learned(given["validation"], _AT_ONCE),
        *(folder, report, team),
    )
    return {
        "layers": lessons.numbers,
        "blocks": list(lessons.blocks),
        "tokens": tokens,
        "points": [asdict(point) for point in points],
    }


def _labelled(
    recipe: Recipe,
    compute: Compute,
    corpus: Path,
    folder: Path,
    teacher: LlamaForCausalLM,
    tokens: KeptTokens,
    places: tuple[int, ...],
    report: Report,
) -> dict[str, Labelled]:
    """Pieces of `train` and `validation` and what the teacher says of them, with its states at `places`."""
    from codemill.compress.distill.token_labels import Labelled, label_pieces
    from codemill.compress.models.causal import pieces_of

    complete = recipe.complete
    pieces = {
        name: pieces_of(
            read_texts(corpus, name),
            tokens.tokenizer_json,
            complete.piece_tokens,
            tokens.prompting.begin,
        )
        for name in ("train", "validation")
    }
    pieces["validation"] = pieces["validation"][:_VALIDATED]
    aims = complete.tune_above is None
    with_hidden = None
    if aims:
        ends = np.cumsum([len(piece) for piece in pieces["train"]])
        with_hidden = int(np.searchsorted(ends, complete.block_tokens)) + 1
    likeliest = min(complete.likeliest, len(tokens.ids))
    label = _by_teacher(teacher.to(compute.device), tokens.ids, likeliest, places, aims, compute)
    total = sum(map(len, (*pieces["train"], *pieces["validation"])))
    done, given = 0, {}
    for name, found in reversed(pieces.items()):
        count = sum(map(len, found))

        def said(share: float, what: str, done: int = done, count: int = count) -> None:
            report((done + share * count) / total, what)

        done += count
        labels = label_pieces(
            *(label, found, folder / name, said),
            likeliest=likeliest,
            exits=len(places),
            width=teacher.config.hidden_size,
            at_once=_AT_ONCE,
            with_hidden=with_hidden if name == "train" else None,
        )
        given[name] = Labelled(found, labels)
    return given


def _whole(config: LlamaConfig, vocab_size: int) -> Architecture:
    """All layers of a decoder, with so many tokens."""
    from codemill.compress.models.llama import decoder_architecture

    whole = decoder_architecture(config)
    return replace(whole, vocab_size=vocab_size, copied_layers=tuple(range(whole.layers)))


def _right(labels: TokenLabels) -> float:
    known = labels.gold >= 0
    return float((labels.likeliest[known, 0] == labels.gold[known]).mean())


def _by_teacher(
    teacher: Any,
    kept: Sequence[int],
    likeliest: int,
    places: tuple[int, ...],
    aims: bool,
    compute: Compute,
) -> Labeller:
    """By the teacher in torch, of whose tokens the student has `kept`; with its states before the layers `places`.

    aims: these states are what layers by themselves begin with and learn to give; what 16 bits do not hold is cut.
    """
    import torch

    from codemill.compress.models.passing import watched

    ids = torch.tensor(list(kept), device=teacher.device)
    matrix = teacher.lm_head.weight.detach()[ids]
    stack = teacher.model

    @torch.inference_mode()
    def label(pieces: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        def rows_of(states: Tensor) -> Tensor:
            return torch.cat([states[row, : len(piece)] for row, piece in enumerate(pieces)])

        found = [ids[torch.from_numpy(piece.astype(np.int64)).to(ids.device)] for piece in pieces]
        padded = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)
        with (
            torch.autocast(ids.device.type, torch.bfloat16, enabled=compute.bf16),
            watched(stack.layers, places) as seen,
        ):
            given = stack(input_ids=padded, use_cache=False)
        real = rows_of(given.last_hidden_state)
        states = [rows_of(seen[place]) for place in places]
        hidden = torch.stack(states, 1) if states else real[:, None][:, :0]
        if aims:
            # a few states are huge, and one that is as far as 16 bits go is as good to learn from
            hidden = hidden.clamp(-_HALF, _HALF)
        # scores in full: two that are near in bfloat16 may be apart
        values, tops = torch.nn.functional.linear(real.float(), matrix).topk(likeliest)
        return {
            "hidden": hidden.float().cpu().numpy(),
            "likeliest": tops.cpu().numpy(),
            "logits": values.float().cpu().numpy(),
        }

    return label


def _batches(
    lengths: Sequence[int], batch_tokens: int, epochs: float, seed: int
) -> list[np.ndarray]:
    """Pieces of each step."""
    from codemill.compress.distill.loop import plan_batches

    return plan_batches(lengths, max(1, batch_tokens // max(lengths)), epochs, seed)
