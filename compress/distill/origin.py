"""What a student learns from the inside of the model it was cut out of: its embedding, its layers' outputs, the
relations between its queries, keys and values.

Both read the very same tokens, so that each of the student's has a counterpart: the tokens of a pruned vocabulary
are the origin's under other numbers, and the origin reads them under its own. (It is not the text as the origin
would cut it into tokens itself: where the student has to spell out a word, the origin reads it spelled out.) A
student with tokens of its own, or with layers that are no copies, has no such counterparts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from codemill.compress.distill.losses import cosine_distance, hidden_distance, relation_divergence
from codemill.compress.models.classifier import Classifier
from codemill.compress.models.pooling import Pooling, Tokenized, pad, pool, positions
from codemill.compress.models.surgery import layers_of
from codemill.compress.recipe import Distill
from codemill.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Origin", "Seen", "origin_loss", "recording", "relation_heads"]


@dataclass(frozen=True)
class Origin:
    """The model that a student was cut out of, which is not trained; on the device where the student is."""

    encoder: PreTrainedModel
    pooling: Pooling
    kept: Tensor
    """int64 [student's vocabulary]: the origin's number of each of its tokens"""
    copied_layers: tuple[int, ...]
    """the origin's layer that each of the student's was copied from"""


@dataclass
class Seen:
    """What was recorded of an encoder, an entry for each of its runs."""

    last: list[Tensor] = field(default_factory=list)
    """last hidden states, [batch, tokens, hidden]"""
    layers: dict[int, list[Tensor]] = field(default_factory=dict)
    """layer -> its outputs, [batch, tokens, hidden]"""
    vectors: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    """queries, keys and values of one layer, each [batch, tokens, heads x head size]"""


@contextmanager
def recording(
    encoder: PreTrainedModel, layers: Sequence[int], vectors_of: int | None
) -> Iterator[Seen]:
    """Record what goes through an encoder: last hidden states, outputs of `layers`, vectors of layer `vectors_of`."""
    seen = Seen(layers={layer: [] for layer in layers})
    stack = layers_of(encoder)
    with ExitStack() as hooks:

        def hook(module: nn.Module, take: Any) -> None:
            handle = module.register_forward_hook(take)
            hooks.callback(handle.remove)

        hook(encoder, lambda _module, _given, output: seen.last.append(output.last_hidden_state))
        for layer in layers:
            hook(stack[layer], _taker(seen.layers[layer]))
        if vectors_of is not None:
            parts = _projections(stack[vectors_of])
            apart: list[list[Tensor]] = [[] for _ in parts]
            for part, found in zip(parts, apart, strict=True):
                hook(part, _taker(found))
        yield seen
    if vectors_of is not None:
        for run in zip(*apart, strict=True):
            query, key, value = run if len(run) == 3 else run[0].chunk(3, -1)
            seen.vectors.append((query, key, value))


def _taker(found: list[Tensor]) -> Any:
    def take(_module: nn.Module, _given: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    return take


def _projections(layer: nn.Module) -> list[nn.Module]:
    """What makes a layer's queries, keys and values: three modules, or one that makes them side by side.

    A BERT's, a ModernBERT's (before positions are turned into it) or a T5's.
    """
    modules: Mapping[str, nn.Module] = dict(layer.named_modules())
    for names in (
        [f"attention.self.{name}" for name in ("query", "key", "value")],
        ["attn.Wqkv"],
        [f"layer.0.SelfAttention.{name}" for name in "qkv"],
    ):
        if all(name in modules for name in names):
            return [modules[name] for name in names]
    raise RecipeError(
        f"distill.losses.relations: a {type(layer).__name__} has no queries, keys and values that are known here; "
        "expected the layer of a BERT, a RoBERTa, a ModernBERT or a T5. Set it to 0"
    )


def _width(layer: nn.Module) -> int:
    """Of all queries of a layer, side by side."""
    parts = _projections(layer)
    return int(parts[0].out_features) * len(parts) // 3  # type: ignore[arg-type]


def relation_heads(student: PreTrainedModel, origin: Origin, settings: Distill) -> int:
    """In how many heads relations are formed.

    Raises RecipeError for a number that does not divide both widths, and for a layer that the origin has not.
    """
    stack = layers_of(origin.encoder)
    layer = settings.relation_layer
    if layer is not None and layer >= len(stack):
        raise RecipeError(
            f"distill.relation_layer is {layer}, and the model that the student is cut out of has {len(stack)} "
            f"layers; give one from 0 to {len(stack) - 1}"
        )
    widths = [_width(layers_of(student)[-1]), _width(stack[-1])]
    asked = settings.relation_heads
    if asked is None:
        config = origin.encoder.config
        most = int(config.num_attention_heads)
        return next(n for n in range(most, 0, -1) if not any(width % n for width in widths))
    if any(width % asked for width in widths):
        raise RecipeError(
            f"distill.relation_heads is {asked}, which does not divide {widths[0]} and {widths[1]}, the widths of "
            "all heads of the student and of the model it is cut out of; give one that does, or null"
        )
    return asked


def origin_loss(
    classifier: Classifier,
    seen: Seen,
    origin: Origin,
    texts: Tokenized | Mapping[int, np.ndarray],
    indices: Sequence[int],
    settings: Distill,
    heads: int,
    bf16: bool,
) -> Tensor:
    """The weighted sum of the losses that the origin teaches, the mean over the texts of these indices.

    seen: recorded of the classifier's encoder while it read these texts. texts: their tokens, by index, in the
    student's numbers, as many of each as the student read. heads: of the relations.
    """
    weights = settings.losses
    device = classifier.device
    layers = sorted(set(origin.copied_layers)) if weights.hidden else []
    stack = layers_of(origin.encoder)
    vectors_of = None
    if weights.relations:
        last = len(stack) - 1
        vectors_of = last if settings.relation_layer is None else settings.relation_layer
    total = torch.zeros((), device=device)
    for number, run in enumerate(classifier.runs(texts, indices)):
        ids, mask = pad([texts[index] for index in run], positions(classifier.encoder))
        ids, mask = origin.kept[ids].to(device), mask.to(device)
        with (
            torch.no_grad(),
            torch.autocast(device.type, torch.bfloat16, enabled=bf16),
            recording(origin.encoder, layers, vectors_of) as aim,
        ):
            origin.encoder(input_ids=ids, attention_mask=mask)
        share = len(run) / len(indices)
        if weights.embedding:
            mine = pool(seen.last[number], mask, classifier.pooling)
            theirs = pool(aim.last[0], mask, origin.pooling)
            apart = cosine_distance(
                functional.normalize(mine, dim=-1), functional.normalize(theirs, dim=-1)
            )
            total = total + weights.embedding * share * apart
        if weights.hidden:
            distances = [
                hidden_distance(seen.layers[layer][number], aim.layers[source][0], mask)
                for layer, source in enumerate(origin.copied_layers)
            ]
            total = total + weights.hidden * share * torch.stack(distances).mean()
        if weights.relations:
            divergences = [
                relation_divergence(mine, theirs, mask, heads)
                for mine, theirs in zip(seen.vectors[number], aim.vectors[0], strict=True)
            ]
            total = total + weights.relations * share * torch.stack(divergences).mean()
    return total
