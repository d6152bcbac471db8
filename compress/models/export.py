"""A torch encoder and its tokenizer -> a bundle folder, with embeddings of real text to hold the graphs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from codemill.compress.models.joined import tokenize_pairs
from codemill.compress.models.pooling import embed, pad, positions
from codemill.compress.models.tokenize import tokenize
from codemill.export.candidates import write_candidates
from codemill.export.classifier import ExitHead, LabelHead, write_classifier

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from codemill.compress.exits.heads import Exiting
    from codemill.compress.models.classifier import Classifier

__all__ = ["export_bundle", "export_classifier"]

_SAMPLE = (
    "Return the path without its extension.",
    "def stem(path):\n    name = path.rpartition('/')[2]\n    return name.rpartition('.')[0] or name",
)


def export_bundle(
    model: PreTrainedModel,
    folder: Path,
    *,
    heads: int,
    tokenizer_json: str,
    max_tokens: int,
    precisions: Sequence[str],
    name: str,
    architecture: Mapping[str, Any] | None = None,
) -> None:
    """Export with `export.candidates`, on a sample of two texts of unlike length."""
    ids, mask = pad(tokenize(tokenizer_json, _SAMPLE, max_tokens), positions(model))
    with torch.inference_mode():
        expected = embed(model, ids, mask).numpy()
    write_candidates(
        model,
        folder,
        heads=heads,
        tokenizer_json=tokenizer_json,
        max_tokens=max_tokens,
        precisions=precisions,
        name=name,
        sample=(ids.numpy(), mask.numpy()),
        expected=expected,
        architecture=architecture,
    )


def export_classifier(
    classifier: Classifier,
    folder: Path,
    *,
    labels: tuple[str, ...],
    heads: int,
    tokenizer_json: str,
    max_tokens: int,
    precisions: Sequence[str],
    name: str,
    architecture: Mapping[str, Any] | None = None,
    long: Literal["truncate", "split"] = "truncate",
    exiting: Exiting | None = None,
    joined: bool = False,
) -> None:
    """Export an encoder with its head with `export.classifier`, on a sample of two texts of unlike length.

    exiting: this classifier with heads after some of its layers, which are exported with it.
    joined: it is a cross-encoder, whose one text is the two of a pair.
    """
    if joined:
        tokens = tokenize_pairs(tokenizer_json, (_SAMPLE, (_SAMPLE[0], "")), max_tokens)
    else:
        tokens = tokenize(tokenizer_json, _SAMPLE, max_tokens)
    ids, mask = pad(tokens, positions(classifier.encoder))
    with torch.inference_mode():
        pooled = classifier.embed(ids, mask)
        logits = classifier.head(*(pooled[side : side + 1] for side in range(classifier.texts)))
        exits = () if exiting is None else _exit_heads(exiting, ids, mask)
    write_classifier(
        classifier.encoder,
        LabelHead(
            classifier.head,
            labels,
            2 if joined else classifier.texts,
            joined=joined,
            pooling=classifier.pooling,
            long=long,
            exits=exits,
        ),
        folder,
        heads=heads,
        tokenizer_json=tokenizer_json,
        max_tokens=max_tokens,
        precisions=precisions,
        name=name,
        sample=(ids.numpy(), mask.numpy()),
        pooled=pooled.numpy(),
        logits=logits[0].numpy(),
        architecture=architecture,
    )


def _exit_heads(exiting: Exiting, ids: torch.Tensor, mask: torch.Tensor) -> tuple[ExitHead, ...]:
    """The heads, and what torch makes of the sample at each of them."""
    states = exiting.embed(ids, mask)
    sides = [states[:, side : side + 1] for side in range(exiting.whole.texts)]
    judged = exiting.judge(sides)
    return tuple(
        ExitHead(layer, head, states[number].numpy(), judged[number][0].numpy())
        for number, (layer, head) in enumerate(zip(exiting.layers, exiting.heads, strict=True))
    )
